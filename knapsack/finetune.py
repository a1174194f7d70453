"""LoRA fine-tuning: one recipe and one rendering of the text, whichever backend loads the model.

``finetune`` writes ``<output>/adapter/`` (a standard PEFT folder) and, last of all, ``<output>/training.json``, which
says from what the adapter was made. A finished training is not repeated; an interrupted one goes on from its last
whole checkpoint; a damaged one is named on stderr and done again. Heavy imports are inside functions: a backend may
have to be imported before the libraries it patches.
"""

import hashlib
import json
import math
import os
import random
import resource
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from knapsack import nano, prompts
from knapsack.files import (
    CorruptFileError,
    check_digest,
    file_digest,
    read_digests,
    read_json,
    read_sealed,
    tell,
    unwritable,
    write_digests,
    write_json,
    write_sealed,
    writing,
)

WIDTH_STEP = 128  # batches are filled up to multiples of so many tokens: kernels are kept in memory for every shape
BACKENDS = ("peft",)
SCHEDULERS = ("cosine", "linear", "constant_with_warmup")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all of a Qwen3 layer


def _within(default: float, low: float, high: float):
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters: two adapters made with one recipe differ by their rows alone.

    Raises ValueError naming field, value and bound.
    """

    rank: int = _within(32, 1, 1024)
    alpha: int = _within(64, 1, 4096)
    dropout: float = _within(0.0, 0.0, 0.9)
    target_modules: tuple[str, ...] = LINEAR
    learning_rate: float = _within(8e-4, 1e-7, 1.0)  # of AdamW
    epochs: float = _within(1.0, 0.01, 100.0)
    batch_tokens: int = _within(2048, 16, 10_000_000)  # of a batch, padding counted; a longer row is a batch of its own
    batch_rows: int = _within(64, 1, 10_000)  # of a batch at most
    accumulation: int = _within(1, 1, 10_000)  # batches per optimizer step
    warmup: float = _within(0.03, 0.0, 0.99)  # share of the steps
    weight_decay: float = _within(0.01, 0.0, 1.0)
    scheduler: str = "cosine"
    max_length: int = _within(4096, 16, 1_000_000)  # tokens; a longer row is an error, never cut
    load_in_4bit: bool = False
    gradient_checkpointing: bool = False
    validation_share: float = _within(0.05, 0.0, 0.5)  # of the rows, held out
    evaluations: int = _within(5, 1, 1000)  # on the held-out rows, spread over the training
    seed: int = _within(0, 0, 2**32 - 1)

    def __post_init__(self):
        for item in fields(self):
            value, kinds = getattr(self, item.name), (int, float) if item.type is float else (item.type,)
            if item.name == "target_modules":
                right = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
                need, value = f"names of modules, such as {LINEAR}", tuple(value) if right else value
            elif item.name == "scheduler":
                right, need = value in SCHEDULERS, f"one of {SCHEDULERS}"
            elif item.type is bool:
                right, need = isinstance(value, bool), "True or False"
            else:
                low, high = item.metadata["low"], item.metadata["high"]
                right = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
                need = f"{'a whole number' if item.type is int else 'a number'} from {low} to {high}"
                value = float(value) if right and item.type is float else value  # 1 and 1.0 are one recipe
            if not right:
                raise ValueError(f"Recipe.{item.name} = {value!r}: needs {need}")
            object.__setattr__(self, item.name, value)


@dataclass(frozen=True)
class TrainingReport:
    """What a training was and cost.

    ``losses``: {"step", "loss", "accuracy"} per logging interval, means over its steps; ``validation``: the same on
    the held-out rows, from step 0 on, means over their batches. ``tokens``, ``labelled_tokens``: one pass over the
    training rows. ``seconds`` (with validation and checkpoints), ``trained_tokens`` (without padding) and
    ``tokens_per_second`` are those of the last session, which began at step ``resumed_from``. ``peak_memory``: bytes
    of the process so far, or allocated on the GPU. ``adapter_bytes``: size of adapter_model.safetensors.
    """

    base: str
    backend: str
    device: str
    recipe: dict
    rows: int
    validation_rows: int
    tokens: int
    labelled_tokens: int
    steps: int
    resumed_from: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory: int
    adapter_bytes: int
    trained_parameters: int
    parameters: int
    losses: list[dict]
    validation: list[dict]


def tokenize_rows(rows: list[dict], tokenizer):
    """Rows {"messages": [...]} as a datasets.Dataset of ``input_ids`` and ``labels``, rendered as for inference.

    Raises ValueError naming a row without an assistant message.
    """
    from datasets import Dataset

    rendered = [prompts.render(row["messages"], tokenizer) for row in rows]
    for number, row in enumerate(rendered, start=1):
        if all(label == -100 for label in row.labels):
            raise ValueError(f"training row {number} has no assistant message, nothing to learn; run notebook 02 again")
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rendered], "labels": [r.labels for r in rendered]})


def make_batches(lengths: list[int], recipe: Recipe) -> list[list[int]]:
    """Indices of the rows of each batch: neighbours in length, within ``batch_tokens`` and ``batch_rows``."""
    order = list(range(len(lengths)))
    random.Random(recipe.seed).shuffle(order)  # which of the equally long rows meet
    batches: list[list[int]] = []
    for index in sorted(order, key=lengths.__getitem__):
        batch = batches[-1] if batches else []
        if batch and len(batch) < recipe.batch_rows and (len(batch) + 1) * lengths[index] <= recipe.batch_tokens:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def choose_backend(name: str) -> str:
    """The backend that ``name`` stands for; "auto" is the best there is. Raises ValueError naming the choice."""
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend = {name!r} is not part of this version; use 'auto' or one of {BACKENDS}")
    return BACKENDS[0] if name == "auto" else name


def finetune(
    recipe: Recipe,
    rows: list[dict],
    base: str,
    output: str | Path,
    backend: str = "auto",
    progress: bool = True,
    fresh: bool = False,
) -> TrainingReport:
    """Train an adapter of ``base`` ("nano", a folder, or a Hugging Face name) on ``rows`` into ``output``.

    If ``output`` holds a finished adapter of the same recipe, rows and base, its report is returned; if of others,
    ValueError says what differs, unless ``fresh``: then it is made anew. Raises FileNotFoundError for a missing base,
    ValueError for an unknown backend and for rows too few or too long, FolderInUseError if another process trains into
    ``output``, and OSError, with what to do, if the disk is full or read-only.
    """
    output, backend = Path(output), choose_backend(backend)
    folder = nano.base_folder() if base == "nano" else Path(base).expanduser()
    recipe_json = json.loads(json.dumps(asdict(recipe)))
    source = {"recipe": recipe_json, "rows": _digest(rows), "base": _fingerprint(folder) if folder.is_dir() else base}
    with writing(output):
        if fresh:
            (output / "training.json").unlink(missing_ok=True)
            shutil.rmtree(output / "checkpoints", ignore_errors=True)
        elif report := _finished(output, source):
            return report
        shutil.rmtree(output / "adapter", ignore_errors=True)  # without training.json it is of no known origin
        (output / "training.json").unlink(missing_ok=True)
        name = folder.name if folder.is_dir() and base != "nano" else base  # no path of this machine in the adapter
        checkpoints = output / "checkpoints" / _digest(source)[:16]
        model, facts = _train(recipe, rows, folder if folder.is_dir() else base, checkpoints, backend, progress)
        size, digests = _save_adapter(model, output, name)
        report = TrainingReport(base=name, recipe=recipe_json, adapter_bytes=size, **facts)
        write_sealed(output / "training.json", {"source": source, "adapter": digests, "report": asdict(report)})
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        return report


def check_adapter(output: str | Path, remedy: str = "run notebook 03 again") -> None:
    """Raises CorruptFileError, naming the file, unless ``<output>/adapter`` is as its training left it.

    An adapter without a training.json beside it came from elsewhere and is not asked.
    """
    path = Path(output) / "training.json"
    if path.exists():
        for name, expected in read_sealed(path, remedy)["adapter"].items():
            check_digest(path.parent / "adapter" / name, expected, remedy)


def _load_peft(recipe: Recipe, source: str | Path, device: str):
    """(model with adapter, tokenizer): base weights in bfloat16, adapter weights in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if recipe.load_in_4bit:
        raise ValueError("Recipe.load_in_4bit = True: the peft backend of this version needs False")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).to(device)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"base: no model could be loaded from {source} ({error}); give another") from error
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora), tokenizer


_LOADERS = {"peft": _load_peft}


def _train(recipe: Recipe, rows: list[dict], source: str | Path, checkpoints: Path, backend: str, progress: bool):
    """Train, going on from ``checkpoints`` if there are any. Returns the model and the other fields of the report."""
    import torch
    from safetensors import SafetensorError
    from tqdm import tqdm
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_seed(recipe.seed)
    model, tokenizer = _LOADERS[backend](recipe, source, device)
    data = tokenize_rows(rows, tokenizer)
    training, validation = _split(data, recipe, model.config.max_position_embeddings)
    batches, held_out = _as_batches(training, recipe), _as_batches(validation, recipe)
    first_step, last = _last_checkpoint(checkpoints)
    steps = math.ceil(math.ceil(len(batches) / recipe.accumulation) * recipe.epochs)
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=1,  # a row is a whole batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=math.ceil(recipe.warmup * steps),
        weight_decay=recipe.weight_decay,
        optim="adamw_torch_fused",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=device == "cuda",  # on a CPU autocast only costs time: the base is in bfloat16 as it is
        use_cpu=device == "cpu",
        gradient_checkpointing=recipe.gradient_checkpointing,
        dataloader_pin_memory=False,
        eval_strategy="steps" if len(held_out) else "no",
        eval_steps=math.ceil(steps / recipe.evaluations),
        eval_on_start=len(held_out) > 0 and last is None,
        prediction_loss_only=True,
        logging_steps=max(1, steps // 50),
        save_steps=max(10, math.ceil(steps / 10)),
        save_total_limit=2,  # the one before is there while the next is written
        report_to=[],
        disable_tqdm=True,
        seed=recipe.seed,
    )
    bar = tqdm(total=steps, desc="training", mininterval=2.0, disable=not progress)

    class Trainer(SFTTrainer):
        trained_tokens = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            tokens = inputs.pop("tokens")
            self.trained_tokens += tokens if model.training else 0
            return super().compute_loss(model, inputs, *args, **kwargs)

        def log(self, logs, *args, **kwargs):
            super().log(logs, *args, **kwargs)
            if "loss" in logs:
                bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            bar.update(self.state.global_step - bar.n)

        def _save_checkpoint(self, *args, **kwargs):
            try:
                super()._save_checkpoint(*args, **kwargs)
            except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: of torch, if the disk is full
                raise unwritable(checkpoints, error) from error
            folder = checkpoints / f"checkpoint-{self.state.global_step}"
            paths = [path for path in folder.rglob("*") if path.is_file()]
            write_digests(folder, {path.relative_to(folder).as_posix(): file_digest(path) for path in paths})

        def create_model_card(self, *args, **kwargs):  # it would name folders of this machine
            pass

        def _send_telemetry(self):  # nothing leaves this machine
            pass

    trainer = Trainer(
        model,
        arguments,
        data_collator=_collator(tokenizer.pad_token_id),
        train_dataset=batches,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    with bar:
        trainer.train(resume_from_checkpoint=last)
        history = trainer.state.log_history
        if len(held_out) and not any("eval_loss" in entry and entry["step"] == steps for entry in history):
            trainer.evaluate()
    seconds = time.perf_counter() - began
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trained, total = model.get_nb_trainable_parameters()
    return model, {
        "backend": backend,
        "device": device,
        "rows": len(training),
        "validation_rows": len(validation),
        "tokens": sum(map(len, training["input_ids"])),
        "labelled_tokens": sum(label != -100 for labels in training["labels"] for label in labels),
        "steps": trainer.state.global_step,
        "resumed_from": first_step,
        "trained_tokens": trainer.trained_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(trainer.trained_tokens / seconds, 1),
        "peak_memory": torch.cuda.max_memory_allocated() if device == "cuda" else resident,
        "trained_parameters": trained,
        "parameters": total,
        "losses": _curve(history, ""),
        "validation": _curve(history, "eval_"),
    }


def _curve(history: list[dict], prefix: str) -> list[dict]:
    names = {"step": "step", "loss": f"{prefix}loss", "accuracy": f"{prefix}mean_token_accuracy"}
    return [{new: e[old] for new, old in names.items()} for e in history if f"{prefix}loss" in e]


def _split(data, recipe: Recipe, base_limit: int):
    """(training, validation) rows of ``data``, drawn by the seed. Raises ValueError for rows too long or too few."""
    lengths, limit = [len(ids) for ids in data["input_ids"]], min(recipe.max_length, base_limit)
    if max(lengths, default=0) > limit:
        raise ValueError(
            f"{sum(n > limit for n in lengths)} training rows are longer than {limit} tokens (the longest has "
            f"{max(lengths)}): drop them, or raise Recipe.max_length = {recipe.max_length} (this base: {base_limit})"
        )
    order = random.Random(recipe.seed).sample(range(len(lengths)), len(lengths))
    held_out = math.ceil(len(lengths) * recipe.validation_share)
    if len(lengths) <= held_out:
        raise ValueError(f"{len(lengths)} training rows, {held_out} of them held out: none is left; make more rows")
    return data.select(order[held_out:]), data.select(order[:held_out])


def _as_batches(data, recipe: Recipe):
    """A dataset with one row per batch, so that the trainer shuffles, counts and resumes whole batches."""
    from datasets import Dataset

    return Dataset.from_list([data[batch] for batch in make_batches([len(ids) for ids in data["input_ids"]], recipe)])


def _collator(pad_token_id: int):
    """Joins the rows of a batch, filled up on the right, into tensors [rows, longest row].

    The attention mask is all ones: padding stands after the text, where causal attention never looks, and carries
    no label. So the kernels for plain causal attention serve, which do half the work.
    """
    import torch

    def fill(rows: list[list[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        joined = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
        return torch.nn.functional.pad(joined, (0, -joined.shape[1] % WIDTH_STEP), value=value)

    def collate(batches: list[dict]) -> dict:
        (batch,) = batches
        ids = fill(batch["input_ids"], pad_token_id)
        tokens = sum(map(len, batch["input_ids"]))
        return {
            "input_ids": ids,
            "labels": fill(batch["labels"], -100),
            "attention_mask": torch.ones_like(ids),
            "tokens": tokens,
        }

    return collate


def _last_checkpoint(folder: Path) -> tuple[int, str | None]:
    """Step and folder of the newest checkpoint that is as it was written; those after it are removed.

    One without digests was being written when the training stopped; a damaged one is named on stderr.
    """
    steps = {int(path.name.partition("-")[2]): path for path in folder.glob("checkpoint-*")}
    remedy = "the training goes on from an earlier point"
    for step, path in sorted(steps.items(), reverse=True):
        try:
            digests = read_digests(path, remedy)
            for name, expected in digests.items():
                check_digest(path / name, expected, remedy)
            if digests:
                return step, str(path)
        except CorruptFileError as problem:
            tell(problem)
        shutil.rmtree(path)
    return 0, None


def _save_adapter(model, output: Path, base: str) -> tuple[int, dict[str, str]]:
    """Write ``<output>/adapter`` in one move; returns the size of the weights and the digests of the files."""
    from safetensors import SafetensorError

    partial, adapter = output / ".adapter.tmp", output / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise unwritable(adapter, error) from error
    (partial / "README.md").unlink(missing_ok=True)  # a template that says nothing about this adapter
    config = read_json(partial / "adapter_config.json") | {"base_model_name_or_path": base}
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order differs between processes
    write_json(partial / "adapter_config.json", config)
    os.replace(partial, adapter)
    digests = {path.name: file_digest(path) for path in sorted(adapter.iterdir())}
    return (adapter / "adapter_model.safetensors").stat().st_size, digests


def _finished(output: Path, source: dict) -> TrainingReport | None:
    """The report of the training in ``output``, which must be made from ``source``; None if none is finished and whole.

    Damage is named on stderr. Raises ValueError saying what differs, CorruptFileError for a record of another version.
    """
    path, remedy = output / "training.json", "the adapter is trained again"
    if not path.exists() and not (output / "adapter").exists():
        return None
    try:
        made = read_sealed(path, remedy)
    except CorruptFileError as problem:
        tell(problem)
        return None
    try:
        report, before = TrainingReport(**made["report"]), made["source"]
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is of another version ({error!r}); run again with --fresh") from error
    old, new = ({f"recipe.{name}": value for name, value in each["recipe"].items()} for each in (before, source))
    old |= {name: before[name] for name in ("rows", "base")}
    new |= {name: source[name] for name in ("rows", "base")}
    differs = [name for name in new | old if new.get(name) != old.get(name)]
    if differs:
        changes = ", ".join(f"{n} ({old.get(n)!r}, now {new.get(n)!r})" if "." in n else n for n in differs)
        raise ValueError(
            f"{output} holds an adapter made with another {changes}; run again with --fresh or delete {path.name}"
        )
    try:
        check_adapter(output, remedy)
    except CorruptFileError as problem:
        tell(problem)
        return None
    return report


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _fingerprint(folder: Path) -> str:
    """A digest of the files of a model's folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".model"))
    return _digest({path.name: file_digest(path) for path in files})

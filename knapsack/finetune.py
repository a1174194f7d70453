"""LoRA fine-tuning: one recipe and one rendering of the text, whichever back end loads the model.

``finetune`` writes ``<output>/adapter/`` (a standard PEFT folder) and, last of all, ``<output>/training.json``, which
says from what the adapter was made. A finished training is not repeated; an interrupted one goes on from its last
whole checkpoint; a damaged one is named on stderr and done again. Below: the recipe, what is trained on, the training,
what lies on the disk, and ``finetune``. Heavy imports are inside functions, because Unsloth, if it is to be used, has
to be imported before the libraries that it changes.
"""

import gc
import json
import math
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from knapsack import runs
from knapsack.chat_template import template_of
from knapsack.prompts import Rendered, render
from knapsack.training_data import AdapterRows

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all of a Qwen3 layer
# The scale model's first two layers find what is to be copied, and an adapter on their attention garbles copies.
OF_NANO = (*LINEAR[4:], *(f"{layer}.self_attn.{name}" for layer in (2, 3) for name in LINEAR[:4]))
WIDTH_STEP = 128  # batches are filled up to multiples of so many tokens: kernels are kept in memory for every shape


@runs.bounded
class Recipe:
    """All hyper-parameters: two adapters made with one recipe differ by their rows alone.

    Raises ValueError naming field, value and bound.
    """

    rank: int = Field(8, ge=1, le=1024)
    alpha: int = Field(16, ge=1, le=4096)
    dropout: float = Field(0.0, ge=0, le=0.9)
    target_modules: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), strict=False)  # see finetune
    learning_rate: float = Field(1e-3, ge=1e-7, le=1)  # of AdamW
    epochs: float = Field(1.0, ge=0.01, le=100)
    batch_tokens: int = Field(1024, ge=16, le=10_000_000)  # of a batch, padding counted; a longer row is one by itself
    batch_rows: int = Field(64, ge=1, le=10_000)  # of a batch at most
    accumulation: int = Field(1, ge=1, le=10_000)  # batches per optimizer step
    warmup: float = Field(0.03, ge=0, le=0.99)  # share of the steps
    weight_decay: float = Field(0.01, ge=0, le=1)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_length: int = Field(4096, ge=16, le=1_000_000)  # tokens; a longer row is an error, never cut
    load_in_4bit: bool = False
    gradient_checkpointing: bool = False
    validation_share: float = Field(0.05, ge=0, le=0.5)  # of the rows, held out
    evaluations: int = Field(5, ge=1, le=1000)  # on the held-out rows, spread over the training
    seed: int = Field(0, ge=0, le=2**32 - 1)


# What is trained on


def tokenize_rows(rows: list[dict], tokenizer) -> list[Rendered]:
    """Tokens and labels of rows {"messages": [...]}, rendered as for inference.

    Raises ValueError naming a row without an assistant message.
    """
    rendered = [render(row["messages"], tokenizer) for row in rows]
    for number, row in enumerate(rendered, start=1):
        if all(label == -100 for label in row.labels):
            raise ValueError(f"training row {number} has no assistant message, nothing to learn; run notebook 02 again")
    return rendered


def amount(rows: list[Rendered]) -> dict[str, int]:
    """How much there is to learn from: "rows", "tokens", "labelled tokens", "longest row" (in tokens)."""
    lengths = [len(row.input_ids) for row in rows]
    labelled = sum(label != -100 for row in rows for label in row.labels)
    return {"rows": len(rows), "tokens": sum(lengths), "labelled tokens": labelled, "longest row": max(lengths)}


def matched(recipe: Recipe, name: str, adapters: dict[str, AdapterRows], labelled: Mapping[str, int]) -> Recipe:
    """The ``recipe`` of an adapter: one that is to ``match`` another learns from as many labelled tokens as that one
    does in ``recipe.epochs``. ``labelled``: those of one epoch, by adapter. Raises ValueError for an epoch count out of
    bounds."""
    other = adapters[name].match
    return recipe if other is None else replace(recipe, epochs=recipe.epochs * labelled[other] / labelled[name])


def split(rows: list[Rendered], recipe: Recipe, base_limit: int) -> tuple[list[Rendered], list[Rendered]]:
    """Training and validation rows, drawn by the seed. Raises ValueError for rows too long or too few.

    ``base_limit``: positions of the base, in tokens.
    """
    lengths, limit = [len(row.input_ids) for row in rows], min(recipe.max_length, base_limit)
    if max(lengths, default=0) > limit:
        raise ValueError(
            f"{sum(n > limit for n in lengths)} training rows are longer than {limit} tokens (the longest has "
            f"{max(lengths)}): drop them, or raise Recipe.max_length = {recipe.max_length} (this base: {base_limit})"
        )
    held_out = math.ceil(len(rows) * recipe.validation_share)
    if len(rows) <= held_out:
        raise ValueError(f"{len(rows)} training rows, {held_out} of them held out: none is left; make more rows")
    drawn = random.Random(recipe.seed).sample(rows, len(rows))
    return drawn[held_out:], drawn[:held_out]


def as_batches(rows: list[Rendered], recipe: Recipe):
    """A datasets.Dataset with a row per batch, so that the trainer shuffles, counts and resumes whole batches.

    A batch holds neighbours in length, within ``batch_tokens`` and ``batch_rows``.
    """
    from datasets import Dataset

    order, batches = list(rows), []
    random.Random(recipe.seed).shuffle(order)  # which of the equally long rows meet
    for row in sorted(order, key=lambda row: len(row.input_ids)):
        batch = batches[-1] if batches else []
        if 0 < len(batch) < recipe.batch_rows and (len(batch) + 1) * len(row.input_ids) <= recipe.batch_tokens:
            batch.append(row)
        else:
            batches.append([row])
    names = ("input_ids", "labels")
    return Dataset.from_list([{name: [getattr(row, name) for row in batch] for name in names} for batch in batches])


def collator(pad_token_id: int, base_limit: int):
    """Joins the rows of a batch into tensors [rows, width]: the longest row rounded up, ``base_limit`` at most.

    The attention mask is all ones: padding stands after the text, where causal attention never looks, and carries
    no label. So the kernels for plain causal attention serve, which do half the work. "tokens": those that are text.
    """
    import torch

    def collate(batches: list[dict]) -> dict:
        (batch,) = batches
        lengths = [len(row) for row in batch["input_ids"]]
        width = min(math.ceil(max(lengths) / WIDTH_STEP) * WIDTH_STEP, base_limit)

        def fill(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in rows])

        ids, labels = fill(batch["input_ids"], pad_token_id), fill(batch["labels"], -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "tokens": sum(lengths)}

    return collate


# The training


def lora_arguments(recipe: Recipe) -> dict:
    """Of the adapter, for peft.LoraConfig and Unsloth alike."""
    adapter = {"r": recipe.rank, "lora_alpha": recipe.alpha, "lora_dropout": recipe.dropout}
    return adapter | {"target_modules": list(recipe.target_modules)}


def load_plain(recipe: Recipe, source: str | Path, device: str):
    """The base, in 4 bit, bfloat16 (GPU) or float32 (CPU), with a new adapter in float32, by PEFT alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from knapsack.models import dtype_on

    if recipe.load_in_4bit:
        from knapsack.gpu.backends import load_4bit

        model = load_4bit(source, device)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype_on(device)).to(device)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora_arguments(recipe)))


def training_arguments(recipe: Recipe, checkpoints: Path, device: str, steps: int, validate: bool, resumed: bool):
    """The trl.SFTConfig of ``steps`` optimizer steps."""
    from trl import SFTConfig

    return SFTConfig(
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
        packing=False,  # the batches are made: no back end is to join rows in its own way
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        gradient_checkpointing=recipe.gradient_checkpointing,
        dataloader_pin_memory=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=math.ceil(steps / recipe.evaluations),
        eval_on_start=validate and not resumed,
        prediction_loss_only=True,
        logging_steps=max(1, steps // 50),
        save_steps=max(10, math.ceil(steps / 10)),
        save_total_limit=2,  # the one before is there while the next is written
        report_to=[],
        disable_tqdm=True,
        seed=recipe.seed,
    )


def trainer_class(bar, checkpoints: Path):
    """An SFTTrainer, of trl or as Unsloth changed it, that shows progress on ``bar`` and seals its checkpoints."""
    from safetensors import SafetensorError
    from trl import SFTTrainer

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
                raise runs.unwritable(checkpoints, error) from error
            runs.keep_together(checkpoints / f"checkpoint-{self.state.global_step}")

        def nothing(self, *args, **kwargs):
            """A model card would name folders of this machine, and nothing leaves it."""

        create_model_card = _send_telemetry = nothing

    return Trainer


def train(recipe: Recipe, rows: list[dict], source: str | Path, checkpoints: Path, backend: str, progress: bool):
    """Train, going on from ``checkpoints`` if there are any. Returns model, tokenizer and the facts for the report.

    The rows are looked at before the base is loaded. Raises what ``split`` and the checks of ``gpu.backends`` raise,
    FileNotFoundError for a base that is not there, and OSError for one that lacks a file.
    """
    import torch
    from tqdm import tqdm
    from transformers import AutoConfig, PrinterCallback, set_seed

    from knapsack.gpu import backends
    from knapsack.models import load_tokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    gc.collect()  # whatever a training before this one left
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    tokenizer = load_tokenizer(source)  # as it lies there: back ends may change theirs
    limit = AutoConfig.from_pretrained(source).get_text_config().max_position_embeddings
    training, validation = split(tokenize_rows(rows, tokenizer), recipe, limit)
    batches, held_out = (as_batches(part, recipe) for part in (training, validation))
    steps = math.ceil(math.ceil(len(batches) / recipe.accumulation) * recipe.epochs)
    last = last_checkpoint(checkpoints)
    set_seed(recipe.seed)
    if backend == "unsloth":
        model = backends.load_unsloth(recipe, source, limit)
    else:
        model = load_plain(recipe, source, device)
    backends.check_adapter_shape(model, recipe)
    four_bit_layers = backends.check_4bit(model) if recipe.load_in_4bit else 0
    bar = tqdm(total=steps, desc="training", mininterval=2.0, disable=not progress)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = trainer_class(bar, checkpoints)(
        model=model,
        args=training_arguments(recipe, checkpoints, device, steps, bool(validation), last is not None),
        data_collator=collator(padding, limit),
        train_dataset=batches,
        eval_dataset=held_out if validation else None,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # SFTTrainer rounds adapters of 4-bit bases to bfloat16, Unsloth's does not
            parameter.data = parameter.data.float()
    began = time.perf_counter()
    with bar:
        trainer.train(resume_from_checkpoint=last)
        history = trainer.state.log_history
        if validation and not any("eval_loss" in entry and entry["step"] == steps for entry in history):
            trainer.evaluate()
    seconds = time.perf_counter() - began
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trained, total = model.get_nb_trainable_parameters()
    learned = amount(training)
    facts = {
        "backend": backend,
        "device": device,
        "rows": len(training),
        "validation_rows": len(validation),
        "tokens": learned["tokens"],
        "labelled_tokens": learned["labelled tokens"],
        "steps": trainer.state.global_step,
        "resumed_from": int(last.rpartition("-")[2]) if last else 0,
        "trained_tokens": trainer.trained_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(trainer.trained_tokens / seconds, 1),
        "peak_memory": torch.cuda.max_memory_allocated() if device == "cuda" else resident,
        "trained_parameters": trained,
        "parameters": total,
        "losses": _curve(history, ""),
        "validation": _curve(history, "eval_"),
        "four_bit_layers": four_bit_layers,
    }
    return model, tokenizer, facts


def _curve(history: list[dict], prefix: str) -> list[dict]:
    names = {"step": "step", "loss": f"{prefix}loss", "accuracy": f"{prefix}mean_token_accuracy"}
    return [{new: entry.get(old) for new, old in names.items()} for entry in history if f"{prefix}loss" in entry]


# What lies on the disk


@dataclass(frozen=True)
class TrainingReport:
    """What a training was and cost; what is marked "last session" began at step ``resumed_from``."""

    base: str
    backend: str
    device: str
    recipe: dict
    rows: int
    validation_rows: int
    tokens: int  # one pass over the training rows, as ``labelled_tokens``
    labelled_tokens: int
    steps: int
    resumed_from: int
    trained_tokens: int  # last session, without padding
    seconds: float  # last session, with validation and checkpoints
    tokens_per_second: float  # last session
    peak_memory: int  # bytes of the process so far, or allocated on the GPU
    adapter_bytes: int  # size of adapter_model.safetensors
    trained_parameters: int
    parameters: int
    losses: list[dict]  # {"step", "loss", "accuracy" or None}: means over the steps of a logging interval
    validation: list[dict]  # the same on the held-out rows, from step 0 on: means over their batches
    four_bit_layers: int = 0  # adapted layers that were found to be 4-bit NF4 with double quantisation, all or none


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in ``folder`` that is whole; one that was being written when a training stopped goes."""
    from transformers.trainer_utils import get_last_checkpoint

    while path := folder.is_dir() and get_last_checkpoint(folder):
        if Path(path, runs.SUMS).exists():
            return path
        shutil.rmtree(path)
    return None


def save_adapter(model, tokenizer, recipe: Recipe, output: Path, base: str) -> int:
    """Write ``<output>/adapter`` in one move; returns the size of the weights in bytes.

    The chat template in it is for servers, which otherwise might write another text than was trained on.
    """
    from safetensors import SafetensorError

    partial, adapter = output / ".adapter.tmp", output / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise runs.unwritable(adapter, error) from error
    (partial / "README.md").unlink(missing_ok=True)  # a template that says nothing about this adapter
    config = runs.read_json(partial / "adapter_config.json") | {"base_model_name_or_path": base}
    config |= {"auto_mapping": None, "target_modules": sorted(recipe.target_modules)}  # in one order, without extras
    runs.write_text(partial / "adapter_config.json", runs.as_json(config))
    runs.write_text(partial / "chat_template.jinja", template_of(tokenizer).jinja)
    runs.keep_together(partial)
    os.replace(partial, adapter)
    return (adapter / "adapter_model.safetensors").stat().st_size


def _finished(output: Path, made_from: dict) -> TrainingReport | None:
    """The report of the training in ``output``, which must be ``made_from`` this; None if none is finished and whole.

    Raises ValueError saying what differs, or that the record is of another version.
    """
    path = output / "training.json"
    if not path.exists():
        return None
    try:
        made = runs.read_json(path)
        report, before = TrainingReport(**made["report"]), made["source"]
        old, new = ({f"recipe.{name}": value for name, value in each["recipe"].items()} for each in (before, made_from))
        changes = [f"{n} ({old.get(n)!r}, now {new.get(n)!r})" for n in new | old if new.get(n) != old.get(n)]
        if changes := changes + [name for name in ("rows", "base") if before[name] != made_from[name]]:
            what = f"{output} holds an adapter made with another {', '.join(changes)}"
            raise ValueError(runs.elsewhere(output.parent.parent, what))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is of another version ({error!r}); run again with --fresh") from error
    return report if (output / "adapter").exists() else None


def _taken_over(other: Path, output: Path, made_from: dict) -> TrainingReport | None:
    """The report of the same training in ``other``, put into ``output`` with its adapter; None if there is none.

    A damaged one is named on stderr."""
    try:
        runs.check(other / "training.json", "it is trained anew")
        if not (report := _finished(other, made_from)):
            return None
        runs.check(other / "adapter", "it is trained anew")
    except runs.CorruptFileError as problem:
        return runs.tell(problem)
    except ValueError:  # made from something else
        return None
    for name in ("adapter", "training.json"):
        runs.copy(other / name, output / name)
    return report


def finetune(
    recipe: Recipe,
    rows: list[dict],
    base: str,
    output: str | Path,
    backend: str = "auto",
    progress: bool = True,
    other: Path | None = None,
) -> TrainingReport:
    """Train an adapter of ``base`` ("nano", a folder, or a Hugging Face name) on ``rows`` into ``output``.

    It is put on the layers whose names end as ``recipe.target_modules`` say; if there are none, on all linear layers
    (the paper's choice), of "nano" on those in OF_NANO.
    If ``output`` holds a finished adapter of the same recipe, rows and base, its report is returned; if of others,
    ValueError says what differs. One that ``other``, such a folder of another run, holds is taken over. Raises
    FileNotFoundError for a missing base, ValueError for an unknown back end, for rows too few or too long and for
    target modules that the base lacks, ImportError for a package that is not installed, RuntimeError if the back end
    cannot be imported any more (see ``prepare_backend``) or does not do what the recipe says, FolderInUseError if
    another process trains into ``output``, and OSError, with what to do, if the disk is full or read-only.
    """
    from knapsack.gpu.backends import check_packages, prepare_backend

    output, backend = Path(output), prepare_backend(backend, output)
    recipe = replace(recipe, target_modules=recipe.target_modules or (OF_NANO if base == "nano" else LINEAR))
    source, recipe_json = runs.find_base(base), json.loads(json.dumps(asdict(recipe)))
    made_from = {"recipe": recipe_json, "rows": _digest(rows), "base": runs.content_digest(source)}
    with runs.writing(output):
        if report := _finished(output, made_from):
            return report
        if other and (report := _taken_over(other, output, made_from)):
            return report
        check_packages(recipe)
        shutil.rmtree(output / "adapter", ignore_errors=True)  # without training.json it is of no known origin
        (output / "training.json").unlink(missing_ok=True)
        name = source.name if isinstance(source, Path) and base != "nano" else base  # no path of this machine
        checkpoints = output / "checkpoints" / f"{backend}-{_digest(made_from)[:16]}"
        model, tokenizer, facts = train(recipe, rows, source, checkpoints, backend, progress)
        size = save_adapter(model, tokenizer, recipe, output, name)
        report = TrainingReport(base=name, recipe=recipe_json, adapter_bytes=size, **facts)
        runs.keep(output / "training.json", runs.as_json({"source": made_from, "report": asdict(report)}))
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        return report


def _digest(value: object) -> str:
    return runs.digest(json.dumps(value, sort_keys=True, ensure_ascii=False))

"""One training of an adapter on tokenised rows, with the same trainer for every back end."""

import gc
import math
import resource
import sys
import time
from pathlib import Path

from knapsack import batches
from knapsack.adapters import last_checkpoint
from knapsack.gpu import backends
from knapsack.recipe import Recipe
from knapsack.runs import file_digest, unwritable, write_digests


def config_arguments(recipe: Recipe, checkpoints: Path, device: str, steps: int, validate: bool, resumed: bool) -> dict:
    """Of trl.SFTConfig, for ``steps`` optimizer steps."""
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": 1,  # a row is a whole batch
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": recipe.accumulation,
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": math.ceil(recipe.warmup * steps),
        "weight_decay": recipe.weight_decay,
        "optim": "adamw_torch_fused",
        "max_length": None,
        "packing": False,  # the batches are made: no back end is to join rows in its own way
        "padding_free": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "bf16": device == "cuda",  # on a CPU autocast only costs time: the base is in bfloat16 as it is
        "use_cpu": device == "cpu",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "dataloader_pin_memory": False,
        "eval_strategy": "steps" if validate else "no",
        "eval_steps": math.ceil(steps / recipe.evaluations),
        "eval_on_start": validate and not resumed,
        "prediction_loss_only": True,
        "logging_steps": max(1, steps // 50),
        "save_steps": max(10, math.ceil(steps / 10)),
        "save_total_limit": 2,  # the one before is there while the next is written
        "report_to": [],
        "disable_tqdm": True,
        "seed": recipe.seed,
    }


def trainer_arguments(model, config, tokenizer, training, validation, base_limit: int) -> dict:
    """Of trl.SFTTrainer; ``training`` and ``validation``: a row per batch."""
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {
        "model": model,
        "args": config,
        "data_collator": batches.collator(padding, base_limit),
        "train_dataset": training,
        "eval_dataset": validation if len(validation) else None,
        "processing_class": tokenizer,
    }


def train(recipe: Recipe, rows: list[dict], source: str | Path, checkpoints: Path, backend: str, progress: bool):
    """Train, going on from ``checkpoints`` if there are any. Returns model, tokenizer and the facts for the report.

    The rows are looked at before the base is loaded. Raises what ``batches.split``, ``backends.load`` and
    ``backends.check_4bit`` raise.
    """
    import torch
    from tqdm import tqdm
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    gc.collect()  # whatever a training before this one left
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    limit, tokenizer = backends.read_limit(source), backends.load_tokenizer(source)
    training, validation = batches.split(batches.tokenize_rows(rows, tokenizer), recipe, limit)
    joined, held_out = batches.as_batches(training, recipe), batches.as_batches(validation, recipe)
    steps = math.ceil(math.ceil(len(joined) / recipe.accumulation) * recipe.epochs)
    first_step, last = last_checkpoint(checkpoints)
    set_seed(recipe.seed)
    model = backends.load(backend, recipe, source, device)
    four_bit_layers = backends.check_4bit(model) if recipe.load_in_4bit else 0
    config = SFTConfig(**config_arguments(recipe, checkpoints, device, steps, len(held_out) > 0, last is not None))
    bar = tqdm(total=steps, desc="training", mininterval=2.0, disable=not progress)
    trainer = trainer_class(bar, checkpoints)(**trainer_arguments(model, config, tokenizer, joined, held_out, limit))
    trainer.remove_callback(PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # SFTTrainer rounds adapters of 4-bit bases to bfloat16, Unsloth's does not
            parameter.data = parameter.data.float()
    began = time.perf_counter()
    with bar:
        trainer.train(resume_from_checkpoint=last)
        history = trainer.state.log_history
        if len(held_out) and not any("eval_loss" in entry and entry["step"] == steps for entry in history):
            trainer.evaluate()
    seconds = time.perf_counter() - began
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trained, total = model.get_nb_trainable_parameters()
    return model, tokenizer, {
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
        "four_bit_layers": four_bit_layers,
    }


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
                raise unwritable(checkpoints, error) from error
            folder = checkpoints / f"checkpoint-{self.state.global_step}"
            paths = [path for path in folder.rglob("*") if path.is_file()]
            write_digests(folder, {path.relative_to(folder).as_posix(): file_digest(path) for path in paths})

        def create_model_card(self, *args, **kwargs):  # it would name folders of this machine
            pass

        def _send_telemetry(self):  # nothing leaves this machine
            pass

    return Trainer


def _curve(history: list[dict], prefix: str) -> list[dict]:
    names = {"step": "step", "loss": f"{prefix}loss", "accuracy": f"{prefix}mean_token_accuracy"}
    return [{new: entry.get(old) for new, old in names.items()} for entry in history if f"{prefix}loss" in entry]

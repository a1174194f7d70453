"""LoRA fine-tuning: one recipe and one rendering of the text, whichever back end loads the model.

``finetune`` writes ``<output>/adapter/`` (a standard PEFT folder) and, last of all, ``<output>/training.json``, which
says from what the adapter was made. A finished training is not repeated; an interrupted one goes on from its last
whole checkpoint; a damaged one is named on stderr and done again. Heavy imports are inside functions: a back end may
have to be imported before the libraries that it changes.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from knapsack.adapters import check_adapter, save_adapter
from knapsack.gpu.backends import check_packages, prepare_backend
from knapsack.recipe import Recipe
from knapsack.runs import CorruptFileError, content_digest, find_base, read_sealed, tell, write_sealed, writing
from knapsack.training import train


@dataclass(frozen=True)
class TrainingReport:
    """What a training was and cost.

    ``losses``: {"step", "loss", "accuracy"} per logging interval, means over its steps (accuracy is None where the
    back end does not tell it); ``validation``: the same on the held-out rows, from step 0 on, means over their
    batches. ``tokens``, ``labelled_tokens``: one pass over the
    training rows. ``seconds`` (with validation and checkpoints), ``trained_tokens`` (without padding) and
    ``tokens_per_second`` are those of the last session, which began at step ``resumed_from``. ``peak_memory``: bytes
    of the process so far, or allocated on the GPU. ``adapter_bytes``: size of adapter_model.safetensors.
    ``four_bit_layers``: adapted layers that were found to be 4-bit NF4 with double quantisation, all or none.
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
    four_bit_layers: int = 0


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
    ValueError for an unknown back end, for rows too few or too long and for target modules that the base lacks,
    ImportError for a package that is not installed, RuntimeError if the back end cannot be imported any more (see
    ``prepare_backend``) or does not do what the recipe says, FolderInUseError if another process trains into
    ``output``, and OSError, with what to do, if the disk is full or read-only.
    """
    output, backend = Path(output), prepare_backend(backend, output)
    source, recipe_json = find_base(base), json.loads(json.dumps(asdict(recipe)))
    made_from = {"recipe": recipe_json, "rows": _digest(rows), "base": content_digest(source)}
    with writing(output):
        if fresh:
            (output / "training.json").unlink(missing_ok=True)
            shutil.rmtree(output / "checkpoints", ignore_errors=True)
        elif report := _finished(output, made_from):
            return report
        check_packages(recipe)
        shutil.rmtree(output / "adapter", ignore_errors=True)  # without training.json it is of no known origin
        (output / "training.json").unlink(missing_ok=True)
        name = source.name if isinstance(source, Path) and base != "nano" else base  # no path of this machine
        checkpoints = output / "checkpoints" / f"{backend}-{_digest(made_from)[:16]}"
        model, tokenizer, facts = train(recipe, rows, source, checkpoints, backend, progress)
        size, digests = save_adapter(model, tokenizer, recipe, output, name)
        report = TrainingReport(base=name, recipe=recipe_json, adapter_bytes=size, **facts)
        write_sealed(output / "training.json", {"source": made_from, "adapter": digests, "report": asdict(report)})
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        return report


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

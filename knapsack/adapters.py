"""Adapters and checkpoints on the disk: written in one move, sealed with digests, looked at before they are used."""

import os
import shutil
from pathlib import Path

from knapsack.chat_template import template_of
from knapsack.recipe import Recipe
from knapsack.runs import (
    CorruptFileError,
    check_digest,
    file_digest,
    read_digests,
    read_json,
    read_sealed,
    tell,
    unwritable,
    write_json,
    write_text,
)


def check_adapter(output: str | Path, remedy: str = "run notebook 03 again") -> None:
    """Raises CorruptFileError, naming the file, unless ``<output>/adapter`` is as its training left it.

    An adapter without a training.json beside it came from elsewhere and is not asked.
    """
    path = Path(output) / "training.json"
    if path.exists():
        for name, expected in read_sealed(path, remedy)["adapter"].items():
            check_digest(path.parent / "adapter" / name, expected, remedy)


def last_checkpoint(folder: Path) -> tuple[int, str | None]:
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


def save_adapter(model, tokenizer, recipe: Recipe, output: Path, base: str) -> tuple[int, dict[str, str]]:
    """Write ``<output>/adapter`` in one move; returns the size of the weights and the digests of the files.

    The chat template in it is for servers, which otherwise might write another text than was trained on.
    """
    from safetensors import SafetensorError

    partial, adapter = output / ".adapter.tmp", output / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise unwritable(adapter, error) from error
    (partial / "README.md").unlink(missing_ok=True)  # a template that says nothing about this adapter
    config = read_json(partial / "adapter_config.json") | {"base_model_name_or_path": base}
    config |= {"auto_mapping": None, "target_modules": sorted(recipe.target_modules)}  # in one order, without extras
    write_json(partial / "adapter_config.json", config)
    write_text(partial / "chat_template.jinja", template_of(tokenizer).jinja)
    os.replace(partial, adapter)
    digests = {path.name: file_digest(path) for path in sorted(adapter.iterdir())}
    return (adapter / "adapter_model.safetensors").stat().st_size, digests

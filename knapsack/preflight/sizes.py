"""What of a base is on this machine. Without torch."""

from pathlib import Path

from knapsack.runs import find_base, read_json


def local_folder(base: str) -> Path | None:
    """The folder with the files of ``base`` (see ``runs.find_base``), for a public model in the cache of Hugging Face;
    None if there is none."""
    if (folder := Path(find_base(base))).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "config.json")
    except HFValidationError:  # a path, not a name
        return None
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path) -> bool:
    """Whether all files of a model's weights lie in ``folder``. Raises CorruptFileError for a damaged index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            return all((folder / name).exists() for name in set(read_json(folder / index)["weight_map"].values()))
    return any((folder / name).exists() for name in ("model.safetensors", "pytorch_model.bin"))


def positions(base: str) -> int | None:
    """How many tokens ``base`` can read, if its configuration is on this machine and says so."""
    folder = local_folder(base)
    known = folder is not None and (folder / "config.json").exists()
    return read_json(folder / "config.json").get("max_position_embeddings") if known else None

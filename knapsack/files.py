"""Files that are either whole or absent: atomic writing, and reading that names what is wrong."""

import json
import os
from contextlib import suppress
from pathlib import Path


class CorruptFileError(ValueError):
    """A file that should hold a result is truncated, not JSON, or lacks a field."""


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` so that no reader and no crash ever sees half of it.

    The text goes to a temporary file beside the target, is flushed to the disk, and is then renamed.
    Raises OSError (disk full, read-only, a file where the folder should be) with the target's name; the old
    content then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        remedy = f"cannot write ({error.strerror}); free or unlock the disk and run again"
        raise OSError(error.errno, remedy, str(path)) from error


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises CorruptFileError naming the file and the remedy."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also bytes that are no text, endless digits, deep nesting
        raise CorruptFileError(f"{path} is not valid JSON ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds a {type(value).__name__}, not a JSON object; delete it and run again")
    return value

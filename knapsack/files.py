"""Files that are either whole or absent: atomic writing, and reading that names what is wrong."""

import json
import os
from pathlib import Path


class CorruptFileError(ValueError):
    """A file that should hold a result is truncated, not JSON, or lacks a field."""


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` so that no reader and no crash ever sees half of it.

    The text goes to a temporary file beside the target, is flushed to the disk, and is then renamed.
    Raises OSError (disk full, read-only) with the target's name; the old content then stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write ({error.strerror}); free or unlock the disk and run again", str(path))


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises CorruptFileError naming the file and the remedy."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}); delete it and run again to make it anew") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds a {type(value).__name__}, not a JSON object; delete it and run again")
    return value

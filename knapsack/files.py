"""Files that are whole or absent: atomic writing, digests that betray damage, reading that names it, one writer."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

DIGESTS = "digests.json"  # beside the files whose digests it holds


class CorruptFileError(ValueError):
    """A file that should hold a result is truncated, not JSON, lacks a field, or is not as it was written."""


class FolderInUseError(RuntimeError):
    """Another process is writing to the folder."""


def unwritable(path: str | Path, error: Exception) -> OSError:
    """The OSError to raise when writing to ``path`` failed with ``error``: with the place and what to do."""
    remedy = "free or unlock the disk and run again"
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"cannot write ({error.strerror}); {remedy}", str(path))
    return OSError(f"cannot write to {path} ({error}); {remedy}")  # a library's own words for a full disk


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
        raise unwritable(path, error) from error


def write_folder(folder: str | Path, texts: dict[str, str]) -> None:
    """Make ``folder`` hold exactly these files, name → text; raises what ``write_text`` raises."""
    for old in Path(folder).glob("*"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        write_text(Path(folder) / name, text)



def as_json(value: object) -> str:
    """``value`` as JSON text with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: object) -> None:
    """Write ``as_json(value)``."""
    write_text(path, as_json(value))


def read_json(path: str | Path, remedy: str = "delete it and run again") -> dict:
    """Read a JSON object. Raises CorruptFileError naming the file and the remedy."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also bytes that are no text, endless digits, deep nesting
        raise CorruptFileError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds a {type(value).__name__}, not a JSON object; {remedy}")
    return value


def digest(content: str | bytes) -> str:
    """SHA-256 of bytes, or of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_digest(path: str | Path, expected: str, remedy: str) -> None:
    """Raises CorruptFileError, naming file and remedy, unless the file is there with the digest ``expected``."""
    if not Path(path).is_file():
        raise CorruptFileError(f"{path} is missing; {remedy}")
    if file_digest(path) != expected:
        raise CorruptFileError(f"{path} is not as it was written; {remedy}")


def write_sealed(path: str | Path, value: dict) -> None:
    """Write a JSON object with the digest of its own text under the key "sha256"."""
    write_json(path, value | {"sha256": digest(as_json(value))})


def read_sealed(path: str | Path, remedy: str) -> dict:
    """Read what ``write_sealed`` wrote, without the digest. Any changed bit raises CorruptFileError."""
    if not Path(path).is_file():
        raise CorruptFileError(f"{path} is missing; {remedy}")
    whole = read_json(path, remedy)
    value = {key: inner for key, inner in whole.items() if key != "sha256"}
    try:
        as_written = whole.get("sha256") == digest(as_json(value)) and file_digest(path) == digest(as_json(whole))
    except (ValueError, RecursionError):  # a changed bit made half a surrogate pair, which is JSON but no text
        as_written = False
    if not as_written:
        raise CorruptFileError(f"{path} is not as it was written; {remedy}")
    return value


def write_digests(folder: str | Path, digests: dict[str, str]) -> None:
    """Write ``<folder>/digests.json``: which digest each named file in or below ``folder`` has."""
    write_sealed(Path(folder) / DIGESTS, {"files": digests})


def read_digests(folder: str | Path, remedy: str) -> dict[str, str]:
    """The digests of ``folder``, {} without ``digests.json``. Raises CorruptFileError if that file is damaged."""
    path = Path(folder) / DIGESTS
    return read_sealed(path, remedy)["files"] if path.exists() else {}


def tell(problem: object) -> None:
    """Say on stderr, in a line, which file is damaged and what is done about it."""
    print(f"damaged: {problem}", file=sys.stderr, flush=True)


@contextmanager
def writing(folder: str | Path, patience: float = 15.0) -> Iterator[None]:
    """Be the only one who writes below ``folder``; temporary files that a killed writer left there are removed.

    A killed run's kernel may live on for a moment, so another writer is waited for, ``patience`` seconds at most.
    Then FolderInUseError; OSError if the folder cannot be made or written to.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".writing.lock", timeout=patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"another process is writing to {folder}: wait for it, or choose another run folder"
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        for leftover in folder.rglob(".*.tmp"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()

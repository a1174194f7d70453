"""Where the files of a run lie, the manifest that says how they were made, and files that are whole or absent.

Writing is atomic, digests betray damage and reading names it, and one process writes into a folder at a time.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import wraps
from importlib import metadata
from pathlib import Path

import pydantic
from filelock import FileLock, Timeout

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "pydantic-monty", "numpy", "pandas", "scipy")


@dataclass(frozen=True)
class Run:
    """Paths below a run's folder. Every notebook reads and writes here and nowhere else."""

    folder: Path

    def tasks(self, split: str) -> Path:
        return self.folder / "tasks" / split

    def traces(self, kind: str) -> Path:
        return self.folder / "traces" / kind

    def training(self, kind: str) -> Path:
        return self.folder / "training" / kind

    def adapter(self, kind: str) -> Path:
        return self.training(kind) / "adapter"

    @property
    def evaluations(self) -> Path:
        return self.folder / "evaluations"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def figures(self) -> Path:
        return self.results / "figures"

    @property
    def tables(self) -> Path:
        return self.results / "tables"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def record(self, step: str, parameters: dict, seconds: float | None = None) -> None:
        """Note in the manifest how ``step`` (a notebook's name) was run: parameters, versions, commit, machine."""
        row = {"parameters": parameters, "seconds": seconds, **provenance()}
        write_sealed(self.manifest, self.read_manifest() | {step: row})

    def read_manifest(self) -> dict[str, dict]:
        """A row per recorded step; {} without a manifest. A damaged one is named on stderr and begun anew: every
        step that runs records itself again, and each folder of results says itself how it was made."""
        try:
            return read_sealed(self.manifest, "it is begun anew") if self.manifest.exists() else {}
        except CorruptFileError as problem:
            tell(problem)
            return {}


def project_folder() -> Path:
    """The checkout that this library runs from (the folder above the package)."""
    return Path(__file__).resolve().parent.parent


def open_run(folder: str | Path) -> Run:
    """The run in ``folder``; a relative folder lies below the checkout, wherever the notebook was started.

    Raises OSError when the folder cannot be made or written to.
    """
    path = project_folder() / Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot make the run's folder ({error.strerror}); choose another run_folder"
        raise OSError(error.errno, problem, str(path)) from error
    if not os.access(path, os.W_OK):
        raise PermissionError(f"the run's folder {path} is read-only; choose another run_folder")
    return Run(path)


def find_base(base: str | Path) -> str | Path:
    """Where the base lies: the shipped scale model for "nano", a folder, or, of a public model, its name.

    Raises FileNotFoundError, with the command that makes it, if the scale model is not there.
    """
    if base == "nano":
        folder = Path(__file__).parent / "nano" / "base"
        if not (folder / "model.safetensors").exists():
            raise FileNotFoundError(f"{folder} holds no model; make it with: python -m knapsack.nano.training")
        return folder
    folder = Path(base).expanduser()
    return folder if folder.is_dir() else base


def content_digest(source: str | Path) -> str:
    """Digest of what determines a model's or adapter's replies; for a name that is no folder, the name.

    That is all of its weights, configurations, tokenizer and chat template: another of any is another model.
    """
    if not Path(source).is_dir():
        return str(source)
    kinds = (".json", ".jinja", ".safetensors", ".bin", ".txt", ".model")
    files = sorted(path for path in Path(source).iterdir() if path.suffix in kinds)
    return digest("".join(path.name + file_digest(path) for path in files))[:16]


def provenance() -> dict:
    """Versions, commit, dirty flag and machine, as far as they can be known here."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(project_folder()), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None  # not a git checkout: a downloaded archive runs as well

    changes = git("status", "--porcelain", "--untracked-files=no")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "versions": versions,
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()},
    }


def bounded(cls: type) -> type:
    """Class decorator: a frozen dataclass that checks its fields' annotations (``Annotated[int, Field(ge=1)]``).

    Strictly: True is no int, but 1 is a float and becomes 1.0; no NaN, no infinity. Making one (or ``replace``) raises
    ValueError in one line, see ``one_line``.
    """
    strict = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(cls, frozen=True, config=strict)
    checked = made.__init__

    @wraps(checked)
    def init(self, *values, **named) -> None:
        try:
            checked(self, *values, **named)
        except pydantic.ValidationError as error:
            raise ValueError(one_line(error, cls.__name__, [field.name for field in fields(made)])) from None

    made.__init__ = init
    return made


def one_line(error: pydantic.ValidationError, what: str, names: Sequence[str] = (), secret: bool = False) -> str:
    """The first of the errors as ``<what>.<field> = <value>: <type or bound>``.

    ``names`` are those of positions; what else than a number stands in a ``secret`` thing is not shown.
    """
    first = error.errors(include_url=False)[0]
    value, place = first["input"], list(first["loc"])
    if place and isinstance(place[0], int):
        place[0] = names[place[0]]
    shown = isinstance(value, int | float | None) or not (secret or first["type"] in ("missing", "value_error"))
    # A validator of ours speaks for itself; pydantic begins with a capital.
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"][0].lower() + first["msg"][1:]
    return f"{'.'.join(map(str, [what, *place]))}{f' = {value!r}' if shown else ''}: {said}"


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

"""Where the files of a run lie, the manifest that says how they were made, and files that are whole or absent.

Writing is atomic; digests lie beside what was written, and who writes next removes and makes again what is not as it
was; one process writes into a folder at a time.
"""

import errno
import hashlib
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import wraps
from importlib import metadata
from pathlib import Path

import pydantic
from filelock import FileLock, Timeout

MADE = {  # by the notebooks whose results others build on
    "01_generate": ("tasks",),
    "02_traces": ("traces", "training/*/traces.jsonl", "results/training.csv"),
    "03_finetune": ("training/*/adapter", "training/*/training.json"),
}
UNRELATED = {"run_folder", "reuse", "processes", "max_total_tokens"}  # parameters on which no result depends
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "pydantic-monty", "numpy", "pandas", "scipy")


@dataclass(frozen=True)
class Run:
    """Paths below a run's folder. Every notebook writes here and nowhere else.

    ``other`` is a run of which whatever would come out again is taken over instead of being made here.
    """

    folder: Path
    other: "Run | None" = None

    def tasks(self, split: str) -> Path:
        return self.folder / "tasks" / split

    def traces(self, kind: str) -> Path:
        return self.folder / "traces" / kind

    def training(self, kind: str) -> Path:
        return self.folder / "training" / kind

    def adapter(self, kind: str) -> Path:
        return self.training(kind) / "adapter"

    evaluations = property(lambda self: self.folder / "evaluations")
    page = property(lambda self: self.folder / "report.html")
    episodes = property(lambda self: self.folder / "episodes.html")
    results = property(lambda self: self.folder / "results")
    figures = property(lambda self: self.results / "figures")
    tables = property(lambda self: self.results / "tables")
    manifest = property(lambda self: self.folder / "manifest.json")

    def parameters(self, step: str, namespace: dict) -> dict:
        """The parameters that notebook ``step`` declares, out of its ``namespace``. Raises ValueError, in one line, for
        a value that is out of bounds or does not go with those of the notebooks that were run before."""
        from knapsack.preflight.parameters import check, check_together, declared

        if self.other:
            self.take_over(step)
        types, _ = declared(project_folder() / "notebooks" / f"{step}.ipynb")
        own = check(step, types, {name: namespace[name] for name in types})
        check_together({made: row["parameters"] for made, row in self.read_manifest().items()} | {step: own}, [step])
        return own

    def take_over(self, step: str) -> None:
        """Copy what the notebooks before ``step`` made in the other run, as far as they did not run here.

        Raises ValueError if that was made from other parameters than what was made here, CorruptFileError if a file of
        it is damaged.
        """
        own, theirs = self.read_manifest(), self.other.read_manifest()
        for earlier in (name for name in MADE if name < step and name in theirs):
            if earlier in own:
                here, there = (settings_of(manifest[earlier]["parameters"]) for manifest in (own, theirs))
                if any(name not in own for name in MADE if earlier < name < step) and here != there:
                    differing = ", ".join(sorted(name for name in here | there if here.get(name) != there.get(name)))
                    problem = f"{self.other.folder} ran {earlier} with another {differing}: what it made next is not"
                    raise ValueError(f"{problem} this run's; run the notebooks before {step} here")
                continue
            for pattern in MADE[earlier]:
                for path in sorted(self.other.folder.glob(pattern)):
                    copy(path, self.folder / path.relative_to(self.other.folder))
            keep(self.manifest, as_json(own := own | {earlier: theirs[earlier]}))
            if (commit := theirs[earlier].get("commit")) != provenance()["commit"]:  # other code, perhaps other results
                print(f"{earlier} is taken over from {self.other.folder}, made by commit {commit}", file=sys.stderr)

    def record(self, step: str, parameters: dict, seconds: float | None = None) -> None:
        """Note in the manifest how ``step`` (a notebook's name) was run: parameters, versions, commit, machine."""
        row = {"parameters": parameters, "seconds": seconds, **provenance()}
        keep(self.manifest, as_json(self.read_manifest() | {step: row}))

    def read_manifest(self) -> dict[str, dict]:
        """A row per recorded step; {} without a manifest. A damaged one is named on stderr and begun anew: every
        step that runs records itself again, and each folder of results says itself how it was made."""
        try:
            check(self.manifest, "it is begun anew")
            return read_json(self.manifest, "it is begun anew") if self.manifest.exists() else {}
        except CorruptFileError as problem:
            tell(problem)
            return {}


def project_folder() -> Path:
    """The checkout that this library runs from (the folder above the package)."""
    return Path(__file__).resolve().parent.parent


def settings_of(parameters: dict) -> dict:
    """Those of a notebook's parameters on which its results depend."""
    return {name: value for name, value in parameters.items() if name not in UNRELATED}


def open_run(folder: str | Path, reuse: str | Path = "") -> Run:
    """The run in ``folder``, which takes over what it can from the one in ``reuse``; relative folders lie below the
    checkout, wherever the notebook was started.

    Raises OSError when the folder cannot be made or written to, ValueError for a ``reuse`` that is no other run.
    """
    path = project_folder() / Path(folder).expanduser()
    other = other_run(path, project_folder() / Path(reuse).expanduser()) if reuse else None
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "read-only")
    except OSError as error:
        problem = f"cannot write into the run's folder ({error.strerror}); choose another run_folder"
        raise OSError(error.errno, problem, str(path)) from error
    return Run(path, other)


def other_run(folder: Path, reuse: Path) -> Run:
    """The run in ``reuse``. Raises ValueError if there is none, or if it is that in ``folder``."""
    if not Run(reuse).manifest.exists() or reuse.resolve() == folder.resolve():
        raise ValueError(f"reuse = {str(reuse)!r}: needs the folder of another run that was begun")
    return Run(reuse)


def elsewhere(folder: Path, change: str) -> str:
    """What to do when a run is to go on with a ``change`` of its parameters."""
    shown = folder.relative_to(project_folder()) if folder.is_relative_to(project_folder()) else folder
    old, new = shown.as_posix(), f"{shown.as_posix()}-2"
    lines = f'run_folder = "{new}", reuse = "{old}" (run_notebooks.py: --out {new} --reuse {old})'
    return f"{change}. What is finished stays: for the change, write {lines}, or start anew with --fresh"


def stream(seed: int, *what: object) -> random.Random:
    """The random stream of a purpose: one for each ``seed`` and ``what`` (a name, a key, a number: told by their text).

    Streams of different purposes do not depend on each other, nor on how much is drawn from them.
    """
    return random.Random("|".join(map(str, (seed, *what))))


def pick(cls: type, values: dict, **more):
    """A ``cls`` of those of ``values`` that are its fields, and of ``more``."""
    return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values}, **more)


def find_base(base: str | Path) -> str | Path:
    """Where the base lies: the shipped scale model for "nano", a folder, or, of a public model, its name.

    Raises FileNotFoundError, with the command that makes it, if the scale model is not there.
    """
    if base == "nano":
        folder = Path(__file__).parent / "nano" / "base"
        if not (folder / "model.safetensors").exists():
            made = "torchrun --nproc-per-node 2 -m knapsack.nano.training"
            raise FileNotFoundError(f"{folder} holds no model; make it with: {made}")
        return folder
    folder = Path(base).expanduser()
    return folder if folder.is_dir() else base


def find_adapter(folder: str | Path) -> Path:
    """``folder`` if an adapter lies there; FileNotFoundError with the remedy if not."""
    if not (Path(folder) / "adapter_config.json").exists():
        raise FileNotFoundError(f"there is no adapter in {folder}: run notebook 03 first")
    return Path(folder)


def content_digest(source: str | Path) -> str:
    """Digest of what determines a model's or adapter's replies; for a name that is no folder, the name.

    That is all of its weights, configurations, tokenizer and chat template: another of any is another model; the
    record of how it was made is no part of it.
    """
    if not Path(source).is_dir():
        return str(source)
    kinds = (".json", ".jinja", ".safetensors", ".bin", ".txt", ".model")
    files = sorted(path for path in Path(source).iterdir() if path.suffix in kinds and path.name != "training.json")
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
    found = {name: next(metadata.Distribution.discover(name=name), None) for name in PACKAGES}
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "versions": {name: package and package.version for name, package in found.items()},
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


# In each folder of results: the digests of its files when they were written, for ``sha256sum --check`` too.
SUMS = "SHA256SUMS"
TOGETHER = "# The files of this folder belong together.\n"


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
    """Write ``text`` to ``path`` in UTF-8, as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader and no crash ever sees half of it.

    It goes to a temporary file beside the target, is flushed to the disk, and is then renamed.
    Raises OSError (disk full, read-only, a file where the folder should be) with the target's name; the old
    content then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise unwritable(path, error) from error


def as_json(value: object) -> str:
    """``value`` as JSON text with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@contextmanager
def parsing(source: object, what: str, remedy: str) -> Iterator[None]:
    """Whatever reading parsed text stumbles over becomes a CorruptFileError: ``source`` is not ``what``, or lacks a
    field, and ``remedy``."""
    try:
        yield
    except KeyError as problem:
        raise CorruptFileError(f"{source} lacks the field {problem}; {remedy}") from problem
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError, RecursionError) as problem:
        raise CorruptFileError(f"{source} is not {what} ({type(problem).__name__}: {problem}); {remedy}") from problem


def read_json(path: str | Path, remedy: str = "delete it and run again") -> dict:
    """Read a JSON object. Raises CorruptFileError naming the file, what is wrong with it and the remedy."""
    if not Path(path).is_file():
        raise CorruptFileError(f"{path} is missing; {remedy}")
    with parsing(path, "valid JSON", remedy):  # nor bytes that are no text, endless digits, deep nesting
        value = json.loads(Path(path).read_text(encoding="utf-8"))
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


def keep(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` and note its digest in ``SHA256SUMS`` beside it.

    The note comes last and only grows, so a crash leaves at worst a whole file without one, which is as good as a
    file from elsewhere. Raises what ``write_text`` raises.
    """
    path = Path(path)
    write_text(path, text)
    note(path, digest(text))


def note(path: Path, known: str) -> None:
    """Add to ``SHA256SUMS`` that a file has this digest."""
    try:
        with open(path.with_name(SUMS), "a", encoding="utf-8", newline="\n") as handle:
            handle.write(f"{known}  {path.name}\n")
    except OSError as error:
        raise unwritable(path, error) from error


def keep_together(folder: str | Path) -> None:
    """Note the digests of all files in ``folder``, which are of use only together: once one is damaged, all go."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(Path(folder) / SUMS, TOGETHER + "".join(lines))


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder with what was noted of its digests (no links: whoever edits one is not to change both).

    Raises CorruptFileError, naming the file, for one that is not as it was kept.
    """
    check(source, "make it again in its own run")
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        if path.name == SUMS or path.name.startswith("."):
            continue
        write_bytes(target / path.relative_to(source), path.read_bytes())
    for folder in dict.fromkeys(path.parent for path in files):
        notes = (folder / SUMS).read_text(encoding="utf-8") if source.is_dir() and (folder / SUMS).exists() else ""
        if notes:
            write_text(target / folder.relative_to(source) / SUMS, notes)
    if source.is_file() and (known := kept(source.parent).get(source.name)):
        note(target, known)


def kept(folder: str | Path) -> dict[str, str]:
    """Name → digest of the files that were kept in ``folder``; the last note of a name counts, half a line does not."""
    path = Path(folder) / SUMS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return {name: known for known, name in re.findall(r"([0-9a-f]{64})  (.+)\n", text)}


def _wrong(path: Path, known: str) -> str:
    """What is wrong with a kept file, if anything is."""
    if not path.is_file():
        return f"{path} is missing"
    return "" if file_digest(path) == known else f"{path} is not as it was written"


def check(path: str | Path, remedy: str) -> None:
    """Raises CorruptFileError, naming file and remedy, if ``path``, or a file below it, is not as it was kept.

    A file that nobody noted came from elsewhere and is not asked.
    """
    path = Path(path)
    folders = [sums.parent for sums in sorted(path.rglob(SUMS))] if path.is_dir() else [path.parent]
    for folder in folders:
        for name, known in kept(folder).items():
            if (path.is_dir() or name == path.name) and (problem := _wrong(folder / name, known)):
                raise CorruptFileError(f"{problem}; {remedy}")


def discard(folder: str | Path, names: Collection[str]) -> None:
    """Remove kept files and their notes; of a folder whose files are of use only together, all of it."""
    folder = Path(folder)
    left = "".join(f"{known}  {name}\n" for name, known in kept(folder).items() if name not in names)
    if (folder / SUMS).read_text(encoding="utf-8", errors="replace").startswith(TOGETHER):
        return shutil.rmtree(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    write_text(folder / SUMS, left)


def heal(folder: str | Path) -> None:
    """Name on stderr, and remove, every file below ``folder`` that is not as it was kept."""
    for sums in sorted(Path(folder).rglob(SUMS)):
        problems = {name: _wrong(sums.parent / name, known) for name, known in kept(sums.parent).items()}
        if damaged := {name: problem for name, problem in problems.items() if problem}:
            for problem in damaged.values():
                tell(f"{problem}; it is made again")
            discard(sums.parent, damaged)


def tell(problem: object) -> None:
    """Say on stderr, in a line, which file is damaged and what is done about it."""
    print(f"damaged: {problem}", file=sys.stderr, flush=True)


@contextmanager
def writing(folder: str | Path, patience: float = 15.0) -> Iterator[None]:
    """Be the only one who writes below ``folder``.

    Temporary files that a killed writer left there, and what is damaged, are removed first: all other code then knows
    only files that are whole or absent.

    A killed run's kernel may live on for a moment, so another writer is waited for, ``patience`` seconds at most.
    Then FolderInUseError; OSError if the folder cannot be made or written to.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".writing.lock", timeout=patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout as error:
        problem = f"another process is writing to {folder}: wait for it, or choose another run folder"
        raise FolderInUseError(problem) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    with held:
        for leftover in folder.rglob(".*.tmp"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        heal(folder)
        yield

"""Where the files of a run lie, and the manifest that says how they were made."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from knapsack.files import CorruptFileError, read_sealed, tell, write_sealed

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

    def evaluation(self, model: str, runtime: str, split: str) -> Path:
        return self.folder / "evaluations" / f"{model}_{runtime}_{split}"

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

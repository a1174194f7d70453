"""What the chosen notebooks lack on this machine, known before any work.

Without torch in this process: whether there is a GPU is asked in another.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

from knapsack.endpoints.endpoint import Endpoint, EndpointError, check_server, read_endpoint, read_key, read_served
from knapsack.gpu.backends import check_packages, choose_backend
from knapsack.runs import find_base, project_folder, read_json
from knapsack.sandbox import interpreter_pool
from knapsack.traces import Cell, cells_of

ROOM = 2_000_000_000  # bytes of disk to spare
TOLD = 12  # bytes of an episode's files per token: 3.2 a character in the default run, 4 characters a token at most
ASK_GPU = """
import json, torch
device = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
print(json.dumps([device.name, device.total_memory] if device else ["", 0]))
"""


class Doubt(str):
    """What may go wrong but need not, among what is missing."""


class Wanted:
    """What is to run: the notebooks ``steps`` of a profile. The parameters of notebook 04 are ``evaluate.slots`` etc.,
    and those of the others ``generate``, ``traces``, ``finetune`` and ``analysis``, also where they are not chosen."""

    def __init__(self, profile: dict, parameters: dict[str, dict], steps: Collection[str]):
        names = ("01_generate", "02_traces", "03_finetune", "04_evaluate", "05_analysis")
        values = [SimpleNamespace(**parameters.get(name, {})) for name in names]
        self.generate, self.traces, self.finetune, self.evaluate, self.analysis = values
        self.profile, self.steps = profile, steps
        self.bases = sorted({parameters[step]["base"] for step in steps if "base" in parameters[step]})
        self.served: dict[str, Endpoint] = {}  # of the models of notebook 04
        self.places: dict[str, Endpoint] = {}  # all endpoints that the chosen notebooks ask
        if "02_traces" in steps and self.traces.teacher:
            self.places["teacher"] = read_endpoint("teacher", self.traces.teacher)
        if "04_evaluate" in steps:
            self.served = read_served(self.evaluate.models, self.evaluate.server)
            self.places |= self.served

    @property
    def needs_gpu(self) -> bool:
        """Whether a chosen notebook trains a model, or answers for one itself."""
        return "03_finetune" in self.steps or (
            "04_evaluate" in self.steps and self.evaluate.models.keys() > self.served.keys()
        )

    @property
    def model(self) -> dict:
        """What the profile says of its own base: weights_gb, cache_kib_a_token, adapter_mb; {} for another base."""
        own = self.profile.get("03_finetune", {}).get("base")
        return self.profile["model"] if self.bases == [own] else {}

    @property
    def cells(self) -> list[Cell]:
        """Those of notebook 04."""
        return cells_of(self.evaluate.models, self.evaluate.runtimes, self.evaluate.splits, self.evaluate.caps)

    @property
    def disk(self) -> float:
        """Bytes that the chosen notebooks write into the run's folder, generously counted: tasks; episodes as long as
        allowed; adapters, and up to three checkpoints of one, each with the two moments of the optimizer."""
        played, total = self.evaluate, 0
        if "01_generate" in self.steps:
            total += 15_000 * (self.generate.n_train + self.generate.n_easy + self.generate.n_hard)
        if "02_traces" in self.steps:
            total += 2 * self.traces.n_train * self.traces.max_tokens * TOLD
        if "03_finetune" in self.steps:
            total += (len(self.finetune.adapters) + 3 * 3) * self.model.get("adapter_mb", 0) * 1e6
        if "04_evaluate" in self.steps:
            total += len(self.cells) * max(played.n_easy, played.n_hard) * played.context_length * TOLD
        return total


def find_missing(wanted: Wanted, folder: Path) -> tuple[list[str], list[str]]:
    """What ``wanted`` lacks on this machine, each with its remedy, and what may go wrong but need not."""
    bases = [check_base(base, wanted.needs_gpu, wanted.profile.get("offline", False)) for base in wanted.bases]
    found = [*check_installed(wanted), *check_folders(wanted), *check_gpu(wanted), *check_endpoints(wanted.places)]
    found += [problem for problem, _ in bases if problem]
    there = existing(folder)
    if there.is_dir() and os.access(there, os.W_OK):
        found += check_disk(folder, wanted.disk, sum(size for _, size in bases))
    else:
        problem = f"cannot make the run's folder {folder} ({there} is a file or read-only); choose another with --out"
        found.append(f"a place for the run: {problem}")
    doubts = [text for text in found if isinstance(text, Doubt)]
    return [text for text in found if not isinstance(text, Doubt)], doubts


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def check_installed(wanted: Wanted) -> Iterator[str]:
    """Packages and engines that the chosen notebooks need."""
    try:
        if "03_finetune" in wanted.steps:
            check_packages(wanted.finetune)
            if wanted.finetune.backend == "unsloth":
                choose_backend("unsloth")
    except ImportError as error:
        yield f"a package of the fine-tuning: {error}"
    players = {"02_traces": wanted.traces, "04_evaluate": wanted.evaluate}
    for engine in sorted({values.engine for step, values in players.items() if step in wanted.steps} - {"monty"}):
        try:
            interpreter_pool(engine=engine)
        except RuntimeError as error:
            yield f"a place for engine {engine!r}: {error}"


def check_folders(wanted: Wanted) -> list[str]:
    """Folders that notebook 05 reads beside the run's own."""
    analysis = wanted.analysis
    named = (
        [analysis.published_folder, *analysis.more_runs, *analysis.beyond_runs] if "05_analysis" in wanted.steps else []
    )
    lost = [name for name in named if name and not (project_folder() / Path(name).expanduser()).is_dir()]
    return [f"the folder {name}: name one that is there (a relative one lies below the checkout)" for name in lost]


def check_endpoints(endpoints: dict[str, Endpoint]) -> Iterator[str]:
    """The ``api`` extra, keys, and servers that answer; and a doubt for a model that a server does not list."""
    lost = set()  # addresses with their keys, each told once
    for endpoint in endpoints.values():
        place = endpoint.url, endpoint.key_variable
        try:
            if place not in lost and (doubt := check_server(endpoint, read_key(endpoint))):
                yield Doubt(doubt)
            continue
        except ImportError as error:
            yield f"the packages for endpoints: {error}"
            return
        except ValueError as error:
            yield f"the key {endpoint.key_variable}: {error}; export it"
        except EndpointError as error:
            yield f"the server {endpoint.url}: {error}"
        lost.add(place)


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


def check_base(base: str, weights: bool, offline: bool) -> tuple[str | None, int]:
    """What keeps ``base`` from being loaded (its ``weights``, or the tokenizer alone), and bytes to download for it."""
    folder = local_folder(base)
    if folder is not None and (folder / "tokenizer.json").exists() and (not weights or has_weights(folder)):
        return None, 0
    if folder is not None and folder == Path(find_base(base)):
        return f"the model in {folder}: it lacks its weights or tokenizer; name a complete folder", 0
    if offline:
        return f"the model {base}: this profile is offline: name a model folder, or use another profile", 0
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        files = HfApi().model_info(base, files_metadata=True, timeout=10).siblings
    except (HFValidationError, HTTPError, OSError) as error:  # no such model, it wants an account, no network
        problem = f"it is not on this machine and cannot be had ({str(error).splitlines()[0]})"
        remedy = "name a model folder or a public model, or download it where there is a network"
        return f"the model {base}: {problem}; {remedy}", 0
    ends = (".json", ".txt", ".safetensors") if weights else (".json", ".txt")
    return None, sum(file.size or 0 for file in files if file.rfilename.endswith(ends))


def check_gpu(wanted: Wanted) -> Iterator[str]:
    """Whether PyTorch sees the GPU that the profile wants, and a doubt if it has less memory."""
    memory = wanted.profile.get("gpu_memory_gb")  # 10⁹ bytes
    if not (memory and wanted.needs_gpu):
        return
    asked = subprocess.run([sys.executable, "-c", ASK_GPU], capture_output=True, text=True)
    name, size = json.loads(asked.stdout) if asked.returncode == 0 else ("", 0)
    if not name:
        said = asked.stderr.strip().splitlines()[-1:] or [f"this profile wants one with {memory} GB"]
        remedy = "run on a machine with one, with PyTorch for CUDA, or use --profile nano"
        yield f"no GPU that PyTorch can use ({said[0]}): {remedy}"
    elif size < 0.95 * memory * 1e9:
        yield Doubt(f"{name} has {size / 1e9:.0f} GB of memory, this profile wants {memory} GB")


def check_disk(folder: Path, size: float, download: int = 0, free: int | None = None) -> Iterator[str]:
    """Room for ``size`` bytes in the run's ``folder``, and for ``download`` bytes in the cache of models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needs = {}  # per disk a folder on it, bytes
    for place, wanted in ((folder, size), *([(Path(HF_HUB_CACHE), download)] if download else [])):
        there = existing(place)
        needs.setdefault(there.stat().st_dev, [there, ROOM])[1] += wanted
    for there, needed in needs.values():
        left = shutil.disk_usage(there).free if free is None else free
        if needed > left:
            remedy = f"free {(needed - left) / 1e9:.1f} GB, or choose another disk (--out; HF_HOME for models)"
            yield f"{needed / 1e9:.1f} GB of disk at {there} ({left / 1e9:.1f} GB are free): {remedy}"

"""What can be known before any work: whether the parameters make sense, and what the chosen notebooks lack here.

``parameters`` maps each notebook's name to its parameters, ``steps`` are the notebooks to run. Without torch in this
process: whether there is a GPU is asked in another.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from knapsack.endpoints.endpoint import (
    Endpoint,
    EndpointError,
    check_server,
    packages,
    read_endpoint,
    read_key,
    read_served,
)
from knapsack.finetune import Recipe
from knapsack.gpu.backends import BACKENDS, check_packages, choose_backend
from knapsack.preflight.sizes import has_weights, local_folder, read_shape, run_bytes
from knapsack.prompts import DETAILS
from knapsack.runtime import RUNTIME_KINDS
from knapsack.sandbox import ENGINES, interpreter_pool
from knapsack.tasks import SPLIT_SIZE, preset

WORDS = {  # parameter → what it may be
    "prompt_detail": DETAILS,
    "engine": ENGINES,
    "runtimes": RUNTIME_KINDS,
    "splits": ("easy", "hard"),
    "source": ("run", "published"),
    "backend": ("auto", *BACKENDS),
}
LEAST = {"temperature": 0, "seed": 0, "max_total_tokens": 0, "context_length": 2, "n_resamples": 1, "processes": 1}
LEAST |= dict.fromkeys(("n_train", "n_easy", "n_hard", "n_pairs", "max_turns", "max_tool_calls", "max_tokens"), 1)
LEAST |= dict.fromkeys(("max_new_tokens", "slots"), 1)
MOST = dict.fromkeys(("n_train", "n_easy", "n_hard"), SPLIT_SIZE)
ROOM = 2_000_000_000  # bytes of disk to spare
ASK_GPU = """
import json, torch
there = torch.cuda.is_available()
print(json.dumps({"name": torch.cuda.get_device_name(0), "bytes": torch.cuda.get_device_properties(0).total_memory}
                 if there else {"name": None, "bytes": 0}))
"""


@dataclass(frozen=True)
class Missing:
    """Something that the chosen notebooks need and this machine lacks, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def read_subjects(parameters: dict) -> dict[str, Endpoint | None]:
    """The models of notebook 04 by name, None for those that it runs itself. Raises ValueError for a bad entry."""
    served = read_served(parameters["models"], parameters["server"])
    return {name: served.get(name) for name in parameters["models"]}


def read_places(parameters: dict[str, dict], steps: Collection[str]) -> dict[str, Endpoint]:
    """The endpoints that the chosen notebooks ask, by name. Raises ValueError for a bad entry."""
    found = {}
    if "02_traces" in steps and parameters["02_traces"]["teacher"]:
        found["teacher"] = read_endpoint("teacher", parameters["02_traces"]["teacher"])
    if "04_evaluate" in steps:
        subjects = read_subjects(parameters["04_evaluate"])
        found |= {name: endpoint for name, endpoint in subjects.items() if endpoint is not None}
    return found


def check_values(parameters: dict[str, dict], steps: Collection[str]) -> None:
    """Raises ValueError, naming notebook, parameter and what it may be, for the first that no run could use, or that
    does not go with others of the chosen notebooks."""
    for step, values in parameters.items():
        for name, value in values.items():
            need, words = None, value if isinstance(value, list) else [value]
            if name in WORDS and not set(words) <= set(WORDS[name]):
                need = f"needs {'one ' if isinstance(value, str) else ''}of {', '.join(WORDS[name])}"
            if name in LEAST and value < LEAST[name]:
                need = f"needs at least {LEAST[name]}"
            if name in MOST and value > MOST[name]:
                need = f"needs at most {MOST[name]:,}"
            if name in ("models", "runtimes", "splits") and not value:
                need = "needs at least one"
            if need:
                raise ValueError(f"{step}: {name} = {value!r}: {need}")
            if name.endswith("_config"):
                preset(value)
    read_places(parameters, steps)
    if "02_traces" in steps and (values := parameters["02_traces"])["n_pairs"] > values["n_train"]:
        raise ValueError(f"02_traces: n_pairs = {values['n_pairs']} of n_train = {values['n_train']} tasks")
    if "03_finetune" in steps:
        read_recipe(parameters["03_finetune"])
    if "04_evaluate" in steps and None in read_subjects(parameters["04_evaluate"]).values():
        base, length = (parameters["04_evaluate"][name] for name in ("base", "context_length"))
        shape = read_shape(base)
        if shape and length > shape.max_position_embeddings:
            limit = shape.max_position_embeddings
            raise ValueError(f"04_evaluate: context_length = {length}: {base} has {limit} positions")


def read_recipe(parameters: dict) -> Recipe:
    """The recipe of notebook 03. Raises ValueError."""
    return Recipe(**{field.name: parameters[field.name] for field in fields(Recipe)})


def needs_gpu(parameters: dict[str, dict], steps: Collection[str]) -> bool:
    """Whether a chosen notebook trains a model, or answers for one itself."""
    return "03_finetune" in steps or (
        "04_evaluate" in steps and None in read_subjects(parameters["04_evaluate"]).values()
    )


def find_missing(
    profile: dict, parameters: dict[str, dict], steps: Collection[str], folder: Path, free: int | None = None
) -> tuple[list[Missing], list[str]]:
    """What ``steps`` lack on this machine, and what may go wrong but need not. ``free``: bytes of disk to assume."""
    missing, doubts, download = check_installed(parameters, steps), [], 0
    gpu = needs_gpu(parameters, steps)
    if gpu and profile.get("gpu_memory_gb"):
        lacking, doubts = check_gpu(profile["gpu_memory_gb"])
        missing += lacking
    lacking, unsure = check_endpoints(read_places(parameters, steps))
    missing, doubts = missing + lacking, doubts + unsure
    for base in sorted({parameters[step]["base"] for step in steps if "base" in parameters[step]}):
        lacking, size = check_base(base, gpu, profile)
        missing += lacking
        download += size
    there = existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = f"cannot make the run's folder {folder} ({there} is a file or read-only); choose another with --out"
        return [*missing, Missing("a place for the run", problem)], doubts
    return missing + check_disk(profile, parameters, steps, folder, download, free), doubts


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def check_installed(parameters: dict[str, dict], steps: Collection[str]) -> list[Missing]:
    """Packages and engines that the chosen notebooks need."""
    missing = []
    if "03_finetune" in steps:
        training = parameters["03_finetune"]
        try:
            check_packages(read_recipe(training))
            if training["backend"] == "unsloth":
                choose_backend("unsloth")
        except ImportError as error:
            missing.append(Missing("a package of the fine-tuning", str(error)))
    for engine in sorted({parameters[step]["engine"] for step in steps if "engine" in parameters[step]} - {"monty"}):
        try:
            interpreter_pool(engine=engine)
        except RuntimeError as error:
            missing.append(Missing(f"a place for engine {engine!r}", str(error)))
    return missing


def check_endpoints(endpoints: dict[str, Endpoint]) -> tuple[list[Missing], list[str]]:
    """The ``api`` extra, keys, and servers that answer; and a doubt for a model that a server does not list."""
    try:
        if endpoints:
            packages()
    except ImportError as error:
        return [Missing("the packages for endpoints", str(error))], []
    missing: dict[tuple, Missing] = {}
    doubts = []
    for endpoint in endpoints.values():
        place = endpoint.url, endpoint.key_variable
        if place in missing:
            continue
        try:
            doubts.append(check_server(endpoint, read_key(endpoint)))
        except ValueError as error:
            missing[place] = Missing(f"the key {endpoint.key_variable}", f"{error}; export it")
        except EndpointError as error:
            missing[place] = Missing(f"the server {endpoint.url}", str(error))
    return list(missing.values()), [doubt for doubt in doubts if doubt]


def check_base(base: str, weights: bool, profile: dict) -> tuple[list[Missing], int]:
    """What keeps ``base`` from being loaded (its ``weights``, or the tokenizer alone), and bytes to download for it."""
    folder = local_folder(base)
    if folder is not None and (folder / "tokenizer.json").exists() and (not weights or has_weights(folder)):
        return [], 0
    if folder is not None and (base == "nano" or folder == Path(base).expanduser()):
        return [Missing(f"the model in {folder}", "it lacks its weights or tokenizer; name a complete folder")], 0
    if profile.get("offline"):
        return [Missing(f"the model {base}", "this profile is offline: name a model folder, or use another profile")], 0
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        files = HfApi().model_info(base, files_metadata=True, timeout=10).siblings
    except (HFValidationError, HTTPError, OSError) as error:  # no such model, it wants an account, no network
        problem = f"it is not on this machine and cannot be had ({str(error).splitlines()[0]})"
        remedy = f"{problem}; name a model folder or a public model, or download it where there is a network"
        return [Missing(f"the model {base}", remedy)], 0
    ends = (".json", ".txt", ".safetensors") if weights else (".json", ".txt")
    return [], sum(file.size or 0 for file in files if file.rfilename.endswith(ends))


def check_gpu(wanted_gb: float) -> tuple[list[Missing], list[str]]:
    """Whether PyTorch sees a GPU, and a doubt if it has less memory than ``wanted_gb`` (10⁹ bytes)."""
    asked = subprocess.run([sys.executable, "-c", ASK_GPU], capture_output=True, text=True)
    found = json.loads(asked.stdout) if asked.returncode == 0 else {"name": None, "bytes": 0}
    if found["name"] is None:
        said = asked.stderr.strip().splitlines()[-1:] or [f"this profile wants one with {wanted_gb} GB"]
        remedy = "run on a machine with one, with PyTorch for CUDA, or use --profile nano"
        return [Missing(f"no GPU that PyTorch can use ({said[0]})", remedy)], []
    if found["bytes"] < 0.95 * wanted_gb * 1e9:
        return [], [f"{found['name']} has {found['bytes'] / 1e9:.0f} GB of memory, this profile wants {wanted_gb} GB"]
    return [], []


def check_disk(
    profile: dict, parameters: dict[str, dict], steps: Collection[str], folder: Path, download: int, free: int | None
) -> list[Missing]:
    """Room for what the chosen notebooks write into ``folder``, and for ``download`` bytes in the cache of models."""
    wanted = [(folder, disk_need(profile, parameters, steps))]
    if download:
        from huggingface_hub.constants import HF_HUB_CACHE

        wanted.append((Path(HF_HUB_CACHE), download))
    needs: dict[int, list] = {}  # per disk: a folder on it, bytes
    for place, size in wanted:
        there = existing(place)
        needs.setdefault(there.stat().st_dev, [there, ROOM])[1] += size
    missing = []
    for there, size in needs.values():
        left = shutil.disk_usage(there).free if free is None else free
        if size > left:
            remedy = f"free {(size - left) / 1e9:.1f} GB, or choose another disk (--out; HF_HOME for models)"
            missing.append(Missing(f"{size / 1e9:.1f} GB of disk at {there} ({left / 1e9:.1f} GB are free)", remedy))
    return missing


def config_of(profile: dict, base: str) -> dict | None:
    """What the profile knows of the configuration of ``base``: that of its own base."""
    return profile.get("config") if base == profile["03_finetune"]["base"] else None


def disk_need(profile: dict, parameters: dict[str, dict], steps: Collection[str]) -> int:
    """Bytes that the chosen notebooks write into the run's folder, generously counted."""
    shape = cells = None
    if "03_finetune" in steps:
        base = parameters["03_finetune"]["base"]
        shape = read_shape(base, config_of(profile, base))
    if "04_evaluate" in steps:
        played = parameters["04_evaluate"]
        cells = (len(played["models"]) + 1) * len(played["runtimes"]) * len(played["splits"])
    return run_bytes(parameters, steps, shape, cells)

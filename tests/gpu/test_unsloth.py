"""Unsloth's real FastLanguageModel against plain PEFT and TRL, on a CPU: `make test-unsloth`.

Each back end trains in a process of its own (unsloth_child.py), because Unsloth changes the libraries that it finds.
Its CPU back end shares the loading, the trainer and the saving with its CUDA back end, not the kernels.
"""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch
from peft import PeftModel
from places import CHECKOUT
from safetensors.torch import load_file
from tiny import make_rows, tiny_model
from transformers import AutoModelForCausalLM

from knapsack.finetune import Recipe
from knapsack.gpu import backends
from knapsack.models import load_model
from knapsack.training_data import write_rows

MISSING = [name for name in ("unsloth", "unsloth_zoo", "bitsandbytes") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: make test-unsloth")

LOSS = 1e-3  # how far two back ends may be apart in the loss of a step, relative; on a CPU they were equal to the bit


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder that is home, working folder and place of caches, and the environment that says so."""
    folder = tmp_path_factory.mktemp("elsewhere")
    changed = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(CHECKOUT)}
    dropped = ("HF_HOME", "XDG_CACHE_HOME", "UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DISABLE_STATISTICS")
    return folder, {name: value for name, value in os.environ.items() if name not in dropped} | changed


@pytest.fixture(scope="module")
def trained(base, elsewhere, tmp_path_factory):
    """Back end → (its folder, what unsloth_child.py observed)."""
    results = {}
    for backend in ("peft", "unsloth"):
        output = tmp_path_factory.mktemp(backend)
        command = [sys.executable, CHECKOUT / "tests" / "unsloth_child.py", backend, base, output]
        folder, environment = elsewhere
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        results[backend] = output, json.loads((output / "observed.json").read_text())
    return results


@pytest.mark.parametrize("name", ["whole", "four-bit"])
def test_both_back_ends_have_the_same_loss_on_the_same_tokens(trained, name):
    (_, plain), (_, unsloth) = trained["peft"], trained["unsloth"]
    assert plain["batches"] == unsloth["batches"] and len(plain["batches"]) == plain["reports"]["whole"]["steps"] > 10
    plain, unsloth = plain["reports"][name], unsloth["reports"][name]
    assert (plain["backend"], unsloth["backend"]) == ("peft", "unsloth")
    assert unsloth["losses"][0]["loss"] == pytest.approx(plain["losses"][0]["loss"], rel=LOSS)
    for report in (plain, unsloth):
        assert report["validation"][-1]["loss"] < 0.7 * report["validation"][0]["loss"]
        assert report["tokens_per_second"] > 0 and report["peak_memory"] > 2**20


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_four_bit_is_four_bit_under_an_adapter_in_float32(trained, backend):
    folder, observed = trained[backend]
    layers = [observed["reports"][name]["four_bit_layers"] for name in ("whole", "four-bit")]
    assert layers == [0, 2 * 7]  # of two layers
    weights = load_file(folder / "four-bit" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_four_bit_that_unsloth_drops_stops_the_training(trained):
    said = trained["unsloth"][1]["said"]["dropped"]
    assert said.startswith("RuntimeError: Recipe.load_in_4bit = True, but 14 of 14 adapted layers are not 4-bit NF4")
    assert not (trained["unsloth"][0] / "dropped" / "adapter").exists()


def test_a_long_recipe_does_not_stretch_the_positions_of_the_base(base, trained):
    observed = trained["unsloth"][1]
    config = json.loads((base / "config.json").read_text())
    assert observed["reports"]["positions"] == [2048, config["rope_parameters"]]
    assert "training rows are longer than 2048 tokens" in observed["said"]["too long"]


def test_the_adapter_is_the_same_kind_of_folder_also_when_the_training_was_stopped(trained):
    folders = {}
    for backend, (folder, observed) in trained.items():
        assert observed["reports"]["resumed"]["resumed_from"] == 10
        whole, resumed = (
            {path.name: path.read_bytes() for path in (folder / name / "adapter").iterdir()}
            for name in ("whole", "resumed")
        )
        assert whole == resumed and whole.pop("adapter_model.safetensors")
        folders[backend] = whole
    assert folders["peft"] == folders["unsloth"]


def test_an_adapter_of_unsloth_replies_the_same_in_plain_peft(base, trained):
    folder, observed = trained["unsloth"]
    assert "unsloth" not in sys.modules
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "whole" / "adapter").eval()
    start, text = len(observed["prompt"]), torch.tensor(observed["reply"])
    with torch.inference_mode():
        logits = model(text[None]).logits[0, start - 1 : -1]
    chosen = logits.gather(-1, text[start:, None])[:, 0]  # the best each time, but for ties
    rounding = 2**-8  # of bfloat16, in which Unsloth's own reply was made
    assert len(chosen) > 0 and logits.max(-1).values.tolist() == pytest.approx(chosen.tolist(), rel=rounding)
    settings = {"slots": 1, "context_length": 2048, "max_new_tokens": 8, "temperature": 0, "seed": 0}
    load_model(base, folder / "whole" / "adapter", **settings)


def test_no_file_is_written_outside_the_outputs(trained, elsewhere):
    """Unsloth looks whether the cache of Hugging Face can be written to, which leaves its empty folders."""
    assert [path for path in elsewhere[0].rglob("*") if path.is_file()] == []


def test_notebook_03_runs_with_unsloth(checkout, base, elsewhere, tmp_path):
    before = sorted((checkout / "notebooks").iterdir())
    for kind in ("persistent", "stateless"):
        write_rows(tmp_path / "training" / kind / "traces.jsonl", make_rows(12, seed=len(kind)))
    settings = {"backend": "unsloth", "base": base, "rank": 2, "max_length": 2048, "load_in_4bit": "true"}
    settings["context_length"] = settings["max_tokens"] = 2048  # of notebooks 04 and 02, which are not run here
    words = [word for name, value in settings.items() for word in ("-p", f"{name}={value}")]
    command = [sys.executable, checkout / "run_notebooks.py", "--only", "3", "--out", tmp_path, *words]
    ended = subprocess.run(command, cwd=elsewhere[0], env=elsewhere[1], capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cells = nbformat.read(tmp_path / "notebooks" / "03_finetune.ipynb", 4).cells
    shown = "".join(str(output.get("data", "")) for cell in cells for output in cell.get("outputs", []))
    assert "unsloth on cpu" in shown and "4-bit NF4" in shown
    for kind in ("persistent", "stateless"):
        made = json.loads((tmp_path / "training" / kind / "training.json").read_text())["report"]
        assert (made["backend"], made["four_bit_layers"]) == ("unsloth", 14)
    assert sorted((checkout / "notebooks").iterdir()) == before  # no cache beside the notebooks


def parameters(module: str, owner: str, function: str) -> set[str]:
    """Names of the parameters of a method in Unsloth's source, which cannot be imported without a GPU."""
    source = Path(find_spec("unsloth").submodule_search_locations[0], "models", module).read_text(encoding="utf-8")
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == owner]
    (method,) = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return {argument.arg for argument in [*method.args.args, *method.args.kwonlyargs]}


def test_the_cuda_back_end_knows_every_argument_by_name():
    for passed, known in (
        (backends.unsloth_base_arguments(Recipe(), "base", 1), ("loader.py", "FastLanguageModel", "from_pretrained")),
        (backends.unsloth_lora_arguments(Recipe()), ("llama.py", "FastLlamaModel", "get_peft_model")),
    ):
        assert passed.keys() <= parameters(*known)

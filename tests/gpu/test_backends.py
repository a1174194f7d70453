"""Back ends: which is chosen, and when one is refused."""

import subprocess
import sys
from types import ModuleType

import pytest
import transformers  # noqa: F401
import trl  # noqa: F401

from knapsack.finetune import Recipe
from knapsack.gpu import backends


@pytest.fixture
def installed(monkeypatch):
    """As if every package were installed, and no back end chosen in this process yet."""
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION", raising=False)


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)


@pytest.mark.parametrize(("gpu", "chosen"), [(False, "peft"), (True, "unsloth")])
def test_auto_is_unsloth_where_it_is_installed_with_a_gpu(installed, monkeypatch, gpu, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert backends.choose_backend("auto") == chosen
    assert backends.choose_backend("unsloth") == "unsloth" and backends.choose_backend("peft") == "peft"


def test_what_is_not_installed_is_named_with_the_remedy(bare, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert backends.choose_backend("auto") == "peft"
    with pytest.raises(ImportError, match=r"backend = 'unsloth': it is not installed; pip install -e '\.\[gpu\]'"):
        backends.choose_backend("unsloth")
    with pytest.raises(ImportError, match=r"load_in_4bit = True needs bitsandbytes, .*; pip install -e '\.\[gpu\]'"):
        backends.check_packages(Recipe(load_in_4bit=True))
    backends.check_packages(Recipe())


def test_unsloth_is_refused_after_the_libraries_that_it_changes(installed, tmp_path):
    with pytest.raises(RuntimeError, match=r"transformers, trl, peft was imported before it; .*restart the kernel"):
        backends.prepare_backend("unsloth", tmp_path)
    assert "unsloth" not in sys.modules


def test_an_unsloth_that_came_by_another_way_is_refused(installed, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="backend = 'peft': unsloth is imported and has changed its libraries"):
        backends.prepare_backend("peft", tmp_path)
    with pytest.raises(RuntimeError, match="imported before it was told where it may write"):
        backends.prepare_backend("unsloth", tmp_path)


def test_notebook_03_may_import_the_library_before_its_back_end():
    imports = "knapsack.finetune, knapsack.gpu.backends, knapsack.training_data"
    program = f"import sys, {imports}\nprint([name for name in {backends.PATCHED} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"

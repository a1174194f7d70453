"""Back ends: which is chosen, when one is refused, and that the libraries know every argument that we pass."""

import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from knapsack import training
from knapsack.gpu import backends
from knapsack.recipe import Recipe


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


def passed() -> list:
    """(class, name) of every argument that we pass to a library's class."""
    config = training.config_arguments(Recipe(), Path("checkpoints"), "cpu", 10, validate=True, resumed=False)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1)
    arguments = {
        SFTConfig: config,
        SFTTrainer: training.trainer_arguments(None, None, tokenizer, [], [], 1),
        LoraConfig: backends.lora_arguments(Recipe()),
        BitsAndBytesConfig: backends.quantisation_arguments(),
    }
    return [(known, name) for known, names in arguments.items() for name in names]


@pytest.mark.parametrize(("known", "name"), passed(), ids=lambda value: getattr(value, "__name__", value))
def test_the_pinned_version_knows_the_argument_by_name(known, name):
    assert name in inspect.signature(known).parameters  # not only swallowed by **kwargs

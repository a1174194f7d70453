"""Fine-tuning: what is trained on, the same bytes from the same seed, resuming, refusing, and no network."""

import dataclasses
import json
import random
import resource
import shutil
import socket
from functools import partial

import pytest
import torch
from damage import HOW, damage
from peft import PeftModel
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from knapsack import batches
from knapsack import finetune as ft
from knapsack.adapters import last_checkpoint
from knapsack.prompts import render
from knapsack.runs import CorruptFileError, FolderInUseError, writing

RECIPE = ft.Recipe(
    rank=4, alpha=8, learning_rate=1e-2, batch_tokens=256, validation_share=0.1, evaluations=2, max_length=2048
)


def make_rows(count: int, seed: int = 0) -> list[dict]:
    source, rows = random.Random(seed), []
    for _ in range(count):
        messages = [
            {"role": "system", "content": "Runtime: persistent."},
            {"role": "user", "content": f"Knapsack: capacity {source.randint(1, 99)}."},
        ]
        for turn in range(source.randint(1, 5)):
            messages += [
                {"role": "assistant", "content": f"I look.\n```python\nprint({turn})\n```"},
                {"role": "user", "content": json.dumps({"output": f"{turn}\n"})},
            ]
        rows.append({"messages": messages[:-1]})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(folder, report) of one uninterrupted training, made with every way out of the machine closed."""
    folder = tmp_path_factory.mktemp("trained")

    def refuse(*arguments, **_):
        raise AssertionError(f"something wanted to reach the network: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return folder, ft.finetune(RECIPE, make_rows(40), str(base), folder, progress=False)


FINISHED = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/chat_template.jinja",
    "training.json",
]


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


def weights(folder) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_only_assistant_text_is_labelled(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = make_rows(5)
    data = batches.tokenize_rows(rows, tokenizer)
    assert data.column_names == ["input_ids", "labels"]
    for row, item in zip(rows, data, strict=True):
        said = "".join(m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant")
        assert tokenizer.decode([label for label in item["labels"] if label != -100]) == said
        prompt = render(row["messages"][:2], tokenizer, reply_follows=True).input_ids
        assert item["input_ids"][: len(prompt)] == prompt  # a training row begins with the prompt of inference
    with pytest.raises(ValueError, match="row 2 has no assistant"):
        batches.tokenize_rows([rows[0], {"messages": rows[0]["messages"][:2]}], tokenizer)


def test_batches_hold_every_row_once_and_keep_the_budget():
    source = random.Random(1)
    lengths = [source.randint(10, 400) for _ in range(300)] + [5000]
    recipe = ft.Recipe(batch_tokens=1000, batch_rows=7)
    made = batches.make_batches(lengths, recipe)
    assert sorted(index for batch in made for index in batch) == list(range(301))
    assert [300] in made  # longer than the budget: alone
    for batch in made:
        assert len(batch) <= 7
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 1000
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in made)
    assert padded < 1.05 * sum(lengths)
    assert batches.make_batches(lengths, dataclasses.replace(recipe, seed=1)) != made


def test_a_batch_gives_the_loss_of_its_rows(base):
    """Padding on the right under an all-ones mask changes neither a token's logits nor the loss."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    data = batches.tokenize_rows(make_rows(6), tokenizer)
    batch = batches.collator(tokenizer.pad_token_id, 2048)([data[:]])
    assert batch.pop("tokens") == sum(len(ids) for ids in data["input_ids"])
    assert batch["input_ids"].shape == (6, 256)  # the longest row, filled up to a multiple of WIDTH_STEP
    with torch.no_grad():
        together = model(**batch).loss.item()
        alone, count = 0.0, 0
        for row in data:
            labelled = sum(label != -100 for label in row["labels"])
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            alone += model(input_ids=ids, labels=labels).loss.item() * labelled
            count += labelled
    assert together == pytest.approx(alone / count, rel=1e-5)


def test_a_training_learns_and_reports(base, trained):
    folder, report = trained
    assert report.validation[-1]["loss"] < 0.7 * report.validation[0]["loss"]
    assert report.losses[-1]["step"] == report.validation[-1]["step"] == report.steps > 10
    assert (report.rows, report.validation_rows) == (36, 4)
    assert 0 < report.labelled_tokens < report.tokens == report.trained_tokens
    assert report.adapter_bytes == len(weights(folder)) and report.base == "tiny"
    assert report.trained_parameters == 4 * 2 * (3 * (32 + 48) + 2 * (32 + 32) + 2 * (32 + 32))
    assert files(folder) == FINISHED
    written = "".join(p.read_text() for p in [folder / "training.json", folder / "adapter" / "adapter_config.json"])
    assert str(base.parent) not in written and str(folder) not in written


def test_gradient_checkpointing_changes_memory_not_the_adapter(base, trained, tmp_path):
    recipe = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    report = ft.finetune(recipe, make_rows(40), str(base), tmp_path, progress=False)
    assert weights(tmp_path) == weights(trained[0]) and report.losses == trained[1].losses


def test_a_batch_is_no_wider_than_the_base_has_positions(base):
    data = batches.tokenize_rows(make_rows(6), AutoTokenizer.from_pretrained(base))
    longest = max(map(len, data["input_ids"]))
    for limit, width in ((longest, longest), (longest + 1, longest + 1), (2048, -(-longest // 128) * 128)):
        assert batches.collator(0, limit)([data[:]])["input_ids"].shape == (6, width)


def test_the_adapter_is_of_the_kind_that_servers_load(trained):
    config = json.loads((trained[0] / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert config["target_modules"] == sorted(ft.Recipe().target_modules)  # plain names, no pattern
    for extra in ("modules_to_save", "rank_pattern", "alpha_pattern", "auto_mapping", "use_dora", "use_rslora"):
        assert not config[extra]


def test_the_chat_template_of_the_adapter_writes_what_was_trained_on(base, trained):
    tokenizer = AutoTokenizer.from_pretrained(base)
    template = (trained[0] / "adapter" / "chat_template.jinja").read_text()
    for row in make_rows(3):
        trained_on = batches.tokenize_rows([row], tokenizer)[0]["input_ids"]
        text = tokenizer.apply_chat_template(row["messages"], chat_template=template, tokenize=False)
        assert text == tokenizer.decode(trained_on)


def test_the_adapter_is_a_peft_folder_that_changes_the_base(base, trained):
    adapter = trained[0] / "adapter"
    ids = torch.tensor([batches.tokenize_rows(make_rows(1), AutoTokenizer.from_pretrained(base))[0]["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, adapter)(ids).logits
    assert (before - after).abs().max() > 0.1


def test_same_seed_same_bytes_other_seed_other_bytes(base, trained, tmp_path):
    folder, report = trained
    again = ft.finetune(RECIPE, make_rows(40), str(base), tmp_path / "again", progress=False)
    assert weights(tmp_path / "again") == weights(folder)
    assert (again.losses, again.validation) == (report.losses, report.validation)
    ft.finetune(dataclasses.replace(RECIPE, seed=1), make_rows(40), str(base), tmp_path / "other", progress=False)
    assert weights(tmp_path / "other") != weights(folder)


def test_an_interrupted_training_goes_on_to_the_same_adapter(base, trained, tmp_path, monkeypatch):
    whole, report = trained
    step, calls = Trainer.training_step, []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(Trainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ft.finetune(RECIPE, make_rows(40), str(base), tmp_path, progress=False)
    assert not (tmp_path / "training.json").exists() and not (tmp_path / "adapter").exists()
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/checkpoint-10")
    broken = checkpoint.with_name("checkpoint-12")  # as if stopped while writing the next one
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_st')
    resumed = ft.finetune(RECIPE, make_rows(40), str(base), tmp_path, progress=False)
    assert len(calls) == 13 + report.steps - 10 and resumed.resumed_from == 10
    assert weights(tmp_path) == weights(whole)
    assert (resumed.losses, resumed.validation) == (report.losses, report.validation)
    assert resumed.trained_tokens < report.trained_tokens
    assert files(tmp_path) == FINISHED


def test_a_finished_training_is_not_repeated_and_another_is_refused(base, trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    with monkeypatch.context() as patch:
        patch.setattr(ft, "train", lambda *_: pytest.fail("trained again"))
        assert ft.finetune(RECIPE, make_rows(40), str(base), folder) == trained[1]
        other = dataclasses.replace(RECIPE, learning_rate=1e-3)
        with pytest.raises(ValueError, match=r"recipe.learning_rate \(0.01, now 0.001\); run again with --fresh"):
            ft.finetune(other, make_rows(40), str(base), folder)
        with pytest.raises(ValueError, match=r"another rows; run again with --fresh"):
            ft.finetune(RECIPE, make_rows(40, seed=1), str(base), folder)
        with pytest.raises(ValueError, match=r"another base; run again with --fresh"):
            ft.finetune(RECIPE, make_rows(40), str(tiny_model(tmp_path, seed=1)), folder)
    assert weights(folder) == weights(trained[0])
    report = ft.finetune(other, make_rows(40), str(base), folder, progress=False, fresh=True)
    assert report.recipe["learning_rate"] == 1e-3 and weights(folder) != weights(trained[0])


class Again(Exception):
    """A training begins."""


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_a_damaged_result_is_named_and_would_be_made_again(base, trained, tmp_path, monkeypatch, capsys, name, how):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)

    def begin(*_):
        raise Again

    monkeypatch.setattr(ft, "train", begin)
    damage(folder / name, how)
    if (name, how) != ("training.json", "missing"):
        with pytest.raises(CorruptFileError, match=f"{name} .*; run notebook 03 again"):
            ft.check_adapter(folder)
    with pytest.raises(Again):
        ft.finetune(RECIPE, make_rows(40), str(base), folder)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"damaged: {folder / name} ") and told.endswith("; the adapter is trained again")
    assert files(folder) == []  # nothing half-known is left to be used


def test_a_damaged_adapter_of_another_recipe_is_still_refused(base, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    damage(folder / "adapter" / "adapter_model.safetensors", "truncated")
    with pytest.raises(ValueError, match=r"another recipe.rank \(4, now 5\); run again with --fresh"):
        ft.finetune(dataclasses.replace(RECIPE, rank=5), make_rows(40), str(base), folder)


def test_an_adapter_made_again_is_the_same(base, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    damage(folder / "adapter" / "adapter_model.safetensors", "bit flipped")
    report = ft.finetune(RECIPE, make_rows(40), str(base), folder, progress=False)
    for name in FINISHED[:3]:
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes()
    assert (report.losses, report.validation) == (trained[1].losses, trained[1].validation)


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """The folder of a training that was stopped after step 22 of 27, with its checkpoints of steps 10 and 20."""
    folder, step, calls = tmp_path_factory.mktemp("stopped"), Trainer.training_step, []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 23:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ft.finetune(RECIPE, make_rows(40), str(base), folder, progress=False)
    return folder


def test_any_damage_to_a_checkpoint_is_named_and_the_one_before_is_used(stopped, tmp_path, capsys):
    (place,) = (stopped / "checkpoints").iterdir()
    names = sorted(path.name for path in (place / "checkpoint-20").iterdir())
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} < set(names)
    for number, name in enumerate(names):
        for how in [*HOW, "missing"]:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(place, tmp_path / "copy")
            assert last_checkpoint(tmp_path / "copy") == (20, str(tmp_path / "copy" / "checkpoint-20"))
            damage(tmp_path / "copy" / "checkpoint-20" / name, how, number)
            assert last_checkpoint(tmp_path / "copy") == (10, str(tmp_path / "copy" / "checkpoint-10"))
            told = capsys.readouterr().err
            if (name, how) == ("digests.json", "missing"):  # as when stopped while writing
                assert told == ""
            else:
                assert told.startswith(f"damaged: {tmp_path / 'copy' / 'checkpoint-20' / name} ")
            assert [path.name for path in (tmp_path / "copy").iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize(("steps", "start"), [([20], 10), ([20, 10], 0)])
def test_a_training_that_goes_on_before_damaged_checkpoints_ends_the_same(
    base, trained, stopped, tmp_path, capsys, steps, start
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    for step in steps:
        (checkpoint,) = (folder / "checkpoints").glob(f"*/checkpoint-{step}")
        damage(checkpoint / "optimizer.pt", "bit flipped", step)
    report = ft.finetune(RECIPE, make_rows(40), str(base), folder, progress=False)
    assert report.resumed_from == start and capsys.readouterr().err.count("damaged: ") == len(steps)
    assert weights(folder) == weights(trained[0])
    assert (report.losses, report.validation) == (trained[1].losses, trained[1].validation)


@pytest.mark.parametrize("limit", [10_000, 25_000])  # bytes: less than the weights, less than the optimizer's state
def test_a_full_disk_is_named_with_the_remedy(base, tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a limit on file sizes stands for the full disk: it holds for root too
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match=r"cannot write to .*checkpoints.*; free or unlock the disk and run again"):
            ft.finetune(RECIPE, make_rows(40), str(base), tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (place,) = (tmp_path / "checkpoints").iterdir()
    assert last_checkpoint(place) == (0, None)  # what was written of it is not gone on from


def test_two_trainings_into_one_folder_at_once(base, tmp_path, monkeypatch):
    monkeypatch.setattr(ft, "writing", partial(writing, patience=0))
    with writing(tmp_path), pytest.raises(FolderInUseError, match="another process is writing to"):
        ft.finetune(RECIPE, make_rows(4), str(base), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("rank", 0, "a whole number from 1 to 1024"),
        ("rank", 3.5, "a whole number from 1 to 1024"),
        ("rank", True, "a whole number from 1 to 1024"),
        ("dropout", 1.0, "a number from 0.0 to 0.9"),
        ("learning_rate", float("nan"), "a number from 1e-07 to 1.0"),
        ("epochs", "3", "a number from 0.01 to 100.0"),
        ("scheduler", "step", "one of"),
        ("load_in_4bit", 1, "True or False"),
        ("target_modules", [], "names of modules"),
        ("target_modules", "q_proj", "names of modules"),
    ],
)
def test_a_bad_recipe_names_field_value_and_bound(name, value, bound):
    with pytest.raises(ValueError) as caught:
        ft.Recipe(**{name: value})
    assert f"Recipe.{name} = {value!r}: needs {bound}" in str(caught.value)


def test_equal_numbers_are_one_recipe():
    assert repr(ft.Recipe(epochs=2, target_modules=["q_proj"])) == repr(
        ft.Recipe(epochs=2.0, target_modules=("q_proj",))
    )


def test_what_cannot_be_trained_is_refused_before_it_starts(base, tmp_path):
    rows = make_rows(4)
    with pytest.raises(ValueError, match=r"backend = 'trl': needs 'auto' or one of \('peft', 'unsloth'\)"):
        ft.finetune(RECIPE, rows, str(base), tmp_path, backend="trl")
    with pytest.raises(FileNotFoundError, match=r"no model could be loaded from .*nowhere"):
        ft.finetune(RECIPE, rows, str(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"4 training rows are longer than 20 tokens .* Recipe.max_length = 20"):
        ft.finetune(dataclasses.replace(RECIPE, max_length=20), rows, str(base), tmp_path / "out")
    with pytest.raises(ValueError, match=r"1 training rows, 1 of them held out"):
        ft.finetune(RECIPE, rows[:1], str(base), tmp_path / "out")
    with pytest.raises(ValueError, match=r"Recipe.target_modules: this base has no layer qkv_proj"):
        recipe = dataclasses.replace(RECIPE, target_modules=("q_proj", "qkv_proj"))
        ft.finetune(recipe, rows, str(base), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()

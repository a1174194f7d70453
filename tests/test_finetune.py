"""Fine-tuning: what is trained on, the same bytes from the same seed, resuming, refusing, and no network."""

import dataclasses
import random
import resource
import shutil
import socket
from functools import partial
from itertools import count

import pytest
import torch
from damage import HOW, damage
from safetensors.torch import load
from tiny import RECIPE, make_rows, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from knapsack import finetune as ft
from knapsack import runs
from knapsack.analysis.trainings import marked, summary
from knapsack.prompts import Rendered, render
from knapsack.training_data import read_adapters

ROWS = make_rows(40)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


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
        return folder, ft.finetune(RECIPE, ROWS, str(base), folder, progress=False)


FINISHED = [f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")]
FINISHED.append("training.json")


def files(folder) -> list[str]:
    found = (path for path in folder.rglob("[!.]*") if path.is_file() and path.name != runs.SUMS)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def weights(folder) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def as_batch(rows: list[Rendered]) -> dict:
    return {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}


def test_only_assistant_text_is_labelled(tokenizer):
    rows = make_rows(5)
    for row, item in zip(rows, ft.tokenize_rows(rows, tokenizer), strict=True):
        said = [m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant"]
        assert tokenizer.decode([label for label in item.labels if label != -100]) == "".join(said)
        prompt = render(row["messages"][:2], tokenizer, reply_follows=True).input_ids
        assert item.input_ids[: len(prompt)] == prompt  # a training row begins with the prompt of inference
        shown = [line[2:] for line in marked(item, tokenizer).split("\n") if line.startswith("+ ")]
        assert shown == "\n".join(said).split("\n")
    with pytest.raises(ValueError, match="row 2 has no assistant"):
        ft.tokenize_rows([rows[0], {"messages": rows[0]["messages"][:2]}], tokenizer)


def test_batches_hold_every_row_once_and_keep_the_budget():
    source = random.Random(1)
    lengths = [source.randint(10, 400) for _ in range(300)] + [5000]
    rows = [Rendered([number] * length, [number] * length) for number, length in enumerate(lengths)]
    recipe = ft.Recipe(batch_tokens=1000, batch_rows=7)
    made = [batch["input_ids"] for batch in ft.as_batches(rows, recipe)]
    assert sorted(row for batch in made for row in batch) == [row.input_ids for row in rows]
    assert [[300] * 5000] in made  # longer than the budget: alone
    for batch in made:
        assert len(batch) <= 7
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 1000
    assert sum(len(batch) * max(map(len, batch)) for batch in made) < 1.05 * sum(lengths)  # hardly any padding
    again, other = (ft.as_batches(rows, dataclasses.replace(recipe, seed=seed))["input_ids"] for seed in (0, 1))
    assert made == again != other


def test_a_batch_gives_the_loss_of_its_rows(base, tokenizer):
    """Padding on the right under an all-ones mask changes neither a token's logits nor the loss."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    data, alone = ft.tokenize_rows(make_rows(6), tokenizer), 0.0
    whole, longest = as_batch(data), ft.amount(data)["longest row"]
    for limit, width in ((longest, longest), (longest + 1, longest + 1), (2048, 256)):  # 256: a multiple of 128
        batch = ft.collator(tokenizer.pad_token_id, limit)([whole])
        assert batch["input_ids"].shape == (6, width)
    assert batch.pop("tokens") == ft.amount(data)["tokens"] == sum(len(row.input_ids) for row in data)
    with torch.no_grad():
        for row in data:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            alone += model(input_ids=ids, labels=labels).loss.item() * ft.amount([row])["labelled tokens"]
        assert model(**batch).loss.item() == pytest.approx(alone / ft.amount(data)["labelled tokens"], rel=1e-5)


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


def test_the_table_tells_in_what_the_base_was_loaded(trained, base):
    device = trained[1].device
    loaded = ft.load_plain(dataclasses.replace(RECIPE, target_modules=("q_proj",)), base, device)
    frozen = {parameter.dtype for parameter in loaded.parameters() if not parameter.requires_grad}
    assert {f"torch.{summary(trained[1])['base weights']}"} == {*map(str, frozen)}


def test_the_adapter_is_of_the_kind_that_servers_load(trained, tokenizer):
    config = runs.read_json(trained[0] / "adapter" / "adapter_config.json")
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert config["target_modules"] == sorted(ft.LINEAR)  # plain names, no pattern
    extras = ("modules_to_save", "rank_pattern", "alpha_pattern", "auto_mapping", "use_dora", "use_rslora")
    assert not any(config[extra] for extra in extras)
    template = (trained[0] / "adapter" / "chat_template.jinja").read_text()  # writes what was trained on
    for row, item in zip(ROWS[:3], ft.tokenize_rows(ROWS[:3], tokenizer), strict=True):
        text = tokenizer.apply_chat_template(row["messages"], chat_template=template, tokenize=False)
        assert text == tokenizer.decode(item.input_ids)


def test_same_seed_same_bytes_other_seed_other_bytes(base, trained, tmp_path):
    """Gradient checkpointing, which trades time for memory, changes nothing else."""
    folder, report = trained
    recipes = {"again": {"gradient_checkpointing": True}, "other": {"seed": 1}}
    made = {
        name: ft.finetune(dataclasses.replace(RECIPE, **change), ROWS, str(base), tmp_path / name, progress=False)
        for name, change in recipes.items()
    }
    assert weights(tmp_path / "again") == weights(folder) != weights(tmp_path / "other")
    assert (made["again"].losses, made["again"].validation) == (report.losses, report.validation)


def test_a_finished_training_is_not_repeated_and_another_is_refused(base, trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    monkeypatch.setattr(ft, "train", lambda *_: pytest.fail("trained again"))
    assert ft.finetune(RECIPE, ROWS, str(base), folder) == trained[1]
    other = dataclasses.replace(RECIPE, learning_rate=1e-3)
    refused = [
        (other, ROWS, base, r"recipe.learning_rate \(0.01, now 0.001\)\. .*--fresh"),
        (RECIPE, make_rows(40, seed=1), base, r"another rows\. .*--fresh"),
        (RECIPE, ROWS, tiny_model(tmp_path, seed=1), r"another base\. .*--fresh"),
    ]
    for recipe, rows, where, said in refused:
        with pytest.raises(ValueError, match=said):
            ft.finetune(recipe, rows, str(where), folder)
    assert weights(folder) == weights(trained[0])
    damage(folder / "adapter" / "adapter_model.safetensors", "truncated")
    with pytest.raises(ValueError, match=refused[0][-1]):
        ft.finetune(other, ROWS, str(base), folder)
    record = runs.read_json(folder / "training.json", "")
    runs.keep(folder / "training.json", runs.as_json(record | {"report": record["report"] | {"karma": 1}}))
    with pytest.raises(ValueError, match=r"training.json is of another version .*karma.*; run again with --fresh"):
        ft.finetune(RECIPE, ROWS, str(base), folder)


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_a_damaged_result_is_named_and_would_be_made_again(base, trained, tmp_path, monkeypatch, capsys, name, how):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    monkeypatch.setattr(ft, "train", None)
    damage(folder / name, how)
    with pytest.raises(runs.CorruptFileError, match=f"{name} .*; run notebook 03 again"):
        runs.check(folder, "run notebook 03 again")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):  # it would be trained again
        ft.finetune(RECIPE, ROWS, str(base), folder)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"damaged: {folder / name} ") and told.endswith("; it is made again")
    assert files(folder) == []  # nothing half-known is left to be used


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """The folder of a training that was stopped after step 22 of 27, with its checkpoints of steps 10 and 20."""
    folder, step, calls = tmp_path_factory.mktemp("stopped"), Trainer.training_step, count(1)

    def interrupt(*arguments, **options):
        if next(calls) == 23:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ft.finetune(RECIPE, ROWS, str(base), folder, progress=False)
    return folder


def test_any_damage_to_a_checkpoint_is_named_and_the_one_before_is_used(stopped, tmp_path, capsys):
    (place,) = (stopped / "checkpoints").iterdir()
    copy, newest = tmp_path / "copy", tmp_path / "copy" / "checkpoint-20"
    names = sorted(runs.kept(place / "checkpoint-20"))
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} < set(names)
    for number, name in enumerate(names):
        for how in [*HOW, "missing"]:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place, copy)
            assert ft.last_checkpoint(copy) == str(newest)
            damage(newest / name, how, number)
            runs.heal(copy)  # as every writer does first
            assert capsys.readouterr().err.startswith(f"damaged: {newest / name} ")
            assert ft.last_checkpoint(copy) == str(copy / "checkpoint-10")
            assert [path.name for path in copy.iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize(("damaged", "start"), [([], 20), ([20], 10), ([20, 10], 0)])
def test_a_stopped_training_goes_on_from_the_last_whole_checkpoint_to_the_same_adapter(
    base, trained, stopped, tmp_path, capsys, damaged, start
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    assert files(folder) and not (folder / "training.json").exists() and not (folder / "adapter").exists()
    (place,) = (folder / "checkpoints").iterdir()
    (place / "checkpoint-22").mkdir()  # as if stopped while writing the next one
    (place / "checkpoint-22" / "trainer_state.json").write_text('{"global_st')
    for step in damaged:
        damage(place / f"checkpoint-{step}" / "optimizer.pt", "bit flipped", step)
    report = ft.finetune(RECIPE, ROWS, str(base), folder, progress=False)
    assert report.resumed_from == start and capsys.readouterr().err.count("damaged: ") == len(damaged)
    assert weights(folder) == weights(trained[0]) and files(folder) == FINISHED
    assert (report.losses, report.validation) == (trained[1].losses, trained[1].validation)
    assert (report.trained_tokens < report.tokens) == (start > 0)


@pytest.mark.parametrize("limit", [10_000, 25_000])  # bytes: less than the weights, less than the optimizer's state
def test_a_full_disk_is_named_with_the_remedy(base, tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a limit on file sizes stands for the full disk: it holds for root too
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match=r"cannot write to .*checkpoints.*; free or unlock the disk and run again"):
            ft.finetune(RECIPE, ROWS, str(base), tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (place,) = (tmp_path / "checkpoints").iterdir()
    assert ft.last_checkpoint(place) is None  # what was written of it is not gone on from


def test_two_trainings_into_one_folder_at_once(base, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "writing", partial(runs.writing, patience=0))
    with runs.writing(tmp_path), pytest.raises(runs.FolderInUseError, match="another process is writing to"):
        ft.finetune(RECIPE, make_rows(4), str(base), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("rank", 0, "greater than or equal to 1"),
        ("rank", True, "valid integer"),
        ("dropout", 1.0, "less than or equal to 0.9"),
        ("learning_rate", float("nan"), "finite number"),
        ("scheduler", "step", "'cosine', 'linear' or 'constant_with_warmup'"),
        ("target_modules", "q_proj", "valid tuple"),
        ("ranc", 4, "unexpected keyword"),
    ],
)
def test_a_bad_recipe_names_field_value_and_bound(name, value, bound):
    with pytest.raises(ValueError) as caught:
        ft.Recipe(**{name: value})
    said = str(caught.value)
    assert said.startswith(f"Recipe.{name} = {value!r}: ") and bound in said and "\n" not in said


def test_equal_numbers_are_one_recipe():
    one, same = ft.Recipe(epochs=2, target_modules=["q_proj"]), ft.Recipe(epochs=2.0, target_modules=("q_proj",))
    assert repr(one) == repr(same) and one == same


def test_without_a_choice_what_copies_in_the_scale_model_is_not_adapted(tmp_path):
    ft.finetune(RECIPE, make_rows(4), "nano", tmp_path)
    adapted = [name.split("layers.")[1] for name in load(weights(tmp_path))]
    assert {name[0] for name in adapted if "mlp" in name} == {*"0123"}
    assert {name[0] for name in adapted if "self_attn" in name} == {*"23"}


def test_single_layers_can_be_adapted(base, tmp_path):
    recipe = dataclasses.replace(RECIPE, target_modules=("1.self_attn.q_proj", "0.mlp.up_proj"))
    ft.finetune(recipe, make_rows(4), str(base), tmp_path)
    adapted = {name.split("layers.")[1].rsplit(".", 2)[0] for name in load(weights(tmp_path))}
    assert adapted == set(recipe.target_modules)


def test_what_cannot_be_trained_is_refused_before_it_starts(base, tmp_path):
    rows, changed = make_rows(4), partial(dataclasses.replace, RECIPE)
    with pytest.raises(ValueError, match=r"backend = 'trl': needs 'auto' or one of \('peft', 'unsloth'\)"):
        ft.finetune(RECIPE, rows, str(base), tmp_path, backend="trl")
    with pytest.raises(FileNotFoundError, match=r"base = .*nowhere'.*; name a model folder or a public model"):
        ft.finetune(RECIPE, rows, str(tmp_path / "nowhere"), tmp_path / "out")
    for recipe, few, said in (
        (changed(max_length=20), rows, r"4 training rows are longer than 20 tokens .* Recipe.max_length = 20"),
        (RECIPE, rows[:1], r"1 training rows, 1 of them held out"),
        (changed(target_modules=("q_proj", "qkv_proj")), rows, r"Recipe.target_modules: .* has no layer qkv_proj"),
        (changed(target_modules=("q_proj", "9.self_attn.q_proj")), rows, r".* has no layer 9.self_attn.q_proj"),
    ):
        with pytest.raises(ValueError, match=said):
            ft.finetune(recipe, few, str(base), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_matched_adapter_is_trained_until_it_learned_from_as_many_tokens():
    adapters = read_adapters({"persistent": {}, "less": {"traces": ["stateless"], "match": "persistent"}})
    recipe, labelled = ft.Recipe(epochs=2.0), {"persistent": 300, "less": 1200}
    assert ft.matched(recipe, "persistent", adapters, labelled) == recipe
    found = ft.matched(recipe, "less", adapters, labelled)
    assert found == dataclasses.replace(recipe, epochs=0.5) and found.epochs * 1200 == recipe.epochs * 300
    with pytest.raises(ValueError, match="epochs"):
        ft.matched(recipe, "less", adapters, labelled | {"less": 10**6})

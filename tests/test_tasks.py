"""Instances are pure functions of seed and configuration, solvable exactly, and survive the published format."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
from damage import HOW, damage
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CHECKOUT, EXAMPLES

from knapsack.runs import SUMS, CorruptFileError, FolderInUseError, as_json, write_text, writing
from knapsack.tasks import (
    MAX_DOMINANCE,
    PRESETS,
    Item,
    KnapsackConfig,
    Task,
    TaskSamplingError,
    optimum,
    preset,
    read_tasks,
    sample_split,
    sample_task,
    write_tasks,
)

EASY = preset("easy")
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the published example files are not at hand")

SAMPLE = "[sample_task(seed, PRESETS[name]).to_json() for name in sorted(PRESETS) for seed in (0, 7)]"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_bytes_in_every_process(hash_seed):
    program = f"import json\nfrom knapsack.tasks import PRESETS, sample_task\nprint(json.dumps({SAMPLE}))"
    options = {"capture_output": True, "text": True, "check": True, "cwd": CHECKOUT}
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    there = subprocess.run([sys.executable, "-c", program], env=environment, **options).stdout
    assert there == json.dumps(eval(SAMPLE)) + "\n"


items = st.lists(st.builds(Item, st.integers(1, 12), st.integers(1, 50), st.sampled_from("ABC")), max_size=9)


@given(items, st.sets(st.sampled_from("ABC")), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_optimum_is_that_of_brute_force(found, allowed, capacity):
    pool = {f"item_{index}": item for index, item in enumerate(found)}
    usable = [item for item in found if item.item_class in allowed]
    subsets = [subset for size in range(len(usable) + 1) for subset in combinations(usable, size)]
    fitting = [subset for subset in subsets if sum(item.weight for item in subset) <= capacity]
    chosen = optimum(pool, allowed, capacity)
    assert sum(pool[i].value for i in chosen) == max(sum(item.value for item in subset) for subset in fitting)
    assert sum(pool[i].weight for i in chosen) <= capacity and len(set(chosen)) == len(chosen)
    assert all(pool[i].item_class in allowed for i in chosen)


def test_capacity_beyond_all_items_costs_nothing():
    assert optimum({"a": Item(3, 5, "A"), "b": Item(2, 9, "B")}, "A", 10**15) == ("a",)


@given(st.integers(0, 10**6), st.sampled_from(sorted(PRESETS)))
@settings(max_examples=40, deadline=None)
def test_every_instance_keeps_the_rules_of_sampling(seed, name):
    config = PRESETS[name]
    task = sample_task(seed, config)
    allowed = [item for item in task.items.values() if item.item_class in task.allowed_classes]
    weight = sum(item.weight for item in allowed)
    ratio = (config.capacity_ratio[0] * weight - 0.5, config.capacity_ratio[1] * weight + 0.5)
    values = [task.items[i].value for i in task.optimal_items]
    share = config.allowed_classes / config.classes
    needed = max(1.5 * task.capacity / (sum(config.weights) / 2) / share, 1.1 * len(values))
    assert config.items[0] <= len(task.items) <= config.items[1]
    assert all(config.weights[0] <= item.weight <= config.weights[1] for item in task.items.values())
    assert all(config.values[0] <= item.value <= config.values[1] for item in task.items.values())
    assert len(allowed) >= 5 and len(values) >= 3 and max(values) <= MAX_DOMINANCE * sum(values)
    assert ratio[0] <= task.capacity <= max(ratio[1], min(item.weight for item in allowed))
    assert task.inspect_budget == max(5, min(math.ceil(needed), len(task.items)))
    assert len(set(task.allowed_classes)) == config.allowed_classes
    assert list(task.items) == sorted(task.items)  # the order gives nothing away


@given(st.integers(0, 10**6), st.sampled_from(sorted(PRESETS)))
@settings(max_examples=20, deadline=None)
def test_task_survives_its_file(seed, name):
    task = sample_task(seed, PRESETS[name])
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("items", (4, 10), "equal to 5"),
        ("items", (10, 9), "low <= high"),
        ("items", 10, "tuple"),
        ("items", (5, 7, 9), "at most 2"),
        ("items", (25.5, 40), "integer"),
        ("weights", (0, 5), "greater than 0"),
        ("values", ("1", "5"), "integer"),
        ("classes", 27, "equal to 26"),
        ("classes", True, "integer"),
        ("allowed_classes", 16, "classes = 15"),
        ("allowed_classes", 0, "greater than 0"),
        ("capacity_ratio", (0.0, 0.5), "greater than 0"),
        ("capacity_ratio", (0.5, 1.1), "equal to 1"),
        ("capacity_ratio", (math.nan, math.nan), "finite"),
        ("id_pool", 39, r"items\[1\] = 40"),
        ("id_pool", 1e3, "integer"),
    ],
)
def test_invalid_configuration_names_field_value_and_bound_in_one_line(field, value, bound):
    with pytest.raises(ValueError, match=rf"^KnapsackConfig.*{field}.* = .*{bound}.*$") as caught:
        replace(EASY, **{field: value})
    assert repr(value) in str(caught.value) or any(repr(part) in str(caught.value) for part in value)


def test_the_papers_splits_have_the_names_that_a_reader_types():
    assert KnapsackConfig.easy() == preset("easy") and KnapsackConfig.hard() == preset("hard")


def test_configuration_without_instances_says_so():
    with pytest.raises(TaskSamplingError, match="200 attempts from seed 3"):
        sample_task(3, KnapsackConfig((5, 5), (20, 20), (1, 1), 26, 1, (0.01, 0.01)))


def test_splits_of_a_run_share_no_instance():
    drawn = [task for split in ("train", "easy", "hard") for task in sample_split(split, 20, 1, EASY)]
    assert len({task.seed for task in drawn}) == len({tuple(task.items) for task in drawn}) == 60


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: sample_task(-7, EASY), "seed = -7: needs at least 0"),
        (lambda: preset("huge"), "huge.*nano_easy"),
        (lambda: next(sample_split("medium", 1, 0, EASY)), "'medium'.*'easy', 'hard', 'train'"),
        (lambda: next(sample_split("easy", -1, 0, EASY)), "easy: -1 tasks asked for; needs 0 to 250000"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(asked, said):
    with pytest.raises(ValueError, match=said):
        asked()


def test_tasks_are_read_in_order_and_missing_ones_name_the_notebook_to_run(tmp_path):
    tasks = list(sample_split("easy", 3, 0, EASY))
    write_tasks(tmp_path, tasks)
    assert read_tasks(tmp_path) == tasks and read_tasks(tmp_path, 2) == tasks[:2]
    with pytest.raises(FileNotFoundError, match="holds 3 tasks, 4 needed: run notebook 01"):
        read_tasks(tmp_path, 4)
    with pytest.raises(FileNotFoundError, match="holds 0 tasks, some needed"):
        read_tasks(tmp_path / "nowhere")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("knapsack-*.json")}


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_a_damaged_task_file_is_named_and_written_again(tmp_path, capsys, how):
    tasks = list(sample_split("easy", 3, 0, EASY))
    path = write_tasks(tmp_path, tasks)[1]
    before = contents(tmp_path)
    damage(path, how)
    with pytest.raises(CorruptFileError, match=r"knapsack-0000000001\.json is .*; run notebook 01 again"):
        read_tasks(tmp_path)
    write_tasks(tmp_path, tasks)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and str(path) in told[0]
    assert contents(tmp_path) == before and read_tasks(tmp_path) == tasks


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_damaged_digests_do_no_harm(tmp_path, how):
    tasks = list(sample_split("easy", 2, 0, EASY))
    path = write_tasks(tmp_path, tasks)[0]
    before = contents(tmp_path)
    damage(path.with_name(SUMS), how)
    write_tasks(tmp_path, tasks)
    assert contents(tmp_path) == before and read_tasks(tmp_path) == tasks


def test_more_tasks_can_be_added_and_others_are_refused(tmp_path, capsys):
    tasks = list(sample_split("easy", 3, 0, EASY))
    first = write_tasks(tmp_path, tasks[:2])[0]
    write_tasks(tmp_path, tasks)
    assert read_tasks(tmp_path) == tasks and not capsys.readouterr().err
    for lost in (None, "truncated"):  # the others still tell
        if lost:
            damage(first, lost)
        before = {name: content for name, content in contents(tmp_path).items() if not (lost and name == first.name)}
        with pytest.raises(FileExistsError, match=r"knapsack-000000000\d\.json holds another task"):
            write_tasks(tmp_path, sample_split("easy", 4, 1, EASY))
        assert contents(tmp_path) == before


def test_tasks_are_not_written_by_two_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("knapsack.tasks.writing", partial(writing, patience=0))
    with writing(tmp_path), pytest.raises(FolderInUseError, match="another process is writing to"):
        write_tasks(tmp_path, sample_split("easy", 1, 0, EASY))


def test_a_task_has_a_time_in_the_published_form():
    assert datetime.fromisoformat(sample_task(7, EASY).to_json()["generated_at"]).year == 1970


def test_a_damaged_task_file_of_others_is_named(tmp_path):
    path = tmp_path / "tasks" / "knapsack" / "knapsack-0000000000.json"
    write_text(path, as_json(sample_task(7, EASY).to_json()))
    path.write_text(path.read_text()[:-100])
    with pytest.raises(CorruptFileError, match=r"knapsack-0000000000\.json.*download it anew"):
        read_tasks(tmp_path)


def damaged(*keys, value=None, drop=False) -> dict:
    data = json.loads(json.dumps(sample_task(7, EASY).to_json()))
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    if drop:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return data


@pytest.mark.parametrize("keys", [("public",), ("public", "capacity"), ("private", "items"), ("task_id",)])
def test_missing_field_is_named(keys):
    with pytest.raises(CorruptFileError, match=f"some file lacks the field '{keys[-1]}'"):
        Task.from_json(damaged(*keys, drop=True), "some file")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("private",), []),
        (("public", "item_ids"), None),
        (("public", "item_ids"), []),
        (("public", "capacity"), "much"),
        (("public", "capacity"), math.inf),
        (("public", "capacity"), 1),
        (("public", "allowed_classes"), []),
        (("difficulty", "p_valid"), 0),
        (("reference", "optimal_value"), 3),
        (("reference", "optimal_weight"), 3),
        (("reference", "optimal_item_ids"), []),
        (("reference", "optimal_item_ids"), ["item_unknown"]),
        (("private", "items", min(sample_task(7, EASY).items), "weight"), 0),
        (("private", "items", min(sample_task(7, EASY).items), "value"), -5),
    ],
)
def test_impossible_content_is_refused(keys, value):
    with pytest.raises(CorruptFileError, match=r"some file.*anew"):
        Task.from_json(damaged(*keys, value=value), "some file")


@needs_examples
@pytest.mark.parametrize("split", ["easy", "hard"])
def test_published_tasks_are_written_again_as_they_were(split, tmp_path):
    paths = sorted((EXAMPLES / split / "tasks" / "knapsack").glob("*.json"))
    assert paths
    write_tasks(tmp_path, read_tasks(EXAMPLES / split))
    for path in paths:
        published = json.loads(path.read_text())
        again = json.loads((tmp_path / "tasks" / "knapsack" / path.name).read_text())
        assert set(again) == set(published)
        own = {"run_name", "generated_at", "nl"}  # when, by whom, in what words: not the instance
        assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in published.items() if k not in own}

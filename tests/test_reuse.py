"""What another run finished with the same parameters is taken over; only what differs is made."""

import shutil
from dataclasses import replace

import pytest
from damage import damage
from tiny import RECIPE, make_rows, tiny_model

from knapsack import finetune as ft
from knapsack import runs, traces
from knapsack.evaluate import Settings, evaluate
from knapsack.runs import open_run
from knapsack.tasks import KnapsackConfig, sample_split, write_tasks
from knapsack.traces import Cell

CONFIG = KnapsackConfig((8, 10), (5, 20), (10, 100), 4, 2, (0.35, 0.5))
CELLS = [Cell("base", "persistent", "easy", 25), Cell("teacher", "stateless", "easy", 25)]
COUNTS, IDS = {"easy": 2}, [f"knapsack-{number:010d}" for number in range(2)]
ROWS = make_rows(12)


def digests(folder) -> dict[str, str]:
    return {str(path): runs.file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def played(tmp_path_factory, base):
    """A run with tasks, one adapter and two cells, and its settings."""
    run = open_run(tmp_path_factory.mktemp("first") / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", 2, 0, CONFIG))
    limits = {"max_new_tokens": 20, "context_length": 768, "max_turns": 2, "slots": 2}
    settings = Settings(base=str(base), seed=0, temperature=1.0, **limits)
    evaluate(run, CELLS, COUNTS, settings, processes=1, device="cpu", progress=False)
    ft.finetune(RECIPE, ROWS, str(base), run.training("persistent"), progress=False)
    for step in runs.MADE:
        run.record(step, {"seed": 0, "run_folder": str(run.folder)})
    return run, settings


def another(played, tmp_path, settings=None, cells=CELLS):
    """A run beside ``played`` that reuses it."""
    run = open_run(tmp_path / "second", played[0].folder)
    run.take_over("04_evaluate")
    evaluate(run, cells, COUNTS, settings or played[1], processes=1, device="cpu", progress=False)
    return run


def times(run, cell) -> list[float]:
    paths = (traces.result_path(traces.trace_path(cell.folder(run), task_id)) for task_id in IDS)
    return [runs.read_json(path)["finished_at"] for path in paths]


def test_cells_of_the_same_settings_are_taken_over_and_the_first_run_is_left_as_it_was(played, tmp_path):
    before = digests(played[0].folder)
    new = Cell("base", "stateless", "easy", 25)
    run = another(played, tmp_path, cells=[*CELLS, new])
    assert digests(played[0].folder) == before
    for cell in CELLS:
        assert times(run, cell) == times(played[0], cell)  # wall-clock seconds: not played again
    assert all(traces.episode_done(new.folder(run), task_id) for task_id in IDS)
    runs.check(run.folder, "")
    evaluate(open_run(run.folder), CELLS, COUNTS, played[1], progress=False)  # and stands alone from then on


def test_cells_of_other_settings_are_played(played, tmp_path):
    warm = replace(played[1], temperature=0.5)
    run = another(played, tmp_path, warm)
    record = runs.read_json(CELLS[0].folder(run) / "settings.json")
    assert record["temperature"] == 0.5 and times(run, CELLS[0]) != times(played[0], CELLS[0])


def test_a_damaged_episode_is_named_and_played_anew(played, tmp_path, capsys):
    first = tmp_path / "first"
    shutil.copytree(played[0].folder, first)
    path = traces.trace_path(CELLS[1].folder(open_run(first)), IDS[0])
    whole = path.read_bytes()
    damage(path, "truncated")
    run = another((open_run(first), played[1]), tmp_path)
    assert f"{path.name} is not as it was written; the episode is played anew" in capsys.readouterr().err
    assert traces.trace_path(CELLS[1].folder(run), IDS[0]).read_bytes() == whole != path.read_bytes()


def test_a_damaged_task_is_named_and_not_copied(played, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(played[0].folder, first)
    damage(next(open_run(first).tasks("easy").rglob("knapsack-*.json")), "truncated")
    with pytest.raises(runs.CorruptFileError, match="not as it was written"):
        another((open_run(first), played[1]), tmp_path)


def test_an_adapter_of_the_same_rows_and_recipe_is_taken_over(played, base, tmp_path, monkeypatch):
    monkeypatch.setattr(ft, "train", lambda *_: pytest.fail("trained again"))
    other, output = played[0].training("persistent"), tmp_path / "persistent"
    report = ft.finetune(RECIPE, ROWS, str(base), output, other=other)
    assert report == ft.finetune(RECIPE, ROWS, str(base), output)
    assert [*digests(output / "adapter").values()] == [*digests(other / "adapter").values()]


def test_an_adapter_of_another_recipe_or_damaged_is_trained(played, base, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(played[0].training("persistent"), other)
    report = ft.finetune(replace(RECIPE, seed=5), ROWS, str(base), tmp_path / "a", progress=False, other=other)
    assert report.recipe["seed"] == 5
    damage(other / "adapter" / "adapter_model.safetensors", "truncated")
    ft.finetune(RECIPE, ROWS, str(base), tmp_path / "b", progress=False, other=other)
    assert "it is trained anew" in capsys.readouterr().err
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "b" / weights).read_bytes() == (played[0].training("persistent") / weights).read_bytes()


def test_what_was_made_from_other_parameters_is_not_taken_over(played, tmp_path):
    run = open_run(tmp_path / "second", played[0].folder)
    run.record("01_generate", {"seed": 1, "run_folder": "second"})
    with pytest.raises(ValueError, match="ran 01_generate with another seed"):
        run.take_over("04_evaluate")


def test_what_another_commit_made_is_named(played, tmp_path, capsys):
    first = tmp_path / "first"
    shutil.copytree(played[0].folder, first)
    runs.keep(open_run(first).manifest, runs.as_json({"01_generate": {"parameters": {}, "commit": "cafe"}}))
    open_run(tmp_path / "second", first).take_over("04_evaluate")
    assert f"01_generate is taken over from {first}, made by commit cafe" in capsys.readouterr().err


def test_a_folder_that_is_no_other_run_is_refused(played, tmp_path):
    for reuse in (tmp_path, played[0].folder):
        with pytest.raises(ValueError, match="needs the folder of another run"):
            open_run(played[0].folder, reuse)

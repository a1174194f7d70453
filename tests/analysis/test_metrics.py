import json
import shutil

import pandas as pd
import pytest
import scripted
from damage import HOW, damage

from knapsack import traces
from knapsack.analysis import metrics
from knapsack.runs import CorruptFileError, Run


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return scripted.write_run(tmp_path_factory.mktemp("run"), n=4)


@pytest.fixture
def run(played, tmp_path):
    shutil.copytree(played / "evaluations", tmp_path / "evaluations")
    return Run(tmp_path)


def test_a_row_an_episode_and_a_row_a_cell_in_a_fixed_order(run):
    episodes, cells = metrics.write_results(run, 200)
    assert len(episodes) == 8 * 2 * 4 and list(episodes.columns) == metrics.EPISODE_COLUMNS
    assert (run.results / "cells.csv").read_text().splitlines()[0] == (
        "model,runtime,split,n,unscored,score_mean,score_low,score_high,solved,turns,prompt_tokens,completion_tokens,"
        "total_tokens,seconds,score_per_1k_tokens,name_error_rate,missing_binding_rate,cap_hit_rate,inspected"
    )
    keys = list(zip(cells["split"], cells["model"], cells["runtime"], strict=True))
    assert keys == [(split, *cell) for split in ("easy", "hard") for cell in scripted.CELLS]
    assert (cells["n"] == 4).all() and (cells["unscored"] == 0).all()
    assert ((cells["score_low"] <= cells["score_mean"]) & (cells["score_mean"] <= cells["score_high"])).all()


def test_an_episodes_numbers_are_those_of_the_episode(tmp_path):
    task = scripted.small_task()
    texts = [
        "no code",
        scripted.block("seen = 1\nfor i in range(30):\n    list_items()"),  # cap
        scripted.block("print(seen)"),  # missing binding
        scripted.block("print(never_bound)"),  # name error, not a missing binding
        scripted.block("print(1 / 0)"),
        scripted.block(f"inspect({next(iter(task.items))!r})\nfinish()"),
    ]
    done = scripted.play(task, "stateless", texts)
    traces.write_episode(tmp_path, done, "base", 2.0)
    row = metrics.episode_row(traces.read_trace(traces.trace_path(tmp_path, task.task_id)))
    counts = {"turns": 6, "name_errors": 2, "missing_bindings": 1, "cap_hits": 1, "other_errors": 1, "tool_calls": 27}
    assert {name: row[name] for name in counts} == counts
    assert row["protocol_errors"] == 1 and row["seconds"] == 2 and row["score"] == 0 and row["solved"] == 0
    assert row["inspected"] == 1 / task.inspect_budget and row["finish_reason"] == "finish_tool"
    assert row["total_tokens"] == done.prompt_tokens + done.completion_tokens
    assert row["prompt_tokens"] == sum(turn.prompt_tokens for turn in done.turns)


def test_a_turns_names_are_counted_against_what_earlier_turns_bound(tmp_path):
    texts = [
        scripted.block("a = 1\nb = 2\nfor i in 'x': print(i)"),  # binds a, b, i
        scripted.block("print(a)\nb = 3\nc = 4"),  # needs a; binds b again, and c
        "no code",
        scripted.block("a = ("),
        scripted.block("a = 1\nd = 5\nprint(a + unknown)"),  # binds a again; d by a block that fails
        scripted.block("d = 6"),  # which may have to be written again
        scripted.block("d = 7\nd += 1"),  # now it need not
        scripted.block("d += 1"),
        scripted.block("finish()"),
    ]
    task = scripted.small_task()
    expected = [[0, 0, 0], [3, 1, 1], [4, None, None], [4, None, None]]
    expected += [[4, 0, 1], [5, 0, 0], [5, 0, 1], [5, 1, 0], [5, 0, 0]]
    for kind in ("persistent", "stateless"):  # the same, whatever the runtime kept
        traces.write_episode(tmp_path / kind, scripted.play(task, kind, texts), "base")
        found = metrics.turn_rows(traces.read_trace(traces.trace_path(tmp_path / kind, task.task_id)))
        names = [[row.get(f"names_{name}") for name in ("bound", "needed", "bound_again")] for row in found]
        assert names == expected and [row["turn"] for row in found] == list(range(9))


def test_cell_means_and_rates_by_hand():
    one = {"model": "base", "runtime": "stateless", "split": "easy", "status": "completed"}
    blank = dict.fromkeys(metrics.NUMBERS, 0)
    episodes = pd.DataFrame(
        [
            one | blank | {"task_id": "a", "score": 1.0, "solved": 1, "total_tokens": 3000, "name_errors": 2},
            one | blank | {"task_id": "b", "score": 0.5, "total_tokens": 1000, "name_errors": 1, "missing_bindings": 3},
            one | {"task_id": "c", "status": "missing"},
        ]
    )
    row = metrics.cell_table(episodes, 500).iloc[0]
    assert (row["n"], row["unscored"], row["score_mean"], row["solved"]) == (2, 1, 0.75, 0.5)
    assert row["score_per_1k_tokens"] == pytest.approx(0.75 / 2000 * 1000)
    assert (row["name_error_rate"], row["missing_binding_rate"], row["cap_hit_rate"]) == (1, 0.5, 0)
    assert (row["score_low"], row["score_high"]) == (0.5, 1)


def test_equal_files_give_equal_bytes_and_another_seed_other_intervals(run):
    def written(seed):
        metrics.write_results(run, 300, seed)
        return [(run.results / f"{name}.csv").read_bytes() for name in ("episodes", "turns", "cells")]

    first = written(0)
    assert written(0) == first
    other = written(1)
    assert other[:2] == first[:2] and other[2] != first[2]


def test_the_persistent_model_misses_names_only_in_the_stateless_runtime(run):
    cells = metrics.write_results(run, 100)[1].set_index(["model", "runtime", "split"])
    assert cells.loc[("persistent", "stateless", "easy"), "missing_binding_rate"] == 1
    assert cells.loc[("persistent", "persistent", "easy"), "missing_binding_rate"] == 0
    assert cells.loc[("base", "stateless", "easy"), "missing_binding_rate"] == 0  # its names were never bound
    assert cells.loc[("base", "stateless", "easy"), "name_error_rate"] == 1


def test_unscored_tasks_are_counted_and_in_no_mean(run):
    before = metrics.write_results(run, 100)[1].set_index(["model", "runtime", "split"])
    cell = run.evaluations / "stateless_persistent_easy"
    gone, stopped = sorted((cell / "knapsack").glob("*.trace.json"))[:2]
    for path in (gone, traces.result_path(gone), traces.details_path(gone)):
        path.unlink()
    traces.details_path(stopped).unlink()  # the last file that a whole episode gets
    episodes, cells = metrics.write_results(run, 100)
    row = cells.set_index(["model", "runtime", "split"]).loc[("stateless", "persistent", "easy")]
    assert (row["n"], row["unscored"]) == (2, 2)
    kept = episodes[(episodes["model"] == "stateless") & (episodes["runtime"] == "persistent")]
    assert sorted(kept[kept["split"] == "easy"]["status"]) == ["completed"] * 2 + ["missing"] * 2
    assert row["score_mean"] == kept[kept["split"] == "easy"]["score"].mean()
    assert before.drop(index=("stateless", "persistent", "easy")).equals(
        cells.set_index(["model", "runtime", "split"]).drop(index=("stateless", "persistent", "easy"))
    )


def test_an_episode_that_others_could_not_finish_is_unscored(run):
    cell = run.evaluations / "stateless_persistent_easy"
    shutil.rmtree(cell / "details")  # as if downloaded
    (cell / "settings.json").unlink()
    failed = traces.result_path(next((cell / "knapsack").glob("*.trace.json")))
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"status": "timeout", "error": "900 s"}))
    episodes, cells = metrics.write_results(run, 100)
    row = cells.set_index(["model", "runtime", "split"]).loc[("stateless", "persistent", "easy")]
    assert (row["n"], row["unscored"]) == (3, 1)
    assert episodes["status"].value_counts()["timeout"] == 1


@pytest.mark.parametrize("name", ["trace", "result", "details", "settings"])
@pytest.mark.parametrize("how", HOW)
def test_a_damaged_file_is_named_and_never_counted_as_something_else(run, name, how):
    cell = run.evaluations / "base_persistent_easy"
    trace = next(cell.glob("knapsack/*.trace.json"))
    path = {"trace": trace, "result": traces.result_path(trace), "details": traces.details_path(trace)}.get(name)
    path = path or cell / "settings.json"
    damage(path, how)
    with pytest.raises(CorruptFileError, match="run notebook 04 again") as error:
        metrics.read_cells(cell.parent)
    assert str(path) in str(error.value)
    if name != "details":  # without those the episode is unfinished
        path.unlink()
        with pytest.raises(CorruptFileError, match=f"{path.name} is missing"):
            metrics.read_cells(cell.parent)


def test_a_cell_without_any_episode_is_a_row(run):
    cell = run.evaluations / "base_persistent_hard"
    shutil.rmtree(cell / "knapsack")
    shutil.rmtree(cell / "details")
    cells = metrics.write_results(run, 100)[1].set_index(["model", "runtime", "split"])
    row = cells.loc[("base", "persistent", "hard")]
    assert (row["n"], row["unscored"]) == (0, 4) and pd.isna(row["score_mean"])


def test_bad_input_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 04"):
        metrics.read_cells(tmp_path / "nowhere")
    path = next((run.evaluations / "base_persistent_easy").glob("knapsack/*.trace.json"))
    path.write_text(path.read_text()[:-100])
    with pytest.raises(CorruptFileError, match=path.name):
        metrics.write_results(run, 100)
    shutil.rmtree(run.evaluations / "base_persistent_easy")
    shutil.copytree(run.evaluations / "base_stateless_easy", run.folder / "evaluations" / "odd")
    with pytest.raises(CorruptFileError, match="odd is not named"):
        metrics.write_results(run, 100)

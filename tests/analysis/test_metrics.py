import dataclasses
import json
import shutil

import pytest
import scripted
from damage import HOW, damage

from knapsack import traces
from knapsack.analysis import metrics
from knapsack.runs import CorruptFileError, Run, as_json, keep
from knapsack.tasks import sample_split, write_tasks


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return scripted.write_run(tmp_path_factory.mktemp("run"), n=4)


@pytest.fixture
def run(played, tmp_path):
    shutil.copytree(played / "evaluations", tmp_path / "evaluations")
    return Run(tmp_path)


def test_rows_stand_in_a_fixed_order(run):
    episodes, turns = metrics.write_results(run)
    assert len(episodes) == 8 * 2 * 4 and list(episodes.columns) == metrics.EPISODE_COLUMNS
    assert list(turns.columns) == metrics.TURN_COLUMNS and len(turns) == episodes["turns"].sum()
    assert {path.name for path in run.results.iterdir()} == {"episodes.csv", "turns.csv"}  # cells.csv is notebook 05's
    keys = list(dict.fromkeys(zip(episodes["split"], episodes["model"], episodes["runtime"], strict=True)))
    assert keys == [(split, *cell) for split in ("easy", "hard") for cell in scripted.CELLS]


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


def test_equal_files_give_equal_bytes(run):
    def written():
        metrics.write_results(run)
        return [(run.results / f"{name}.csv").read_bytes() for name in ("episodes", "turns")]

    assert written() == written()


def test_the_persistent_model_misses_names_only_in_the_stateless_runtime(run):
    easy = metrics.write_results(run)[0].query("split == 'easy'").set_index(["model", "runtime"])
    assert (easy.loc[("persistent", "stateless"), "missing_bindings"] > 0).all()
    assert (easy.loc[("persistent", "persistent"), "missing_bindings"] == 0).all()
    assert (easy.loc[("base", "stateless"), "missing_bindings"] == 0).all()  # its names were never bound
    assert (easy.loc[("base", "stateless"), "name_errors"] > 0).all()


def statuses(run, cell="stateless_persistent_easy"):
    episodes, _ = metrics.write_results(run)
    own = metrics.cell_rows(episodes, (*cell.split("_"), 25))
    assert own["score"].isna().tolist() == [status != "completed" for status in own["status"]]
    return sorted(own["status"])


def test_unfinished_episodes_are_missing(run):
    cell = run.evaluations / "stateless_persistent_easy"
    stopped = [traces.task_id_of(path) for path in sorted((cell / "knapsack").glob("*.trace.json"))[:2]]
    traces.discard_episodes(cell, stopped)  # as if stopped before the last file that a whole episode gets
    assert statuses(run) == ["completed"] * 2 + ["missing"] * 2
    for name in ("knapsack", "details"):
        shutil.rmtree(cell / name)
    assert statuses(run) == ["missing"] * 4


def test_an_episode_that_others_could_not_finish_is_unscored(run):
    cell = run.evaluations / "stateless_persistent_easy"
    shutil.rmtree(cell / "details")  # as if downloaded
    (cell / "settings.json").unlink()
    failed = traces.result_path(next((cell / "knapsack").glob("*.trace.json")))
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"status": "timeout", "error": "900 s"}))
    assert statuses(run) == ["completed"] * 3 + ["timeout"]


def test_the_cap_is_that_of_the_folders_name_and_of_its_settings(run):
    folder = run.evaluations / "base_stateless_easy"
    shutil.rmtree(run.evaluations / "base_persistent_easy" / "details")  # as if downloaded
    (run.evaluations / "base_persistent_easy" / "settings.json").unlink()
    keep(folder / "settings.json", as_json({"max_tool_calls": 80}))
    with pytest.raises(CorruptFileError, match="a cap of 80: rename it to base_stateless_easy-cap80"):
        metrics.read_cells(run.evaluations)
    folder.rename(run.evaluations / "base_stateless_easy-cap80")
    episodes, _ = metrics.read_cells(run.evaluations)
    cells = episodes[metrics.CELL].drop_duplicates()
    assert cells[cells["cap"] == 80].to_numpy().tolist() == [["base", "stateless", "easy", 80]] and len(cells) == 16
    assert metrics.setting_names(cells)["hard", 25] == "hard, cap 25"
    alone = cells.head(1)  # one cap needs no name
    assert metrics.setting_names(alone) == {("easy", 25): "easy"} and metrics.setting_columns(alone) == ["split"]


def test_a_trace_has_its_task_wherever_it_lies_and_no_other(run):
    (task, other), folder = sample_split("easy", 2, 0, scripted.CONFIG), run.evaluations
    trace = traces.read_trace(traces.trace_path(folder / "base_persistent_easy", task.task_id))
    assert metrics.find_task(folder, "easy", trace) is None
    for root in (folder, folder / "tasks", run.folder / "tasks"):
        write_tasks(root / "easy", [task])
        assert metrics.find_task(folder, "easy", trace).items == task.items
        shutil.rmtree(root / "easy")
    write_tasks(run.folder / "tasks" / "easy", [dataclasses.replace(other, task_id=task.task_id)])
    with pytest.raises(CorruptFileError, match="is not the task of the easy traces"):
        metrics.find_task(folder, "easy", trace)


def test_the_tokenizer_is_that_of_the_run_or_none(tmp_path):
    run = Run(tmp_path)
    assert metrics.run_tokenizer(run) is None
    for base, known in (("nano", True), (str(tmp_path / "nowhere"), False)):
        keep(run.manifest, as_json({"04_evaluate": {"parameters": {"base": base}}}))
        assert (metrics.run_tokenizer(run) is not None) == known


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
    path.unlink()
    with pytest.raises(CorruptFileError, match=f"{path.name} is missing"):
        metrics.read_cells(cell.parent)


def test_bad_input_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 04"):
        metrics.read_cells(tmp_path / "nowhere")
    path = next((run.evaluations / "base_persistent_easy").glob("knapsack/*.trace.json"))
    path.write_text(path.read_text()[:-100])
    with pytest.raises(CorruptFileError, match=path.name):
        metrics.write_results(run)
    shutil.rmtree(run.evaluations / "base_persistent_easy")
    shutil.copytree(run.evaluations / "base_stateless_easy", run.folder / "evaluations" / "odd")
    with pytest.raises(CorruptFileError, match="odd is not named"):
        metrics.write_results(run)

"""The published formats both ways: what we write is of them, and what others wrote is read, replayed and analysed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import scripted
from places import EXAMPLES
from published_schema import inconsistencies, problems, task_inconsistencies
from replay import differences, replay

from knapsack import tasks, traces, training_data
from knapsack.agent import ContextFull, EpisodeSettings, Reply, episode, run_alone
from knapsack.analysis import estimates, metrics
from knapsack.runs import CorruptFileError, Run, as_json, read_json, write_text
from knapsack.runtime import RUNTIME_KINDS
from knapsack.tasks import Task, preset, sample_task, write_tasks

published = pytest.mark.skipif(not EXAMPLES.exists(), reason="the published examples are not on this machine")


def pair(path: Path) -> tuple[dict, dict]:
    return read_json(path), read_json(traces.result_path(path))


def without_observations(trace: dict) -> dict:
    """The trace as version 1 of the paper's harness would have written it."""
    return trace | {"events": [event for event in trace["events"] if event["type"] != "UserObservationEvent"]}


# What the published examples are


@published
def test_the_examples_are_of_the_formats():
    results, found = sorted(EXAMPLES.glob("*/knapsack/*.trace.json")), sorted(EXAMPLES.glob("*/tasks/knapsack/*.json"))
    assert len(results) == 4 and len(found) == 6
    for path in results:
        trace, result = pair(path)
        assert problems(trace, "trace v1") + problems(trace, "trace v3") + problems(result, "result") == []
        assert inconsistencies(trace, result) == []
    for path in found:
        assert problems(read_json(path), "task") + task_inconsistencies(read_json(path)) == []
        assert path.name == f"{read_json(path)['task_id']}.json"


@published
def test_the_recorded_code_of_the_examples_gives_the_recorded_scores():
    for path in sorted(EXAMPLES.glob("*/knapsack/*.trace.json")):
        trace = traces.read_trace(path)
        assert trace.model == trace.kind == path.parent.parent.name.split("_")[1]
        assert trace.status == "completed" and 0 < trace.seconds < 1 and len(trace.turns) == 4
        assert trace.error is None and training_data.rejection(trace) is None
        task = Task.from_json(read_json(EXAMPLES / "easy" / "tasks" / "knapsack" / f"{trace.task_id}.json"))
        again = replay(task, trace)
        assert (again.score, again.solved, again.metrics) == (trace.score, trace.solved, trace.metrics)
        assert again.turns[2].observation.output == trace.turns[2].observation.output  # the weight taken


@published
def test_the_metrics_of_the_examples_are_those_of_the_raw_files():
    episodes, turns = metrics.read_cells(EXAMPLES)
    cells = estimates.cells_table(episodes).set_index(["model", "runtime", "split"])
    assert list(cells.index) == [("persistent", "persistent", "easy"), ("stateless", "stateless", "easy")]
    budgets = [read_json(path)["public"]["inspect_budget"] for path in sorted(EXAMPLES.glob("easy/tasks/*/*[01].json"))]
    for (model, runtime, split), cell in cells.iterrows():
        files = sorted((EXAMPLES / f"{model}_{runtime}_{split}" / "knapsack").glob("*.trace.json"))
        traced, results = zip(*map(pair, files), strict=True)
        scored, usage = [r["result"] for r in results], [t["summary"]["token_usage"] for t in traced]
        looked = [s["metrics"]["inspected_count"] / budget for s, budget in zip(scored, budgets, strict=True)]
        expected = {name: np.mean([spent[name] for spent in usage]) for name in usage[0]} | {
            "n": 2,
            "unscored": 0,
            "score_mean": np.mean([s["score"] for s in scored]),
            "solved": np.mean([s["is_solved"] for s in scored]),
            "turns": np.mean([t["summary"]["num_steps"] for t in traced]),
            "seconds": np.mean([r["finished_at"] - r["started_at"] for r in results]),
            "inspected": np.mean(looked),
            "name_error_rate": np.mean(["NameError" in json.dumps(t["events"]) for t in traced]),
        }
        expected["score_per_1k_tokens"] = 1000 * expected["score_mean"] / expected["total_tokens"]
        assert {name: cell[name] for name in expected} == pytest.approx(expected)
        own = turns[turns["model"] == model]
        assert own["completion_tokens"].sum() == sum(spent["completion_tokens"] for spent in usage)
    assert episodes["tool_calls"].isna().all()  # a published trace does not tell


# What we write


@pytest.mark.parametrize("name", sorted(tasks.PRESETS))
def test_our_tasks_are_of_the_format(tmp_path, name):
    for path in write_tasks(tmp_path, [sample_task(seed, preset(name), f"knapsack-{seed:010d}") for seed in range(3)]):
        task = read_json(path)
        assert path.relative_to(tmp_path) == Path("tasks") / "knapsack" / f"{task['task_id']}.json"
        assert problems(task, "task") + task_inconsistencies(task) == []


def full_after(turns: int):
    """Replies until the context is full."""
    count = iter(range(9))

    def reply(messages):
        if next(count) == turns:
            raise ContextFull("the conversation has 4100 tokens, the context 4096")
        return Reply(scripted.block("x = list_items()"), 50, 9)

    return reply


def every_ending(kind: str) -> list:
    """Episodes with every kind of turn and every ending."""
    task = scripted.small_task()
    twice = f"{scripted.block('print(1)')}\n{scripted.block('print(2)')}"
    cap = scripted.block("x = 1\nfor i in range(30):\n    list_items()")
    wrong = scripted.block("print(never)\n")
    refused = scripted.block("take_item('item_none')")
    strange = scripted.block("print('\\x00 ⏎ 𝄞', '```')\n'a value'", "Ünïcode \u2028 <|im_end|>")
    broken = scripted.block("if:")
    end = scripted.block("finish()")
    played = [["no code", twice, cap, wrong, refused, strange, broken, end], ["Hm."], [end], [cap, scripted.block("x")]]
    played += [scripted.persistent_texts(), scripted.stateless_texts(task)]
    episodes = [scripted.play(task, kind, texts, max_turns=9) for texts in played]
    return episodes + [run_alone(episode(task, kind, EpisodeSettings(9)), full_after(turns)) for turns in (0, 2)]


@pytest.fixture(scope="module", params=RUNTIME_KINDS)
def written(request, tmp_path_factory):
    """(episode, its trace file) for every ending, each in a folder of its own in the layout of the data set."""
    found = []
    for number, done in enumerate(every_ending(request.param)):
        cell = tmp_path_factory.mktemp(f"e{number}") / f"base_{request.param}_easy"
        traces.write_episode(cell, done, "base", 1.5)
        found.append((done, traces.trace_path(cell, done.task.task_id)))
    return found


def test_our_traces_and_results_are_of_the_formats(written):
    assert {done.finish_reason for done, _ in written} == {"finish_tool", "max_turns", "error"}
    for done, path in written:
        trace, result = pair(path)
        assert path.name == f"knapsack-{done.task.task_id}.trace.json"
        assert problems(trace, "trace v3") + problems(result, "result") + inconsistencies(trace, result) == []
        steps = [event["data"] for event in trace["events"] if event["type"] == "StepEvent"]
        assert [step["turn"] for step in steps] == list(range(len(done.turns)))
        assert set(re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+", path.read_text())) == {"1970-01-01T00:00:00"}
        first = without_observations(trace)
        assert problems(first, "trace v1") + inconsistencies(first, result) == []
        assert bool(problems(trace, "trace v1")) == bool(steps)  # version 1 has no observations


def test_our_traces_can_be_replayed(written):
    """As they are, and as another program would find them: version 1, without details and observations."""
    for done, path in written:
        assert differences(traces.read_trace(path), replay(done.task, traces.read_trace(path))) == []
        bare = path.parents[2] / "bare" / path.parent.parent.name / "knapsack" / path.name
        write_text(bare, as_json(without_observations(read_json(path))))
        shutil.copyfile(traces.result_path(path), traces.result_path(bare))
        trace = traces.read_trace(bare)
        assert (trace.status, trace.model, trace.kind) == ("completed", "base", done.kind)
        again = replay(done.task, trace)
        assert (trace.error, again.error) == (done.error, done.error)
        assert (differences(done, again), again.metrics) == ([], done.metrics)


def test_the_schemas_are_strict(tmp_path):
    """A field more or a field less is a problem."""
    done = scripted.play(scripted.small_task(), "stateless", [scripted.block("x"), scripted.block("finish()")])
    traces.write_episode(tmp_path, done, "base")
    trace, result = pair(traces.trace_path(tmp_path, done.task_id))
    task, row = done.task.to_json(), training_data.training_row(done)
    cases = [("trace v3", trace, part) for part in (trace, trace["summary"], trace["events"][4])]
    cases += [("trace v3", trace, event["data"]) for event in trace["events"][1:6]]
    cases += [("result", result, part) for part in (result, result["result"], result["result"]["metrics"])]
    cases += [("task", task, part) for part in (task, task["public"], task["difficulty"], task["reference"])]
    for name, whole, part in [*cases, ("row", row, row["messages"][0])]:
        part["knapsack"] = 1
        assert problems(whole, name)
        del part["knapsack"]
        for key in list(part):
            value = part.pop(key)
            assert problems(whole, name), (name, key)
            part[key] = value
        assert problems(whole, name) == []


def test_training_rows_are_of_the_format(tmp_path, written):
    rows = [training_data.training_row(done) for done, _ in written if done.turns]
    training_data.write_rows(tmp_path / "traces.jsonl", rows)
    lines = (tmp_path / "traces.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and len(lines) == len(rows)
    for line in lines:
        row = json.loads(line)
        assert problems(row, "row") == []
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["system", "user", *["assistant", "user"] * (len(roles) // 2)][: len(roles)]
        assert roles[-1] == "assistant"
    assert problems({"messages": [*rows[0]["messages"], {"role": "system", "content": ""}]}, "row")


# What others wrote


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three cells: an adapter at home and away, and a chat model in a third runtime."""
    cells = [("persistent", "persistent"), ("persistent", "stateless"), ("qwen3-8b", "carry-over")]
    folder = scripted.write_run(tmp_path_factory.mktemp("run"), n=3, splits=("easy",), cells=cells)
    write_tasks(folder / "tasks" / "easy", tasks.sample_split("easy", 3, 0, scripted.CONFIG))
    return Run(folder)


@pytest.fixture
def download(run, tmp_path):
    """The run's cells as a data set would have them, with the tasks: no settings, no details, version 1 events."""
    folder = tmp_path / "download"
    for cell in (run.folder / "evaluations").iterdir():
        shutil.copytree(cell / "knapsack", folder / cell.name / "knapsack")
        for path in (folder / cell.name).glob("knapsack/*.trace.json"):
            write_text(path, as_json(without_observations(read_json(path))))
    shutil.copytree(run.folder / "tasks" / "easy", folder / "easy")
    return folder


def test_downloaded_cells_give_the_numbers_of_the_run(run, download):
    """Except what such files do not tell: the tool calls, and whether a tool or the code failed."""
    ours, turns = metrics.read_cells(run.folder / "evaluations")
    theirs, their_turns = metrics.read_cells(download)
    assert theirs["tool_calls"].isna().all() and len(theirs) == 9
    same = [name for name in ours if name not in ("tool_calls", "other_errors")]
    assert theirs[same].equals(ours[same]) and their_turns.equals(turns)
    assert ours["missing_bindings"].sum() > 0 and ours["inspected"].notna().all()


def test_the_budget_comes_from_the_tasks_wherever_they_lie(download):
    here, _ = metrics.read_cells(download)
    (download / "tasks").mkdir()
    (download / "easy").rename(download / "tasks" / "easy")
    assert metrics.read_cells(download)[0].equals(here)
    shutil.rmtree(download / "tasks")
    nowhere, _ = metrics.read_cells(download)
    assert nowhere["inspected"].isna().all()
    assert nowhere.drop(columns="inspected").equals(here.drop(columns="inspected"))


def test_tasks_of_another_split_are_refused(download):
    shutil.rmtree(download / "easy")
    write_tasks(download / "easy", tasks.sample_split("hard", 3, 0, scripted.CONFIG))
    with pytest.raises(CorruptFileError, match="is not the task of the easy traces"):
        metrics.read_cells(download)


DEAD = "LLM Call Failed: Connection error."
FULL = "LLM Call Failed: This model's maximum context length is 40960 tokens."
CUT = "LLM ended unexpectedly (reason: length). Please continue."
CODE = "NameError: name 'x' is not defined"


@pytest.mark.parametrize(
    ("turns", "errors", "status"),
    [
        (0, [DEAD] * 3, "unanswered"),
        (0, ["Connection refused"], "unanswered"),
        (2, [DEAD] * 3, "unanswered"),  # the server died on the way
        (2, [CODE], "completed"),
        (2, [FULL] * 3, "completed"),  # the conversation grew too long: the model's doing
        (0, [CUT] * 3, "completed"),  # it answered, without end
        (0, [DEAD, CUT], "completed"),
        (1, [DEAD, CUT, DEAD], "unanswered"),
    ],
)
def test_a_dead_server_is_unscored_and_a_failing_model_is_not(download, turns, errors, status):
    """The paper's harness calls all of these completed, most with a score of 0."""
    path = next((download / "qwen3-8b_carry-over_easy").glob("knapsack/*.trace.json"))
    trace, result = pair(path)
    spent = dict.fromkeys(trace["summary"]["token_usage"], 0)
    kept = [event for event in trace["events"] if event["type"] != "FinishEvent"][: 2 + 3 * turns]
    kept += [{"type": "ErrorEvent", "data": {"error": error}, "timestamp": trace["started_at"]} for error in errors]
    finish = {"reason": "max_turns", "token_usage": spent}
    kept.append({"type": "FinishEvent", "data": finish, "timestamp": trace["started_at"]})
    summary = {"num_steps": turns, "errors": errors, "finish_reason": "max_turns", "token_usage": spent}
    write_text(path, as_json(trace | {"events": kept, "summary": trace["summary"] | summary}))
    scored = result["result"] | {"score": 0.0, "is_solved": False}
    write_text(traces.result_path(path), as_json(result | {"result": scored}))
    episodes, _ = metrics.read_cells(download)
    cell = estimates.cells_table(episodes).set_index("model").loc["qwen3-8b"]
    row = episodes[episodes["model"] == "qwen3-8b"].set_index("task_id").loc[traces.read_trace(path).task_id]
    assert row["status"] == status and (cell["n"], cell["unscored"]) == ((3, 0) if status == "completed" else (2, 1))
    assert row["score"] == 0 if status == "completed" else np.isnan(row["score"])


def test_timeouts_errors_and_broken_downloads_are_unscored(download):
    """Whatever score stands in the file, and whether or not there is a trace."""
    files = sorted((download / "persistent_persistent_easy").glob("knapsack/*.trace.json"))
    for path, status in zip(files, ("timeout", "error", None), strict=True):
        if status is None:
            traces.result_path(path).unlink()
        else:
            write_text(traces.result_path(path), as_json(pair(path)[1] | {"status": status, "error": "900 s"}))
    files[1].unlink()
    episodes, turns = metrics.read_cells(download)
    cell = episodes[(episodes["model"] == "persistent") & (episodes["runtime"] == "persistent")]
    assert list(cell["status"]) == ["timeout", "error", "missing"] and cell["score"].isna().all()
    assert set(turns["runtime"]) == {"stateless", "carry-over"}


def test_a_result_without_its_trace_is_named(download):
    path = next(download.glob("*/knapsack/*.trace.json"))
    path.unlink()
    with pytest.raises(CorruptFileError, match=path.name):
        metrics.read_cells(download)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere/at/all"):
        metrics.source_folder(Run(tmp_path), "/nowhere/at/all")


def test_downloaded_data_does_not_mix_with_a_run(run, download, tmp_path):
    assert metrics.source_folder(run) == run.folder / "evaluations"
    assert metrics.source_folder(Run(tmp_path / "new"), str(download)) == download
    with pytest.raises(ValueError, match="choose another run_folder"):
        metrics.source_folder(run, str(download))
    with pytest.raises(FileNotFoundError, match="run notebook 04 first"):
        metrics.read_cells(tmp_path / "new")


# Notebook 05


def analysed(checkout, folder: Path, downloaded: Path) -> list[tuple]:
    """Run notebook 05 on a downloaded folder; the cells of cells.csv with their number of episodes and turns."""
    parameters = {"run_folder": str(folder), "n_resamples": 50, "source": "published"}
    folder.mkdir()
    notebook = papermill.execute_notebook(
        checkout / "notebooks" / "05_analysis.ipynb",
        folder / "05.ipynb",
        parameters | {"published_folder": str(downloaded)},
        progress_bar=False,
    )
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    texts = [out.get("text", "") + out.get("data", {}).get("text/markdown", "") for out in outputs]
    assert [text for text in texts if re.search(r"Warning|\bnan\b", text)] == []
    cells = pd.read_csv(folder / "results" / "cells.csv")
    return list(cells[["model", "runtime", "split", "n", "turns"]].itertuples(index=False, name=None))


def test_notebook_05_analyses_a_downloaded_folder(checkout, download, tmp_path):
    assert [cell[:4] for cell in analysed(checkout, tmp_path / "run", download)] == [
        ("persistent", "persistent", "easy", 3),
        ("persistent", "stateless", "easy", 3),
        ("qwen3-8b", "carry-over", "easy", 3),
    ]
    results = tmp_path / "run" / "results"
    assert {path.stem for path in (results / "figures").glob("*.png")} == {
        "the_idea", "train_runtime_matrix", "cost_quality", "paired_differences",
        "errors_and_recovery", "tokens_by_turn", "what_fills_the_tokens",
    }  # fmt: skip
    assert "qwen3-8b→carry-over" in (results / "tables" / "table2.md").read_text()
    assert not (results / "tables" / "table1.md").exists()  # there are no training traces


@published
@pytest.mark.long
def test_notebook_05_analyses_the_published_examples(checkout, tmp_path):
    cells = [("persistent", "persistent", "easy", 2, 4), ("stateless", "stateless", "easy", 2, 4)]
    assert analysed(checkout, tmp_path / "run", EXAMPLES) == cells

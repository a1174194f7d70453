"""The tables of conduct, from the smallest run of the whole report."""

import pandas as pd
import pytest

from knapsack import traces
from knapsack.analysis import conduct, metrics
from knapsack.analysis.behaviour import ERRORS, PARTS
from knapsack.analysis.causes import CAUSES
from knapsack.runs import open_run


@pytest.fixture(scope="module")
def looked_at(smallest_report):
    run = open_run(smallest_report[0])
    folder = run.folder / "evaluations"
    episodes, turns = metrics.read_cells(folder)
    return run, folder, episodes, turns, conduct.read_conduct(folder, episodes)


def test_every_turn_has_a_row_whose_parts_are_its_reply(looked_at):
    _, folder, _, turns, found = looked_at
    key = [*conduct.KEY, "turn"]
    assert found.turns[key].values.tolist() == turns[key].values.tolist()
    assert set(found.turns["error"]) <= set(ERRORS) and found.unit == "characters"
    for row in found.turns.to_dict("records")[::7]:
        cell = folder / f"{row['model']}_{row['runtime']}_{row['split']}"
        trace = traces.read_trace(traces.trace_path(cell, row["task_id"]))
        assert sum(row[part] for part in PARTS) == len(trace.turns[row["turn"]].text)


def test_exactly_the_episodes_below_their_teacher_have_a_cause(looked_at):
    _, _, episodes, _, found = looked_at
    best = episodes[episodes["model"] == "teacher"].set_index(["runtime", "split", "task_id"])["score"]
    others = episodes[episodes["model"] != "teacher"]
    above = others.apply(lambda row: row["score"] >= best[row["runtime"], row["split"], row["task_id"]], axis=1)
    expected = others.loc[~above, conduct.KEY].values.tolist()
    assert sorted(found.failures[conduct.KEY].values.tolist()) == sorted(expected) and expected
    assert set(found.failures["cause"]) <= set(CAUSES) - {"unknown"}


def test_without_a_teacher_or_tasks_nothing_is_claimed(looked_at, tmp_path):
    _, folder, episodes, _, _ = looked_at
    alone = conduct.read_conduct(folder, episodes[episodes["model"] == "base"])
    assert alone.failures.empty and len(alone.turns)
    elsewhere = tmp_path / "evaluations"
    elsewhere.symlink_to(folder)  # no tasks/ beside it
    assert set(conduct.read_conduct(elsewhere, episodes).failures["cause"]) == {"unknown"}


def test_written_tables_read_back(looked_at, tmp_path):
    *_, found = looked_at
    run = open_run(tmp_path)
    conduct.write_conduct(run, found)
    read = pd.read_csv(run.results / "contents.csv")
    assert list(read) == conduct.TURN_COLUMNS and len(read) == len(found.turns)
    assert list(pd.read_csv(run.results / "failures.csv")) == conduct.FAILURE_COLUMNS
    assert list(pd.read_csv(run.results / "recoveries.csv")) == conduct.RECOVERY_COLUMNS

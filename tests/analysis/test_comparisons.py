"""The words and tables of notebook 05 about quality, cost and failure, against the episodes that they are made of."""

import math

import numpy as np
import pandas as pd
import pytest
import scripted
from scipy import stats
from scripted import rows

from knapsack.analysis import comparisons, conduct, metrics, statistics, tables
from knapsack.analysis.estimates import estimates_table
from knapsack.analysis.intervals import Bootstrap
from knapsack.runs import Run
from knapsack.tasks import sample_split, write_tasks

P, S, FEW = "persistent", "stateless", Bootstrap(50)


def frame(*cells):
    return pd.concat(cells, ignore_index=True)


# What was played


def test_the_overview_says_what_is_there_and_what_is_not():
    episodes = frame(rows("base", P, [0.1] * 3), rows("qwen3", "carry-over", [0.2] * 3))
    episodes = episodes.assign(finish_reason=["error", *["finish_tool"] * 5], inspected=[math.nan, *[0.5] * 5])
    episodes.loc[[4, 5], "status"] = ["timeout", "unanswered"]
    assert comparisons.overview(episodes) == (
        "2 cells: base and qwen3; in the persistent and carry-over runtime; on easy. "
        "Not every model was played in every runtime on every split. 4 of 6 episodes are scored. "
        "Unscored: 1 timeout and 1 unanswered. "
        "Ended by an error (full context, malformed replies in a row), and scored as they stood: 1. "
        "Inspection budget unknown, for want of the task's file: 1; `inspected` is empty there."
    )
    whole = comparisons.overview(episodes.head(3).assign(finish_reason="finish_tool", inspected=1.0))
    assert whole == "1 cell: base; in the persistent runtime; on easy. 3 of 3 episodes are scored."


def test_twins_are_compared_in_means():
    facts = pd.DataFrame(
        {"runtime": [P, S, P, S], "task_id": ["a", "a", "b", "b"], "trace_tokens": [10, 30, 30, 50]}
        | {"episode_tokens": [100, 300, 100, 300], "turns": [1] * 4, "tool_calls": [1] * 4, "score": [1, 0.5, 1, 1]}
    )
    said = comparisons.twins_said(facts)
    assert "**2.0 ×** as long" in said and "3.0 × the tokens" in said and "differs by 0.250" in said


# Quality


def test_tests_are_shown_with_their_numbers():
    episodes = frame(rows(P, P, [0.9, 0.8, 0.7, 0.6]), rows(P, S, [0.1, 0.2, 0.3, 0.6], total_tokens=2000))
    tests = statistics.tests_table(episodes, estimates_table(episodes, FEW))
    score = comparisons.tests_shown(tests, "score").text
    assert score["cells"].tolist() == ["P→P − P→S"] and score["n"].tolist() == ["4"]
    assert score.iloc[0, 3].startswith("45.0 [") and score["r"][0] == "1.00"
    assert score["p"][0] == f"{stats.wilcoxon([0.8, 0.6, 0.4]).pvalue:.3f}"
    assert score["note"][0] == "1 zero differences dropped"
    tokens = comparisons.tests_shown(tests, "total_tokens").text
    assert tokens.iloc[0, 3].startswith("−1,900") and len(tokens) == 1


def test_shares_are_shown_with_their_numbers():
    episodes = frame(rows(P, P, [1.0] * 4), rows(P, S, [0.5] * 4)).assign(solved=[1, 1, 1, 0, 0, 0, 0, 1])
    text = comparisons.shares_shown(statistics.shares_table(episodes, estimates_table(episodes, FEW)), "solved").text
    row = text.iloc[0]
    assert row[["first %", "second %", "only first", "only second"]].tolist() == ["75", "25", "3", "1"]
    assert row["p"] == f"{stats.binomtest(1, 4).pvalue:.3f}" and row.iloc[5].startswith("50 [")


def test_equivalence_is_shown_in_points_with_its_power():
    draw = np.random.default_rng(0)
    home = draw.normal(0.5, 0.1, 40)
    episodes = frame(rows(P, P, home), rows(P, S, home + draw.normal(0, 0.2, 40)), rows(S, S, home))
    table = statistics.equivalence_table(episodes, 0.03, FEW)
    shown = comparisons.equivalence_shown(table)
    assert "within ± 3.0 points" in shown.caption
    assert dict(zip(shown.text["cells"], shown.text["verdict"], strict=True)) == {
        "P→P − S→S": "equivalent", "P→P − P→S": "undecided", "P→S − S→S": "undecided"
    }  # fmt: skip
    row, numbers = shown.text.iloc[1], table.iloc[1]
    assert row["detectable, points"] == f"{100 * numbers['detectable']:.1f}"
    assert row["tasks needed"] == f"{numbers['tasks_needed']:,.0f}"


# Errors, state and causes


def invented():
    """Two P→S episodes with errors, one of which recovers from its second, and two without."""
    episodes = rows(P, S, dict.fromkeys("0123", 0.5)).assign(missing_bindings=[2, 1, 0, 0])
    episodes["task_id"] = list("0123")
    key = {"model": P, "runtime": S, "split": "easy", "cap": 25}
    errors = [("0", 1, 2, 300, True), ("0", 2, 1, 100, True), ("1", 1, 5, 900, False)]
    recoveries = [key | dict(zip(conduct.RECOVERY_COLUMNS[4:], row, strict=True)) for row in errors]
    turns = [
        key | {"task_id": task, "turn": turn, "error": "none"} | dict(zip(conduct.PARTS, parts, strict=True))
        for task, turn, parts in (("0", 0, (9, 0, 0, 40, 0)), ("0", 1, (9, 20, 20, 20, 5)), ("1", 0, (0, 0, 0, 0, 7)))
    ]
    used = [("0", 0, 0, 0), ("0", 1, 2, 1), ("0", 2, 2, 3), ("1", 0, 0, 0), ("1", 1, 1, 0), ("1", 2, 1, math.nan)]
    names = [key | dict(zip(("task_id", "turn", "names_bound", "names_needed"), row, strict=True)) for row in used]
    frames = (pd.DataFrame(turns), pd.DataFrame(recoveries), pd.DataFrame(columns=conduct.FAILURE_COLUMNS))
    return episodes, pd.DataFrame(names), conduct.Conduct(*frames, "tokens")


def test_recovery_is_counted_by_episodes_and_costed_by_errors():
    episodes, _, seen = invented()
    table = comparisons.recovery_table(episodes, seen, estimates_table(episodes, FEW), FEW)
    row = table.iloc[0]
    assert row[["n", "missing", "errors", "known", "recovered"]].tolist() == [4, 0.5, 3, 2, 0.5]
    assert row[["turns", "tokens", "lost_tokens"]].tolist() == [1.5, 200, 900]
    wilson = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert row[["recovered_low", "recovered_high"]].tolist() == pytest.approx([wilson.low, wilson.high])
    text = comparisons.recovery_shown(table).text.iloc[0]
    assert text["of them recover %"] == "50 [9–91]" and text["tokens lost"] == "900"


def test_redundancy_and_reuse_are_sums_over_sums():
    episodes, turns, seen = invented()
    table = comparisons.reuse_table(episodes, turns, seen, FEW)
    row = table.iloc[0]
    assert row[["code", "redundancy", "restated"]].tolist() == [50, 0.4, 0.2]  # 100 of new and old code, 0 in the other
    assert row[["later_turns", "names", "leaning"]].tolist() == pytest.approx([3, 4 / 3, 2 / 3])
    text = comparisons.reuse_shown(table, "tokens").text.iloc[0]
    assert text["code, tokens"] == "50" and text["again %"].startswith("40")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A small scripted run: its episodes, turns, conduct and estimates."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4, splits=("easy",)))
    write_tasks(run.tasks("easy"), sample_split("easy", 4, 0, scripted.CONFIG))
    episodes, turns = metrics.read_cells(run.evaluations)
    return episodes, turns, conduct.read_conduct(run.evaluations, episodes), estimates_table(episodes, FEW)


def test_a_scripted_run_carries_state_as_its_scripts_do(played):
    episodes, turns, seen, found = played
    table = comparisons.reuse_table(episodes, turns, seen, FEW).set_index(["model", "runtime"])
    assert table.loc[(P, P), "redundancy"] < table.loc[(S, S), "redundancy"]
    assert table.loc[(P, P), "leaning"] == 1 and table.loc[(S, S), "leaning"] == 0
    recovery = comparisons.recovery_table(episodes, seen, found, FEW).set_index(["model", "runtime"])
    assert recovery.loc[(P, S), ["missing", "recovered"]].tolist() == [1, 1]
    assert recovery.loc[(P, P), "missing"] == 0 and math.isnan(recovery.loc[(P, P), "recovered"])


def test_every_episode_below_the_teacher_is_counted_once(played):
    episodes, _, seen, _ = played
    table = comparisons.causes_table(seen.failures, episodes)
    causes = list(table.columns[6:])
    assert (table[causes].sum(axis=1) == table["below"]).all() and table["below"].sum() == len(seen.failures)
    assert set(table["n"]) == {4} and "teacher" not in set(table["model"])
    shown = comparisons.causes_shown(table).text
    assert list(shown.columns) == ["split", "cell", "n", "below the teacher", *causes]
    assert shown["below the teacher"].tolist() == table["below"].map(str).tolist()
    alone = episodes[episodes["model"] != "teacher"]
    assert comparisons.causes_table(seen.failures.head(0), alone).empty


def every_table(episodes, turns, seen, found):
    tests, shares = statistics.tests_table(episodes, found), statistics.shares_table(episodes, found)
    return [
        *(comparisons.tests_shown(tests, quantity) for quantity in ("score", "total_tokens")),
        *(comparisons.shares_shown(shares, quantity) for quantity in ("solved", "missing_binding")),
        comparisons.equivalence_shown(statistics.equivalence_table(episodes, bootstrap=FEW)),
        comparisons.recovery_shown(comparisons.recovery_table(episodes, seen, found, FEW)),
        comparisons.reuse_shown(comparisons.reuse_table(episodes, turns, seen, FEW), seen.unit),
        comparisons.causes_shown(comparisons.causes_table(seen.failures, episodes)),
    ]


def test_every_table_has_a_form_for_every_file_and_numbers_to_the_right(played):
    for table in every_table(*played):
        assert table.text.columns.is_unique and table.text.map(lambda value: type(value) is str).all(axis=None)
        assert tables.latex(table, "x")
        numbers = {title for title in table.text if table.text[title].str.match(r"[−+<]? ?[\d.,]+( \[.*\])?$").any()}
        assert numbers == {title for title in table.text if table.text[title].any()} - tables.WORDS


def test_nothing_scored_gives_empty_tables(played):
    episodes, turns, seen, _ = played
    failed = episodes.assign(status="error", score=math.nan)
    empty = conduct.Conduct(*(part.head(0) for part in (seen.turns, seen.recoveries, seen.failures)), "characters")
    made = every_table(failed, turns.head(0), empty, estimates_table(failed, FEW))
    assert all(table.text.empty for table in made[-3:])
    assert not any(table.text.map(lambda text: "nan" in text).any(axis=None) for table in made)
    assert all(table.text.empty for table in every_table(failed.head(0), turns.head(0), empty, estimates_table(failed)))

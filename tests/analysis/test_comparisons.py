"""The words and tables of notebook 05 about quality, cost and stability, against the episodes that they are made of."""

import math

import numpy as np
import pandas as pd
import pytest
import scripted
from scipy import stats

from knapsack.analysis import comparisons, conduct, metrics, stability, statistics, tables
from knapsack.runs import Run
from knapsack.tasks import sample_split, write_tasks

P, S = "persistent", "stateless"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A small scripted run: its folder of cells, tables and conduct."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4, splits=("easy",)))
    write_tasks(run.tasks("easy"), sample_split("easy", 4, 0, scripted.CONFIG))
    folder = run.folder / "evaluations"
    episodes, turns = metrics.read_cells(folder)
    return folder, episodes, turns, conduct.read_conduct(folder, episodes)


def cell(model, runtime, scores, split="easy", tokens=10):
    one = {"model": model, "runtime": runtime, "split": split, "status": "completed", "finish_reason": "finish_tool"}
    one |= {"solved": 0, "missing_bindings": 0, "inspected": 1.0}
    return [one | {"task_id": str(k), "score": score, "total_tokens": tokens + k} for k, score in enumerate(scores)]


def frame(*cells):
    return pd.DataFrame([row for rows in cells for row in rows])


# What was played


def test_the_overview_says_what_is_there_and_what_is_not():
    episodes = frame(cell("base", P, [0.1] * 3), cell("qwen3", "carry-over", [0.2] * 3))
    episodes = episodes.assign(finish_reason=["error", *["finish_tool"] * 5], inspected=[math.nan, *[0.5] * 5])
    episodes.loc[[4, 5], "status"] = ["timeout", "unanswered"]
    assert comparisons.overview(episodes) == (
        "2 cells: base and qwen3; in the persistent and carry-over runtime; on easy. "
        "Not every model was played in every runtime on every split. 4 of 6 episodes are scored. "
        "Unscored: 1 timeout and 1 unanswered. "
        "Ended by an error such as a full context, and scored as they stood: 1. "
        "Inspection budget unknown, for want of the task's file: 1; `inspected` is empty there."
    )
    whole = comparisons.overview(episodes.head(3).assign(finish_reason="finish_tool", inspected=1.0))
    assert whole == "1 cell: base; in the persistent runtime; on easy. 3 of 3 episodes are scored."


def test_cells_are_said_with_what_was_played():
    def cells(*names):
        rows = []
        for k, (model, runtime) in enumerate(names):
            row = {"split": "easy", "model": model, "runtime": runtime, "score_mean": k / 10, "score_low": k / 20}
            row |= {"score_high": k / 5, "total_tokens": 1000.0 * (k + 1), "missing_binding_rate": k / 8}
            rows.append(row | {"solved": 0.25, "unscored": 1})
        return pd.DataFrame(rows)

    home = "Trained and run persistent, the model reaches 0.00 [0.00–0.00] with 1,000 tokens an episode; "
    teacher = "its teacher reaches 0.10 with 2,000."
    away = "had bound in 25 % of its episodes, scores +0.20 against home, and spends 3.0 × the tokens."
    tax = "model spends 4.0 × the tokens of the persistent-trained one, and scores +0.30 against it."
    base = "The base scores 0.40 in the persistent runtime (solved: 25 %)."
    other = "The model `mine` scores 0.50 [0.25–1.00] in the stateless runtime with 6,000 tokens an episode, and misses"
    assert "scores −0.20 against home" in comparisons.cells_said(cells((P, S), ("base", S), (P, P)), ["easy"])
    names = [(P, P), ("teacher", P), (P, S), (S, P), ("base", P), ("mine", S)]
    said = comparisons.cells_said(cells(*names), ["easy"])
    assert [part in said for part in (home + teacher, away, tax, base, other)] == [True] * 5
    assert said.startswith("**Easy.** ") and said.endswith("Episodes of these cells without a score: 6.")
    lone = comparisons.cells_said(cells(("mine", S)), ["easy", "hard"])
    assert lone.startswith("**Easy.** The model `mine`") and "home" not in lone and "teacher" not in lone


def test_twins_are_compared_in_means():
    facts = pd.DataFrame(
        {"runtime": [P, S, P, S], "task_id": ["a", "a", "b", "b"], "trace_tokens": [10, 30, 30, 50]}
        | {"episode_tokens": [100, 300, 100, 300], "turns": [1] * 4, "tool_calls": [1] * 4, "score": [1, 0.5, 1, 1]}
    )
    said = comparisons.twins_said(facts)
    assert "**2.0 ×** as long" in said and "3.0 × the tokens" in said and "differs by 0.250" in said


# Quality


def test_tests_are_shown_with_their_numbers():
    episodes = frame(cell(P, P, [0.9, 0.8, 0.7, 0.6]), cell(P, S, [0.1, 0.2, 0.3, 0.6], tokens=2000))
    tests = statistics.tests_table(episodes, 200)
    score = comparisons.tests_shown(tests, "score").text
    assert score["cells"].tolist() == ["P→P − P→S"] and score["n"].tolist() == ["4"]
    assert score.iloc[0, 3].startswith("45.0 [") and score["r"][0] == "1.00"
    assert score["p"][0] == f"{stats.wilcoxon([0.8, 0.6, 0.4]).pvalue:.3f}"
    assert score["note"][0] == "1 zero differences dropped"
    tokens = comparisons.tests_shown(tests, "total_tokens").text
    assert tokens.iloc[0, 3].startswith("−1,990") and len(tokens) == 1


def test_shares_are_shown_with_their_numbers():
    episodes = frame(cell(P, P, [1.0] * 4), cell(P, S, [0.5] * 4))
    episodes["solved"] = [1, 1, 1, 0, 0, 0, 0, 1]
    text = comparisons.shares_shown(statistics.shares_table(episodes), "solved").text
    row = text.iloc[0]
    assert row[["first %", "second %", "only first", "only second"]].tolist() == ["75", "25", "3", "1"]
    assert row["p"] == f"{stats.binomtest(1, 4).pvalue:.3f}" and row.iloc[5].startswith("50 [")


def test_equivalence_is_shown_in_points_with_its_power():
    draw = np.random.default_rng(0)
    home = draw.normal(0.5, 0.1, 40)
    episodes = frame(cell(P, P, home), cell(P, S, home + draw.normal(0, 0.2, 40)), cell(S, S, home))
    table = statistics.equivalence_table(episodes, 0.03, 200)
    shown = comparisons.equivalence_shown(table)
    assert "± 3.0 points" in shown.caption
    assert dict(zip(shown.text["cells"], shown.text["verdict"], strict=True)) == {
        "P→S − S→S": "undecided", "P→P − P→S": "undecided", "P→P − S→S": "equivalent"
    }  # fmt: skip
    row, numbers = shown.text.iloc[1], table.iloc[1]
    assert row["detectable, points"] == f"{100 * numbers['detectable']:.1f}"
    assert row["tasks needed"] == f"{numbers['tasks_needed']:,.0f}"
    said = comparisons.power_sentence(table)
    assert said.startswith("Verdicts on 3 pairs of cells: 2 undecided and 1 equivalent.")
    assert f"a difference of {row['detectable, points']} points" in said
    assert f"within ± 3.0 points would take {row['tasks needed']} tasks" in said and "equal" not in said.lower()[60:]


def test_power_is_not_told_where_all_is_decided_or_nothing_was_compared():
    decided = frame(cell(P, P, [0.5] * 8), cell(S, S, [0.5] * 8))
    said = comparisons.power_sentence(statistics.equivalence_table(decided, n_resamples=50))
    assert said == "Verdicts on 1 pair of cells: 1 equivalent."
    nothing = statistics.equivalence_table(frame(cell("base", P, [0.5])))
    assert comparisons.power_sentence(nothing) == "No two cells that the study compares were played."
    assert comparisons.equivalence_shown(nothing).text.empty


def test_the_interaction_is_shown_as_difference_and_as_ratio():
    episodes = frame(
        cell(P, P, [0.9] * 6, tokens=100), cell(P, S, [0.1] * 6, tokens=400),
        cell(S, P, [0.6] * 6, tokens=300), cell(S, S, [0.7] * 6, tokens=200),
    )  # fmt: skip
    episodes["total_tokens"] -= episodes["task_id"].astype(int)
    text = comparisons.interactions_shown(statistics.interactions_table(episodes, 50)).text
    assert text["D [95 %]"].tolist() == ["0.90 [0.90–0.90]", "0.17 [0.17–0.17]"]  # (100 ÷ 400) ÷ (300 ÷ 200)
    apart = episodes[episodes["runtime"] == P]
    assert comparisons.interactions_shown(statistics.interactions_table(apart, 50)).text.empty


def test_a_model_is_held_against_its_teacher_on_the_same_tasks():
    episodes = frame(
        cell(P, P, [0.4, 0.6, 0.5]), cell("teacher", P, [0.8, 1.0]),
        cell(S, S, [0.5] * 2), cell("teacher", P, [1], "hard"),
    )  # fmt: skip
    table = comparisons.against_teacher(episodes, 100)
    assert len(table) == 1 and table.loc[0, ["cell", "n"]].tolist() == ["persistent→persistent", 2]
    assert table.loc[0, ["score", "teacher_score", "ratio"]].tolist() == pytest.approx([0.5, 0.9, 0.5 / 0.9])
    assert comparisons.teacher_shown(table).text.iloc[0, 5].startswith("55.6 [")


# Cost and stability


def test_ratios_are_of_mean_tokens_on_the_same_tasks(played):
    _, episodes, _, _ = played
    table = stability.ratios_table(episodes, 200).set_index("quantity")
    mean = episodes.groupby(["model", "runtime"])["total_tokens"].mean()
    expected = {"amnesia tax": mean[S, P], "wrong runtime": mean[P, S], "aligned": mean[S, S]}
    for name, tokens in expected.items():
        assert table.loc[name, "ratio"] == pytest.approx(tokens / mean[P, P]) and table.loc[name, "n"] == 4
        assert table.loc[name, "low"] <= table.loc[name, "ratio"] <= table.loc[name, "high"]
    shown = stability.ratios_shown(stability.ratios_table(episodes, 200)).text
    assert shown["cells"].tolist() == ["S→P ÷ P→P", "P→S ÷ P→P", "S→S ÷ P→P"]
    assert stability.ratios_table(episodes[episodes["model"] == "base"]).empty


def test_the_spread_of_tokens_is_that_of_scored_episodes_and_their_replies(played):
    _, episodes, turns, _ = played
    table = stability.spread_table(episodes, turns).set_index([*stability.CELL, "of"])
    for key, group in episodes.groupby(stability.CELL):
        replies = turns[(turns[stability.CELL] == list(key)).all(axis=1)]["completion_tokens"]
        for of, tokens in (("episode", group["total_tokens"]), ("reply", replies)):
            row = table.loc[(*key, of)]
            quantiles = np.percentile(tokens, [25, 50, 75, 95])
            assert row[["lower", "median", "upper", "high"]].tolist() == pytest.approx(quantiles)
            assert row["n"] == len(tokens) and row["most"] == max(tokens)
    unscored = episodes.assign(status=["timeout", *episodes["status"][1:]])
    key = tuple(episodes.loc[0, stability.CELL])
    left = stability.spread_table(unscored, turns).set_index([*stability.CELL, "of"])
    lost = turns[(turns["task_id"] == episodes["task_id"][0]) & (turns[stability.CELL] == list(key)).all(axis=1)]
    assert left.loc[(*key, "episode"), "n"] == table.loc[(*key, "episode"), "n"] - 1
    assert left.loc[(*key, "reply"), "n"] == table.loc[(*key, "reply"), "n"] - len(lost)
    text = stability.spread_shown(stability.spread_table(episodes, turns)).text
    assert len(text) == 8 and text["episodes"].tolist() == ["4"] * 8
    row = table.loc[(*key, "episode")]
    assert text.iloc[0, 3] == tables.between(row["median"], row["lower"], row["upper"])


def invented():
    """Two P→S episodes with errors, one of which recovers from its second, and two without."""
    episodes = frame(cell(P, S, [0.5, 0.5, 0.5, 0.5]))
    episodes["missing_bindings"] = [2, 1, 0, 0]
    key = {"model": P, "runtime": S, "split": "easy"}
    rows = [("0", 1, 2, 300, True), ("0", 2, 1, 100, True), ("1", 1, 5, 900, False)]
    recoveries = [key | dict(zip(conduct.RECOVERY_COLUMNS[3:], row, strict=True)) for row in rows]
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
    row = stability.recovery_table(episodes, seen, 100).iloc[0]
    assert row[["n", "missing", "errors", "known", "recovered"]].tolist() == [4, 0.5, 3, 2, 0.5]
    assert row[["turns", "tokens", "lost_tokens"]].tolist() == [1.5, 200, 900]
    for name, count, n in (("missing", 2, 4), ("recovered", 1, 2)):
        wilson = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert row[[f"{name}_low", f"{name}_high"]].tolist() == pytest.approx([wilson.low, wilson.high])
    text = stability.recovery_shown(stability.recovery_table(episodes, seen, 100)).text.iloc[0]
    assert text["of them recover %"] == "50 [9–91]" and text["tokens lost"] == "900"


def test_redundancy_and_reuse_are_sums_over_sums():
    episodes, turns, seen = invented()
    row = stability.reuse_table(episodes, turns, seen, 100).iloc[0]
    assert row[["code", "redundancy", "restated"]].tolist() == [50, 0.4, 0.2]  # 100 of new and old code, 0 in the other
    assert row[["later_turns", "names", "leaning"]].tolist() == pytest.approx([3, 4 / 3, 2 / 3])
    text = stability.reuse_shown(stability.reuse_table(episodes, turns, seen, 100), "tokens").text.iloc[0]
    assert text["code, tokens"] == "50" and text["again %"].startswith("40")


def test_a_scripted_run_carries_state_as_its_scripts_do(played):
    _, episodes, turns, seen = played
    table = stability.reuse_table(episodes, turns, seen, 100).set_index(["model", "runtime"])
    assert table.loc[(P, P), "redundancy"] < table.loc[(S, S), "redundancy"]
    assert table.loc[(P, P), "leaning"] == 1 and table.loc[(S, S), "leaning"] == 0
    recovery = stability.recovery_table(episodes, seen, 100).set_index(["model", "runtime"])
    assert recovery.loc[(P, S), ["missing", "recovered"]].tolist() == [1, 1]
    assert recovery.loc[(P, P), "missing"] == 0 and math.isnan(recovery.loc[(P, P), "recovered"])


def test_nothing_scored_gives_empty_tables(played):
    _, episodes, turns, seen = played
    failed = episodes.assign(status="error", score=math.nan)
    empty = conduct.Conduct(*(part.head(0) for part in (seen.turns, seen.recoveries, seen.failures)), "characters")
    assert stability.recovery_table(failed, empty).empty and stability.causes_table(empty.failures, failed).empty
    shown = [stability.spread_shown(stability.spread_table(failed, turns))]
    shown += [stability.recovery_shown(stability.recovery_table(failed, empty))]
    shown += [stability.reuse_shown(stability.reuse_table(failed, turns.head(0), empty), "characters")]
    shown += [stability.causes_shown(stability.causes_table(empty.failures, failed))]
    assert all(table.text.empty for table in shown)


# Causes


def test_every_episode_below_the_teacher_is_counted_once(played):
    _, episodes, _, seen = played
    table = stability.causes_table(seen.failures, episodes)
    causes = list(table.columns[5:])
    assert (table[causes].sum(axis=1) == table["below"]).all() and table["below"].sum() == len(seen.failures)
    assert set(table["n"]) == {4} and "teacher" not in set(table["model"])
    scores = episodes.set_index(["model", "runtime", "task_id"])["score"]
    for row in table.to_dict("records"):
        own, best = scores[row["model"], row["runtime"]], scores["teacher", row["runtime"]]
        assert row["below"] == (own < best - 1e-9).sum()
    shown = stability.causes_shown(table).text
    assert list(shown.columns) == ["split", "cell", "n", "below the teacher", *causes]
    assert shown["below the teacher"].tolist() == table["below"].map(str).tolist()
    alone = episodes[episodes["model"] != "teacher"]
    assert stability.causes_table(seen.failures.head(0), alone).empty


def test_every_table_has_a_form_for_every_file(played):
    """What the forms need: text in every cell, one title a column."""
    _, episodes, turns, seen = played
    tests, shares = statistics.tests_table(episodes, 50), statistics.shares_table(episodes)
    made = [comparisons.tests_shown(tests, "score"), comparisons.shares_shown(shares, "missing_binding")]
    made += [comparisons.equivalence_shown(statistics.equivalence_table(episodes, n_resamples=50))]
    made += [stability.reuse_shown(stability.reuse_table(episodes, turns, seen, 50), seen.unit)]
    made += [stability.causes_shown(stability.causes_table(seen.failures, episodes))]
    for table in made:
        assert table.text.columns.is_unique and table.text.map(lambda value: type(value) is str).all(axis=None)
        assert tables.latex(table, "x") and tables.page(table, "x") and tables.markdown(table)

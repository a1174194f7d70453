"""The one table of estimates: what its rows are by hand, and that nothing is estimated in two ways."""

import math

import numpy as np
import pandas as pd
import pytest
import scripted
from scipy import stats
from scripted import rows, study

from knapsack.analysis import card, claims, comparisons, conduct, estimates, metrics, statistics, tables
from knapsack.analysis.estimates import PP, PS, SP, SS, look_up
from knapsack.analysis.intervals import Bootstrap, mean_interval, ratio_interval, share_difference
from knapsack.tasks import sample_split, write_tasks

FEW, EASY = Bootstrap(100), ("easy", 25)


def every(models, runtimes, splits=("easy",)):
    return [(model, runtime, split, 25) for split in splits for model in models for runtime in runtimes]


# Pairs and comparisons


def test_pairs_are_matched_by_task_and_completed_on_both_sides():
    sides = rows(*PP, {3: 0.3, 1: 0.1, 2: 0.2}), rows(*SS, {2: 0.5, 3: 0.6, 4: 0.7})
    episodes = pd.concat([*sides, rows(*SS, {1: math.nan}, status="error")])
    aligned = ((*PP, *EASY), (*SS, *EASY))
    first, second = estimates.matched(episodes, aligned, "score")
    assert first.tolist() == [0.2, 0.3] and second.tolist() == [0.5, 0.6]
    with pytest.raises(ValueError, match="knapsack-3 occurs twice"):
        estimates.matched(pd.concat([episodes, episodes.head(1)]), aligned, "score")


def test_the_six_comparisons_of_the_study():
    cells = every(("base", "persistent", "stateless"), ("persistent", "stateless"))
    assert [(what, first[:2], second[:2]) for what, first, second in estimates.comparisons(cells)] == [
        ("training, in the persistent runtime", PP, SP),
        ("training, in the stateless runtime", PS, SS),
        ("runtime, base", ("base", "persistent"), ("base", "stateless")),
        ("runtime, persistent", PP, PS),
        ("runtime, stateless", SP, SS),
        ("aligned cells", PP, SS),
    ]
    assert estimates.comparisons([]) == []


def test_a_model_that_a_user_adds_is_compared_with_itself_only():
    cells = every(("mine",), ("persistent", "stateless"), ("easy", "hard"))
    alone = estimates.comparisons(cells)
    assert [(what, *one, *other[1:]) for what, one, other in alone] == [
        ("runtime, mine", "mine", "persistent", split, 25, "stateless", split, 25) for split in ("easy", "hard")
    ]
    study = every(("persistent", "stateless"), ("persistent", "stateless"), ("easy", "hard"))
    together = estimates.comparisons(study + cells)
    assert [row for row in together if "mine" in (row[1][0], row[2][0])] == alone
    assert [row for row in together if row not in alone] == estimates.comparisons(study)


def test_carry_over_is_compared_with_the_runtime_that_it_mends():
    kinds = ("persistent", "stateless", "carry-over", "carry-over-announced")
    found = estimates.comparisons(every(("persistent",), kinds))
    assert [(what, one[1], other[1]) for what, one, other in found] == [
        ("runtime, persistent", "persistent", "stateless"),
        ("carry-over, persistent", "carry-over", "stateless"),
        ("announced carry-over, persistent", "carry-over-announced", "stateless"),
        ("announcing the carry-over, persistent", "carry-over-announced", "carry-over"),
    ]
    assert estimates.comparisons(every(("mine",), ("persistent", "carry-over"))) == []


def test_a_cue_is_compared_within_its_runtime_and_the_runtimes_without_it():
    kinds = ("persistent", "stateless", "persistent-untold", "stateless-untold", "stateless-false")
    found = [(what, one[1], other[1]) for what, one, other in estimates.comparisons(every(("mine",), kinds))]
    assert found == [
        ("runtime, mine", "persistent", "stateless"),
        ("runtime, untold, mine", "persistent-untold", "stateless-untold"),
        ("cue, persistent runtime, mine", "persistent-untold", "persistent"),
        ("cue, stateless runtime, mine", "stateless-untold", "stateless"),
        ("false cue, stateless runtime, mine", "stateless-false", "stateless"),
    ]


# Rows by hand


def by_hand():
    """The four trained cells, three tasks of which the third is not scored in P→S."""
    cells = [rows(*PP, {1: 0.9, 2: 0.8, 3: 1.0}), rows(*PS, {1: 0.1, 2: 0.2}, total_tokens=800.0, missing_bindings=2)]
    cells += [rows(*PS, {3: 1.0}, status="timeout"), rows(*SP, {1: 0.7, 2: 0.5, 3: 1.0}, total_tokens=300.0)]
    return pd.concat([*cells, rows(*SS, {1: 0.6, 2: 0.6, 3: 1.0}, total_tokens=200.0)], ignore_index=True)


def test_means_shares_and_ratios_of_a_cell():
    one = estimates.estimates_table(by_hand(), FEW)
    assert list(one.columns) == estimates.COLUMNS
    assert look_up(one, "score", EASY, PP)[:2] == (3, pytest.approx(0.9))
    wilson = stats.binomtest(2, 2).proportion_ci(method="wilson")
    assert look_up(one, "missing_binding", EASY, PS)[:4] == (2, 1, pytest.approx(wilson.low), wilson.high)
    assert look_up(one, "score_per_1k_tokens", EASY, PP).value == pytest.approx(9)
    assert look_up(one, "total_tokens", EASY, PP).interval == (100, 100, 100)
    assert look_up(one, "score", ("hard", 25), PP).n == look_up(one, "score", EASY, ("mine", "persistent")).n == 0


def test_contrasts_are_of_the_tasks_that_both_cells_have():
    table = estimates.estimates_table(by_hand(), FEW)
    assert look_up(table, "score difference", EASY, PP, PS)[:2] == (2, pytest.approx(0.7))
    assert look_up(table, "total_tokens ratio", EASY, SP, PP)[:2] == (3, pytest.approx(3))
    assert look_up(table, "total_tokens ratio", EASY, PP, SP).n == 0  # is no row, and no mirrored one
    expected = share_difference([0, 0], [1, 1])
    assert look_up(table, "missing_binding difference", EASY, PP, PS)[1:4] == pytest.approx(expected)
    d = look_up(table, "score interaction", EASY, ("persistent",), ("stateless",))
    assert d[:2] == (2, pytest.approx(0.7))
    tokens = look_up(table, "total_tokens interaction", EASY, ("persistent",), ("stateless",))
    assert tokens.interval == pytest.approx([(100 / 800) / (300 / 200)] * 3)


def test_a_difference_is_found_from_either_side():
    episodes = study()
    table = estimates.estimates_table(episodes, FEW)
    one, other = (look_up(table, "score difference", EASY, *pair) for pair in ((PP, PS), (PS, PP)))
    assert (other.n, *other.interval) == (one.n, -one.value, -one.high, -one.low)
    home, away = estimates.matched(episodes, ((*PS, *EASY), (*PP, *EASY)), "score")
    assert other.interval[1:] == pytest.approx(mean_interval(home - away, FEW))


def test_unscored_tasks_are_in_no_mean_and_a_cell_without_scores_is_a_row(recwarn):
    frame = [rows("base", "stateless", [1.0, 0.5], total_tokens=2000, name_errors=1)]
    frame += [rows("base", "stateless", {2: math.nan}, status="missing")]
    episodes = pd.concat([*frame, rows("base", "persistent", [math.nan], status="error")])
    cells = estimates.cells_table(episodes, estimates.estimates_table(episodes, FEW))
    assert list(cells.columns) == estimates.CELL_COLUMNS
    row, empty = cells.to_dict("records")
    assert (row["n"], row["unscored"], row["score_mean"], row["score_per_1k_tokens"]) == (2, 1, 0.75, 0.375)
    assert (row["name_error_rate"], row["missing_binding_rate"], row["score_low"], row["score_high"]) == (1, 0, 0.5, 1)
    assert (empty["n"], empty["unscored"]) == (0, 1) and math.isnan(empty["score_mean"])
    assert not recwarn.list


def test_the_training_traces_have_ratios_if_their_lengths_are_known():
    facts = pd.DataFrame(
        [
            {"runtime": kind, "task_id": str(k), "trace_tokens": size * (k + 1), "episode_tokens": math.nan}
            for kind, size in (("persistent", 10), ("stateless", 25))
            for k in range(4)
        ]
    )
    table = estimates.estimates_table(by_hand(), FEW, facts)
    found = look_up(table, "trace_tokens ratio", estimates.TRAINING, ("stateless",), ("persistent",))
    assert (found.n, *found.interval) == (4, *[pytest.approx(2.5)] * 3)
    assert "episode_tokens ratio" not in set(table["quantity"])


# The interaction


def test_the_interaction_turns_with_either_factor():
    episodes, swap = study(15, seed=4), {"persistent": "stateless", "stateless": "persistent"}
    d = estimates.interaction(episodes, [EASY], "total_tokens", logarithm=True)
    for name in ("model", "runtime"):
        turned = episodes.assign(**{name: episodes[name].map(swap)})
        assert estimates.interaction(turned, [EASY], "total_tokens", True) == pytest.approx(-d)
    cents = episodes.assign(total_tokens=100 * episodes["total_tokens"])
    assert estimates.interaction(cents, [EASY], "total_tokens", True) == pytest.approx(d)
    silent = episodes.assign(total_tokens=episodes["total_tokens"].where(episodes.index != 0, 0))
    assert len(estimates.interaction(silent, [EASY], "total_tokens", True)) == 14  # a task without tokens has none


def test_without_a_cell_there_is_no_interaction():
    table = estimates.estimates_table(study(models=["persistent"]), FEW)
    assert look_up(table, "score interaction", EASY, ("persistent",), ("stateless",)).n == 0


def test_the_order_of_rows_changes_nothing():
    episodes = study()
    shuffled = episodes.sample(frac=1, random_state=3)
    one, other = (estimates.estimates_table(frame, FEW) for frame in (episodes, shuffled))
    for row in one.to_dict("records"):
        cells = (row[end].split("→") for end in ("first", "second"))
        found = look_up(other, row["quantity"], (row["split"], row["cap"]), *cells)
        assert found[:4] == pytest.approx(tuple(row[name] for name in ("n", "value", "low", "high")))


# One number, one place


def test_equal_things_have_equal_intervals_wherever_they_are_shown(tmp_path):
    """The score of a cell, a loss, a ratio of tokens and a share, from the table to the tables, claims and card."""
    bootstrap, folder = Bootstrap(150, 3), scripted.write_run(tmp_path, n=8, splits=("easy",)) / "evaluations"
    write_tasks(tmp_path / "tasks" / "easy", sample_split("easy", 8, 0, scripted.CONFIG))
    episodes, turns = metrics.read_cells(folder)
    seen = conduct.read_conduct(folder, episodes)
    found = estimates.estimates_table(episodes, bootstrap)
    cells = estimates.cells_table(episodes, found).set_index(["model", "runtime"])
    tests, shares = statistics.tests_table(episodes, found), statistics.shares_table(episodes, found)
    equal = statistics.equivalence_table(episodes, bootstrap=bootstrap)
    judged = claims.claims_table(found, tests, equal).query("cap != 80").set_index("claim")
    recovery = comparisons.recovery_table(episodes, seen, found, bootstrap).set_index(["model", "runtime"])
    text = card.model_card(episodes, turns, found, "persistent", bootstrap)

    score = episodes[(episodes["model"] == "persistent") & (episodes["runtime"] == "persistent")]["score"]
    ends = mean_interval(score, bootstrap)
    assert tuple(cells.loc[PP, ["score_low", "score_high"]]) == ends == look_up(found, "score", EASY, PP)[2:4]
    shown = tables.between(score.mean(), *ends, 1, 100)
    two = tables.table_two(cells.reset_index(), found).text.set_index("cell")
    assert two.loc["P→P", "score %"] == shown and f"| {shown} |" in text
    assert two.loc["P→P", "total tokens"] in text

    home, away = estimates.matched(episodes, ((*PP, *EASY), (*PS, *EASY)), "score")
    loss = ((home - away).mean(), *mean_interval(home - away, bootstrap))
    of = tests[(tests["comparison"] == "runtime, persistent") & (tests["quantity"] == "score")].iloc[0]
    assert tuple(of[["difference", "low", "high"]]) == loss
    claim = judged.loc["P→S scores less than P→P"]
    assert tuple(claim[["estimate", "low", "high"]]) == loss
    tax = ratio_interval(*estimates.matched(episodes, ((*SP, *EASY), (*PP, *EASY)), "total_tokens"), bootstrap)
    assert tuple(judged.loc["S→P spends more tokens than P→P (amnesia tax)", ["estimate", "low", "high"]]) == tax

    missing = look_up(found, "missing_binding", EASY, PS).interval
    assert tuple(recovery.loc[PS, ["missing", "missing_low", "missing_high"]]) == missing
    assert tuple(judged.loc["P→S: episodes miss a name, more than in P→P", ["estimate", "low", "high"]]) == missing
    assert cells.loc[PS, "missing_binding_rate"] == missing[0]
    more = look_up(found, "missing_binding difference", EASY, PP, PS).interval
    of = shares[(shares["comparison"] == "runtime, persistent") & (shares["quantity"] == "missing_binding")].iloc[0]
    assert tuple(of[["difference", "low", "high"]]) == more


def test_the_slope_by_cap_is_the_one_with_task_effects():
    caps, draw = (10, 20, 40, 80), np.random.default_rng(0)
    cells = []
    for cell, slope in ((PP, 0.01), (PS, 0.2)):
        tasks = draw.normal(0, 0.1, 9)
        for step, cap in enumerate(caps):
            cells.append(rows(*cell, tasks + slope * step + draw.normal(0, 0.02, 9), cap=cap))
    episodes = pd.concat(cells, ignore_index=True)
    found = estimates.estimates_table(episodes, FEW)
    for cell in (PP, PS):  # least squares with a column for each task, and one for log2(cap)
        own = episodes[(episodes[["model", "runtime"]] == list(cell)).all(axis=1)]
        design = np.column_stack([pd.get_dummies(own["task_id"]).to_numpy(float), np.log2(own["cap"])])
        slope = np.linalg.lstsq(design, own["score"].to_numpy(float), rcond=None)[0][-1]
        known = estimates.look_up(found, estimates.SLOPE, ("easy", 10), cell)
        assert known.value == pytest.approx(slope) and known.n == 9 and known.low < slope < known.high
    apart = estimates.look_up(found, f"{estimates.SLOPE} difference", ("easy", 10), PS, PP)
    values = [estimates.look_up(found, estimates.SLOPE, ("easy", 10), cell).value for cell in (PS, PP)]
    assert apart.value == pytest.approx(values[0] - values[1]) and apart.low > 0.1
    two = estimates.estimates_table(episodes[episodes["cap"] <= 20], FEW)
    assert not two["quantity"].str.startswith(estimates.SLOPE).any()

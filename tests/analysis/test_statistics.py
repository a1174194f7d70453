import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scripted import rows, study

from knapsack.analysis import estimates, statistics
from knapsack.analysis.estimates import PP, PS, SP, SS
from knapsack.analysis.intervals import Bootstrap
from knapsack.analysis.statistics import Equivalence, detectable_difference, tasks_for_equivalence

FEW = Bootstrap(100)


def test_rank_biserial_by_hand():
    # differences 2, -1, 4, 0, -3, 5: without the zero the ranks are 2, 1, 4, 3, 5; W+ = 2 + 4 + 5 = 11, W- = 1 + 3 = 4
    first, second = np.array([2, 0, 4, 7, 0, 5.0]), np.array([0, 1, 0, 7, 3, 0.0])
    p, effect, note = statistics.wilcoxon(first, second)
    assert effect == pytest.approx(7 / 15)
    # exact: of the 32 sign patterns 7 have W- <= 4 ({}, 1, 2, 3, 12, 4, 13), and the test is two-sided
    assert p == pytest.approx(14 / 32) and note == "1 zero differences dropped"
    assert statistics.wilcoxon(second, first)[1] == -effect
    p, effect, _ = statistics.wilcoxon(np.array([1.0, -1, 2]), np.zeros(3))  # ranks 1.5, 1.5, 3: (4.5 - 1.5) / 6
    assert effect == pytest.approx(0.5) and p == pytest.approx(6 / 8)  # W- <= 1.5: none, either 1.5


@pytest.mark.parametrize("n", [2, 9, 13, 14, 30, 80])
def test_p_is_scipys_where_no_ties_disturb(n):
    first, second = np.random.default_rng(n).normal(0.3, 1, (2, n))
    assert statistics.wilcoxon(first, second)[0] == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_roundoff_makes_no_ranks():
    first, second = np.array([0.1 + 0.2, 0.4, 0.3, 0.7]), np.array([0.3, 0.1, 0.0, 0.0])
    assert first[0] != second[0] and 0.4 - 0.1 != 0.3 - 0.0  # but no difference, and a tie: ranks 1.5, 1.5, 3
    assert statistics.wilcoxon(first, second) == (pytest.approx(2 / 8), 1.0, "1 zero differences dropped")


def test_no_difference_and_no_pairs():
    same = np.array([0.1, 0.9, 0.5])
    assert statistics.wilcoxon(same, same) == (1.0, 0.0, "all differences zero")
    p, effect, note = statistics.wilcoxon(np.array([]), np.array([]))
    assert math.isnan(p) and math.isnan(effect) and note == "no pairs"
    with pytest.raises(ValueError, match="pairs"):
        statistics.wilcoxon(same, same[:1])


def test_mcnemar_by_hand():
    first, second = [1] * 59 + [1] * 6 + [0] * 96, [1] * 59 + [0] * 6 + [1] * 16 + [0] * 80
    below = sum(math.comb(22, k) for k in range(7)) / 2**22  # at most 6 of 22 heads
    assert statistics.mcnemar(first, second) == (6, 16, pytest.approx(2 * below))
    assert statistics.mcnemar(second, first) == (16, 6, pytest.approx(2 * below))
    assert statistics.mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)
    assert statistics.mcnemar([], []) == (0, 0, pytest.approx(math.nan, nan_ok=True))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1, 1])


def table_of(episodes, of):
    """``tests_table`` or ``shares_table`` with the estimates it needs."""
    return of(episodes, estimates.estimates_table(episodes, FEW))


def test_families_are_corrected_apart():
    kinds = ("persistent", "stateless", "carry-over")
    many = study(models=("persistent", "stateless", "base", "mine"), runtimes=kinds)
    table = table_of(many, statistics.tests_table)
    groups = ("trained models", "other models", "carry-over")
    assert set(table["family"]) == {f"{name}, {group}" for name in ("score", "total_tokens") for group in groups}
    for _, part in table.groupby("family"):
        assert part["p_holm"].tolist() == statistics.holm(part["p"]).tolist()
    for name, models in (("trained models", {"persistent", "stateless"}), ("other models", {"base", "mine"})):
        part = table[table["family"] == f"score, {name}"]
        assert {side.split("→")[0] for side in [*part["first"], *part["second"]]} == models
    assert all("carry-over" in what for what in table[table["family"] == "score, carry-over"]["comparison"])
    of_both = many[many["model"].isin(["persistent", "stateless"]) & many["runtime"].isin(kinds[:2])]
    same = table[table["family"].str.endswith("trained models")].reset_index(drop=True)
    pd.testing.assert_frame_equal(table_of(of_both, statistics.tests_table), same)


def test_a_row_of_tests_against_the_formulas():
    episodes = study(20)
    table = table_of(episodes, statistics.tests_table)
    assert list(table.columns) == statistics.TEST_COLUMNS
    row = table.set_index(["comparison", "quantity"]).loc[("aligned cells", "score")]
    first, second = estimates.matched(episodes, ((*PP, "easy", 25), (*SS, "easy", 25)), "score")
    assert (row["mean_first"], row["mean_second"]) == pytest.approx((first.mean(), second.mean()))
    assert row["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue)
    ends = stats.bootstrap((first - second,), np.mean, n_resamples=100, method="BCa", rng=np.random.default_rng(0))
    assert (row["low"], row["high"]) == pytest.approx(tuple(ends.confidence_interval))
    flat = pd.concat([rows(*PP, [0.5, 0.7]), rows(*SS, [0.2, 0.4])])
    notes = table_of(flat, statistics.tests_table)["note"].tolist()
    assert notes == ["interval: no spread", "all differences zero; interval: no spread"]


def test_shares_of_tasks_in_pairs():
    solved = {"solved": [1] * 3 + [0] * 7}
    frame = [rows(*PS, [1.0] * 10, solved=1, missing_bindings=3), rows(*SS, [1.0] * 3 + [0.5] * 7).assign(**solved)]
    table = table_of(pd.concat(frame, ignore_index=True), statistics.shares_table)
    assert list(table.columns) == statistics.SHARE_COLUMNS
    solved, missing = table.to_dict("records")
    assert (solved["quantity"], solved["n"], solved["share_first"], solved["share_second"]) == ("solved", 10, 1, 0.3)
    assert (solved["only_first"], solved["only_second"], solved["p"]) == (7, 0, pytest.approx(2 / 2**7))
    assert (missing["quantity"], missing["difference"]) == ("missing_binding", 1)
    assert missing["family"] == "missing_binding, trained models" and missing["p_holm"] == pytest.approx(2 / 2**10)


def test_equivalence_of_every_comparison():
    wave = [0.5 + 0.01 * (i % 5) for i in range(60)]
    less = [score - 0.02 - 0.01 * (i % 3) for i, score in enumerate(wave)]
    frame = pd.concat([rows(*PP, wave), rows(*SS, wave), rows(*PS, [0.1] * 60), rows(*SP, less)])
    table = statistics.equivalence_table(frame, bootstrap=FEW)
    assert list(table.columns) == statistics.EQUIVALENCE_COLUMNS
    table = table.set_index("comparison")
    assert table["verdict"].to_dict() == {
        "training, in the persistent runtime": "different but within the margin",
        "training, in the stateless runtime": "different",
        "runtime, persistent": "different",
        "runtime, stateless": "different but within the margin",
        "aligned cells": "equivalent",
    }
    assert table.loc["aligned cells", "differing"] == 0 and (table["margin"] == 0.05).all()
    tight = statistics.equivalence_table(frame, 0.025, FEW).set_index("comparison")
    assert tight.loc["runtime, stateless", "verdict"] == "different"
    assert (tight["tasks_needed"] >= table["tasks_needed"]).all()


def test_what_was_not_scored_has_rows_without_numbers(recwarn):
    failed = study().assign(status="timeout")
    for of in (statistics.tests_table, statistics.shares_table):
        table = table_of(failed, of)
        assert (table["n"] == 0).all() and table["difference"].isna().all() and len(table) > 0
        assert table_of(failed.head(0), of).empty
    assert (statistics.equivalence_table(failed)["verdict"] == "undecided").all()
    assert statistics.equivalence_table(failed.head(0)).empty
    assert not recwarn.list


# Equivalence


def differences(n, mean, spread, seed=0):
    """n values with exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).normal(size=n)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def against_zero(values, margin=0.05, n_resamples=100):
    values = np.asarray(values, float)
    return statistics.equivalence(values, np.zeros(len(values)), margin, Bootstrap(n_resamples))


@pytest.mark.parametrize(
    "mean, spread, margin, larger_p, low, high",
    [  # paired examples of the R package TOSTER, 65 pairs
        (0.08, 0.876955, 0.350782, 0.00770235, -0.1015433, 0.2615433),
        (0.08, 0.8902865, 0.34, 0.01081349, -0.1043032, 0.2643032),
    ],
)
def test_published_examples(mean, spread, margin, larger_p, low, high):
    found = against_zero(differences(65, mean, spread), margin, 5000)
    assert found.p_equivalence == pytest.approx(larger_p, rel=1e-4)
    assert (found.verdict, found.n, found.differing, found.note) == ("equivalent", 65, 65, "")
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)  # theirs is the t interval
    assert (found.difference, found.spread) == pytest.approx((mean, spread))


@pytest.mark.parametrize("seed", range(8))
def test_equivalent_means_the_90_percent_t_interval_is_within_the_margin(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(0.5, 0.1, (2, 40)) + draw.normal(0, 0.2, 40)
    found = statistics.equivalence(first, second, 0.05, FEW)
    inside = stats.ttest_rel(first, second).confidence_interval(0.9)
    assert (found.p_equivalence < 0.05) == (-0.05 < inside.low and inside.high < 0.05)
    assert found.p_difference == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_the_four_verdicts():
    verdicts = {
        (0.5, 0.01): "equivalent",
        (0.01, 0.01): "different but within the margin",
        (0.01, 0.5): "different",
        (0.5, 0.5): "undecided",
        (0.05, 0.05): "undecided",
        (math.nan, math.nan): "undecided",
    }
    assert {p: statistics.verdict(*p) for p in verdicts} == verdicts
    found = [against_zero(differences(100, *of)).verdict for of in ((0, 0.1), (0.02, 0.02), (0.2, 0.3), (0.04, 0.3))]
    assert found == list(verdicts.values())[:4]


def test_sides_and_units_do_not_matter():
    first, second = np.random.default_rng(1).normal(0.6, 0.2, (2, 60))
    found, swapped = (statistics.equivalence(*sides, 0.05, FEW) for sides in ((first, second), (second, first)))
    assert swapped.difference == -found.difference and swapped.verdict == found.verdict
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    percent = statistics.equivalence(100 * first, 100 * second, 5, FEW)
    for other in (swapped, percent):
        assert (other.p_difference, other.p_equivalence) == pytest.approx((found.p_difference, found.p_equivalence))


def test_samples_without_spread_get_a_sign_test(recwarn):
    assert against_zero([]) == pytest.approx(Equivalence(0, 0, *(math.nan,) * 6, "undecided", "no pairs"), nan_ok=True)
    for values, p_difference, p_equivalence, verdict in (
        ([0.0], 1, 0.5, "undecided"),
        ([0.2], 1, 1, "undecided"),
        ([0.0] * 4, 1, 1 / 16, "undecided"),
        ([0.0] * 5, 1, 1 / 32, "equivalent"),
        ([0.01] * 6, 1 / 32, 1 / 64, "different but within the margin"),
        ([0.2] * 6, 1 / 32, 1, "different"),
        ([0.05] * 9, 2 / 512, 1, "different"),
    ):
        found = against_zero(values)
        assert (found.p_difference, found.p_equivalence, found.verdict) == (p_difference, p_equivalence, verdict)
        assert found.note == "all differences equal: sign test" and found.low == found.high
        assert found.spread == 0 or (len(values) == 1 and math.isnan(found.spread))
    roundoff = statistics.equivalence([0.1 + 0.2, 0.3, 0.7], [0.3, 0.1 + 0.2, 0.7], 0.05, FEW)
    assert roundoff.differing == 0 and roundoff.p_difference == 1
    assert not recwarn.list


def test_the_note_says_when_the_interval_disagrees():
    found = [against_zero([0.0] * 46 + [x, x, 0.4, 0.4], n_resamples=2000) for x in np.linspace(0, 0.4, 9)]
    disagree = [f.verdict for f in found if (-0.05 < f.low and f.high < 0.05) != (f.p_equivalence < 0.05)]
    assert len(disagree) > 0 and [f.verdict for f in found if "the margin" in f.note] == disagree


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="pairs"):
        statistics.equivalence([0.1], [0.1, 0.2])
    for margin in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            against_zero([0.1, 0.2], margin)


def test_detectable_difference_against_published_values_and_a_simulation():
    assert detectable_difference(100, 1) == pytest.approx(0.2829, abs=1e-4)  # R: power.t.test(100, power = 0.8)
    assert detectable_difference(34, 1) == pytest.approx(0.5, abs=0.006)  # Cohen (1988): 34 pairs for d = 0.5
    assert detectable_difference(50, 0.3) == pytest.approx(0.3 * detectable_difference(50, 1))
    for n in (6, 25):
        draws = np.random.default_rng(4).normal(detectable_difference(n, 0.3), 0.3, (20_000, n))
        assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("spread, margin, power, exact", [(0.1, 0.05, 0.8, 36), (28.284, 20, 0.7, 16)])
def test_tasks_for_equivalence_are_within_one_of_published_ones(spread, margin, power, exact):
    assert abs(tasks_for_equivalence(spread, margin, power) - exact) <= 1  # PASS manual, chapter 519


def test_so_many_tasks_show_equal_cells_equivalent():
    n = tasks_for_equivalence(0.1, 0.05)
    draws = np.random.default_rng(5).normal(0, 0.1, (20_000, n))
    above = stats.ttest_1samp(draws, -0.05, axis=1, alternative="greater").pvalue
    below = stats.ttest_1samp(draws, 0.05, axis=1, alternative="less").pvalue
    assert (np.maximum(above, below) < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    assert tasks_for_equivalence(50, 5) == tasks_for_equivalence(0.5, 0.05)


def test_power_of_too_little_data(recwarn):
    assert math.isnan(detectable_difference(1, 0.2)) and math.isnan(detectable_difference(9, math.nan))
    assert math.isnan(tasks_for_equivalence(math.nan))
    assert detectable_difference(50, 0) == 0 and tasks_for_equivalence(0) == 5
    assert not recwarn.list

import math

import numpy as np
import pytest
from scipy import stats

from knapsack.analysis import equivalence
from knapsack.analysis.equivalence import Equivalence, detectable_difference, equivalence_power, tasks_for_equivalence


def differences(n, mean, spread, seed=0):
    """n values with exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).normal(size=n)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def against_zero(values, margin=0.05, n_resamples=500):
    values = np.asarray(values, float)
    return equivalence.equivalence(values, np.zeros(len(values)), margin, n_resamples)


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


@pytest.mark.parametrize("seed", range(20))
def test_equivalent_means_the_90_percent_t_interval_is_within_the_margin(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(0.5, 0.1, (2, 40)) + draw.normal(0, 0.2, 40)
    found = equivalence.equivalence(first, second, 0.05, 200)
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
    assert {p: equivalence.verdict(*p) for p in verdicts} == verdicts
    found = [against_zero(differences(100, *of)).verdict for of in ((0, 0.1), (0.02, 0.02), (0.2, 0.3), (0.04, 0.3))]
    assert found == list(verdicts.values())[:4]


def test_sides_and_units_do_not_matter():
    first, second = np.random.default_rng(1).normal(0.6, 0.2, (2, 60))
    found, swapped = (equivalence.equivalence(*sides, 0.05, 500) for sides in ((first, second), (second, first)))
    assert swapped.difference == -found.difference and swapped.verdict == found.verdict
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    percent = equivalence.equivalence(100 * first, 100 * second, 5, 500)
    for other in (swapped, percent):
        assert (other.p_difference, other.p_equivalence) == pytest.approx((found.p_difference, found.p_equivalence))


def test_at_the_margin_itself_one_in_twenty_is_called_equivalent():
    draws = np.random.default_rng(2).normal(0.05, 0.1, (400, 50))
    wrong = sum(against_zero(d, n_resamples=2).p_equivalence < 0.05 for d in draws)
    assert 0.05 * 400 == pytest.approx(wrong, abs=3 * math.sqrt(400 * 0.05 * 0.95))


def test_the_t_interval_covers_more_than_bca_when_few_tasks_differ():
    tasks = np.array([0.0] * 47 + [-0.5, 0.7, 1.0])  # as the aligned cells of a run may be
    draw, covered = np.random.default_rng(3), {"t": 0, "bca": 0}
    for _ in range(150):
        d = draw.choice(tasks, 50)
        if np.ptp(d) == 0:
            continue
        inside = stats.ttest_1samp(d, 0).confidence_interval(0.9)
        covered["t"] += inside.low <= tasks.mean() <= inside.high
        found = against_zero(d, n_resamples=300)
        covered["bca"] += found.low <= tasks.mean() <= found.high
    assert covered["t"] > covered["bca"]


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
    roundoff = equivalence.equivalence([0.1 + 0.2, 0.3, 0.7], [0.3, 0.1 + 0.2, 0.7], 0.05, 200)
    assert roundoff.differing == 0 and roundoff.p_difference == 1
    assert not recwarn.list


def test_the_note_says_when_the_interval_disagrees():
    found = [against_zero([0.0] * 46 + [x, x, 0.4, 0.4], n_resamples=2000) for x in np.linspace(0, 0.4, 9)]
    disagree = [f.verdict for f in found if (-0.05 < f.low and f.high < 0.05) != (f.p_equivalence < 0.05)]
    assert len(disagree) > 0 and [f.verdict for f in found if "the margin" in f.note] == disagree


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="pairs"):
        equivalence.equivalence([0.1], [0.1, 0.2])
    for margin in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            against_zero([0.1, 0.2], margin)
        with pytest.raises(ValueError, match="margin"):
            tasks_for_equivalence(0.1, margin)


def test_detectable_difference_against_published_values_and_a_simulation():
    assert detectable_difference(100, 1) == pytest.approx(0.2829, abs=1e-4)  # R: power.t.test(100, power = 0.8)
    assert detectable_difference(34, 1) == pytest.approx(0.5, abs=0.006)  # Cohen (1988): 34 pairs for d = 0.5
    assert detectable_difference(50, 0.3) == pytest.approx(0.3 * detectable_difference(50, 1))
    for n in (6, 25):
        draws = np.random.default_rng(4).normal(detectable_difference(n, 0.3), 0.3, (20_000, n))
        assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    "n, difference, margin, spread, power",
    [  # of the PASS manual, chapter 519, as the R package TOSTER tests them
        (5, -4, 19.2, 25.4558, 0.10599),
        (15, -4, 19.2, 25.4558, 0.66629),
        (30, -4, 19.2, 25.4558, 0.93855),
        (50, -4, 19.2, 25.4558, 0.99410),
        (152, -15, 20, 28.284, 0.70015),
    ],
)
def test_published_powers_of_equivalence(n, difference, margin, spread, power):
    assert equivalence_power(n, spread, margin, difference) == pytest.approx(power, abs=1e-5)


def test_the_power_of_equivalence_against_a_simulation():
    draws = np.random.default_rng(5).normal(0.01, 0.1, (20_000, 40))
    above = stats.ttest_1samp(draws, -0.05, axis=1, alternative="greater").pvalue
    below = stats.ttest_1samp(draws, 0.05, axis=1, alternative="less").pvalue
    shown = (np.maximum(above, below) < 0.05).mean()
    assert equivalence_power(40, 0.1, 0.05, 0.01) == pytest.approx(shown, abs=0.01)


def test_tasks_for_equivalence_are_the_fewest_that_suffice():
    assert tasks_for_equivalence(0.1, 0.05) == 36 and tasks_for_equivalence(28.284, 20, 0.7) == 16  # PASS, 519
    for spread in (0.02, 0.24, 0.5):
        n = tasks_for_equivalence(spread)
        assert equivalence_power(n, spread) >= 0.8 > equivalence_power(n - 1, spread)
    assert tasks_for_equivalence(0.5) == pytest.approx(2.9264**2 * 100, rel=0.01)
    assert tasks_for_equivalence(50, 5) == tasks_for_equivalence(0.5, 0.05)


def test_power_of_too_little_data(recwarn):
    assert math.isnan(detectable_difference(1, 0.2)) and math.isnan(detectable_difference(9, math.nan))
    assert math.isnan(equivalence_power(1, 0.2)) and math.isnan(tasks_for_equivalence(math.nan))
    assert detectable_difference(50, 0) == 0 and tasks_for_equivalence(0) == 5
    assert detectable_difference(2, 1) > 10 and equivalence_power(2, 0.3) < 0.05
    assert not recwarn.list

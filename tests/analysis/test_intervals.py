import math

import numpy as np
import pytest

from knapsack.analysis import intervals
from knapsack.analysis.intervals import Bootstrap

# Efron and Tibshirani (1993), table 14.1: spatial test, neurologically impaired children
SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41.0]
)


def test_the_published_example_of_bca():
    def variance(x, axis=-1):
        return np.var(x, axis=axis)

    low, high, note = intervals.bootstrap_interval((SPATIAL,), variance, Bootstrap(20_000), 0.9)
    assert variance(SPATIAL) == pytest.approx(171.5, abs=0.05) and note == ""
    assert (low, high) == pytest.approx((115.8, 259.6), rel=0.02)  # theirs, from 2,000 resamples
    low, high, _ = intervals.bootstrap_interval((SPATIAL,), variance, Bootstrap(20_000), 0.9, "percentile")
    assert (low, high) == pytest.approx((100.8, 233.9), abs=4)  # within the error of 2,000 resamples


def test_the_interval_is_seeded_and_covers_the_mean():
    values = np.random.default_rng(1).normal(0.6, 0.2, 60)
    low, high = intervals.mean_interval(values)
    assert (low, high) == intervals.mean_interval(values) != intervals.mean_interval(values, Bootstrap(seed=1))
    half = 1.96 * values.std() / math.sqrt(60)  # what the normal approximation gives
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    narrow = intervals.mean_interval(values, confidence=0.9)
    assert low < narrow[0] < narrow[1] < high


def test_units_and_order_do_not_matter():
    values = np.random.default_rng(4).exponential(1, 50)
    low, high = intervals.mean_interval(values)
    assert intervals.mean_interval(3 * values + 7) == pytest.approx((3 * low + 7, 3 * high + 7))
    assert intervals.mean_interval(-values) == pytest.approx((-high, -low))
    assert intervals.mean_interval(np.sort(values)) == pytest.approx((low, high), abs=0.03)  # other resamples


def test_degenerate_samples_have_an_interval_without_warning(recwarn):
    assert intervals.mean_interval(np.full(8, 0.7)) == pytest.approx((0.7, 0.7))
    assert intervals.mean_interval(np.array([0.25])) == (0.25, 0.25)
    assert intervals.mean_interval(np.array([0.25, 0.75])) == (0.25, 0.75)
    assert intervals.mean_interval(np.zeros(5)) == (0, 0)
    assert intervals.mean_interval(np.array([0.1 + 0.2, 0.3, 0.3])) == pytest.approx((0.3, 0.3))  # but for roundoff
    low, high = intervals.mean_interval(np.array([0.0] * 9 + [1]))
    assert 0 <= low < 0.1 < high < 0.6
    assert all(map(math.isnan, intervals.mean_interval(np.array([]))))
    assert all(map(math.isnan, intervals.mean_interval(np.array([0.1, math.nan]))))
    assert not recwarn.list


def test_the_note_says_what_was_done_instead(recwarn):
    def note(values, statistic=np.mean):
        return intervals.bootstrap_interval((np.array(values, float),), statistic, Bootstrap(500))[2]

    assert note([1, 2, 4]) == ""
    assert note([1]) == intervals.ONE_VALUE and note([1, 1]) == intervals.NO_SPREAD and note([]) == "no values"
    middle = np.array([0, 0, 0, 0, 0, 9.0])  # leaving one value out never moves the median: no jackknife
    found = intervals.bootstrap_interval((middle,), np.median)
    plain = intervals.bootstrap_interval((middle,), np.median, method="percentile")
    assert found == (*plain[:2], intervals.FALLBACK)
    assert not recwarn.list


def test_the_ratio_resamples_pairs_not_sides():
    tokens = np.random.default_rng(2).uniform(100, 1000, 40)
    ratio, low, high = intervals.ratio_interval(3 * tokens, tokens)
    assert (ratio, low, high) == pytest.approx((3, 3, 3))  # unpaired resampling would give a wide interval
    noisy = 3 * tokens + np.random.default_rng(3).normal(0, 100, 40)
    ratio, low, high = intervals.ratio_interval(noisy, tokens)
    assert low < ratio < high and high - low < 0.5
    assert intervals.ratio_interval(5 * noisy, tokens) == pytest.approx((5 * ratio, 5 * low, 5 * high))
    assert intervals.ratio_interval(tokens, noisy) == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=1e-3)
    with pytest.raises(ValueError, match="pairs"):
        intervals.ratio_interval(tokens, tokens[1:])
    assert all(map(math.isnan, intervals.ratio_interval(np.array([]), np.array([]))))
    assert intervals.ratio_interval([1, 2, 3], [0, 0, 6])[0] == 1  # some resamples divide by 0
    assert all(map(math.isnan, intervals.ratio_interval([1, 2, 3], [0, 0, 6])[1:]))


def test_the_wilson_interval_by_hand():
    n, z = 50, 1.959964
    centre, root = (0.8 + z * z / (2 * n)) / (1 + z * z / n), math.sqrt(0.8 * 0.2 / n + z * z / (4 * n * n))
    reach = z / (1 + z * z / n) * root
    assert intervals.share_interval(40, 50) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert intervals.share_interval(0, 50)[0] == 0 and 0.05 < intervals.share_interval(0, 50)[1] < 0.08


def table(both, only_first, only_second, neither):
    first = [1] * (both + only_first) + [0] * (only_second + neither)
    return first, [1] * both + [0] * only_first + [1] * only_second + [0] * neither


@pytest.mark.parametrize(
    "counts, expected",
    [
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),  # Fagerland, Lydersen and Laake (2017), chapter 8
        ((1, 1, 7, 12), (-0.2857, -0.5069, -0.0256)),
    ],
)
def test_published_differences_of_paired_shares(counts, expected):
    assert intervals.share_difference(*table(*counts)) == pytest.approx(expected, abs=5e-5)


def test_a_difference_of_shares_is_antisymmetric_and_never_certain():
    difference, low, high = intervals.share_difference(*table(3, 9, 2, 11))
    swapped = intervals.share_difference(*reversed(table(3, 9, 2, 11)))
    assert swapped == pytest.approx((-difference, -high, -low))
    difference, low, high = intervals.share_difference([0] * 50, [0] * 50)
    assert difference == 0 and low == -high and high == pytest.approx(intervals.share_interval(0, 50)[1])
    assert all(map(math.isnan, intervals.share_difference([], [])))
    with pytest.raises(ValueError, match="pairs"):
        intervals.share_difference([1], [1, 0])

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack import statistics


def test_the_interval_is_seeded_and_covers_the_mean():
    values = np.random.default_rng(1).normal(0.6, 0.2, 60)
    low, high = statistics.mean_interval(values, 5000, 0)
    assert (low, high) == statistics.mean_interval(values, 5000, 0) != statistics.mean_interval(values, 5000, 1)
    half = 1.96 * values.std() / math.sqrt(60)  # what the normal approximation gives
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_degenerate_samples_have_an_interval_without_warning(recwarn):
    assert statistics.mean_interval(np.full(8, 0.7)) == pytest.approx((0.7, 0.7))
    assert statistics.mean_interval(np.array([0.25])) == (0.25, 0.25)
    assert all(map(math.isnan, statistics.mean_interval(np.array([]))))
    assert not recwarn.list


def test_the_ratio_resamples_pairs_not_sides():
    tokens = np.random.default_rng(2).uniform(100, 1000, 40)
    ratio, low, high = statistics.ratio_interval(3 * tokens, tokens)
    assert (ratio, low, high) == pytest.approx((3, 3, 3))  # unpaired resampling would give a wide interval
    noisy = 3 * tokens + np.random.default_rng(3).normal(0, 100, 40)
    ratio, low, high = statistics.ratio_interval(noisy, tokens)
    assert low < ratio < high and high - low < 0.5
    with pytest.raises(ValueError, match="pairs"):
        statistics.ratio_interval(tokens, tokens[1:])
    assert all(map(math.isnan, statistics.ratio_interval(np.array([]), np.array([]))))


def test_the_wilson_interval_by_hand():
    n, z = 50, 1.959964
    centre, root = (0.8 + z * z / (2 * n)) / (1 + z * z / n), math.sqrt(0.8 * 0.2 / n + z * z / (4 * n * n))
    reach = z / (1 + z * z / n) * root
    assert statistics.share_interval(40, 50) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert statistics.share_interval(0, 50)[0] == 0 and 0.05 < statistics.share_interval(0, 50)[1] < 0.08


def test_rank_biserial_by_hand():
    # differences 2, -1, 4, 0, -3, 5: without the zero the ranks are 2, 1, 4, 3, 5; W+ = 2 + 4 + 5 = 11, W- = 1 + 3 = 4
    first, second = np.array([2, 0, 4, 7, 0, 5.0]), np.array([0, 1, 0, 7, 3, 0.0])
    p, effect, note = statistics.wilcoxon(first, second)
    assert effect == pytest.approx(7 / 15)
    # exact: of the 32 sign patterns 7 have W- <= 4 ({}, 1, 2, 3, 12, 4, 13), and the test is two-sided
    assert p == pytest.approx(14 / 32, abs=0.1) and note == "1 zero differences dropped"
    assert statistics.wilcoxon(second, first)[1] == -effect
    tied = statistics.wilcoxon(np.array([1.0, -1, 2]), np.zeros(3))  # ranks 1.5, 1.5, 3: (4.5 - 1.5) / 6
    assert tied[1] == pytest.approx(0.5)


def test_exact_p_without_zeros_or_ties():
    p, effect, note = statistics.wilcoxon(np.array([2, -1, 4, -3, 5.0]), np.zeros(5))
    assert p == pytest.approx(14 / 32) and effect == pytest.approx(7 / 15) and note == ""


def test_no_difference_and_no_pairs():
    same = np.array([0.1, 0.9, 0.5])
    assert statistics.wilcoxon(same, same) == (1.0, 0.0, "all differences zero")
    p, effect, note = statistics.wilcoxon(np.array([]), np.array([]))
    assert math.isnan(p) and math.isnan(effect) and note == "no pairs"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=30))
def test_the_effect_is_bounded_and_antisymmetric(pairs):
    first, second = np.array(pairs, float).T
    p, effect, _ = statistics.wilcoxon(first, second)
    assert -1 <= effect <= 1 and 0 < p <= 1
    assert statistics.wilcoxon(second, first)[1] == pytest.approx(-effect)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1, 1])


def rows(model, runtime, scores, **more):
    one = {"model": model, "runtime": runtime, "split": "easy", "status": "completed", "total_tokens": 100.0} | more
    return [one | {"task_id": f"knapsack-{i}", "score": score} for i, score in scores.items()]


def test_pairs_are_matched_by_task_and_completed_on_both_sides():
    episodes = pd.DataFrame(
        rows("persistent", "persistent", {3: 0.3, 1: 0.1, 2: 0.2})
        + rows("stateless", "stateless", {2: 0.5, 3: 0.6, 4: 0.7})
        + rows("stateless", "stateless", {1: math.nan}, status="error")
    )
    aligned = (("persistent", "persistent", "easy"), ("stateless", "stateless", "easy"))
    first, second = statistics.paired(episodes, *aligned, "score")
    assert first.tolist() == [0.2, 0.3] and second.tolist() == [0.5, 0.6]
    table = statistics.tests_table(episodes, 200)
    assert list(table.columns) == statistics.TEST_COLUMNS
    assert list(table["comparison"]) == ["aligned cells"] * 2 and list(table["n"]) == [2, 2]
    assert table["difference"].tolist() == pytest.approx([-0.3, 0]) and table["note"][1] == "all differences zero"
    assert table["p_holm"].tolist() == pytest.approx([1, 1])

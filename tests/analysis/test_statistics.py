import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from knapsack.analysis import statistics
from knapsack.analysis.intervals import share_difference

PP, PS, SP, SS = statistics.PP, statistics.PS, statistics.SP, statistics.SS


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


def test_exact_p_without_zeros_or_ties():
    p, effect, note = statistics.wilcoxon(np.array([2, -1, 4, -3, 5.0]), np.zeros(5))
    assert p == pytest.approx(14 / 32) and effect == pytest.approx(7 / 15) and note == ""


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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=30))
def test_the_effect_is_bounded_and_antisymmetric(pairs):
    first, second = np.array(pairs, float).T
    p, effect, _ = statistics.wilcoxon(first, second)
    assert -1 <= effect <= 1 and 0 < p <= 1
    assert statistics.wilcoxon(second, first)[:2] == pytest.approx((p, -effect))
    assert statistics.wilcoxon(10 * first, 10 * second)[:2] == pytest.approx((p, effect))


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
    assert table["difference"].tolist() == pytest.approx([-0.3, 0])
    assert table["note"].tolist() == ["interval: no spread", "all differences zero; interval: no spread"]
    assert table["p_holm"].tolist() == pytest.approx([0.5, 1])
    twice = pd.concat([episodes, episodes.head(1)])
    with pytest.raises(ValueError, match="knapsack-3 occurs twice"):
        statistics.paired(twice, *aligned, "score")


def every(models, runtimes, splits=("easy",)):
    return [(model, runtime, split) for split in splits for model in models for runtime in runtimes]


def test_the_six_comparisons_of_the_study():
    cells = every(("base", "persistent", "stateless"), ("persistent", "stateless"))
    assert [(what, first[:2], second[:2]) for what, first, second in statistics.comparisons(cells)] == [
        ("training, in the persistent runtime", PP, SP),
        ("training, in the stateless runtime", PS, SS),
        ("runtime, base", ("base", "persistent"), ("base", "stateless")),
        ("runtime, persistent", PP, PS),
        ("runtime, stateless", SP, SS),
        ("aligned cells", PP, SS),
    ]
    assert statistics.comparisons([]) == []
    assert all(one[2] == other[2] for _, one, other in statistics.comparisons(every(("base",), ("persistent",)) * 2))


def test_a_model_that_a_user_adds_is_compared_with_itself_only():
    cells = every(("mine",), ("persistent", "stateless"), ("easy", "hard"))
    alone = statistics.comparisons(cells)
    assert [(what, *one, *other[1:]) for what, one, other in alone] == [
        ("runtime, mine", "mine", "persistent", split, "stateless", split) for split in ("easy", "hard")
    ]
    study = every(("persistent", "stateless"), ("persistent", "stateless"), ("easy", "hard"))
    together = statistics.comparisons(study + cells)
    assert [row for row in together if "mine" in (row[1][0], row[2][0])] == alone
    assert [row for row in together if row not in alone] == statistics.comparisons(study)
    assert statistics.comparisons(every(("mine",), ("persistent",))) == []


def test_carry_over_is_compared_with_the_runtime_that_it_mends():
    kinds = ("persistent", "stateless", "carry-over", "carry-over-announced")
    found = statistics.comparisons(every(("persistent",), kinds))
    assert [(what, one[1], other[1]) for what, one, other in found] == [
        ("runtime, persistent", "persistent", "stateless"),
        ("carry-over, persistent", "carry-over", "stateless"),
        ("announced carry-over, persistent", "carry-over-announced", "stateless"),
        ("announcing the carry-over, persistent", "carry-over-announced", "carry-over"),
    ]
    both = statistics.comparisons(every(("persistent", "stateless"), kinds[2:]))
    assert [what for what, *_ in both] == [
        "training, in the carry-over runtime",
        "training, in the carry-over-announced runtime",
        "announcing the carry-over, persistent",
        "announcing the carry-over, stateless",
    ]
    assert statistics.comparisons(every(("mine",), ("persistent", "carry-over"))) == []


def study(n=12, models=("persistent", "stateless"), runtimes=("persistent", "stateless"), seed=0):
    """Episodes in which every cell has its own level of score and tokens; task i differs from cell to cell."""
    draw = np.random.default_rng(seed)
    found = []
    for model in models:
        for runtime in runtimes:
            level = 0.2 + 0.08 * len(model + runtime) % 0.5
            for i in range(n):
                score = float(np.clip(level + draw.normal(0, 0.1), 0, 1))
                more = {"total_tokens": float(draw.integers(500, 9000)), "solved": int(score > 0.5)}
                found += rows(model, runtime, {i: score}, **more, missing_bindings=int(draw.integers(0, 3)))
    return pd.DataFrame(found)


def test_families_are_corrected_apart():
    kinds = ("persistent", "stateless", "carry-over")
    many = study(models=("persistent", "stateless", "base", "mine"), runtimes=kinds)
    table = statistics.tests_table(many, 100)
    assert set(table["family"]) == {
        f"{quantity}, {group}"
        for quantity in ("score", "total_tokens")
        for group in ("trained models", "other models", "carry-over")
    }
    for _, part in table.groupby("family"):
        assert part["p_holm"].tolist() == statistics.holm(part["p"]).tolist()
    for name, models in (("trained models", {"persistent", "stateless"}), ("other models", {"base", "mine"})):
        part = table[table["family"] == f"score, {name}"]
        assert {side.split("→")[0] for side in [*part["first"], *part["second"]]} == models
    assert all("carry-over" in what for what in table[table["family"] == "score, carry-over"]["comparison"])
    of_both = many[many["model"].isin(["persistent", "stateless"]) & many["runtime"].isin(kinds[:2])]
    alone = statistics.tests_table(of_both, 100)
    same = table[table["family"].str.endswith("trained models")].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, same)


def test_a_row_of_tests_against_the_formulas():
    episodes = study(20)
    table = statistics.tests_table(episodes, 500).set_index(["comparison", "quantity"])
    first, second = statistics.paired(episodes, (*PP, "easy"), (*SS, "easy"), "score")
    row = table.loc[("aligned cells", "score")]
    assert (row["mean_first"], row["mean_second"]) == pytest.approx((first.mean(), second.mean()))
    assert row["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue)
    ends = stats.bootstrap((first - second,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(0))
    assert (row["low"], row["high"]) == pytest.approx(tuple(ends.confidence_interval))


def test_the_order_of_rows_changes_nothing():
    episodes = study()
    shuffled = episodes.sample(frac=1, random_state=3)
    for of in (statistics.tests_table, statistics.equivalence_table, statistics.interactions_table):
        one, other = of(episodes, n_resamples=100), of(shuffled, n_resamples=100)
        order = [name for name in ("split", "comparison", "quantity") if name in one]
        one, other = (table.sort_values(order, ignore_index=True) for table in (one, other))
        pd.testing.assert_frame_equal(one, other)
    assert len(statistics.shares_table(shuffled)) == len(statistics.shares_table(episodes)) == 10


def test_shares_of_tasks_in_pairs():
    frame = rows("persistent", "stateless", dict.fromkeys(range(10), 1.0), solved=1, missing_bindings=3)
    frame += rows("stateless", "stateless", dict.fromkeys(range(3), 1.0), solved=1, missing_bindings=0)
    frame += rows("stateless", "stateless", dict.fromkeys(range(3, 10), 0.5), solved=0, missing_bindings=0)
    table = statistics.shares_table(pd.DataFrame(frame))
    assert list(table.columns) == statistics.SHARE_COLUMNS
    solved, missing = table.to_dict("records")
    assert (solved["quantity"], solved["n"], solved["share_first"], solved["share_second"]) == ("solved", 10, 1, 0.3)
    assert (solved["only_first"], solved["only_second"], solved["p"]) == (7, 0, pytest.approx(2 / 2**7))
    expected = share_difference([1] * 10, [1] * 3 + [0] * 7)
    assert (solved["difference"], solved["low"], solved["high"]) == expected
    assert (missing["quantity"], missing["difference"]) == ("missing_binding", 1)
    assert missing["p"] == pytest.approx(2 / 2**10)
    assert missing["family"] == "missing_binding, trained models" and missing["p_holm"] == missing["p"]


def test_equivalence_of_every_comparison():
    wave = {i: 0.5 + 0.01 * (i % 5) for i in range(60)}
    frame = rows("persistent", "persistent", wave) + rows("stateless", "stateless", wave)
    frame += rows("stateless", "persistent", {i: score - 0.02 - 0.01 * (i % 3) for i, score in wave.items()})
    frame += rows("persistent", "stateless", {i: 0.1 for i in wave})
    table = statistics.equivalence_table(pd.DataFrame(frame), n_resamples=300)
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
    tight = statistics.equivalence_table(pd.DataFrame(frame), 0.025, n_resamples=300).set_index("comparison")
    assert tight.loc["runtime, stateless", "verdict"] == "different"
    assert (tight["tasks_needed"] >= table["tasks_needed"]).all()


def test_the_interaction_by_hand():
    frame = rows("persistent", "persistent", {1: 0.9, 2: 0.8, 3: 1.0}, total_tokens=100.0)
    frame += rows("persistent", "stateless", {1: 0.1, 2: 0.2}, total_tokens=800.0)
    frame += rows("stateless", "persistent", {1: 0.7, 2: 0.5, 3: 1.0}, total_tokens=300.0)
    frame += rows("stateless", "stateless", {1: 0.6, 2: 0.6, 3: 1.0}, total_tokens=200.0)
    frame += rows("persistent", "stateless", {3: 1.0}, status="timeout", total_tokens=1.0)
    episodes = pd.DataFrame(frame)
    assert statistics.interaction(episodes, "easy", "score") == pytest.approx([0.7, 0.7])
    score, tokens = statistics.interactions_table(episodes, 200).to_dict("records")
    assert list(score) == statistics.INTERACTION_COLUMNS
    assert score["n"] == 2 and score["interaction"] == pytest.approx(0.7) and math.isnan(score["ratio"])
    assert tokens["interaction"] == pytest.approx(math.log((100 / 800) / (300 / 200)))
    assert tokens["ratio"] == tokens["ratio_low"] == pytest.approx((100 / 800) / (300 / 200))
    silent = episodes.assign(total_tokens=episodes["total_tokens"].where(episodes.index != 0, 0))
    tokens = statistics.interactions_table(silent, 200).iloc[1]
    assert tokens["n"] == 1 and "1 tasks without tokens left out" in tokens["note"]


def test_the_interaction_turns_with_either_factor():
    episodes, swap = study(15, seed=4), {"persistent": "stateless", "stateless": "persistent"}
    d = statistics.interaction(episodes, "easy", "total_tokens", logarithm=True)
    other = {name: episodes.assign(**{name: episodes[name].map(swap)}) for name in ("model", "runtime")}
    for turned in other.values():
        assert statistics.interaction(turned, "easy", "total_tokens", True) == pytest.approx(-d)
    cents = episodes.assign(total_tokens=100 * episodes["total_tokens"])
    assert statistics.interaction(cents, "easy", "total_tokens", True) == pytest.approx(d)
    one, turned = (statistics.interactions_table(frame, 500).iloc[1] for frame in (episodes, other["runtime"]))
    assert (turned["low"], turned["high"]) == pytest.approx((-one["high"], -one["low"]))
    assert one["ratio"] == pytest.approx(math.exp(d.mean())) and one["ratio_low"] < one["ratio"] < one["ratio_high"]


def test_a_missing_cell_leaves_no_interaction(recwarn):
    episodes = study()
    table = statistics.interactions_table(episodes[episodes["model"] == "persistent"], 100)
    assert table["n"].tolist() == [0, 0] and table["interaction"].isna().all() and table["low"].isna().all()
    failed = episodes.assign(status="timeout")
    for of in (statistics.tests_table, statistics.shares_table, statistics.equivalence_table):
        table = of(failed)
        assert (table["n"] == 0).all() and table["difference"].isna().all() and len(table) > 0
        assert of(failed.head(0)).empty
    assert not recwarn.list


def test_variation_between_runs_by_hand():
    one = {"model": "persistent", "runtime": "persistent", "split": "easy"}
    values = {"a": 0.7, "b": 0.8, "c": 0.9}
    table = pd.DataFrame(
        [one | {"run": run, "score_mean": value} for run, value in values.items()]
        + [one | {"runtime": "stateless", "run": run, "score_mean": value} for run, value in (("a", 0.2), ("c", 0.4))]
        + [one | {"runtime": "stateless", "run": "b", "score_mean": math.nan}]
        + [one | {"split": "hard", "run": "a", "score_mean": 0.5}]
    )
    three, two, single = statistics.between_runs(table, "score_mean").to_dict("records")
    assert {name: three[name] for name in one} == one and three["runs"] == 3
    assert [three[name] for name in ("mean", "sd", "least", "most")] == pytest.approx([0.8, 0.1, 0.7, 0.9])
    reach = 4.302653 * 0.1 / 3**0.5  # the t of 2 degrees of freedom
    assert (three["low"], three["high"]) == pytest.approx((0.8 - reach, 0.8 + reach), abs=1e-6)
    assert (two["runs"], two["mean"], two["sd"]) == (2, pytest.approx(0.3), pytest.approx(0.02**0.5))
    assert math.isnan(two["low"]) and math.isnan(two["high"])
    assert (single["split"], single["runs"], single["least"], single["most"]) == ("hard", 1, 0.5, 0.5)
    assert math.isnan(single["sd"])
    again = statistics.between_runs(table.iloc[::-1], "score_mean").to_dict("records")
    assert again[2] == pytest.approx(three) and again[0] == pytest.approx(single, nan_ok=True)
    with pytest.raises(ValueError, match="two rows"):
        statistics.between_runs(pd.concat([table, table.head(1)]), "score_mean")


def test_a_run_with_no_value_anywhere(recwarn):
    table = pd.DataFrame({"run": ["a", "b"], "model": "mine", "seconds": [math.nan, math.nan]})
    row = statistics.between_runs(table, "seconds", ["model"]).iloc[0]
    assert row["runs"] == 0 and row[statistics.RUN_COLUMNS[1:]].isna().all()
    assert not recwarn.list

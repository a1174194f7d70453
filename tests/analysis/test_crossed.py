import numpy as np
import pandas as pd
import pytest
from scripted import rows

from knapsack.analysis import claims, crossed, statistics
from knapsack.analysis.estimates import COLUMNS, PP, PS, SP, SS, estimates_table, look_up
from knapsack.analysis.intervals import Bootstrap, ratio_interval

FEW = Bootstrap(2000)
EASY = ("easy", 25)
MEANS = {PP: (0.7, 1000, 0.0), PS: (0.2, 2500, 0.8), SP: (0.69, 3500, 0.0), SS: (0.69, 2900, 0.0)}
MEANS |= {("base", kind): (0.0, 9000, 0.0) for kind in ("persistent", "stateless")}


def played(training, apart=0.0, tasks=40, caps=(25,)):
    """Episodes of MEANS' cells with noise over tasks, the same in every training but for ``apart`` in P→S's score."""
    found, wave = [], np.random.default_rng(0).normal(0, 0.03, (len(MEANS), tasks))
    for (cell, (score, tokens, missing)), noise in zip(MEANS.items(), wave, strict=True):
        noise = noise * (cell[0] != "base")
        shifted = score + noise + apart * training * (cell == PS)
        for cap in caps:
            one = rows(*cell, shifted + (0.3 if cap == 80 and cell == PS else 0), "easy", cap=cap)
            one = one.assign(total_tokens=tokens * (1 + noise), run=f"seed{training}")
            found.append(one.assign(missing_bindings=(np.arange(tasks) < missing * tasks).astype(int)))
    return pd.concat(found, ignore_index=True)


def over(*trainings, bootstrap=FEW):
    """The crossed estimates of the trainings' episodes, and those of each."""
    own = [estimates_table(episodes.drop(columns="run"), bootstrap) for episodes in trainings]
    return crossed.crossed_table(pd.concat(trainings, ignore_index=True), own[0], bootstrap), own


def judged(*trainings):
    """The claims of all trainings, and those of each alone."""
    few = Bootstrap(200)
    own = [estimates_table(episodes, few) for episodes in trainings]
    tables = crossed.over_trainings(pd.concat(trainings, ignore_index=True), own[0], bootstrap=few)
    tested = [
        (found, statistics.tests_table(episodes, found), statistics.equivalence_table(episodes, bootstrap=few))
        for found, episodes in zip(own, trainings, strict=True)
    ]
    alone = [claims.claims_table(*one) for one in tested]
    return claims.claims_table(*tables, dict(zip("012", own, strict=False))), alone


def width(estimate):
    return estimate.high - estimate.low


def test_identical_trainings_give_the_interval_over_tasks():
    """Up to the noise of resampling, and to how the two intervals are made."""
    found, (own, *_) = over(*[played(0).assign(run=name) for name in "abc"])
    for quantity, first, second in [
        ("score difference", PP, PS),
        ("missing_binding difference", PS, PP),
        ("total_tokens ratio", SP, PP),
        ("score interaction", ("persistent",), ("stateless",)),
        ("score", PS, ()),
    ]:
        pooled, one = look_up(found, quantity, EASY, first, second), look_up(own, quantity, EASY, first, second)
        assert (pooled.n, pooled.value) == (40, pytest.approx(one.value)), quantity
        assert width(pooled) == pytest.approx(width(one), rel=0.15), quantity
    tokens = [played(0).query("model == @cell[0] and runtime == @cell[1]")["total_tokens"] for cell in (SP, PP)]
    assert look_up(found, "total_tokens ratio", EASY, SP, PP).value == pytest.approx(ratio_interval(*tokens)[0])


def test_trainings_that_differ_widen_the_interval():
    found, own = over(*(played(k, apart=0.1) for k in range(3)))
    pooled, each = look_up(found, "score", EASY, PS), [look_up(one, "score", EASY, PS) for one in own]
    assert pooled.value == pytest.approx(np.mean([one.value for one in each]))
    assert width(pooled) > 5 * max(map(width, each)) and pooled.low < each[1].low and pooled.high > each[1].high


def test_the_resampled_variance_is_that_of_both_levels():
    """Of a two-way layout without interaction: var(trainings) ÷ R + var(tasks) ÷ T, both with n below."""
    draw = np.random.default_rng(1)
    trainings, tasks = draw.normal(0, 0.1, 12), draw.normal(0, 0.3, 60)
    _, low, high, note = crossed.crossed_interval((trainings[:, None] + tasks)[None], (1,), Bootstrap(20_000))
    deviation = np.sqrt(trainings.var() / 12 + tasks.var() / 60)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.03) and note == ""


def test_a_task_that_one_training_lacks_is_left_out_for_all():
    lacking = played(1)
    lacking.loc[lacking["task_id"] == "knapsack-3", "status"] = "error"
    found, _ = over(played(0), lacking)
    assert set(found["n"]) == {39} and len(crossed.task_means(pd.concat([played(0), lacking]))) == 39 * len(MEANS)
    nothing, _ = over(played(0), played(1).assign(status="error"))
    assert set(nothing["n"]) == {0} and nothing["value"].isna().all()


def test_training_traces_keep_their_rows_and_a_ratio_over_nothing_has_no_value():
    traces = pd.DataFrame([["trace_tokens ratio", "training", 0, "stateless", "persistent", 9, 2.0, 1.5, 2.5, ""]])
    episodes = pd.concat([played(0), played(1)]).assign(total_tokens=0)
    own = pd.concat([estimates_table(played(0), FEW), traces.set_axis(COLUMNS, axis=1)])
    found = crossed.crossed_table(episodes, own, FEW)
    assert found.iloc[-1].tolist() == traces.iloc[0].tolist()
    assert np.isnan(look_up(found, "total_tokens ratio", EASY, SP, PP).interval).all()


def test_a_verdict_with_a_far_margin_in_each_training_holds_for_all():
    pooled, alone = judged(*(played(k, apart=0.03, caps=(25, 80)) for k in range(3)))
    known = pooled["n"] > 0
    assert known.sum() == 12 and set(pooled.loc[known, "verdict"]) == {claims.REPRODUCED, claims.NOT_REPRODUCED}
    for one in alone:
        assert one["verdict"].tolist() == pooled["verdict"].tolist()


def test_a_claim_that_holds_in_one_training_only_does_not_hold_for_all():
    pooled, alone = judged(*(played(k, apart=0.4) for k in range(3)))
    row, first = (
        table[table["claim"] == "P→S scores less than P→P"].set_index("cap").loc[25] for table in (pooled, alone[0])
    )
    assert first["verdict"] == claims.REPRODUCED
    assert row["verdict"] != claims.REPRODUCED and row["least"] < 0 < row["most"]


def test_cells_are_the_same_only_if_they_are_in_other_trainings_too():
    trainings, found = [played(k) for k in range(3)], []
    for apart in (0.0, 0.1):
        for k, episodes in enumerate(trainings):
            home = episodes["model"].eq("stateless") & episodes["runtime"].eq("stateless")
            episodes["score"] += apart * (k - 1) * home
        pooled, _ = judged(*trainings)
        found += pooled.loc[pooled["claim"].str.startswith("P→P and S→S"), "verdict"].tolist()
    assert found == [claims.REPRODUCED, claims.NOT_TESTABLE]


def test_the_claims_say_on_how_many_trainings_they_rest():
    tables = judged(played(0), played(1))
    pooled, alone = claims.claims_shown(tables[0]), claims.claims_shown(tables[1][0])
    assert "rests on 2 trainings of each model (seeds 0, 1)" in pooled.caption and "one training" not in pooled.caption
    assert " to " in pooled.text["over trainings"].iloc[0] and pooled.text["over trainings"].iloc[-1] == ""
    assert "rest on 2 trainings of each model (seeds 0, 1); from" in claims.summary(tables[0])
    assert "one training of each model in this run" in alone.caption and "over trainings" not in alone.text

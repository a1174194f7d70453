"""Tests of what differs and of what is the same. Episodes of two cells are paired by task: every cell plays the same.

Families. The tests of a table are corrected by Holm within a family, the rows that answer one question in one
quantity, over all splits under a cap: "trained models" (what training and runtime change between the two adapters'
cells), "carry-over" and "cue" (whether these interventions change anything), "other models" (the runtime's effect on
the base, the teacher and models that a user adds). Adding a model, an intervention or a cap leaves the first family's
p-values as they are.

"The same" as a finding. Two one-sided t tests (TOST; Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15,
1987, 657–680) decide, not the bootstrap: where few tasks differ, as between two good agents, the t interval misses the
truth less often than BCa's; t depends on no seed; and the power below is its own. The BCa interval stands beside as a
check.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from knapsack.analysis.estimates import SHARES, comparisons, look_up, matched
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap, bootstrap_interval, pairs
from knapsack.analysis.metrics import CELL, SETTING
from knapsack.runtime import KINDS

LEVEL = 0.05  # of each one-sided test, and of the two-sided test of a difference
MARGIN = 0.05  # of normalized optimality: 5 points of score
POWER = 0.8
EQUIVALENT, WITHIN, DIFFERENT, UNDECIDED = "equivalent", "different but within the margin", "different", "undecided"
ENUMERATED = 13  # differences; 2 to this power sign patterns
_COMPARED = [*SETTING, "comparison", "first", "second"]
TEST_COLUMNS = [
    *_COMPARED, "quantity", "n", "mean_first", "mean_second", "difference", "low", "high", "p", "p_holm", "effect",
    "note", "family",
]  # fmt: skip
SHARE_COLUMNS = [
    *_COMPARED, "quantity", "n", "share_first", "share_second", "difference", "low", "high", "only_first",
    "only_second", "p", "p_holm", "family",
]  # fmt: skip
EQUIVALENCE_COLUMNS = [
    *_COMPARED, "n", "differing", "difference", "low", "high", "margin", "p_difference", "p_equivalence", "verdict",
    "spread", "detectable", "tasks_needed", "note",
]  # fmt: skip


def wilcoxon(first: np.ndarray, second: np.ndarray) -> tuple[float, float, str]:
    """Two-sided Wilcoxon signed-rank test of paired values: p, effect size and a note on what was done.

    Zero differences are dropped; differences count as equal to 12 decimals, so that roundoff makes no ranks. p is
    exact for up to 50 differences without ties, or ENUMERATED with ties, and a normal approximation beyond. Effect
    size is the matched-pairs rank-biserial correlation r = (W⁺ − W⁻) ÷ (W⁺ + W⁻) (Kerby, Comprehensive Psychology 3,
    2014), from −1 (second always greater) to 1 (first always greater). Without any difference p = 1 and r = 0, and
    the note says so; without pairs both are NaN. ValueError for unequal lengths.
    """
    first, second = pairs(first, second)
    difference = np.round(first - second, 12)
    if len(difference) == 0:
        return math.nan, math.nan, "no pairs"
    kept = difference[difference != 0]
    if len(kept) == 0:
        return 1.0, 0.0, "all differences zero"
    ranks = np.sign(kept) * stats.rankdata(np.abs(kept))
    if 1 < len(kept) <= ENUMERATED:  # scipy's own enumeration, but vectorized: its wilcoxon takes seconds for ties
        tested = stats.permutation_test((ranks,), np.sum, permutation_type="samples", n_resamples=2**ENUMERATED)
    else:
        tested = stats.wilcoxon(kept)
    zeros = len(difference) - len(kept)
    note = f"{zeros} zero differences dropped" if zeros else ""
    return float(tested.pvalue), float(ranks.sum() / np.abs(ranks).sum()), note


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Exact two-sided McNemar test of paired truth values: tasks only in first, only in second, p.

    p is the binomial test that of the discordant pairs half fall on either side (McNemar 1947); 1 without discordant
    pairs, NaN without pairs. ValueError for unequal lengths.
    """
    first, second = (side.astype(bool) for side in pairs(first, second))
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if len(first) == 0:
        return 0, 0, math.nan
    discordant = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's step-down correction: p-values that hold for all tests together; NaN stays NaN and is not counted."""
    p = np.asarray(list(p_values), float)
    corrected = np.full(len(p), math.nan)
    order = [index for index in np.argsort(p, kind="stable") if not math.isnan(p[index])]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = running
    return corrected


def family(first: tuple, second: tuple, quantity: str) -> str:
    """The family of a comparison, as the head of this module says: "<quantity>, <group>"."""
    if not {first[1], second[1]} <= set(KINDS):
        return f"{quantity}, {'carry-over' if 'carry-over' in first[1] + second[1] else 'cue'}"
    return f"{quantity}, {'trained' if {first[0], second[0]} <= set(KINDS) else 'other'} models"


@dataclass(frozen=True)
class Equivalence:
    """What ``equivalence`` found; differences in the units of the values, NaN where there is too little data."""

    n: int  # pairs
    differing: int  # pairs whose values differ
    difference: float  # mean of first − second
    low: float  # 90 % BCa interval of the difference
    high: float
    spread: float  # standard deviation of the paired differences (n − 1)
    p_difference: float
    p_equivalence: float
    verdict: str
    note: str  # what was done to a sample without spread, or where the interval disagrees with the verdict


def verdict(p_difference: float, p_equivalence: float) -> str:
    """The rule: is there a difference at LEVEL, and is it shown to be within the margin at LEVEL?

    No and yes: "equivalent"; yes and yes: "different but within the margin"; yes and no: "different"; else (also for
    a NaN): "undecided". After Lakens, Social Psychological and Personality Science 8, 2017, 355–362.
    """
    different, equivalent = p_difference < LEVEL, p_equivalence < LEVEL
    if different:
        return WITHIN if equivalent else DIFFERENT
    return EQUIVALENT if equivalent else UNDECIDED


def equivalence(
    first: np.ndarray, second: np.ndarray, margin: float = MARGIN, bootstrap: Bootstrap = BOOTSTRAP
) -> Equivalence:
    """Is the mean of first − second, both of shape (n,), within ± margin? ValueError for unequal lengths, margin ≤ 0.

    With d = first − second, t± = (mean(d) ± margin) ÷ (sd(d) ÷ √n) on n − 1 degrees of freedom: ``p_equivalence`` is
    the larger p of "the mean is above −margin" (t₊) and "below +margin" (t₋), ``p_difference`` that of the two-sided
    paired t test against 0. p < 0.05 in the first is the same as a 90 % t interval inside the margin, hence the
    confidence of the BCa interval. One comparison, not corrected for others.

    Without spread (all d equal, or n = 1) t has no value; then exact sign tests against the same bounds give p: 0.5ⁿ
    where every d is on the inside. So it takes 5 pairs to be "equivalent", 6 to be "different". Without pairs p is
    NaN. What is rarer than n tasks can show escapes every such test: a difference of 1 on 5 % of the tasks, a mean of
    0.05, is in none of 50 tasks with probability 0.95⁵⁰ = 8 %. Read ``differing`` beside the verdict.
    """
    if not margin > 0:
        raise ValueError(f"margin = {margin}: needs a positive number, in the units of the values")
    first, second = pairs(first, second)
    d = first - second
    n = len(d)
    if n == 0:
        return Equivalence(0, 0, *(math.nan,) * 6, UNDECIDED, "no pairs")
    low, high, note = bootstrap_interval((d,), np.mean, bootstrap, 1 - 2 * LEVEL)
    average, spread = float(d.mean()), float(d.std(ddof=1)) if n > 1 else math.nan
    if np.ptp(d) <= 1e-9 * np.abs(d).max():  # all equal, up to roundoff
        spread = 0.0 if n > 1 else math.nan
        p_difference = 1.0 if abs(average) <= 1e-12 else min(1.0, 2 * 0.5**n)
        p_equivalence = 0.5**n if abs(average) < margin else 1.0
        note = "all differences equal: sign test"
    else:
        p_difference = float(stats.ttest_1samp(d, 0).pvalue)
        above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(d, margin, alternative="less").pvalue
        p_equivalence = float(max(above, below))
        inside = -margin < low and high < margin
        if inside != (p_equivalence < LEVEL):
            note = "; ".join(filter(None, (note, f"interval {'inside' if inside else 'not inside'} the margin")))
    found = verdict(p_difference, p_equivalence)
    differing = int((np.abs(d) > 1e-12).sum())
    return Equivalence(n, differing, average, low, high, spread, p_difference, p_equivalence, found, note)


def detectable_difference(n: int, spread: float, power: float = POWER) -> float:
    """About the smallest mean paired difference that a two-sided paired t test of n tasks finds with this power.

    (t₀.₉₇₅ + t_power) · spread ÷ √n on n − 1 degrees of freedom (Cohen, Statistical Power Analysis, 1988, chapter 2,
    has it exact; this is within 1 % from 6 tasks on); ``spread`` is the standard deviation of the paired differences.
    NaN for n < 2 or an unknown spread; 0 without spread.
    """
    if n < 2 or math.isnan(spread):
        return math.nan
    return float(stats.t.ppf([1 - LEVEL / 2, power], n - 1).sum()) * spread / math.sqrt(n)


def tasks_for_equivalence(spread: float, margin: float = MARGIN, power: float = POWER) -> float:
    """About how many tasks show equal cells equivalent with this power; NaN for an unknown spread.

    ⌈(z₀.₉₅ + z_(1+power)÷2)² · (spread ÷ margin)²⌉ + 1: the normal approximation of the power of two one-sided tests at
    a true difference of 0 (Chow, Shao and Wang, Sample Size Calculations in Clinical Research, 2003, section 3.1), and
    one for estimating the spread; within a task of exact. 5 without spread, by the sign test.
    """
    if math.isnan(spread):
        return math.nan
    needed = (stats.norm.ppf([1 - LEVEL, (1 + power) / 2]).sum() * spread / margin) ** 2
    return math.ceil(needed) + 1 if spread else 5


def tests_table(episodes: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """Paired tests of score and total_tokens for every one of ``comparisons``, with TEST_COLUMNS.

    ``difference`` and its interval are those of ``estimates``; ``p`` and ``effect`` are ``wilcoxon``'s, ``p_holm`` is
    corrected within ``family``. NaN where no task was completed in both.
    """
    rows = []
    for names, first, second in _compared(episodes):
        for quantity in ("score", "total_tokens"):
            a, b = matched(episodes, (first, second), quantity)
            found = look_up(estimates, f"{quantity} difference", first[2:], first[:2], second[:2])
            p, effect, note = wilcoxon(a, b)
            note = "; ".join(filter(None, (note, found.note if found.n else "")))
            ends = (pd.Series(a).mean(), pd.Series(b).mean(), *found.interval)
            rows.append((*names, quantity, len(a), *ends, p, math.nan, effect, note, family(first, second, quantity)))
    return _corrected(pd.DataFrame(rows, columns=TEST_COLUMNS))


def shares_table(episodes: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """Shares of tasks solved, and with a missing-binding error, for every one of ``comparisons``: SHARE_COLUMNS.

    ``difference`` and its interval are those of ``estimates``; ``only_first``, ``only_second`` and ``p`` are those of
    ``mcnemar``; ``p_holm`` is corrected within ``family``. NaN without pairs.
    """
    rows = []
    for names, first, second in _compared(episodes):
        for quantity in ("solved", "missing_binding"):
            a, b = (side > 0 for side in matched(episodes, (first, second), SHARES[quantity]))
            found = look_up(estimates, f"{quantity} difference", first[2:], first[:2], second[:2])
            ends = (pd.Series(a).mean(), pd.Series(b).mean(), *found.interval)
            rows.append((*names, quantity, len(a), *ends, *mcnemar(a, b), math.nan, family(first, second, quantity)))
    return _corrected(pd.DataFrame(rows, columns=SHARE_COLUMNS))


def equivalence_table(episodes: pd.DataFrame, margin: float = MARGIN, bootstrap: Bootstrap = BOOTSTRAP) -> pd.DataFrame:
    """Is the score the same within ± ``margin``? ``equivalence`` for every one of ``comparisons``.

    EQUIVALENCE_COLUMNS: low and high are the 90 % BCa interval; ``spread`` is the standard deviation of the paired
    differences; ``detectable`` the smallest difference that these n tasks can find, ``tasks_needed`` how many would
    show equal cells of that spread equivalent (power 80 % each). A verdict is about its own row at 5 %, not corrected
    for the others: for "any of these" read ``tests_table``'s p_holm.
    """
    rows = []
    for names, first, second in _compared(episodes):
        found = equivalence(*matched(episodes, (first, second), "score"), margin, bootstrap)
        planned = {"detectable": detectable_difference(found.n, found.spread)}
        planned |= {"tasks_needed": tasks_for_equivalence(found.spread, margin), "margin": margin}
        rows.append(dict(zip(_COMPARED, names, strict=True)) | asdict(found) | planned)
    return pd.DataFrame(rows, columns=EQUIVALENCE_COLUMNS)


def _compared(episodes: pd.DataFrame) -> list[tuple[tuple, tuple, tuple]]:
    """For every one of ``comparisons`` the values of _COMPARED, and the two cells."""
    found = comparisons(episodes[CELL].itertuples(index=False, name=None))
    return [((*one[2:], what, "→".join(one[:2]), "→".join(other[:2])), one, other) for what, one, other in found]


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    for _, rows in table.groupby(["family", "cap"]).groups.items():
        table.loc[rows, "p_holm"] = holm(table.loc[rows, "p"])
    return table

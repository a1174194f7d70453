"""Tests and tables of comparisons. Episodes of two cells are paired by task: every cell plays the same tasks.

Families. The tests of a table are corrected by Holm within a family, the rows that answer one question in one
quantity, over all splits: "trained models" (what training and runtime change between the two adapters' cells),
"carry-over" (whether that intervention changes anything), "other models" (the runtime's effect on the base, the
teacher and models that a user adds). Adding a model or an intervention leaves the first family's p-values as they are.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from knapsack.analysis.equivalence import MARGIN, detectable_difference, equivalence, tasks_for_equivalence
from knapsack.analysis.intervals import (
    CONFIDENCE,
    bootstrap_interval,
    mean,
    mean_interval,
    pairs,
    ratio_interval,
    share_difference,
    share_interval,
)
from knapsack.runtime import KINDS

__all__ = ["mean_interval", "ratio_interval", "share_interval"]  # of ``intervals``, found here as well
_COMPARED = ["split", "comparison", "first", "second"]
TEST_COLUMNS = [
    *_COMPARED, "quantity", "n", "mean_first", "mean_second", "difference", "low", "high", "p", "p_holm", "effect",
    "note", "family",
]  # fmt: skip
SHARE_COLUMNS = [
    *_COMPARED, "quantity", "n", "share_first", "share_second", "difference", "low", "high", "only_first",
    "only_second", "p", "p_holm", "family",
]  # fmt: skip
SHARES = {"solved": "solved", "missing_binding": "missing_bindings"}  # quantity: the column that is above 0
EQUIVALENCE_COLUMNS = [
    *_COMPARED, "n", "differing", "difference", "low", "high", "margin", "p_difference", "p_equivalence", "verdict",
    "spread", "detectable", "tasks_needed", "note",
]  # fmt: skip
INTERACTION_COLUMNS = [
    "split", "quantity", "n", "interaction", "low", "high", "ratio", "ratio_low", "ratio_high", "note",
]  # fmt: skip
RUN_COLUMNS = ["runs", "mean", "sd", "least", "most", "low", "high"]
ENUMERATED = 13  # differences; 2 to this power sign patterns
PP, PS, SP, SS = [(model, runtime) for model in KINDS for runtime in KINDS]  # (training, runtime)


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


def matched(episodes: pd.DataFrame, cells: Iterable[tuple], column: str) -> list[np.ndarray]:
    """``column`` in each cell (model, runtime, split), for the tasks completed in all of them, in the order of tasks.

    One array of shape (n,) a cell. ValueError where a cell has a task twice: choose one run of several first.
    """
    sides = []
    for model, runtime, split in cells:
        chosen = (episodes["model"] == model) & (episodes["runtime"] == runtime) & (episodes["split"] == split)
        side = episodes[chosen & (episodes["status"] == "completed")].set_index("task_id")[column]
        if not side.index.is_unique:
            raise ValueError(f"{model}, {runtime}, {split}: task {side.index[side.index.duplicated()][0]} occurs twice")
        sides.append(side)
    shared = sides[0].index
    for side in sides[1:]:
        shared = shared.intersection(side.index)
    shared = shared.sort_values()
    return [side.loc[shared].to_numpy(float) for side in sides]


def paired(episodes: pd.DataFrame, first: tuple, second: tuple, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of ``column`` for the tasks completed in both cells (model, runtime, split), in the order of tasks."""
    return tuple(matched(episodes, (first, second), column))


def comparisons(cells: Iterable[tuple]) -> list[tuple[str, tuple, tuple]]:
    """The study's comparisons among the (model, runtime, split) that exist: (what, first, second).

    A comparison changes one thing, apart from the aligned cells. Per split: training within a runtime (between the
    two adapters only: any other model differs in more than its training traces); the runtime within a model; a
    carry-over runtime against the stateless one that it mends, and announced against silent; and the two aligned
    cells.
    """
    have = list(dict.fromkeys(cells))
    runtimes, models = ([*dict.fromkeys(cell[place] for cell in have)] for place in (1, 0))
    found = []
    for split in dict.fromkeys(cell[2] for cell in have):
        for runtime in [*KINDS, *(name for name in runtimes if name not in KINDS)]:
            pair = (("persistent", runtime, split), ("stateless", runtime, split))
            found.append((f"training, in the {runtime} runtime", *pair))
        for model in models:
            for what, one, other in (
                ("runtime", "persistent", "stateless"),
                ("carry-over", "carry-over", "stateless"),
                ("announced carry-over", "carry-over-announced", "stateless"),
                ("announcing the carry-over", "carry-over-announced", "carry-over"),
            ):
                found.append((f"{what}, {model}", (model, one, split), (model, other, split)))
        found.append(("aligned cells", (*PP, split), (*SS, split)))
    return [row for row in found if row[1] in have and row[2] in have]


def family(first: tuple, second: tuple, quantity: str) -> str:
    """The family of a comparison, as the head of this module says: "<quantity>, <group>"."""
    if not {first[1], second[1]} <= set(KINDS):
        return f"{quantity}, carry-over"
    return f"{quantity}, {'trained' if {first[0], second[0]} <= set(KINDS) else 'other'} models"


def tests_table(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Paired tests of score and total_tokens for every one of ``comparisons``, with TEST_COLUMNS.

    ``difference`` is mean(first − second) with its 95 % BCa interval, ``p`` and ``effect`` are ``wilcoxon``'s,
    ``p_holm`` is corrected within ``family``. NaN where no task was completed in both.
    """
    rows = []
    for what, first, second in _comparisons(episodes):
        for quantity in ("score", "total_tokens"):
            a, b = paired(episodes, first, second, quantity)
            low, high, how = bootstrap_interval((a - b,), mean, n_resamples, seed)
            p, effect, note = wilcoxon(a, b)
            note = "; ".join(filter(None, (note, how if len(a) else "")))
            means = (a.mean(), b.mean(), (a - b).mean()) if len(a) else (math.nan,) * 3
            names = (*_names(what, first, second), quantity, len(a))
            rows.append((*names, *means, low, high, p, math.nan, effect, note, family(first, second, quantity)))
    return _corrected(pd.DataFrame(rows, columns=TEST_COLUMNS))


def shares_table(episodes: pd.DataFrame) -> pd.DataFrame:
    """Shares of tasks solved, and with a missing-binding error, for every one of ``comparisons``: SHARE_COLUMNS.

    ``difference`` is share_first − share_second with the interval of ``share_difference``; ``only_first``,
    ``only_second`` and ``p`` are those of ``mcnemar``; ``p_holm`` is corrected within ``family``. NaN without pairs.
    """
    rows = []
    for what, first, second in _comparisons(episodes):
        for quantity, column in SHARES.items():
            a, b = (side > 0 for side in paired(episodes, first, second, column))
            shares = (a.mean(), b.mean()) if len(a) else (math.nan,) * 2
            counted = (*share_difference(a, b), *mcnemar(a, b), math.nan, family(first, second, quantity))
            rows.append((*_names(what, first, second), quantity, len(a), *shares, *counted))
    return _corrected(pd.DataFrame(rows, columns=SHARE_COLUMNS))


def equivalence_table(
    episodes: pd.DataFrame, margin: float = MARGIN, n_resamples: int = 5000, seed: int = 0
) -> pd.DataFrame:
    """Is the score the same within ± ``margin``? ``equivalence`` for every one of ``comparisons``.

    EQUIVALENCE_COLUMNS: low and high are the 90 % BCa interval; ``spread`` is the standard deviation of the paired
    differences; ``detectable`` the smallest difference that these n tasks can find, ``tasks_needed`` the fewest with
    which equal cells of that spread are shown equivalent (power 80 % each). A verdict is about its own row at 5 %,
    not corrected for the others: for "any of these" read ``tests_table``'s p_holm.
    """
    rows = []
    for what, first, second in _comparisons(episodes):
        found = equivalence(*paired(episodes, first, second, "score"), margin, n_resamples, seed)
        tested = (found.low, found.high, margin, found.p_difference, found.p_equivalence, found.verdict, found.spread)
        planned = (detectable_difference(found.n, found.spread), tasks_for_equivalence(found.spread, margin))
        names = _names(what, first, second)
        rows.append((*names, found.n, found.differing, found.difference, *tested, *planned, found.note))
    return pd.DataFrame(rows, columns=EQUIVALENCE_COLUMNS)


def interaction(episodes: pd.DataFrame, split: str, column: str, logarithm: bool = False) -> np.ndarray:
    """D = (PP − PS) − (SP − SS) of each task completed in all four cells of a split, shape (n,), ordered by task.

    XY is the model trained on X in runtime Y: D says how much more the persistent-trained model gains from the
    persistent runtime than the stateless-trained one. With ``logarithm`` of ln(column), where exp(D) is a ratio of
    ratios; tasks with a 0 in any cell then have no D and are left out.
    """
    cells = np.array(matched(episodes, [(*cell, split) for cell in (PP, PS, SP, SS)], column))
    if logarithm:
        cells = np.log(cells[:, (cells > 0).all(axis=0)])
    return (cells[0] - cells[1]) - (cells[2] - cells[3])


def interactions_table(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Mean ``interaction`` of score and of log total_tokens per split, with 95 % BCa intervals: INTERACTION_COLUMNS.

    For the tokens ``ratio`` and its ends are exp of it: (PP ÷ PS) ÷ (SP ÷ SS) in geometric means, NaN for the score.
    A split without a task completed in all four cells has n = 0 and NaN.
    """
    rows = []
    for split in dict.fromkeys(episodes["split"]):
        for quantity, column, logarithm in (("score", "score", False), ("log total_tokens", "total_tokens", True)):
            d = interaction(episodes, split, column, logarithm)
            low, high, note = bootstrap_interval((d,), mean, n_resamples, seed)
            row = (float(d.mean()) if len(d) else math.nan, low, high)
            ratios = tuple(np.exp(row)) if logarithm else (math.nan,) * 3
            if dropped := logarithm and len(interaction(episodes, split, column)) - len(d):
                note = "; ".join(filter(None, (note, f"{dropped} tasks without tokens left out")))
            rows.append((split, quantity, len(d), *row, *ratios, note))
    return pd.DataFrame(rows, columns=INTERACTION_COLUMNS)


def between_runs(
    table: pd.DataFrame, quantity: str, keys: Iterable[str] = ("model", "runtime", "split")
) -> pd.DataFrame:
    """How a quantity of a cell varies over runs: a row a cell, with ``keys`` and RUN_COLUMNS.

    ``table`` has a row per ``run`` and cell (``cells.csv`` of several runs with a column ``run``), in any order;
    ValueError for a cell twice in a run. Rows without a value are not counted in ``runs``. ``sd`` has n − 1 below it
    and is NaN for one run; ``low`` and ``high`` are the 95 % t interval over runs, mean ± t₀.₉₇₅·sd÷√runs on runs − 1
    degrees of freedom, NaN for fewer than 3 runs. It says what another run would give (whatever changed between these
    runs: training seed, tasks, sampling), where the interval over tasks says what other tasks would give to the very
    same models; with a handful of runs it is wide, and no interval over tasks replaces it.
    """
    keys = list(keys)
    if table.duplicated(["run", *keys]).any():
        raise ValueError(f"a run has two rows with the same {', '.join(keys)}")
    rows = []
    for key, group in table.groupby(keys, sort=False):
        values = group[quantity].dropna().to_numpy(float)
        runs = len(values)
        average, least, most = (values.mean(), values.min(), values.max()) if runs else (math.nan,) * 3
        sd = values.std(ddof=1) if runs > 1 else math.nan
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, runs - 1) * sd / math.sqrt(runs) if runs > 2 else math.nan
        rows.append((*key, runs, average, sd, least, most, average - reach, average + reach))
    return pd.DataFrame(rows, columns=[*keys, *RUN_COLUMNS])


def _comparisons(episodes: pd.DataFrame) -> list[tuple[str, tuple, tuple]]:
    return comparisons(zip(episodes["model"], episodes["runtime"], episodes["split"], strict=True))


def _names(what: str, first: tuple, second: tuple) -> tuple[str, str, str, str]:
    return first[2], what, "→".join(first[:2]), "→".join(second[:2])


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    for _, rows in table.groupby("family").groups.items():
        table.loc[rows, "p_holm"] = holm(table.loc[rows, "p"])
    return table

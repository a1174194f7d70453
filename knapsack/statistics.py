"""Intervals and tests. Episodes of two cells are paired by task, because every cell plays the same tasks."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
TEST_COLUMNS = [
    "split", "comparison", "first", "second", "quantity", "n", "mean_first", "mean_second", "difference", "low", "high",
    "p", "p_holm", "effect", "note",
]  # fmt: skip


def _bootstrap(samples: tuple[np.ndarray, ...], statistic, n_resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval; pairs stay together, for the samples are resampled by the same rows."""
    if len(samples[0]) == 0:
        return math.nan, math.nan
    if all(np.ptp(sample) == 0 for sample in samples):  # every resample is the sample itself
        return (float(statistic(*samples)),) * 2
    result = stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=n_resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(values: np.ndarray, n_resamples: int = 5000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (paper: 5,000 resamples); (NaN, NaN) for no values."""
    return _bootstrap((np.asarray(values, float),), lambda x, axis=-1: np.mean(x, axis=axis), n_resamples, seed)


def ratio_interval(
    first: np.ndarray, second: np.ndarray, n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float, float]:
    """mean(first) ÷ mean(second) over paired tasks, with its 95 % interval from resampling the pairs."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) != len(second):
        raise ValueError(f"ratio_interval needs pairs; got {len(first)} and {len(second)} values")
    if len(first) == 0 or np.mean(second) == 0:
        return math.nan, math.nan, math.nan

    def ratio(x, y, axis=-1):
        return np.mean(x, axis=axis) / np.mean(y, axis=axis)

    return float(ratio(first, second)), *_bootstrap((first, second), ratio, n_resamples, seed)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (scipy's ``proportion_ci``); (NaN, NaN) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    interval = stats.binomtest(int(count), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def wilcoxon(first: np.ndarray, second: np.ndarray) -> tuple[float, float, str]:
    """Two-sided Wilcoxon signed-rank test of paired values: p, effect size and a note on what was done.

    Zero differences are dropped (``zero_method="wilcox"``). Effect size is the matched-pairs rank-biserial
    correlation r = (W⁺ − W⁻) ÷ (W⁺ + W⁻), from −1 (second always greater) to 1 (first always greater). Without any
    difference p = 1 and r = 0, and the note says so; without pairs both are NaN.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    if len(difference) == 0:
        return math.nan, math.nan, "no pairs"
    kept = difference[difference != 0]
    if len(kept) == 0:
        return 1.0, 0.0, "all differences zero"
    ranks = stats.rankdata(np.abs(kept))
    effect = float((ranks[kept > 0].sum() - ranks[kept < 0].sum()) / ranks.sum())
    p = float(stats.wilcoxon(difference, zero_method="wilcox").pvalue)
    zeros = len(difference) - len(kept)
    return p, effect, f"{zeros} zero differences dropped" if zeros else ""


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


def paired(episodes: pd.DataFrame, first: tuple, second: tuple, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of ``column`` for the tasks completed in both cells (model, runtime, split), in the order of tasks."""
    sides = []
    for model, runtime, split in (first, second):
        chosen = (episodes["model"] == model) & (episodes["runtime"] == runtime) & (episodes["split"] == split)
        sides.append(episodes[chosen & (episodes["status"] == "completed")].set_index("task_id")[column])
    shared = sides[0].index.intersection(sides[1].index).sort_values()
    return tuple(side.loc[shared].to_numpy(float) for side in sides)


def comparisons(cells: Iterable[tuple]) -> list[tuple[str, tuple, tuple]]:
    """The study's comparisons among the (model, runtime, split) that exist: (what, first, second).

    Per split: training within a runtime, the runtime within a model, and the two aligned cells.
    """
    have = list(dict.fromkeys(cells))
    found = []
    for split in dict.fromkeys(cell[2] for cell in have):
        for runtime in ("persistent", "stateless"):
            pair = (("persistent", runtime, split), ("stateless", runtime, split))
            found.append((f"training, in the {runtime} runtime", *pair))
        for model in dict.fromkeys(cell[0] for cell in have):
            found.append((f"runtime, {model}", (model, "persistent", split), (model, "stateless", split)))
        found.append(("aligned cells", ("persistent", "persistent", split), ("stateless", "stateless", split)))
    return [row for row in found if row[1] in have and row[2] in have]


def tests_table(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Paired tests of score and total_tokens for every one of ``comparisons``, with TEST_COLUMNS.

    ``difference`` is mean(first − second) with its bootstrap interval; ``p_holm`` is corrected over all rows.
    """
    rows = []
    for what, first, second in comparisons(zip(episodes["model"], episodes["runtime"], episodes["split"], strict=True)):
        for quantity in ("score", "total_tokens"):
            a, b = paired(episodes, first, second, quantity)
            low, high = mean_interval(a - b, n_resamples, seed)
            p, effect, note = wilcoxon(a, b)
            means = (a.mean(), b.mean(), (a - b).mean()) if len(a) else (math.nan,) * 3
            names = (first[2], what, "→".join(first[:2]), "→".join(second[:2]), quantity, len(a))
            rows.append((*names, *means, low, high, p, math.nan, effect, note))
    table = pd.DataFrame(rows, columns=TEST_COLUMNS)
    table["p_holm"] = holm(table["p"])
    return table

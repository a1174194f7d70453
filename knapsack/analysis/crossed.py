"""Estimates over several trainings: what another training on other tasks would give, as the paper's v3 asks.

Trainings and tasks are crossed: every training's models played every task. So a value is the mean over both, and its
interval the percentile one of a crossed bootstrap, which in each resample draws trainings and, independently of them,
tasks, both with replacement (Owen, Annals of Applied Statistics 1, 2007, 386–411, who shows it to be conservative). The
same draws serve all cells, so pairs stay together. Three trainings are few: an interval over them is a rough one, and
it has no width where neither trainings nor tasks differ.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from knapsack.analysis.estimates import COLUMNS, DIFFERENCES, PP, PS, SHARES, SLOPE, SP, SS, TRAINING, Estimate
from knapsack.analysis.intervals import BOOTSTRAP, CONFIDENCE, NO_INTERVAL, NO_SPREAD, Bootstrap
from knapsack.analysis.metrics import CELL, NUMBERS, completed, setting_rows
from knapsack.analysis.statistics import MARGIN, equivalence_table, tests_table

INTERACTION = (1, -1, -1, 1)  # of PP, PS, SP and SS


def played_by_all(episodes: pd.DataFrame) -> pd.DataFrame:
    """Of episodes with a column ``run``, the scored ones of each cell's tasks that were scored in every run."""
    done = completed(episodes)
    return done[done.groupby([*CELL, "task_id"])["run"].transform("nunique") == episodes["run"].nunique()]


def task_means(episodes: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and task with the means over runs: what a test of paired tasks takes for one training's episodes.

    Such a test asks about tasks for these trainings; it knows nothing of how trainings differ."""
    means = played_by_all(episodes).groupby([*CELL, "task_id"], sort=False)[NUMBERS].mean()
    return means.reset_index().assign(status="completed")


@lru_cache(maxsize=8)
def _draws(n: int, bootstrap: Bootstrap, which: int) -> np.ndarray:
    """The share of each of n in each resample, shape (resamples, n); ``which`` keeps trainings and tasks apart."""
    rng = np.random.default_rng([bootstrap.seed, which])
    return rng.multinomial(n, np.full(n, 1 / n), bootstrap.n_resamples) / n


def _found(cells: np.ndarray, weights: Sequence[int] | None, bootstrap: Bootstrap) -> np.ndarray:
    """The value of ``cells``, and that of each resample, shape (1 + resamples,)."""
    trainings, tasks = (_draws(n, bootstrap, which) for which, n in enumerate(cells.shape[1:]))
    means = np.column_stack([cells.mean((1, 2)), ((trainings @ cells) * tasks).sum(axis=2)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[0] / means[1] if weights is None else np.asarray(weights) @ means


def crossed_interval(
    cells: np.ndarray, weights: Sequence[int] | None, bootstrap: Bootstrap = BOOTSTRAP
) -> tuple[float, float, float, str]:
    """Value, both ends and a note for ``cells`` of shape (cells, trainings, tasks).

    The value is the sum of the cells' means times ``weights``, or with None the first mean ÷ the second. NaN without
    tasks or for a ratio over zero; both ends are NaN where a resample has no value.
    """
    if not cells.shape[2]:
        return math.nan, math.nan, math.nan, "no values"
    found = _found(cells, weights, bootstrap)
    value, resampled = float(found[0]), found[1:]
    if not np.isfinite(found).all():
        return value if math.isfinite(value) else math.nan, math.nan, math.nan, NO_INTERVAL
    if np.ptp(resampled) <= 1e-12 * np.abs(resampled).max():
        return value, value, value, NO_SPREAD
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, float(low), float(high), ""


def crossed_table(episodes: pd.DataFrame, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> pd.DataFrame:
    """Of ``estimates`` (one run's) the rows about DIFFERENCES' quantities, anew from the ``episodes`` of all runs, and
    those of the training traces as they are: COLUMNS. ``n`` counts tasks that every run scored in all cells of a row.
    """
    known = played_by_all(episodes)
    wide = {}
    for name in DIFFERENCES:
        column = SHARES.get(name, name)
        table = known.pivot(index=["run", "task_id"], columns=CELL, values=column)
        wide[name] = table > 0 if name in SHARES else table
        wide[name] = wide[name].where(table.notna())
    rows = []
    for quantity, split, cap, first, second in estimates[COLUMNS[:5]].itertuples(index=False, name=None):
        name, _, how = quantity.partition(" ")
        if name not in DIFFERENCES or quantity == "total_tokens interaction" or quantity.startswith(SLOPE):
            continue
        ends, weights = [tuple(end.split("→")) for end in (first, second) if end], {"": (1,), "difference": (1, -1)}
        caps, weights = [cap], weights.get(how)
        if how.startswith("interaction"):
            ends, caps = (PP, PS, SP, SS), [cap, *map(int, how.split()[3:])]
            weights = [sign * weight for sign in (1, -1)[: len(caps)] for weight in INTERACTION]
        cells = pd.MultiIndex.from_tuples([(*end, split, one) for one in caps for end in ends])
        values = wide[name].reindex(columns=cells).dropna().to_numpy(float).T
        values = values.reshape(len(cells), episodes["run"].nunique(), -1)
        found = Estimate(values.shape[2], *crossed_interval(values, weights, bootstrap))
        rows.append((quantity, split, cap, first, second, *found))
    return pd.concat([pd.DataFrame(rows, columns=COLUMNS), setting_rows(estimates, TRAINING)], ignore_index=True)


def over_trainings(
    episodes: pd.DataFrame, estimates: pd.DataFrame, margin: float = MARGIN, bootstrap: Bootstrap = BOOTSTRAP
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What ``claims.claims_table`` takes: ``crossed_table``, and the tests and equivalence of ``task_means``.

    That cells are the same has to hold for other trainings too: ``p_equivalence`` is the larger of what the tasks'
    means give and the share of crossed resamples on the wrong side of either end of ± ``margin``."""
    found, means = crossed_table(episodes, estimates, bootstrap), task_means(episodes)
    equal = equivalence_table(means, margin, bootstrap).drop(columns="verdict")  # it knows only of tasks
    scores = played_by_all(episodes).pivot(index=["run", "task_id"], columns=CELL, values="score")
    for row in equal[equal["n"] > 0].itertuples():
        pair = [(*end.split("→"), row.split, row.cap) for end in (row.first, row.second)]
        cells = scores[pair].dropna().to_numpy().T.reshape(2, episodes["run"].nunique(), -1)
        apart = _found(cells, (1, -1), bootstrap)[1:]
        outside = max((apart <= -margin).mean(), (apart >= margin).mean())
        equal.loc[row.Index, "p_equivalence"] = max(row.p_equivalence, outside)
    return found, tests_table(means, found), equal

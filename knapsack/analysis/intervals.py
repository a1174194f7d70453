"""Intervals: bootstrap ones of means (BCa) and of ratios (percentile), closed forms for shares.

The bootstrap resamples tasks, so an interval says how far the estimate would move with other tasks of the same kind,
not with another training seed (``crossed`` is for that). It cannot see what the sample lacks: with
fewer than about ten tasks, or when hardly any of them differ, it is too narrow.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
METHOD = "bca"  # of means, scipy's name of the bias-corrected and accelerated bootstrap
RATIO_METHOD = "percentile"
ONE_VALUE, NO_SPREAD = "interval: one value", "interval: no spread"
FALLBACK, NO_INTERVAL = "interval: percentile, BCa undefined", "interval: not every resample has a value"


@dataclass(frozen=True)
class Bootstrap:
    """How often tasks are resampled, 5,000 times as in the paper by default, and from which seed."""

    n_resamples: int = 5000
    seed: int = 0


BOOTSTRAP = Bootstrap()


def bootstrap_interval(
    samples: tuple[np.ndarray, ...],
    statistic: Callable,
    bootstrap: Bootstrap = BOOTSTRAP,
    confidence: float = CONFIDENCE,
    method: str = METHOD,
) -> tuple[float, float, str]:
    """Low and high end of the bootstrap interval of ``statistic(*samples, axis)``, and a note, mostly empty.

    "percentile": those of the resampled statistic; "bca": the same, moved for its bias and, by the jackknife, for its
    skewness (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 14). ``samples`` have shape
    (n,) each and are resampled by the same rows, so pairs stay together. The note names what else was done: one
    value, or no resample that differs, gives the statistic itself as both ends; an undefined BCa gives the percentile
    interval. Without values, with a NaN among them, or where a resample has no value (a ratio over zero), both ends
    are NaN.
    """
    if len(samples[0]) == 0 or any(np.isnan(sample).any() for sample in samples):
        return math.nan, math.nan, "no values" if len(samples[0]) == 0 else NO_INTERVAL
    estimate = float(statistic(*samples))
    if len(samples[0]) == 1:
        return estimate, estimate, ONE_VALUE
    settings = {"paired": len(samples) > 1, "vectorized": True, "confidence_level": confidence}
    resampling = {"n_resamples": bootstrap.n_resamples, "rng": np.random.default_rng(bootstrap.seed)}
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # a NaN end is dealt with below
        plain = stats.bootstrap(samples, statistic, method="percentile", **resampling, **settings)
        resampled = plain.bootstrap_distribution
        if not np.isfinite(resampled).all():
            return math.nan, math.nan, NO_INTERVAL
        if np.ptp(resampled) <= 1e-12 * np.abs(resampled).max():
            return estimate, estimate, NO_SPREAD
        moved = stats.bootstrap(samples, statistic, n_resamples=0, bootstrap_result=plain, method=method, **settings)
    found, note = moved.confidence_interval, ""
    if math.isnan(found.low) or math.isnan(found.high):
        found, note = plain.confidence_interval, FALLBACK
    return float(found.low), float(found.high), note


def mean_interval(
    values: np.ndarray, bootstrap: Bootstrap = BOOTSTRAP, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """BCa interval of the mean of ``values``, shape (n,).

    A single value, or equal ones, are both ends of their interval; (NaN, NaN) for no values or a NaN among them.
    """
    return bootstrap_interval((np.asarray(values, float),), np.mean, bootstrap, confidence)[:2]


def ratio_interval(
    first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap = BOOTSTRAP
) -> tuple[float, float, float]:
    """mean(first) ÷ mean(second) over paired tasks, with its 95 % interval from resampling the pairs.

    The percentile interval, not BCa: a rare, very long episode on either side misleads the jackknife about the
    skewness of the ratio, and BCa then covers less. Both have shape (n,); ValueError otherwise. NaN three times for
    no pairs or mean(second) = 0; both ends are NaN where a resample's mean(second) is 0.
    """
    first, second = pairs(first, second)
    if len(first) == 0 or np.mean(second) == 0:
        return math.nan, math.nan, math.nan

    def ratio(x, y, axis=-1):
        return np.mean(x, axis=axis) / np.mean(y, axis=axis)

    ends = bootstrap_interval((first, second), ratio, bootstrap, method=RATIO_METHOD)[:2]
    return float(ratio(first, second)), *ends


def share_interval(count: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (scipy's ``proportion_ci``); (NaN, NaN) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    interval = stats.binomtest(int(count), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def share_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """share(first) − share(second) of the same n tasks, truth values of shape (n,), with its 95 % interval.

    Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635–2650): the Wilson intervals of both shares, squared
    and added with the correlation of the pairs. Unlike a bootstrap it does not shrink to a point when no task
    differs: 50 tasks without a difference do not show that there is none. NaN three times without pairs.
    """
    first, second = (side.astype(bool) for side in pairs(first, second))
    n = len(first)
    if n == 0:
        return math.nan, math.nan, math.nan
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, two = int(first.sum()), int(second.sum())
    excess = both * neither - (one - both) * (two - both)
    if excess > 0:  # his continuity correction
        excess = max(0.0, excess - n / 2)
    margins = one * (n - one) * two * (n - two)
    correlation = excess / math.sqrt(margins) if margins else 0.0
    (low_one, high_one), (low_two, high_two) = share_interval(one, n), share_interval(two, n)

    def reach(a, b):
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = (one - two) / n
    low = difference - reach(one / n - low_one, high_two - two / n)
    return difference, low, difference + reach(high_one - one / n, two / n - low_two)


def pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of floats; ValueError for unequal lengths."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) != len(second):
        raise ValueError(f"needs pairs; got {len(first)} and {len(second)} values")
    return first, second

""""The same" as a finding: equivalence of paired values within a margin, and what n tasks can show.

Two one-sided t tests (TOST; Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987, 657–680) decide,
not the bootstrap: where few tasks differ, as between two good agents, the t interval misses the truth less often than
BCa's; t depends on no seed; and the power formulas below are its own. The BCa interval stands beside as a check.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, stats

from knapsack.analysis.intervals import bootstrap_interval, mean, pairs

LEVEL = 0.05  # of each one-sided test, and of the two-sided test of a difference
MARGIN = 0.05  # of normalized optimality: 5 points of score
POWER = 0.8
EQUIVALENT, WITHIN, DIFFERENT, UNDECIDED = "equivalent", "different but within the margin", "different", "undecided"


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
    first: np.ndarray, second: np.ndarray, margin: float = MARGIN, n_resamples: int = 5000, seed: int = 0
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
    _check(margin)
    first, second = pairs(first, second)
    d = first - second
    n = len(d)
    if n == 0:
        return Equivalence(0, 0, *(math.nan,) * 6, UNDECIDED, "no pairs")
    low, high, note = bootstrap_interval((d,), mean, n_resamples, seed, 1 - 2 * LEVEL)
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
    """The smallest mean paired difference that a two-sided paired t test of n tasks finds with this power.

    Solves P(|T| > t₀.₉₇₅) = power for the noncentrality δ√n ÷ spread of T, a noncentral t on n − 1 degrees of freedom
    (Cohen, Statistical Power Analysis, 1988, chapter 2; T² is a noncentral F, which scipy evaluates more safely);
    ``spread`` is the standard deviation of the paired differences. NaN for n < 2 or an unknown spread; 0 without
    spread.
    """
    if n < 2 or math.isnan(spread):
        return math.nan
    critical = stats.t.ppf(1 - LEVEL / 2, n - 1)

    def missing(noncentrality: float) -> float:
        return float(stats.ncf.sf(critical**2, 1, n - 1, noncentrality**2)) - power

    return float(optimize.brentq(missing, 0, 2 * critical + 10)) * spread / math.sqrt(n)


def equivalence_power(n: int, spread: float, margin: float = MARGIN, difference: float = 0.0) -> float:
    """The probability that ``equivalence`` (TOST, normal differences) shows the margin with n tasks.

    ``difference`` is the true mean, ``spread`` the true standard deviation of the paired differences. Exact: given
    their sample standard deviation s, the mean must fall within ± (margin − t₀.₉₅·s÷√n), a normal probability; that
    is averaged over the distribution of s (Phillips, Journal of Pharmacokinetics and Biopharmaceutics 18, 1990,
    137–144). NaN for n < 2 or an unknown spread.
    """
    _check(margin)
    if n < 2 or math.isnan(spread):
        return math.nan
    if spread == 0:
        return float(abs(difference) < margin and 0.5**n < LEVEL)
    critical, scale = stats.t.ppf(1 - LEVEL, n - 1), math.sqrt(n) / spread
    above, below = (margin - difference) * scale, (-margin - difference) * scale
    most = stats.chi2.cdf((n - 1) * (margin * scale / critical) ** 2, n - 1)  # a larger s never shows the margin

    def given(u: np.ndarray) -> np.ndarray:  # u: cumulative probability of s²
        reach = critical * np.sqrt(stats.chi2.ppf(u, n - 1) / (n - 1))
        return stats.norm.cdf(above - reach) - stats.norm.cdf(below + reach)

    return float(integrate.fixed_quad(given, 0, most, n=200)[0])


def tasks_for_equivalence(spread: float, margin: float = MARGIN, power: float = POWER) -> float:
    """The fewest tasks with which ``equivalence_power`` reaches ``power`` at a true difference of 0; NaN if unknown.

    About (1.645 + 1.282)² · (spread ÷ margin)² for a power of 80 %; 5 without spread, by the sign test.
    """
    _check(margin)
    if math.isnan(spread):
        return math.nan
    enough = 2
    while equivalence_power(enough, spread, margin) < power:
        enough *= 2
    short = enough // 2  # has too little power, or is 1
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if equivalence_power(middle, spread, margin) >= power else (middle, enough)
    return enough


def _check(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin = {margin}: needs a positive number, in the units of the values")

"""The paper's claims beside this run's estimates, with verdicts by rule.

Each claim is about rows of ``estimates``, with their 95 % intervals, and for "no difference" of the tests. Three rules:

* **direction** (a difference above 0, a ratio above 1): reproduced if the interval lies on the claimed side; not
  reproduced if it lies on the other, or if it holds "no effect" but not the paper's number, so that an effect of that
  size is ruled out; else not testable at this scale.
* **same** (no significant difference): reproduced if shown to be the same within the margin (two one-sided tests) and
  not significantly different; not reproduced if significantly different (Wilcoxon, corrected by Holm); else not
  testable: "not significant" alone is what any small run finds.
* **below** (the base scores below 8 %, and solves nothing): reproduced if the interval ends below and no task is
  solved; not reproduced if it begins above, or any is; else not testable.

``size``, where the paper gives a number and the claim is reproduced: the interval holds it, or lies below or above.
Fewer than FEWEST tasks, or a cell that was not played, are never more than not testable.

**The cap on tool calls.** v3 plays at caps of 25 and 80 and has other numbers for each: its claims are judged at its
own two caps, and are not testable at one that was not played. v1 makes no claim depend on a cap, and does not tell
whether its evaluation had one (its configurations got their 25 later): its claims are judged at the slackest cap that
was played, where the cap decides least. What takes more than the default run (the slope over many caps, carry-over,
runtimes that are not told, adapters of mixed traces or of as many tokens) is judged where the run has it (``make
beyond``); the paper has no number for it.

**Trainings.** Another training may turn a verdict. With runs of several trainings the estimates are those of
``crossed``, whose intervals ask what other trainings and other tasks would give; "the same" has to hold for both too,
and a difference is tested on each task's mean over trainings, so for other tasks only. With one, all is about that one.

``reasons`` says, from the tables of the same run, what lies behind each verdict that is not "reproduced".
"""

import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from knapsack.analysis import tables
from knapsack.analysis.estimates import MATCHED, MIXED, PP, PS, SLOPE, SP, SS, TRAINING, Estimate, look_up
from knapsack.analysis.metrics import SETTING, cell_name, setting_names, setting_rows
from knapsack.analysis.statistics import LEVEL
from knapsack.runtime import KINDS

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable at this scale"
IN_SIZE, SMALLER, LARGER = "in size", "smaller", "larger"
FEWEST = 6  # tasks with which a two-sided signed-rank test can be significant at all: 2 ÷ 2⁶ < 0.05
BASE_BELOW = 0.08
BP, BS = (("base", kind) for kind in KINDS)
COLUMNS = ["claim", "version", *SETTING, "unit", "paper", "n", "estimate", "low", "high", "verdict", "size", "reason"]
COLUMNS += ["trainings", "least", "most"]  # seeds of the trainings that a row rests on, if several, and its range
UNITS = {"points": (100, 1, " points"), "share": (100, 0, " %"), "ratio": (1, 2, " ×"), "D": (1, 2, "")}  # how to show
ONE_TRAINING = "All of it is about the one training of each model in this run: another may give other verdicts."
MOVES = (
    "But for the training traces, they rest on {} trainings of each model (seeds {}); from one of these to another, a "
    "claim's score, or difference of two scores, moves by up to {} points."
)
ACROSS = (
    "But for the training traces, all of it rests on {} trainings of each model (seeds {}): estimates are means over "
    "trainings and tasks, with percentile intervals of a crossed bootstrap that resamples both; n counts tasks; "
    "a difference is tested on each task's mean over trainings, that there is none by that bootstrap as well; the "
    "range over trainings is that of the estimates of each one."
)
SAID = {"same": "not significant", "below": "< 8 points, none solved"}  # by rule, how the paper puts it in words


class Claim(NamedTuple):
    """``paper``: its number, in the unit's own scale (shares from 0 to 1): one for all, or in v1 one by split, in v3 by
    cap. ``rule`` is "above", "same", "below" or "more"; ``quantity``, ``first`` and ``second`` say which estimates it
    is about, ``against`` which other cap than its own."""

    text: str
    version: str
    unit: str
    paper: float | dict[str, float] | dict[int, float] | None
    rule: str
    quantity: str
    first: tuple
    second: tuple
    against: tuple[int, ...] = ()
    beyond: bool = False

    @property
    def cells(self) -> tuple:
        """Those that have to be scored; none for a claim about the training traces."""
        if self.unit == "D":
            return PP, PS, SP, SS
        return (self.first, self.second) if len(self.first) == 2 else ()

    def settings(self, played: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Where it is judged, of what was ``played``: v1 at the slackest cap of each split, v3 at its own caps."""
        if not self.cells:
            return [TRAINING]
        if self.beyond:
            return played
        if self.version == "v3":
            return list(product(dict(played), self.paper))
        return [(split, max(cap for other, cap in played if other == split)) for split in dict(played)]

    def number(self, split: str, cap: int) -> float | None:
        """The paper's number in a setting, None where it gives none."""
        return self.paper.get(cap if self.version == "v3" else split) if isinstance(self.paper, dict) else self.paper


P, S = KINDS[:1], KINDS[1:]
CLAIMS = [
    Claim(
        "P→P and S→S: no significant difference in quality", "v1", "points", {"hard": 0.754 - 0.677},
        "same", "score difference", PP, SS,
    ),
    Claim(
        "P→P and P→S: no significant difference in quality", "v1", "points", None, "same", "score difference", PP, PS
    ),
    Claim(
        "S→S and S→P: no significant difference in quality", "v1", "points", None, "same", "score difference", SS, SP
    ),
    Claim(
        "P→S scores less than P→P", "v3", "points", {25: 0.66 - 0.07, 80: 0.77 - 0.61},
        "above", "score difference", PP, PS,
    ),
    Claim(
        "D = (P→P − P→S) − (S→P − S→S) is above 0", "v3", "D", {25: 0.73, 80: 0.43}, "above", "score interaction", P, S,
    ),
    Claim(
        "T = D(25) − D(80) is above 0", "v3", "D", {25: 0.31}, "above", "score interaction minus cap 80", P, S, (80,)
    ),
    Claim(
        "P→S gains more from a slacker cap than P→P (score for a doubled cap)", "v3", "points", None,
        "above", f"{SLOPE} difference", PS, PP, beyond=True,
    ),
    Claim(
        "Carry-over of a turn that the cap cut short raises P→S", "v3", "points", None,
        "above", "score difference", ("persistent", "carry-over"), PS, beyond=True,
    ),
    Claim(
        "P→S: episodes miss a name, more than in P→P, though no runtime is told", "v1", "share", None,
        "more", "missing_binding", ("persistent", "stateless-untold"), ("persistent", "persistent-untold"), beyond=True,
    ),
    Claim("P→S: episodes miss a name, more than in P→P", "v1", "share", 0.80, "more", "missing_binding", PS, PP),
    Claim(
        "S→P spends more tokens than P→P (amnesia tax)", "v1", "ratio", 3.5, "above", "total_tokens ratio", SP, PP
    ),
    Claim(
        "S→S spends more tokens than P→P", "v1", "ratio", {"easy": 58_814 / 19_648, "hard": 67_898 / 18_612},
        "above", "total_tokens ratio", SS, PP,
    ),
    Claim(
        "S→P spends more tokens than P→P, after as many labelled tokens", "v1", "ratio", None,
        "above", "total_tokens ratio", (MATCHED, "persistent"), PP, beyond=True,
    ),
    *(
        Claim(
            f"Trained on both kinds of traces: as good in the {kind} runtime as the model of that runtime", "v1",
            "points", None, "same", "score difference", (MIXED, kind), (kind, kind), beyond=True,
        )
        for kind in KINDS
    ),
    Claim("base: scores below 8 % in either runtime, solves none", "v1", "points", None, "below", "score", BP, BS),
    Claim(
        "Stateless training traces are longer than persistent ones", "v1", "ratio", 2.3, "above", "trace_tokens ratio",
        S, P,
    ),
    Claim(
        "Stateless training episodes spend more tokens", "v1", "ratio", 55_516 / 18_337,
        "above", "episode_tokens ratio", S, P,
    ),
]  # fmt: skip


# The rules


def direction(low: float, high: float, none: float, paper: float | None, ends: tuple | None = None) -> tuple[str, str]:
    """Verdict and reason for "above ``none``": the interval from ``low`` to ``high`` decides on the side, that from
    ``ends`` (the same, if left out) on the paper's number."""
    least, most = ends or (low, high)
    if math.isnan(low) or math.isnan(least):
        return NOT_TESTABLE, "no interval"
    if low > none:
        return REPRODUCED, "interval on the claimed side"
    if high < none:
        return NOT_REPRODUCED, "interval on the other side"
    if paper is None:
        return NOT_TESTABLE, "interval holds no effect"
    if least <= paper <= most:
        return NOT_TESTABLE, "interval holds no effect as well as the paper's"
    return NOT_REPRODUCED, "interval holds no effect, but not the paper's"


def same(p_difference: float, p_equivalence: float) -> tuple[str, str]:
    """Verdict and reason for "no significant difference"; NaN decides nothing."""
    found = f"p {tables.probability(p_difference)} for a difference, {tables.probability(p_equivalence)} for the same"
    if p_difference < LEVEL:
        return NOT_REPRODUCED, found
    return (REPRODUCED if p_equivalence < LEVEL else NOT_TESTABLE), found


def below(low: float, high: float, solved: bool, bound: float = BASE_BELOW) -> tuple[str, str]:
    """Verdict and reason for "scores below ``bound``, solves none"."""
    if low > bound or solved:
        return NOT_REPRODUCED, "a task solved" if solved else "interval above"
    return (REPRODUCED, "interval below, none solved") if high < bound else (NOT_TESTABLE, "interval holds the bound")


def size(verdict: str, low: float, high: float, paper: float | None) -> str:
    """IN_SIZE, SMALLER or LARGER than the paper's number; empty if not reproduced, or without a number."""
    if verdict != REPRODUCED or paper is None:
        return ""
    return SMALLER if high < paper else LARGER if low > paper else IN_SIZE


# The table


def claims_table(
    estimates: pd.DataFrame,
    tests: pd.DataFrame,
    equivalence: pd.DataFrame,
    trainings: dict[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Every claim on every split and cap where it is judged, then those of the training traces: COLUMNS.

    From the tables of estimates, of tests and of equivalence of the same episodes; of several trainings, from those of
    ``crossed``, and from each training's own estimates, by seed, for the range. In their unit's own scale are paper,
    estimate, low, high, least and most: "share" and "points" from 0 to 1, "ratio", "D".
    """
    trainings = trainings or {}
    played, rows = [setting for setting in setting_names(estimates) if setting != TRAINING], []
    for claim in CLAIMS:
        for split, cap in claim.settings(played):
            paper = claim.number(split, cap)
            found, verdict, reason = _judged(claim, (split, cap), paper, estimates, tests, equivalence)
            if claim.beyond and not found.n:
                continue
            needed = [(split, one) for one in (cap, *claim.against)]
            absent = [c for c in claim.cells if not all(look_up(estimates, "score", one, c).n for one in needed)]
            if claim.cells and (missing := [one for _, one in needed if (split, one) not in played]):
                verdict, reason = NOT_TESTABLE, f"a cap of {missing[0]} was not played"
            elif absent:
                verdict, reason = NOT_TESTABLE, f"no scored episode of {tables.listed([cell_name(*c) for c in absent])}"
                found = Estimate(0, math.nan, math.nan, math.nan)
            elif found.n == 0 and not claim.cells:
                verdict, reason = NOT_TESTABLE, "no training traces"
            elif 0 < found.n < FEWEST:
                verdict, reason = NOT_TESTABLE, f"fewer than {FEWEST} tasks"
            told = "" if claim.rule in SAID else size(verdict, found.low, found.high, paper)
            row = [claim.text, claim.version, split, cap, claim.unit, math.nan if paper is None else paper]
            each = [_judged(claim, (split, cap), paper, one, tests, equivalence)[0] for one in trainings.values()]
            values = pd.Series([one.value for one in each if claim.cells and found.n], dtype=float)
            over = [", ".join(trainings) if claim.cells else "", values.min(), values.max()]
            rows.append([*row, *found[:4], verdict, told, reason, *over])
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(
    claim: Claim, setting: tuple, paper: float | None, estimates: pd.DataFrame, tests: pd.DataFrame, equal: pd.DataFrame
) -> tuple[Estimate, str, str]:
    """Estimate, verdict and reason by the claim's rule."""
    found = look_up(estimates, claim.quantity, setting, claim.first, claim.second)
    if claim.rule == "above":
        return found, *direction(found.low, found.high, 1 if claim.unit == "ratio" else 0, paper)
    if claim.rule == "same":
        p_values = []
        for table, name in ((tests[tests["quantity"] == "score"], "p_holm"), (equal, "p_equivalence")):
            ends = ["→".join(claim.first), "→".join(claim.second)]
            own = setting_rows(table, setting)
            p_values.append(own.loc[own["first"].isin(ends) & own["second"].isin(ends), name].max())
        return found, *same(*p_values)
    first, second = (look_up(estimates, claim.quantity, setting, cell) for cell in (claim.first, claim.second))
    if claim.rule == "more":  # by the difference; the share of the first is held against the paper's
        more = look_up(estimates, f"{claim.quantity} difference", setting, claim.first, claim.second)
        return first._replace(n=more.n), *direction(more.low, more.high, 0, paper, first[2:4])
    best = max(first, second, key=lambda score: score.value)
    solved = any(look_up(estimates, "solved", setting, cell).value > 0 for cell in (claim.first, claim.second))
    return best._replace(n=min(first.n, second.n)), *below(best.low, best.high, solved)


def read_claims(path: str | Path) -> pd.DataFrame:
    """A ``claims.csv``; text columns without a value are empty, numbers NaN."""
    texts = ("verdict", "size", "reason", "trainings")
    return pd.read_csv(path, dtype={"n": int} | dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))


def claims_shown(table: pd.DataFrame) -> tables.Table:
    """``claims_table`` as text, the claim named once for all its splits and caps."""
    said = {claim.text: SAID.get(claim.rule, "") for claim in CLAIMS}
    rows, before, seeds = [], None, table["trainings"].max() if len(table) else ""
    for row in table.to_dict("records"):
        factor, digits, sign = UNITS[row["unit"]]
        value, low, high = (row[name] for name in ("estimate", "low", "high"))
        paper = tables.number(factor * row["paper"], digits)
        paper = "; ".join(filter(None, (said.get(row["claim"], ""), paper + sign if paper else "")))
        here = tables.between(value, low, high, digits, factor)
        ends = " to ".join(filter(None, (tables.number(factor * row[name], digits) for name in ("least", "most"))))
        verdict = f"{row['verdict']}, {row['size']}" if row["size"] else row["verdict"]
        first = row["claim"] != before
        before = row["claim"]
        rows.append(
            {"claim": f"{row['claim']} ({row['version']})" if first else "", "split": row["split"]}
            | {"cap": str(row["cap"] or ""), "paper": paper}
            | {"here [95 %]": here.replace(" [", f"{sign} [") if here else ""}
            | ({"over trainings": ends if row["trainings"] else ""} if seeds else {})
            | {"n": tables.number(row["n"])}
            | {"verdict": verdict, "why": row["reason"]}
        )
    caption = (
        "The paper's claims (v1: March 2026, v3: September 2026), its numbers, this run's estimates with 95 % "
        "intervals, and a verdict by rule. v1's claims are judged at the slackest cap on tool calls that was played, "
        "v3's at its own. Scores and their differences are in points of 100. "
    )
    caption += ACROSS.format(seeds.count(",") + 1, seeds) if seeds else ONE_TRAINING
    return tables.Table(pd.DataFrame(rows), caption)


def summary(table: pd.DataFrame) -> str:
    """How many of the claims came out how, on how many trainings that rests, and how far these lie apart."""
    counts = table["verdict"].value_counts().reindex([REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE], fill_value=0)
    sized = int((table["size"] == IN_SIZE).sum())
    told = [f"{count} {'is' if count == 1 else 'are'} {name}" for name, count in counts.items()]
    told[0] += f" ({sized} in size too)" if sized else ""
    said = f"Of {len(table)} claims, each on one split under one cap or on the training traces, {tables.listed(told)}. "
    if not (seeds := table["trainings"].max()):
        return said + ONE_TRAINING
    apart = 100 * (table["most"] - table["least"])[table["unit"] == "points"].max()
    return said + MOVES.format(seeds.count(",") + 1, seeds, tables.number(apart, 1))

"""The paper's claims beside this run's estimates, with verdicts by rule.

Each claim is about one quantity, estimated from the same files as everything else, with a 95 % interval. Three rules:

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
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from knapsack.analysis import statistics, tables
from knapsack.analysis.equivalence import LEVEL, MARGIN, equivalence
from knapsack.analysis.intervals import ratio_interval, share_difference, share_interval
from knapsack.analysis.metrics import cell_name, completed
from knapsack.analysis.statistics import PP, PS, SP, SS, paired
from knapsack.runs import Run, write_folder, write_text
from knapsack.runtime import KINDS

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable at this scale"
IN_SIZE, SMALLER, LARGER = "in size", "smaller", "larger"
FEWEST = 6  # tasks with which a two-sided signed-rank test can be significant at all: 2 ÷ 2⁶ < 0.05
BASE_BELOW = 0.08
BP, BS = (("base", kind) for kind in KINDS)
COLUMNS = ["claim", "version", "split", "unit", "paper", "n", "estimate", "low", "high", "verdict", "size", "reason"]
UNITS = {"points": (100, 1, " points"), "share": (100, 0, " %"), "ratio": (1, 2, " ×"), "D": (1, 2, "")}  # how to show
START, END = "<!-- claims: computed by knapsack.analysis.claims.publish -->", "<!-- end of claims -->"


@dataclass(frozen=True)
class Estimate:
    """What a run says of a claim; ``low`` and ``high`` are of the 95 % interval."""

    n: int
    value: float
    low: float
    high: float
    verdict: str
    reason: str


@dataclass(frozen=True)
class Data:
    """What the estimates are made of: the episodes, ``statistics.tests_table`` of them, and the settings."""

    episodes: pd.DataFrame
    tests: pd.DataFrame
    margin: float
    n_resamples: int
    seed: int


@dataclass(frozen=True)
class Claim:
    """``paper``: its number, in the unit's own scale (shares from 0 to 1), for every split or by split; ``said``: how
    the paper puts it, where that is not the number. ``estimate(data, split, paper)`` gives None if a cell was not
    played."""

    text: str
    version: str
    unit: str
    paper: float | dict[str, float] | None
    cells: tuple[tuple[str, str], ...]
    estimate: Callable[[Data, str, float | None], Estimate]
    said: str = ""

    def number(self, split: str) -> float | None:
        """The paper's number for a split, None where it gives none."""
        return self.paper.get(split) if isinstance(self.paper, dict) else self.paper


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


def below(low: float, high: float, solved: int, bound: float = BASE_BELOW) -> tuple[str, str]:
    """Verdict and reason for "scores below ``bound``, solves none"."""
    if low > bound or solved:
        return NOT_REPRODUCED, "a task solved" if solved else "interval above"
    return (REPRODUCED, "interval below, none solved") if high < bound else (NOT_TESTABLE, "interval holds the bound")


def size(verdict: str, low: float, high: float, paper: float | None) -> str:
    """IN_SIZE, SMALLER or LARGER than the paper's number; empty if not reproduced, or without a number."""
    if verdict != REPRODUCED or paper is None:
        return ""
    return SMALLER if high < paper else LARGER if low > paper else IN_SIZE


# The estimates


def _no_difference(first: tuple, second: tuple) -> Callable:
    def estimate(data: Data, split: str, paper: float | None) -> Estimate:
        a, b = paired(data.episodes, (*first, split), (*second, split), "score")
        found = equivalence(a, b, data.margin, data.n_resamples, data.seed)
        tests = data.tests[(data.tests["split"] == split) & (data.tests["quantity"] == "score")]
        ends = ("→".join(first), "→".join(second))
        row = tests[[set(pair) == set(ends) for pair in zip(tests["first"], tests["second"], strict=True)]]
        interval = statistics.mean_interval(a - b, data.n_resamples, data.seed)
        p = row["p_holm"].iloc[0] if len(row) else math.nan
        return Estimate(found.n, found.difference, *interval, *same(p, found.p_equivalence))

    return estimate


def _loss(data: Data, split: str, paper: float | None) -> Estimate:
    home, away = paired(data.episodes, (*PP, split), (*PS, split), "score")
    interval = statistics.mean_interval(home - away, data.n_resamples, data.seed)
    return Estimate(len(home), _mean(home - away), *interval, *direction(*interval, 0, paper))


def _missing(data: Data, split: str, paper: float | None) -> Estimate:
    away, home = (side > 0 for side in paired(data.episodes, (*PS, split), (*PP, split), "missing_bindings"))
    ends = share_interval(away.sum(), len(away))
    _, low, high = share_difference(away, home)
    return Estimate(len(away), _mean(away), *ends, *direction(low, high, 0, paper, ends))


def _tokens(first: tuple, second: tuple) -> Callable:
    def estimate(data: Data, split: str, paper: float | None) -> Estimate:
        pair = paired(data.episodes, (*first, split), (*second, split), "total_tokens")
        found = ratio_interval(*pair, data.n_resamples, data.seed)
        return Estimate(len(pair[0]), *found, *direction(*found[1:], 1, paper))

    return estimate


def _interaction(data: Data, split: str, paper: float | None) -> Estimate:
    d = statistics.interaction(data.episodes, split, "score")
    interval = statistics.mean_interval(d, data.n_resamples, data.seed)
    return Estimate(len(d), _mean(d), *interval, *direction(*interval, 0, paper))


def _base(data: Data, split: str, paper: float | None) -> Estimate:
    """Of the runtime in which the base scores more."""
    sides = [paired(data.episodes, (*cell, split), (*cell, split), "score")[0] for cell in (BP, BS)]
    solved = sum(int(paired(data.episodes, (*cell, split), (*cell, split), "solved")[0].sum()) for cell in (BP, BS))
    best = max(sides, key=_mean)
    interval = statistics.mean_interval(best, data.n_resamples, data.seed)
    return Estimate(min(map(len, sides)), _mean(best), *interval, *below(*interval, solved))


def _mean(values) -> float:
    return float(values.mean()) if len(values) else math.nan


CLAIMS = (
    Claim(
        "P→P and S→S: no significant difference in quality", "v1", "points", {"hard": 0.754 - 0.677}, (PP, SS),
        _no_difference(PP, SS), "not significant",
    ),
    Claim(
        "P→P and P→S: no significant difference in quality", "v1", "points", None, (PP, PS),
        _no_difference(PP, PS), "not significant",
    ),
    Claim(
        "S→S and S→P: no significant difference in quality", "v1", "points", None, (SS, SP),
        _no_difference(SS, SP), "not significant",
    ),
    Claim("P→S scores less than P→P (cap of 25)", "v3", "points", 0.66 - 0.07, (PP, PS), _loss),
    Claim("D = (P→P − P→S) − (S→P − S→S) is above 0 (cap of 25)", "v3", "D", 0.73, (PP, PS, SP, SS), _interaction),
    Claim("P→S: episodes miss a name, more than in P→P", "v1", "share", 0.80, (PP, PS), _missing),
    Claim("S→P spends more tokens than P→P (amnesia tax)", "v1", "ratio", 3.5, (SP, PP), _tokens(SP, PP)),
    Claim(
        "S→S spends more tokens than P→P", "v1", "ratio", {"easy": 58_814 / 19_648, "hard": 67_898 / 18_612}, (SS, PP),
        _tokens(SS, PP),
    ),
    Claim(
        "base: scores below 8 % in either runtime, solves none", "v1", "points", None, (BP, BS),
        _base, "< 8 points, none solved",
    ),
)  # fmt: skip
TRAINING_CLAIMS = {  # of the training traces, stateless ÷ persistent: (claim, number)
    "trace_tokens": ("Stateless training traces are longer than persistent ones", 2.3),
    "episode_tokens": ("Stateless training episodes spend more tokens", 55_516 / 18_337),
}


def claims_table(
    episodes: pd.DataFrame,
    tests: pd.DataFrame,
    facts: pd.DataFrame | None,
    margin: float = MARGIN,
    n_resamples: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every claim on every split, then those of the training traces: COLUMNS.

    ``tests``: ``statistics.tests_table`` of ``episodes``; ``facts``: those of ``tables.training_traces``, or None. In
    their unit's own scale are paper, estimate, low and high: "share" and "points" from 0 to 1, "ratio", "D".
    """
    data, rows = Data(episodes, tests, margin, n_resamples, seed), []
    done = completed(episodes)
    played = set(zip(done["model"], done["runtime"], done["split"], strict=True))
    for claim in CLAIMS:
        for split in dict.fromkeys(episodes["split"]):
            absent = [cell_name(*cell) for cell in claim.cells if (*cell, split) not in played]
            paper = claim.number(split)
            if absent:
                reason = f"no scored episode of {tables.listed(absent)}"
                found = Estimate(0, math.nan, math.nan, math.nan, NOT_TESTABLE, reason)
            else:
                found = claim.estimate(data, split, paper)
            rows.append(_row(claim.text, claim.version, split, claim.unit, paper, found, not claim.said))
    return pd.DataFrame([*rows, *_of_training(facts, n_resamples, seed)], columns=COLUMNS)


def _of_training(facts: pd.DataFrame | None, n_resamples: int, seed: int) -> Iterator[list]:
    for column, (text, paper) in TRAINING_CLAIMS.items():
        found = Estimate(0, math.nan, math.nan, math.nan, NOT_TESTABLE, "no training traces")
        if facts is not None and len(facts) and facts[column].notna().all():
            sides = facts.pivot(index="task_id", columns="runtime", values=column).sort_index()
            ratio = ratio_interval(sides["stateless"], sides["persistent"], n_resamples, seed)
            found = Estimate(len(sides), *ratio, *direction(*ratio[1:], 1, paper))
        yield _row(text, "v1", "training", "ratio", paper, found, True)


def _row(
    text: str, version: str, split: str, unit: str, paper: float | None, found: Estimate, sized: bool
) -> list:
    verdict, reason = found.verdict, found.reason
    if 0 < found.n < FEWEST:
        verdict, reason = NOT_TESTABLE, f"fewer than {FEWEST} tasks"
    told = size(verdict, found.low, found.high, paper) if sized else ""
    number = math.nan if paper is None else paper
    return [text, version, split, unit, number, found.n, found.value, found.low, found.high, verdict, told, reason]


def claims_shown(table: pd.DataFrame) -> tables.Table:
    """``claims_table`` as text, the claim named once for all its splits."""
    said = {claim.text: claim.said for claim in CLAIMS}
    rows, before = [], None
    for row in table.to_dict("records"):
        factor, digits, sign = UNITS[row["unit"]]
        value, low, high = (row[name] for name in ("estimate", "low", "high"))
        paper = tables.number(factor * row["paper"], digits)
        paper = "; ".join(filter(None, (said.get(row["claim"], ""), paper + sign if paper else "")))
        here = tables.between(value, low, high, digits, factor)
        verdict = f"{row['verdict']}, {row['size']}" if row["size"] else row["verdict"]
        first = row["claim"] != before
        before = row["claim"]
        rows.append(
            {"claim": f"{row['claim']} ({row['version']})" if first else "", "split": row["split"], "paper": paper}
            | {"here [95 %]": here.replace(" [", f"{sign} [") if here else "", "n": tables.number(row["n"])}
            | {"verdict": verdict, "why": row["reason"]}
        )
    caption = (
        "The paper's claims (v1: March 2026, v3: September 2026), its numbers, this run's estimates with 95 % "
        "intervals, and a verdict by rule. Scores and their differences are in points of 100."
    )
    return tables.Table(pd.DataFrame(rows), caption)


def summary(table: pd.DataFrame) -> str:
    """How many of the claims came out how, in a sentence."""
    counts = table["verdict"].value_counts().reindex([REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE], fill_value=0)
    sized = int((table["size"] == IN_SIZE).sum())
    told = [f"{count} {'is' if count == 1 else 'are'} {name}" for name, count in counts.items()]
    told[0] += f" ({sized} in size too)" if sized else ""
    return f"Of {len(table)} claims, each on one split or on the training traces, {tables.listed(told)}."


def readme_block(table: pd.DataFrame) -> str:
    """What README shows of ``claims_table``: the summary and the table without its last column."""
    shown = claims_shown(table)
    short = tables.Table(shown.text.drop(columns="why"), shown.caption)
    return f"{START}\n{summary(table)}\n\n{tables.markdown(short)}{END}"


def read_claims(path: str | Path) -> pd.DataFrame:
    """A ``claims.csv``; text columns without a value are empty, numbers NaN."""
    table = pd.read_csv(path, dtype={"n": int})
    return table.fillna({name: "" for name in ("verdict", "size", "reason")})


def publish(run: Run, folder: str | Path, readme: str | Path) -> None:
    """Make ``folder`` hold the run's tables and its claims.csv, and put the claims between README's two marks.

    Raises FileNotFoundError for a run without claims, ValueError for a README without the marks.
    """
    source, folder, readme = run.results / "claims.csv", Path(folder), Path(readme)
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing: run notebook 05 first")
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{readme} needs the lines {START} and {END}")
    kept = {path.name: path.read_text(encoding="utf-8") for path in sorted(run.tables.iterdir())}
    kept["claims.csv"] = source.read_text(encoding="utf-8")
    write_folder(folder, kept)
    write_text(readme, f"{before}{readme_block(read_claims(source))}{after}")

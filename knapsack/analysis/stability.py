"""What a runtime costs and how an agent fails in it: ratios of tokens, recovery, redundancy, state reuse, causes.

Numbers per split or cell, and the same as text. Sums over the turns of an episode are divided by such sums, and
episodes are resampled as wholes: the turns of an episode are not independent.
"""

import math

import pandas as pd

from knapsack.analysis.causes import CAUSES
from knapsack.analysis.conduct import Conduct
from knapsack.analysis.metrics import cell_name, completed, later_turns
from knapsack.analysis.statistics import PP, PS, SP, SS, paired, ratio_interval, share_interval
from knapsack.analysis.tables import Table, between, number
from knapsack.runtime import KINDS

CELL = ["model", "runtime", "split"]
RATIOS = {"amnesia tax": (SP, PP), "wrong runtime": (PS, PP), "aligned": (SS, PP)}
RATIO_COLUMNS = ["split", "quantity", "first", "second", "n", "ratio", "low", "high"]
SPREAD_COLUMNS = [*CELL, "of", "n", "lower", "median", "upper", "high", "most"]
RECOVERY_COLUMNS = [
    *CELL, "n", "missing", "missing_low", "missing_high", "errors", "known", "recovered", "recovered_low",
    "recovered_high", "turns", "turns_low", "turns_high", "tokens", "tokens_low", "tokens_high", "lost_tokens",
]  # fmt: skip
REUSE_COLUMNS = [
    *CELL, "n", "code", "redundancy", "redundancy_low", "redundancy_high", "restated", "later_turns", "names",
    "names_low", "names_high", "leaning", "leaning_low", "leaning_high",
]  # fmt: skip


def ratios_table(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Mean total tokens of one cell ÷ another's on the same tasks, for RATIOS per split: RATIO_COLUMNS.

    95 % percentile bootstrap intervals; a pair of cells without a common scored task is left out.
    """
    rows = []
    for split in dict.fromkeys(episodes["split"]):
        for name, (first, second) in RATIOS.items():
            pair = paired(episodes, (*first, split), (*second, split), "total_tokens")
            names = (split, name, "→".join(first), "→".join(second))
            rows.append((*names, len(pair[0]), *ratio_interval(*pair, n_resamples, seed)))
    table = pd.DataFrame(rows, columns=RATIO_COLUMNS)
    return table[table["n"] > 0].reset_index(drop=True)


def ratios_shown(ratios: pd.DataFrame) -> Table:
    """``ratios_table`` as text."""
    text = ratios[["split", "quantity"]].copy()
    text["cells"] = [
        f"{cell_name(*first.split('→'))} ÷ {cell_name(*second.split('→'))}"
        for first, second in zip(ratios["first"], ratios["second"], strict=True)
    ]
    text["n"] = ratios["n"].map(number)
    text["ratio [95 %]"] = [between(*row, 2) for row in ratios[["ratio", "low", "high"]].to_numpy()]
    caption = "Mean total tokens of one cell ÷ another's on the same tasks, with 95 % percentile bootstrap intervals."
    return Table(text, caption)


def spread_table(episodes: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """How tokens are distributed over scored episodes (``total_tokens``) and their replies (``completion_tokens``).

    SPREAD_COLUMNS, two rows a cell: n episodes or replies of known length; quantiles by linear interpolation.
    """
    done = completed(episodes)
    replies = turns.merge(done[[*CELL, "task_id"]])
    rows = []
    for key, group in done.groupby(CELL, sort=False):
        for of, tokens in (("episode", group["total_tokens"]), ("reply", _of(replies, key)["completion_tokens"])):
            known = tokens.dropna()
            rows.append((*key, of, len(known), *known.quantile([0.25, 0.5, 0.75, 0.95]), known.max()))
    return pd.DataFrame(rows, columns=SPREAD_COLUMNS)


def spread_shown(spread: pd.DataFrame) -> Table:
    """``spread_table`` as text, a row per cell."""
    rows = []
    for _, pair in spread.groupby(CELL, sort=False):
        text = _names(pair.iloc[0])
        for row in pair.to_dict("records"):
            of = f"tokens of {'an episode' if row['of'] == 'episode' else 'a reply'}"
            text[{"episode": "episodes", "reply": "replies"}[row["of"]]] = number(row["n"])
            text[f"{of}: median [quartiles]"] = between(row["median"], row["lower"], row["upper"])
            text |= {f"{of}: 95 % below": number(row["high"]), f"{of}: most": number(row["most"])}
        rows.append(text)
    caption = (
        "How tokens are distributed: all tokens of an episode, prompts included, and those of a single reply. In "
        "brackets are the quartiles of the episodes or replies themselves, not an interval of the median."
    )
    return Table(pd.DataFrame(rows), caption)


def recovery_table(episodes: pd.DataFrame, conduct: Conduct, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Missing-binding errors and what followed, a row per cell: RECOVERY_COLUMNS.

    ``missing``: share of scored episodes with such an error, with its Wilson interval. ``errors``: how many there are;
    ``known``: episodes with one whose task is at hand, so that new items can be told. ``recovered``: share of these
    whose last error was followed by a new item (Wilson). ``turns``, ``tokens``: means from an error to the next new
    item, over the errors that have one. ``lost_tokens``: mean tokens that a known episode that did not recover spent
    after the first error with no new item behind it.
    """
    rows = []
    for key, group in completed(episodes).groupby(CELL, sort=False):
        hit = int((group["missing_bindings"] > 0).sum())
        own = _of(conduct.recoveries, key)
        last = own.sort_values("turn", kind="stable").drop_duplicates("task_id", keep="last")
        ended = [math.nan] * 3
        if len(last):
            ended = [last["recovered"].mean(), *share_interval(last["recovered"].sum(), len(last))]
        back = own[own["recovered"].astype(bool)].groupby("task_id")
        spent = [_rate(back[name].sum(), back.size(), n_resamples, seed) for name in ("turns", "tokens")]
        lost = own[~own["recovered"].astype(bool)].groupby("task_id")["tokens"].max().mean()
        missing = (hit / len(group), *share_interval(hit, len(group)))
        counted = (len(group), *missing, int(group["missing_bindings"].sum()), len(last), *ended)
        rows.append((*key, *counted, *spent[0], *spent[1], lost))
    return pd.DataFrame(rows, columns=RECOVERY_COLUMNS)


def recovery_shown(recovery: pd.DataFrame) -> Table:
    """``recovery_table`` as text."""
    caption = (
        "Missing-binding errors (a NameError for a name that an earlier turn had bound) and recovery: the agent gets "
        "to a new item after the last of them. 95 % intervals: of shares of episodes Wilson's, of means from resampled "
        "episodes. Tokens lost: what an episode that did not recover spent after the error it never got over."
    )
    rows = []
    for row in recovery.to_dict("records"):
        shares = {
            title: between(*(row[name + end] for end in ("", "_low", "_high")), scale=100)
            for title, name in (("episodes with an error %", "missing"), ("of them recover %", "recovered"))
        }
        costs = {
            title: between(*(row[name + end] for end in ("", "_low", "_high")), digits)
            for title, name, digits in (("turns to recover", "turns", 1), ("tokens to recover", "tokens", 0))
        }
        known = {"n": number(row["n"]), "errors": number(row["errors"])}
        rows.append(_names(row) | known | shares | costs | {"tokens lost": number(row["lost_tokens"])})
    return Table(pd.DataFrame(rows), caption)


def reuse_table(
    episodes: pd.DataFrame, turns: pd.DataFrame, conduct: Conduct, n_resamples: int = 5000, seed: int = 0
) -> pd.DataFrame:
    """How state is carried, a row per cell: REUSE_COLUMNS.

    ``code``: mean code of an episode, in ``conduct.unit``; ``redundancy``: share of it that restates or repeats what an
    earlier turn printed or wrote (``conduct``); ``restated``: share that writes down known state again. Of the
    ``later_turns`` (code that parses, after a turn that bound names): ``names``, how many names of earlier turns a turn
    reads before binding them; ``leaning``, the share of them that read any. 95 % intervals from resampled episodes.
    """
    rows = []
    for key, group in completed(episodes).groupby(CELL, sort=False):
        sums = _of(conduct.turns, key).groupby("task_id")[["restated", "repeated", "new"]].sum()
        code, again = sums.sum(axis=1), sums["restated"] + sums["repeated"]
        restated = _rate(sums["restated"], code, n_resamples, seed)[0]
        later = later_turns(_of(turns, key))
        by, needed = later["task_id"], later["names_needed"]
        names, leaning = (
            _rate(value.groupby(by).sum(), value.groupby(by).size(), n_resamples, seed)
            for value in (needed, needed > 0)
        )
        carried = (*_rate(again, code, n_resamples, seed), restated, len(later), *names, *leaning)
        rows.append((*key, len(group), code.mean(), *carried))
    return pd.DataFrame(rows, columns=REUSE_COLUMNS)


def reuse_shown(reuse: pd.DataFrame, unit: str) -> Table:
    """``reuse_table`` as text; ``unit``: ``conduct.unit``."""
    caption = (
        f"How state is carried. Code: mean {unit} of an episode; again: share of it that writes down what an earlier "
        "turn had printed or written; restated data: share that is known state, written down again. Later turns: with "
        "code, after a turn that bound names; names read: those of earlier turns that a block uses before binding them "
        "itself; leaning: later turns that use any. 95 % intervals from resampled episodes."
    )
    rows = []
    for row in reuse.to_dict("records"):
        text = _names(row) | {"n": number(row["n"]), f"code, {unit}": number(row["code"])}
        text["again %"] = between(row["redundancy"], row["redundancy_low"], row["redundancy_high"], scale=100)
        text["restated data %"] = number(100 * row["restated"])
        text["later turns"] = number(row["later_turns"])
        text["names read a turn"] = between(row["names"], row["names_low"], row["names_high"], 2)
        text["leaning %"] = between(row["leaning"], row["leaning_low"], row["leaning_high"], scale=100)
        rows.append(text)
    return Table(pd.DataFrame(rows), caption)


def causes_table(failures: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Episodes below the teacher's score by cause: CELL, n (compared), below, and a column per cause that occurs.

    A row per cell of which the teacher played a task in the same runtime; the teacher's own are left out.
    """
    done = completed(episodes)
    teacher = done[done["model"] == "teacher"]
    best = set(zip(teacher["runtime"], teacher["split"], teacher["task_id"], strict=True))
    occur = [cause for cause in CAUSES if cause in set(failures["cause"])]
    rows = []
    for key, group in done[done["model"] != "teacher"].groupby(CELL, sort=False):
        runtime = key[1] if key[1] in KINDS else "stateless"
        n = sum((runtime, key[2], task_id) in best for task_id in group["task_id"])
        if n:
            counts = _of(failures, key)["cause"].value_counts()
            rows.append((*key, n, int(counts.sum()), *(int(counts.get(cause, 0)) for cause in occur)))
    return pd.DataFrame(rows, columns=[*CELL, "n", "below", *occur])


def causes_shown(causes: pd.DataFrame) -> Table:
    """``causes_table`` as text."""
    caption = (
        "Episodes that scored below the teacher on their task, in the same runtime, by cause: the first rule of "
        "knapsack/analysis/causes.py that applies, exactly one an episode. n: episodes that can be compared."
    )
    names = [_names(row) for row in causes.to_dict("records")]
    counts = causes.drop(columns=CELL).rename(columns={"below": "below the teacher"}).astype(object).map(number)
    return Table(pd.concat([pd.DataFrame(names), counts], axis=1), caption)


def _of(frame: pd.DataFrame, key: tuple) -> pd.DataFrame:
    return frame[(frame[CELL] == list(key)).all(axis=1)]


def _names(row: dict) -> dict[str, str]:
    return {"split": row["split"], "cell": cell_name(row["model"], row["runtime"])}


def _rate(sums: pd.Series, counts: pd.Series, n_resamples: int, seed: int) -> tuple[float, float, float]:
    """Sum over sum, a value per episode each, with the interval from resampled episodes."""
    return ratio_interval(sums.to_numpy(float), counts.to_numpy(float), n_resamples, seed)

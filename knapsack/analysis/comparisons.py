"""The words and tables of notebook 05 about quality, cost and failure: computed, naming what is missing.

"Not significant" is never called "equal": that takes an equivalence test, and where it is undecided the power says
what these tasks could have shown. Sums over the turns of an episode are divided by such sums, and episodes are
resampled as wholes: the turns of an episode are not independent.
"""

import math

import pandas as pd

from knapsack.analysis.causes import CAUSES
from knapsack.analysis.conduct import Conduct
from knapsack.analysis.estimates import look_up
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap, ratio_interval, share_interval
from knapsack.analysis.metrics import CELL, cell_name, completed, later_turns
from knapsack.analysis.statistics import POWER, UNDECIDED
from knapsack.analysis.tables import Table, between, listed, number, probability
from knapsack.runtime import KINDS

NO_PAIRS = "No two cells that the study compares were played."


# What was played


def overview(episodes: pd.DataFrame) -> str:
    """What was played, and what of it counts: cells, scored episodes, unscored ones by reason, and what is unknown."""
    played = {name: list(dict.fromkeys(episodes[name])) for name in ("model", "runtime", "split")}
    count = len(episodes.groupby(list(played)))
    done = completed(episodes)
    said = [
        f"{count} cell{'s' * (count != 1)}: {listed(played['model'])}; in the {listed(played['runtime'])} runtime; "
        f"on {listed(played['split'])}.",
        f"{len(done)} of {len(episodes)} episodes are scored.",
    ]
    if count < math.prod(map(len, played.values())):
        said.insert(1, "Not every model was played in every runtime on every split.")
    if len(done) < len(episodes):
        why = episodes.loc[episodes["status"] != "completed", "status"].value_counts().sort_index()
        said.append(f"Unscored: {listed([f'{number} {status}' for status, number in why.items()])}.")
    if broken := int((done["finish_reason"] == "error").sum()):
        said.append(f"Ended by an error such as a full context, and scored as they stood: {broken}.")
    if unknown := int(done["inspected"].isna().sum()):
        said.append(f"Inspection budget unknown, for want of the task's file: {unknown}; `inspected` is empty there.")
    return " ".join(said)


def twins_said(facts: pd.DataFrame) -> str:
    """How much longer and dearer the stateless training traces are; ``facts``: ``tables.training_facts``."""
    means = facts.drop(columns="task_id").groupby("runtime").mean()
    ratio = means.loc["stateless"] / means.loc["persistent"]
    gap = abs(means.loc["stateless", "score"] - means.loc["persistent", "score"])
    return (
        f"A stateless trace is **{ratio['trace_tokens']:.1f} ×** as long as its persistent twin, and an episode costs "
        f"{ratio['episode_tokens']:.1f} × the tokens, while mean normalized optimality differs by {gap:.3f}. Trained "
        "on equally many *episodes*, the stateless model therefore reads more *tokens*: a confound that the paper "
        "names too."
    )


# Is there a difference, and is there none?


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    """The first columns of every table of comparisons: split, "first − second" by short names, n."""
    names = ([cell_name(*cell.split("→")) for cell in table[end]] for end in ("first", "second"))
    pairs = [f"{first} − {second}" for first, second in zip(*names, strict=True)]
    return pd.DataFrame({"split": table["split"], "cells": pairs, "n": table["n"].map(number)})


def tests_shown(tests: pd.DataFrame, quantity: str) -> Table:
    """The rows of ``statistics.tests_table`` of one ``quantity``, "score" (in points of 100) or "total_tokens"."""
    own = tests[tests["quantity"] == quantity].reset_index(drop=True)
    scale, digits, unit = (100, 1, "points") if quantity == "score" else (1, 0, "tokens")
    text = _compared(own)
    differences = own[["difference", "low", "high"]].to_numpy()
    text[f"difference, {unit} [95 %]"] = [between(*row, digits, scale) for row in differences]
    text["p"], text["p (Holm)"] = own["p"].map(probability), own["p_holm"].map(probability)
    text["r"] = [number(effect, 2) for effect in own["effect"]]
    if own["note"].any():
        text["note"] = own["note"]
    caption = (
        f"{'Score' if quantity == 'score' else 'Total tokens'}: mean difference on the same tasks with its 95 % "
        "bootstrap interval (BCa), two-sided Wilcoxon signed-rank test with zero differences dropped, p corrected by "
        "Holm within the family of the row, and the matched-pairs rank-biserial correlation r."
    )
    return Table(text, caption)


def shares_shown(shares: pd.DataFrame, quantity: str) -> Table:
    """The rows of ``statistics.shares_table`` of one ``quantity``: "solved" or "missing_binding"."""
    own = shares[shares["quantity"] == quantity].reset_index(drop=True)
    text = _compared(own)
    for end in ("first", "second"):
        text[f"{end} %"] = [number(100 * share) for share in own[f"share_{end}"]]
    differences = own[["difference", "low", "high"]].to_numpy()
    text["difference, points [95 %]"] = [between(*row, 0, 100) for row in differences]
    text["only first"], text["only second"] = own["only_first"].map(number), own["only_second"].map(number)
    text["p"], text["p (Holm)"] = own["p"].map(probability), own["p_holm"].map(probability)
    what = "solved" if quantity == "solved" else "with a missing-binding error"
    caption = (
        f"Share of the same tasks {what}: difference with Newcombe's interval for paired shares, how many tasks only "
        "one of the two cells has, and McNemar's exact test, corrected by Holm within the family of the row."
    )
    return Table(text, caption)


def equivalence_shown(table: pd.DataFrame) -> Table:
    """``statistics.equivalence_table``, in points of score."""
    text = _compared(table)
    text["tasks that differ"] = table["differing"].map(number)
    differences = table[["difference", "low", "high"]].to_numpy()
    text["difference, points [90 %]"] = [between(*row, 1, 100) for row in differences]
    text["p, a difference"] = table["p_difference"].map(probability)
    text["p, within the margin"] = table["p_equivalence"].map(probability)
    text["verdict"] = table["verdict"]
    text["detectable, points"] = [number(100 * value, 1) for value in table["detectable"]]
    text["tasks needed"] = table["tasks_needed"].map(number)
    margin = number(100 * table["margin"].iloc[0], 1) if len(table) else ""
    caption = (
        f"Is the score the same within ± {margin} points? Two one-sided t tests, a two-sided t test and the 90 % "
        f"bootstrap interval (BCa); no correction over rows. Detectable: the smallest difference that these tasks find "
        f"with a power of {POWER:.0%}; tasks needed: to show equal cells of this spread equivalent, with that power."
    )
    return Table(text, caption)


def power_sentence(table: pd.DataFrame) -> str:
    """What ``statistics.equivalence_table`` leaves open, and what it would take."""
    if table.empty:
        return NO_PAIRS
    counts = [f"{n} {verdict}" for verdict, n in table["verdict"].value_counts().items()]
    said = [f"Verdicts on {len(table)} pair{'s' * (len(table) > 1)} of cells: {listed(counts)}."]
    left = table[table["verdict"] == UNDECIDED].dropna(subset=["detectable"])
    if len(left):
        said.append(
            f"*Undecided* is neither. With a power of {POWER:.0%} these tasks could have found a difference of "
            f"{_span(100 * left['detectable'], 1)} points; to show such cells the same within "
            f"± {number(100 * left['margin'].iloc[0], 1)} points would take {_span(left['tasks_needed'], 0)} tasks."
        )
    return " ".join(said)


def _span(values: pd.Series, digits: int) -> str:
    least, most = (number(end(values), digits) for end in (min, max))
    return least if least == most else f"{least} to {most} (it depends on the pair)"


# Errors, state and causes


def recovery_table(
    episodes: pd.DataFrame, conduct: Conduct, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """Missing-binding errors and what followed, a row per cell; name, name_low and name_high are a value with its ends.

    ``missing``: share of scored episodes with such an error (of ``estimates``). ``errors``: how many there are;
    ``known``: episodes with one whose task is at hand, so that new items can be told. ``recovered``: share of these
    whose last error was followed by a new item (Wilson). ``turns``, ``tokens``: means from an error to the next new
    item, over the errors that have one. ``lost_tokens``: mean tokens that a known episode that did not recover spent
    after the first error with no new item behind it.
    """
    rows = []
    for key, group in completed(episodes).groupby(CELL, sort=False):
        own = _of(conduct.recoveries, key)
        last = own.sort_values("turn", kind="stable").drop_duplicates("task_id", keep="last")["recovered"]
        row = dict(zip(CELL, key, strict=True)) | {"n": len(group)}
        row |= _ends("missing", look_up(estimates, "missing_binding", key[2], key[:2])[1:4])
        row |= {"errors": int(group["missing_bindings"].sum()), "known": len(last)}
        row |= _ends("recovered", (last.astype(float).mean(), *share_interval(last.sum(), len(last))))
        back = own[own["recovered"].astype(bool)].groupby("task_id")
        for name in ("turns", "tokens"):
            row |= _ends(name, _rate(back[name].sum(), back.size(), bootstrap))
        row["lost_tokens"] = own[~own["recovered"].astype(bool)].groupby("task_id")["tokens"].max().mean()
        rows.append(row)
    return pd.DataFrame(rows)


def recovery_shown(recovery: pd.DataFrame) -> Table:
    """``recovery_table`` as text."""
    caption = (
        "Missing-binding errors (a NameError for a name that an earlier turn had bound) and recovery: the agent gets "
        "to a new item after the last of them. 95 % intervals: of shares of episodes Wilson's, of means from resampled "
        "episodes. Tokens lost: what an episode that did not recover spent after the error it never got over."
    )
    rows = []
    for row in recovery.to_dict("records"):
        text = _cell(row) | {"n": number(row["n"]), "errors": number(row["errors"])}
        text["episodes with an error %"] = _shown(row, "missing", scale=100)
        text["of them recover %"] = _shown(row, "recovered", scale=100)
        text["turns to recover"], text["tokens to recover"] = _shown(row, "turns", 1), _shown(row, "tokens")
        rows.append(text | {"tokens lost": number(row["lost_tokens"])})
    return Table(pd.DataFrame(rows), caption)


def per_later_turn(turns: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> tuple[int, tuple, tuple]:
    """Of the turns of a cell: how many ``later_turns``; how many names of earlier turns one of them reads before
    binding them; the share that reads any, or *leans*. The last two with the ends of their intervals."""
    later = later_turns(turns)
    by, needed = later["task_id"], later["names_needed"]
    rates = (_rate(of.groupby(by).sum(), of.groupby(by).size(), bootstrap) for of in (needed, needed > 0))
    return len(later), *rates


def reuse_table(
    episodes: pd.DataFrame, turns: pd.DataFrame, conduct: Conduct, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """How state is carried, a row per cell; name, name_low and name_high are a value with its ends.

    ``code``: mean code of an episode, in ``conduct.unit``; ``redundancy``: share of it that restates or repeats what an
    earlier turn printed or wrote (``conduct``); ``restated``: share that writes down known state again;
    ``later_turns``, ``names``, ``leaning``: ``per_later_turn``. 95 % intervals from resampled episodes.
    """
    rows = []
    for key, group in completed(episodes).groupby(CELL, sort=False):
        sums = _of(conduct.turns, key).groupby("task_id")[["restated", "repeated", "new"]].sum()
        code, again = sums.sum(axis=1), sums["restated"] + sums["repeated"]
        later, names, leaning = per_later_turn(_of(turns, key), bootstrap)
        row = dict(zip(CELL, key, strict=True)) | {"n": len(group), "code": code.mean()}
        row |= _ends("redundancy", _rate(again, code, bootstrap))
        row |= {"restated": _rate(sums["restated"], code, bootstrap)[0], "later_turns": later}
        rows.append(row | _ends("names", names) | _ends("leaning", leaning))
    return pd.DataFrame(rows)


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
        text = _cell(row) | {"n": number(row["n"]), f"code, {unit}": number(row["code"])}
        text["again %"] = _shown(row, "redundancy", scale=100)
        text["restated data %"] = number(100 * row["restated"])
        text["later turns"] = number(row["later_turns"])
        text["names read a turn"] = _shown(row, "names", 2)
        text["leaning %"] = _shown(row, "leaning", scale=100)
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
    names = [_cell(row) for row in causes.to_dict("records")]
    counts = causes.drop(columns=CELL).rename(columns={"below": "below the teacher"}).astype(object).map(number)
    return Table(pd.concat([pd.DataFrame(names), counts], axis=1), caption)


def _of(frame: pd.DataFrame, key: tuple) -> pd.DataFrame:
    return frame[(frame[CELL] == list(key)).all(axis=1)]


def _cell(row: dict) -> dict[str, str]:
    return {"split": row["split"], "cell": cell_name(row["model"], row["runtime"])}


def _ends(name: str, found: tuple) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _shown(row: dict, name: str, digits: int = 0, scale: float = 1) -> str:
    return between(row[name], row[f"{name}_low"], row[f"{name}_high"], digits, scale)


def _rate(sums: pd.Series, counts: pd.Series, bootstrap: Bootstrap) -> tuple[float, float, float]:
    """Sum over sum, a value per episode each, with the interval from resampled episodes."""
    return ratio_interval(sums.to_numpy(float), counts.to_numpy(float), bootstrap)

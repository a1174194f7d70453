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
from knapsack.analysis.metrics import CELL, cell_name, cell_rows, completed, later_turns, setting_columns
from knapsack.analysis.statistics import POWER
from knapsack.analysis.tables import Table, between, listed, number, probability
from knapsack.runtime import acts_as

NO_PAIRS = "No two cells that the study compares were played."


# What was played


def overview(episodes: pd.DataFrame) -> str:
    """What was played, and what of it counts: cells, scored episodes, unscored ones by reason, and what is unknown."""
    played = {name: list(dict.fromkeys(episodes[name])) for name in CELL}
    count = len(episodes.groupby(CELL))
    caps = f"; with caps of {listed([*map(str, played['cap'])])} tool calls a turn" * (len(played["cap"]) > 1)
    done = completed(episodes)
    said = [
        f"{count} cell{'s' * (count != 1)}: {listed(played['model'])}; in the {listed(played['runtime'])} runtime; "
        f"on {listed(played['split'])}{caps}.",
        f"{len(done)} of {len(episodes)} episodes are scored.",
    ]
    if count < math.prod(map(len, played.values())):
        said.insert(1, f"Not every model was played in every runtime on every split{' under every cap' * bool(caps)}.")
    if len(done) < len(episodes):
        why = episodes.loc[episodes["status"] != "completed", "status"].value_counts().sort_index()
        said.append(f"Unscored: {listed([f'{number} {status}' for status, number in why.items()])}.")
    if broken := int((done["finish_reason"] == "error").sum()):
        said.append(
            f"Ended by an error (full context, malformed replies in a row), and scored as they stood: {broken}."
        )
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


def tests_shown(tests: pd.DataFrame, quantity: str) -> Table:
    """The rows of ``statistics.tests_table`` of one ``quantity``, "score" (in points of 100) or "total_tokens"."""
    own = tests[tests["quantity"] == quantity]
    unit, *form = ("points", 1, 100) if quantity == "score" else ("tokens", 0, 1)
    columns = {"n": "n", f"difference, {unit} [95 %]": ("difference", *form)}
    columns |= {"p": "p", "p (Holm)": "p_holm", "r": ("effect", 2)}
    caption = (
        f"{'Score' if quantity == 'score' else 'Total tokens'}: mean difference on the same tasks with its 95 % "
        "bootstrap interval (BCa), two-sided Wilcoxon signed-rank test with zero differences dropped, p corrected by "
        "Holm within the family of the row, and the matched-pairs rank-biserial correlation r."
    )
    return _shown(own, columns | ({"note": "note"} if own["note"].any() else {}), caption)


def shares_shown(shares: pd.DataFrame, quantity: str) -> Table:
    """The rows of ``statistics.shares_table`` of one ``quantity``: "solved" or "missing_binding"."""
    columns = {"n": "n", "first %": ("share_first", 0, 100), "second %": ("share_second", 0, 100)}
    columns |= {"difference, points [95 %]": ("difference", 0, 100)}
    columns |= {"only first": "only_first", "only second": "only_second", "p": "p", "p (Holm)": "p_holm"}
    what = "solved" if quantity == "solved" else "with a missing-binding error"
    caption = (
        f"Share of the same tasks {what}: difference with Newcombe's interval for paired shares, how many tasks only "
        "one of the two cells has, and McNemar's exact test, corrected by Holm within the family of the row."
    )
    return _shown(shares[shares["quantity"] == quantity], columns, caption)


def equivalence_shown(table: pd.DataFrame) -> Table:
    """``statistics.equivalence_table``, in points of score."""
    columns = {"n": "n", "tasks that differ": "differing", "difference, points [90 %]": ("difference", 1, 100)}
    columns |= {"p, a difference": "p_difference", "p, within the margin": "p_equivalence"}
    columns |= {"verdict": "verdict", "detectable, points": ("detectable", 1, 100), "tasks needed": "tasks_needed"}
    margin = number(100 * table["margin"].iloc[0], 1) if len(table) else ""
    caption = (
        f"Is the score the same within ± {margin} points? Two one-sided t tests, a two-sided t test and the 90 % "
        f"bootstrap interval (BCa); no correction over rows. Detectable: the smallest difference that these tasks find "
        f"with a power of {POWER:.0%}; tasks needed: to show equal cells of this spread equivalent, with that power."
    )
    return _shown(table, columns, caption)


# Errors, state and causes


def recovery_table(
    episodes: pd.DataFrame, conduct: Conduct, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """Missing-binding errors and what followed, a row per cell; name, name_low and name_high are a value with its ends.

    ``missing``: share of scored episodes with such an error (of ``estimates``). ``errors``: how many there are;
    ``known``: episodes with one whose task is at hand, so that tries can be told. ``recovered``: share of these whose
    last error was followed by a first try of an item (Wilson). ``turns``, ``tokens``: means from an error to the next
    first try, over the errors that have one. ``lost_tokens``: mean tokens that a known episode that did not recover
    spent after the first error with no first try behind it.
    """
    rows = []
    for key, group in completed(episodes).groupby(CELL, sort=False):
        own = cell_rows(conduct.recoveries, key)
        last = own.sort_values("turn", kind="stable").drop_duplicates("task_id", keep="last")["recovered"]
        row = dict(zip(CELL, key, strict=True)) | {"n": len(group)}
        row |= _ends("missing", look_up(estimates, "missing_binding", key[2:], key[:2]).interval)
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
        "Missing-binding errors (a NameError for a name that an earlier turn had bound) and recovery: after the last "
        "of them the agent inspects an item, or tries to take one, for the first time. 95 % intervals: of shares of "
        "episodes Wilson's, of means from resampled episodes. Tokens lost: what an episode that did not recover spent "
        "after the error it never got over."
    )
    columns = {"n": "n", "errors": "errors", "episodes with an error %": ("missing", 0, 100)}
    columns |= {"of them recover %": ("recovered", 0, 100), "turns to recover": ("turns", 1)}
    columns |= {"tokens to recover": "tokens", "tokens lost": "lost_tokens"}
    return _shown(recovery, columns, caption)


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
        sums = cell_rows(conduct.turns, key).groupby("task_id")[["restated", "repeated", "new"]].sum()
        code, again = sums.sum(axis=1), sums["restated"] + sums["repeated"]
        later, names, leaning = per_later_turn(cell_rows(turns, key), bootstrap)
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
    columns = {"n": "n", f"code, {unit}": "code", "again %": ("redundancy", 0, 100)}
    columns |= {"restated data %": ("restated", 0, 100), "later turns": "later_turns"}
    return _shown(reuse, columns | {"names read a turn": ("names", 2), "leaning %": ("leaning", 0, 100)}, caption)


def causes_table(failures: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Episodes below the teacher's score by cause: CELL, n (compared), below, and a column per cause that occurs.

    A row per cell of which the teacher played a task in the same runtime; the teacher's own are left out.
    """
    done = completed(episodes)
    teacher = done[done["model"] == "teacher"]
    best = set(teacher[[*CELL[1:], "task_id"]].itertuples(index=False, name=None))
    occur = [cause for cause in CAUSES if cause in set(failures["cause"])]
    rows = []
    for key, group in done[done["model"] != "teacher"].groupby(CELL, sort=False):
        n = sum((acts_as(key[1]), *key[2:], task_id) in best for task_id in group["task_id"])
        if n:
            counts = cell_rows(failures, key)["cause"].value_counts()
            rows.append((*key, n, int(counts.sum()), *(int(counts.get(cause, 0)) for cause in occur)))
    return pd.DataFrame(rows, columns=[*CELL, "n", "below", *occur])


def causes_shown(causes: pd.DataFrame) -> Table:
    """``causes_table`` as text."""
    caption = (
        "Episodes that scored below the teacher on their task, in the same runtime, by cause: the first rule of "
        "knapsack/analysis/causes.py that applies, exactly one an episode. n: episodes that can be compared."
    )
    columns = {"n": "n", "below the teacher": "below"} | {name: name for name in causes if name in CAUSES}
    return _shown(causes, columns, caption)


def _ends(name: str, found: tuple) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _shown(frame: pd.DataFrame, columns: dict[str, str | tuple], caption: str) -> Table:
    """As text: split, cap (if there are several) and cell (or both cells), then each of ``columns``: title → name or
    (name, digits, factor), with the interval if the frame has one."""
    rows, setting = [], setting_columns(frame) if len(frame) else []
    for row in frame.to_dict("records"):
        if "first" in row:
            cells = {"cells": " − ".join(cell_name(*row[end].split("→")) for end in ("first", "second"))}
        else:
            cells = {"cell": cell_name(row["model"], row["runtime"])}
        rows.append({name: str(row[name]) for name in setting} | cells)
        for title, of in columns.items():
            name, *form = (of,) if isinstance(of, str) else of
            ends = ("low", "high") if name == "difference" else (f"{name}_low", f"{name}_high")
            if isinstance(row[name], str):
                text = row[name]
            elif name == "p" or name.startswith("p_"):
                text = probability(row[name])
            else:
                text = between(row[name], *(row.get(end, math.nan) for end in ends), *form)
            rows[-1][title] = text
    return Table(pd.DataFrame(rows), caption)


def _rate(sums: pd.Series, counts: pd.Series, bootstrap: Bootstrap) -> tuple[float, float, float]:
    """Sum over sum, a value per episode each, with the interval from resampled episodes."""
    return ratio_interval(sums.to_numpy(float), counts.to_numpy(float), bootstrap)

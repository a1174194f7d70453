"""The words and tables of notebook 05 about what was played and how well: computed, naming what is missing.

"Not significant" is never called "equal": that takes an equivalence test, and where it is undecided the power says
what these tasks could have shown.
"""

import math

import pandas as pd

from knapsack.analysis import statistics
from knapsack.analysis.equivalence import POWER, UNDECIDED
from knapsack.analysis.metrics import cell_name, completed
from knapsack.analysis.tables import Table, between, listed, number, probability
from knapsack.runtime import KINDS

RATIO_COLUMNS = ["split", "cell", "n", "score", "teacher_score", "ratio", "low", "high"]


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
    """How much longer and dearer the stateless training traces are; ``facts``: rows of ``tables.training_facts``."""
    means = facts.drop(columns="task_id").groupby("runtime").mean()
    ratio = means.loc["stateless"] / means.loc["persistent"]
    gap = abs(means.loc["stateless", "score"] - means.loc["persistent", "score"])
    return (
        f"A stateless trace is **{ratio['trace_tokens']:.1f} ×** as long as its persistent twin, and an episode costs "
        f"{ratio['episode_tokens']:.1f} × the tokens, while mean normalized optimality differs by {gap:.3f}. Trained "
        "on equally many *episodes*, the stateless model therefore reads more *tokens*: a confound that the paper "
        "names too."
    )


def cells_said(cells: pd.DataFrame, splits: list[str]) -> str:
    """What ``metrics.cell_table`` says, cell against cell, a paragraph a split; what lacks a cell is left out."""
    own = {split: cells[cells["split"] == split].set_index(["model", "runtime"]) for split in splits}
    lines = [f"**{split.capitalize()}.** {' '.join(_split_said(rows))}" for split, rows in own.items()]
    return "\n\n".join([*lines, f"Episodes of these cells without a score: {int(cells['unscored'].sum())}."])


def _split_said(rows: pd.DataFrame) -> list[str]:
    """Sentences on the cells of a split; ``rows`` by (model, runtime)."""
    said = []
    for kind in KINDS:
        if {(kind, kind), ("teacher", kind)} <= set(rows.index):
            own, ceiling = rows.loc[(kind, kind)], rows.loc[("teacher", kind)]
            said.append(
                f"Trained and run {kind}, the model reaches "
                f"{between(own.score_mean, own.score_low, own.score_high, 2)} "
                f"with {own.total_tokens:,.0f} tokens an episode; "
                f"its teacher reaches {ceiling.score_mean:.2f} with {ceiling.total_tokens:,.0f}."
            )
    if {("persistent", "stateless"), ("persistent", "persistent")} <= set(rows.index):
        away, home = rows.loc[("persistent", "stateless")], rows.loc[("persistent", "persistent")]
        said.append(
            f"Moved to the stateless runtime, the persistent-trained model misses a name that it had bound in "
            f"{_percent(away.missing_binding_rate)} of its episodes, scores {_gap(away, home)} "
            f"against home, and spends {away.total_tokens / home.total_tokens:.1f} × the tokens."
        )
    if {("stateless", "persistent"), ("persistent", "persistent")} <= set(rows.index):
        tax, home = rows.loc[("stateless", "persistent")], rows.loc[("persistent", "persistent")]
        said.append(
            f"In the persistent runtime the stateless-trained model spends "
            f"{tax.total_tokens / home.total_tokens:.1f} × the tokens of the persistent-trained one, "
            f"and scores {_gap(tax, home)} against it."
        )
    for (name, runtime), row in rows.iterrows():
        if name == "base":
            solved = _percent(row.solved)
            said.append(f"The base scores {row.score_mean:.2f} in the {runtime} runtime (solved: {solved}).")
        elif name not in ("teacher", *KINDS) or (name in KINDS and runtime not in KINDS):
            said.append(
                f"The model `{name}` scores {between(row.score_mean, row.score_low, row.score_high, 2)} in the "
                f"{runtime} runtime with {row.total_tokens:,.0f} tokens an episode, and misses a name that it had "
                f"bound in {_percent(row.missing_binding_rate)} of its episodes."
            )
    return said


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


def _gap(cell: pd.Series, home: pd.Series) -> str:
    return f"{cell.score_mean - home.score_mean:+.2f}".replace("-", "−")


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
        return "No two cells that the study compares were played."
    counts = [f"{n} {verdict}" for verdict, n in table["verdict"].value_counts().items()]
    said = [f"Verdicts on {len(table)} pair{'s' * (len(table) > 1)} of cells: {listed(counts)}."]
    left = table[table["verdict"] == UNDECIDED].dropna(subset=["detectable"])
    if len(left):
        said.append(
            f"*Undecided* is neither. With a power of {POWER:.0%} these tasks could have found a difference of "
            f"{_range(100 * left['detectable'], 1)} points; to show such cells the same within "
            f"± {number(100 * left['margin'].iloc[0], 1)} points would take {_range(left['tasks_needed'], 0)} tasks."
        )
    return " ".join(said)


def _range(values: pd.Series, digits: int) -> str:
    least, most = (number(end(values), digits) for end in (min, max))
    return least if least == most else f"{least} to {most} (it depends on the pair)"


def interactions_shown(table: pd.DataFrame) -> Table:
    """``statistics.interactions_table`` as text: D of the score, and of log tokens as a ratio of ratios."""
    rows = []
    for row in table[table["n"] > 0].to_dict("records"):
        tokens = row["quantity"] != "score"
        names = ("ratio", "ratio_low", "ratio_high") if tokens else ("interaction", "low", "high")
        shown = between(*(row[name] for name in names), 2)
        what = "total tokens: (P→P ÷ P→S) ÷ (S→P ÷ S→S)" if tokens else "score: (P→P − P→S) − (S→P − S→S)"
        rows.append({"split": row["split"], "interaction": what, "n": number(row["n"]), "D [95 %]": shown})
    caption = (
        "Interaction of training and runtime, from tasks scored in all four cells, with 95 % bootstrap intervals "
        "(BCa). Of tokens it is a ratio of ratios of geometric means: below 1, each model is cheaper at home."
    )
    return Table(pd.DataFrame(rows, columns=["split", "interaction", "n", "D [95 %]"]), caption)


def against_teacher(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Mean score of each trained model at home ÷ its teacher's on the same tasks, per split: RATIO_COLUMNS.

    95 % percentile bootstrap intervals; left out where the two share no scored task.
    """
    rows = []
    for split in dict.fromkeys(episodes["split"]):
        for kind in KINDS:
            own, best = statistics.paired(episodes, (kind, kind, split), ("teacher", kind, split), "score")
            if len(own):
                ratio = statistics.ratio_interval(own, best, n_resamples, seed)
                rows.append((split, f"{kind}→{kind}", len(own), own.mean(), best.mean(), *ratio))
    return pd.DataFrame(rows, columns=RATIO_COLUMNS)


def teacher_shown(table: pd.DataFrame) -> Table:
    """``against_teacher`` as text."""
    text = pd.DataFrame({"split": table["split"], "cell": [cell_name(*cell.split("→")) for cell in table["cell"]]})
    text["n"] = table["n"].map(number)
    for title, name in (("score %", "score"), ("teacher's score %", "teacher_score")):
        text[title] = [number(100 * value, 1) for value in table[name]]
    text["of the teacher's % [95 %]"] = [between(*row, 1, 100) for row in table[["ratio", "low", "high"]].to_numpy()]
    caption = "How much of its teacher's score a model reaches on the same tasks: ratio of means, percentile bootstrap."
    return Table(text, caption)

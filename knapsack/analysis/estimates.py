"""What several runs measured, and how that varies over runs: numbers, then text.

Within a run an estimate has its interval over tasks (what other tasks would give to the same models); over the runs of
a group it has a mean, a standard deviation, a range and a t interval (what another run would give, whatever changed
between these). Neither replaces the other.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from knapsack.analysis import statistics
from knapsack.analysis.metrics import cell_name
from knapsack.analysis.statistics import PP, PS, RUN_COLUMNS, SP, SS
from knapsack.analysis.tables import number

CELL = ["split", "model", "runtime"]
VALUES = ["n", "value", "low", "high"]
IDENTITY = ["task_id", "status", "score", "prompt_tokens", "completion_tokens"]  # equal: the very same episode


@dataclass(frozen=True)
class Quantity:
    """What a quantity is called, in short and in a table, between which values it can lie at all, and how it is shown:
    times ``factor``, with a sign where it is ``signed``. A ``ratio`` is summarised over runs in logarithms."""

    name: str
    title: str
    least: float
    most: float
    factor: int = 1
    digits: int = 3
    signed: bool = False
    ratio: bool = False


QUANTITIES = {
    "score": Quantity("score", "score %", 0, 1, 100, 1),
    "total_tokens": Quantity("tokens", "total tokens", 0, math.inf, 1, 0),
    "missing_bindings": Quantity("missing bindings", "episodes with a missing binding %", 0, 1, 100, 1),
    "aligned": Quantity("aligned difference", "aligned cells, score: P→P − S→S", -1, 1, signed=True),
    "loss": Quantity("P→S loss", "P→S loss, score: P→P − P→S", -1, 1, signed=True),
    "interaction": Quantity("interaction D", "interaction D, score: (P→P − P→S) − (S→P − S→S)", -2, 2, signed=True),
    "tax": Quantity("amnesia tax", "amnesia tax, tokens: S→P ÷ P→P", 0, math.inf, digits=2, ratio=True),
    "token_interaction": Quantity(
        "interaction of tokens", "interaction, tokens: (P→P ÷ P→S) ÷ (S→P ÷ S→S)", 0, math.inf, digits=2, ratio=True
    ),
}
OF_CELLS = ("score", "total_tokens", "missing_bindings")


def cell_values(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """A row per quantity of OF_CELLS, run and cell, from episodes with a column ``run``: ``n`` scored episodes, their
    mean ``value`` with 95 % BCa interval, or for missing_bindings the share of those with any and the Wilson interval;
    NaN where no episode is scored."""
    rows = []
    for quantity in OF_CELLS:
        for key, group in episodes.groupby(["run", *CELL], sort=False):
            values = group.loc[group["status"] == "completed", quantity].to_numpy(float)
            if quantity == "missing_bindings":
                values = values > 0
                ends = statistics.share_interval(values.sum(), len(values))
            else:
                ends = statistics.mean_interval(values, n_resamples, seed)
            rows.append((quantity, *key, len(values), values.mean() if len(values) else math.nan, *ends))
    return pd.DataFrame(rows, columns=["quantity", "run", *CELL, *VALUES])


def contrast_values(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """A row per contrast (the QUANTITIES that are not of cells), run and split: ``n`` tasks completed in its cells,
    ``value`` and 95 % interval over tasks (BCa, of ratios of means percentile). Left out where a run has no such task.
    """
    rows = []
    for (run, split), part in episodes.groupby(["run", "split"], sort=False):
        for contrast, other in (("aligned", SS), ("loss", PS)):
            home, away = statistics.paired(part, (*PP, split), (*other, split), "score")
            ends = statistics.mean_interval(home - away, n_resamples, seed)
            rows.append((contrast, run, split, len(home), (home - away).mean() if len(home) else math.nan, *ends))
        pair = statistics.paired(part, (*SP, split), (*PP, split), "total_tokens")
        rows.append(("tax", run, split, len(pair[0]), *statistics.ratio_interval(*pair, n_resamples, seed)))
        score, tokens = statistics.interactions_table(part, n_resamples, seed).to_dict("records")
        for contrast, row, names in (
            ("interaction", score, ("interaction", "low", "high")),
            ("token_interaction", tokens, ("ratio", "ratio_low", "ratio_high")),
        ):
            rows.append((contrast, run, split, row["n"], *(row[name] for name in names)))
    table = pd.DataFrame(rows, columns=["quantity", "run", "split", *VALUES]).dropna(subset="value")
    order = list(QUANTITIES)
    return table.sort_values("quantity", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def same_episodes(episodes: pd.DataFrame, runs: list[str]) -> list[tuple[str, str, str]]:
    """Cells (split, model, runtime) that two or more of ``runs`` have, all with the very same scores and tokens."""
    seen: dict[tuple, list[pd.DataFrame]] = {}
    for (*cell, _), group in episodes[episodes["run"].isin(runs)].groupby([*CELL, "run"], sort=False):
        seen.setdefault(tuple(cell), []).append(group[IDENTITY].sort_values("task_id", ignore_index=True))
    return [cell for cell, alike in seen.items() if len(alike) > 1 and all(map(alike[0].equals, alike[1:]))]


def directions(contrasts: pd.DataFrame, runs: list[str]) -> dict[bool, list[tuple[str, str]]]:
    """Contrasts (name, split) that two or more of ``runs`` have: under True those on the same side of no difference
    in each of them, under False the others."""
    found: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for (quantity, split), group in contrasts[contrasts["run"].isin(runs)].groupby(["quantity", "split"], sort=False):
        away = group["value"] - (1 if QUANTITIES[quantity].ratio else 0)
        if len(away) > 1:
            found[bool((away > 0).all() or (away < 0).all())].append((QUANTITIES[quantity].name, split))
    return found


def over_runs(values: pd.DataFrame, runs: list[str], same: list[tuple]) -> pd.DataFrame:
    """``statistics.between_runs`` of the values of ``runs``, a row per quantity and cell (or split of a contrast).

    Of a ratio the mean is the geometric one, ``sd`` a factor, and the interval that of its logarithm. An interval ends
    where the quantity has to end, and is NaN where all runs agree: three equal shares do not show that a fourth run
    would give the same. The cells of ``same`` were drawn once: their ``sd`` is NaN too.
    """
    chosen = values[values["run"].isin(runs)].copy()
    keys = [name for name in ("quantity", *CELL) if name in chosen]
    ratios = chosen["quantity"].map(lambda name: QUANTITIES[name].ratio)
    chosen.loc[ratios, "value"] = np.log(chosen.loc[ratios, "value"].where(lambda value: value > 0))
    table = statistics.between_runs(chosen, "value", keys)
    ratios = table["quantity"].map(lambda name: QUANTITIES[name].ratio)
    table.loc[ratios, RUN_COLUMNS[1:]] = np.exp(table.loc[ratios, RUN_COLUMNS[1:]])
    limits = table["quantity"].map(QUANTITIES)
    for end in ("low", "high"):
        table[end] = table[end].clip(limits.map(lambda it: it.least), limits.map(lambda it: it.most))
    table.loc[table["least"] == table["most"], ["low", "high"]] = math.nan
    table.loc[[tuple(row) in same for row in table[keys[1:]].to_numpy()], "sd"] = math.nan
    return table


def shown(values: pd.DataFrame, summaries: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """As text: a row per quantity and cell (or split), a column per run, then those of each of ``summaries``
    (``over_runs``), whose titles begin with its key."""
    keys = [name for name in ("quantity", *CELL) if name in values]
    runs, rows = list(dict.fromkeys(values["run"])), []
    summaries = {name: table.set_index(keys) for name, table in summaries.items()}
    for key, here in values.groupby(keys, sort=False):
        what, here = QUANTITIES[key[0]], here.set_index("run")
        row = {"quantity": what.title, "split": key[1]} | ({"train→runtime": cell_name(*key[2:])} if key[2:] else {})
        row |= {run: _estimate(what, *here.loc[run, VALUES[1:]]) if run in here.index else "" for run in runs}
        for name, table in summaries.items():
            found = table.loc[key] if key in table.index else dict.fromkeys(RUN_COLUMNS, math.nan) | {"runs": 0}
            row[f"{name}: runs"] = number(found["runs"])
            row[f"{name}: mean"] = _number(what, found["mean"])
            spread = number(what.factor * found["sd"], what.digits)
            row[f"{name}: sd"] = f"× {spread}" if what.ratio and spread else spread
            row[f"{name}: range"] = _range(what, found["least"], found["most"])
            row[f"{name}: 95 % t"] = _range(what, found["low"], found["high"])
        rows.append(row)
    return pd.DataFrame(rows)


def _number(what: Quantity, value: float) -> str:
    text = number(what.factor * value, what.digits)
    return f"+{text}" if what.signed and set(text) & set("123456789") and text[0] != "−" else text


def _range(what: Quantity, low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{_number(what, low)}{' to ' if what.signed else '–'}{_number(what, high)}"


def _estimate(what: Quantity, value: float, low: float, high: float) -> str:
    ends = _range(what, low, high)
    return f"{_number(what, value)} [{ends}]" if ends else _number(what, value)

"""What a run measured, in one long table: every mean, share, difference and ratio that is shown is a row of it.

COLUMNS: ``quantity``; ``split`` and ``cap``, the setting; ``first`` and ``second``, cells as "model→runtime"; ``n``,
``value`` and the ends of its 95 % interval; ``note``, what ``intervals`` did where the usual interval does not exist.

* Of one cell (``second`` is empty), over its n scored episodes: the means MEANS (BCa interval); SHARES of episodes
  with at least one (Wilson); "score_per_1k_tokens", mean score ÷ mean total_tokens × 1,000 (percentile).
* Of two cells, over the n tasks scored in both: "<quantity> difference", first − second (of means BCa, of shares
  Newcombe's); "<quantity> ratio", mean(first) ÷ mean(second) (percentile).
* Of all four cells of the two adapters: "score interaction", the mean of ``interaction``; "total_tokens interaction",
  exp of the mean of that of logarithms, a ratio of ratios. ``first`` and ``second`` are the models.
* "score interaction minus cap <c>": T, at each cap below c, over the tasks scored in all eight cells.
* Of three caps and more, at the least of them: SLOPE, the mean of ``cap_slopes``, of each cell of an adapter, and
  "<SLOPE> difference", P→S − P→P (v3's dose–response), over the tasks scored under every cap.
* Of the training traces (split "training", cap 0, for notebook 02 has a cap of its own): "trace_tokens ratio" and
  "episode_tokens ratio", stateless ÷ persistent.

Cells and contrasts without a scored task have n = 0 and NaN; of cells that were not played there is no row.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from knapsack.analysis.intervals import (
    BOOTSTRAP,
    Bootstrap,
    bootstrap_interval,
    ratio_interval,
    share_difference,
    share_interval,
)
from knapsack.analysis.metrics import CELL, SETTING, cell_rows, completed, setting_rows
from knapsack.runtime import KINDS
from knapsack.traces import Cell

COLUMNS = ["quantity", *SETTING, "first", "second", "n", "value", "low", "high", "note"]
MEANS = ("score", "turns", "prompt_tokens", "completion_tokens", "total_tokens", "seconds", "inspected")
SHARES = {"solved": "solved"}  # of episodes: quantity, and the column that is above 0
SHARES |= {"name_error": "name_errors", "missing_binding": "missing_bindings", "cap_hit": "cap_hits"}
PER_1K = "score_per_1k_tokens"
DIFFERENCES = ("score", "total_tokens", "solved", "missing_binding")  # of every one of ``comparisons``
TRAINING = ("training", 0)  # stands for a setting
OF_TRAINING = ("trace_tokens", "episode_tokens")
PP, PS, SP, SS = [(model, runtime) for model in KINDS for runtime in KINDS]  # (training, runtime)
SLOPE = "score per doubled cap"
MIXED, MATCHED = "mixed", "stateless-matched"  # adapters beyond the two, by the names that ``make beyond`` gives them
# Of total_tokens: the amnesia tax, the wrong runtime, the aligned cells, and the tax after as many tokens of practice.
RATIOS = ((SP, PP), (PS, PP), (SS, PP), ((MATCHED, "persistent"), PP))
CELL_COLUMNS = (
    "model,runtime,split,cap,n,unscored,score_mean,score_low,score_high,solved,turns,prompt_tokens,completion_tokens,"
    "total_tokens,seconds,score_per_1k_tokens,name_error_rate,missing_binding_rate,cap_hit_rate,inspected"
).split(",")


class Estimate(NamedTuple):
    """A row of the table, without what it is of."""

    n: int
    value: float
    low: float
    high: float
    note: str = ""

    @property
    def interval(self) -> tuple[float, float, float]:
        """The value and both ends."""
        return self[1:4]


def matched(episodes: pd.DataFrame, cells: Iterable[tuple], column: str) -> list[np.ndarray]:
    """``column`` in each cell (model, runtime, split, cap), for the tasks completed in all, in the order of tasks.

    One array of shape (n,) a cell. ValueError where a cell has a task twice: choose one run of several first.
    """
    sides = []
    for cell in cells:
        side = completed(cell_rows(episodes, cell)).set_index("task_id")[column]
        if not side.index.is_unique:
            raise ValueError(f"{Cell(*cell).name}: task {side.index[side.index.duplicated()][0]} occurs twice")
        sides.append(side)
    shared = sides[0].index
    for side in sides[1:]:
        shared = shared.intersection(side.index)
    shared = shared.sort_values()
    return [side.loc[shared].to_numpy(float) for side in sides]


def comparisons(cells: Iterable[tuple]) -> list[tuple[str, tuple, tuple]]:
    """The study's comparisons among the (model, runtime, split, cap) that exist: (what, first, second).

    A comparison changes one thing, apart from the aligned cells. Per setting (split, cap): training within a runtime
    (between the two adapters only: any other model differs in more than its training traces); the runtime within a
    model; a carry-over runtime against the stateless one that it mends, and announced against silent; a runtime that is
    not told, or told falsely, against itself, and both untold; an adapter of mixed traces against the one at home; and
    the two aligned cells.
    """
    have = list(dict.fromkeys(cells))
    runtimes, models = ([*dict.fromkeys(cell[place] for cell in have)] for place in (1, 0))
    found = []
    for setting in dict.fromkeys(cell[2:] for cell in have):
        for runtime in [*KINDS, *(name for name in runtimes if name not in KINDS)]:
            pair = (("persistent", runtime, *setting), ("stateless", runtime, *setting))
            found.append((f"training, in the {runtime} runtime", *pair))
        for model in models:
            for what, one, other in (
                ("runtime", "persistent", "stateless"),
                ("carry-over", "carry-over", "stateless"),
                ("announced carry-over", "carry-over-announced", "stateless"),
                ("announcing the carry-over", "carry-over-announced", "carry-over"),
                ("runtime, untold", "persistent-untold", "stateless-untold"),
                *((f"cue, {kind} runtime", f"{kind}-untold", kind) for kind in KINDS),
                *((f"false cue, {kind} runtime", f"{kind}-false", kind) for kind in KINDS),
            ):
                found.append((f"{what}, {model}", (model, one, *setting), (model, other, *setting)))
        for kind in KINDS:
            found.append((f"mixed, in the {kind} runtime", (MIXED, kind, *setting), (kind, kind, *setting)))
        found.append(("aligned cells", (*PP, *setting), (*SS, *setting)))
    return [row for row in found if row[1] in have and row[2] in have]


def interaction(episodes: pd.DataFrame, settings: list[tuple], column: str, logarithm: bool = False) -> np.ndarray:
    """D = (PP − PS) − (SP − SS) of each task completed in all four cells of a setting (split, cap), shape (n,), ordered
    by task; of two settings T, the first's D minus the second's, of each task completed in all eight.

    XY is the model trained on X in runtime Y: D says how much more the persistent-trained model gains from the
    persistent runtime than the stateless-trained one. With ``logarithm`` of ln(column), where exp(D) is a ratio of
    ratios; tasks with a 0 in any cell then have no D and are left out.
    """
    cells = [(*cell, *setting) for cell in (PP, PS, SP, SS) for setting in settings]
    values = np.array(matched(episodes, cells, column))
    if logarithm:
        values = np.log(values[:, (values > 0).all(axis=0)])
    pp, ps, sp, ss = np.split(values, 4)
    d = (pp - ps) - (sp - ss)
    return d[0] - d[1:].sum(axis=0)


def cap_slopes(episodes: pd.DataFrame, ends: list[tuple], split: str, caps: list[int]) -> np.ndarray:
    """The least-squares slope of the score on log2(cap) on each task scored under all ``caps`` in all cells ``ends``
    (model, runtime), shape (cells, n). Every task has every cap, so their mean is the slope with task effects."""
    scores = matched(episodes, [(*cell, split, cap) for cell in ends for cap in caps], "score")
    x = np.log2(caps) - np.log2(caps).mean()
    return np.einsum("c,mcn->mn", x / (x @ x), np.array(scores).reshape(len(ends), len(caps), -1))


def of_cell(episodes: pd.DataFrame, cell: tuple, quantity: str, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """The mean, share or ratio of means ``quantity`` of a cell (model, runtime, split, cap).

    A mean over episodes of which some have no value is over the others, without an interval.
    """
    if quantity == PER_1K:
        score, tokens = (matched(episodes, [cell], column)[0] for column in ("score", "total_tokens"))
        return Estimate(len(score), *ratio_interval(1000 * score, tokens, bootstrap))
    (values,) = matched(episodes, [cell], SHARES.get(quantity, quantity))
    if quantity in SHARES:
        had = values > 0
        return Estimate(len(had), pd.Series(had).mean(), *share_interval(had.sum(), len(had)))
    return _of_values(values, bootstrap)


def contrast(
    episodes: pd.DataFrame, quantity: str, first: tuple, second: tuple, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """ "<quantity> difference" or "<quantity> ratio" of two cells (model, runtime, split, cap)."""
    name, how = quantity.split(" ")
    pair = matched(episodes, (first, second), SHARES.get(name, name))
    if how == "ratio":
        return Estimate(len(pair[0]), *ratio_interval(*pair, bootstrap))
    if name in SHARES:
        return Estimate(len(pair[0]), *share_difference(pair[0] > 0, pair[1] > 0))
    return _of_values(pair[0] - pair[1], bootstrap)


def _of_values(values: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    return Estimate(len(values), pd.Series(values).mean(), *bootstrap_interval((values,), np.mean, bootstrap))


def _of_interaction(episodes: pd.DataFrame, settings: list[tuple], column: str, bootstrap: Bootstrap) -> Estimate:
    found = _of_values(interaction(episodes, settings, column, column == "total_tokens"), bootstrap)
    return found if column == "score" else Estimate(found.n, *np.exp(found.interval), found.note)


def estimates_table(
    episodes: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP, facts: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Every estimate that the head of this module names, with COLUMNS.

    ``facts``: those of the training traces (``tables.training_facts``), or None.
    """
    rows = [*_cells_and_contrasts(episodes, bootstrap), *_of_training(facts, bootstrap)]
    return pd.DataFrame([(row[0], *row[1], _name(row[2]), _name(row[3]), *row[4]) for row in rows], columns=COLUMNS)


def _cells_and_contrasts(episodes: pd.DataFrame, bootstrap: Bootstrap) -> Iterator[tuple]:
    """(quantity, setting, first, second, Estimate)."""
    cells = list(dict.fromkeys(episodes[CELL].itertuples(index=False, name=None)))
    for quantity in (*MEANS, *SHARES, PER_1K):
        for cell in cells:
            yield quantity, cell[2:], cell[:2], (), of_cell(episodes, cell, quantity, bootstrap)
    settings = list(dict.fromkeys(cell[2:] for cell in cells))
    pairs = [(f"{name} difference", *pair) for name in DIFFERENCES for _, *pair in comparisons(cells)]
    pairs += [("total_tokens ratio", (*a, *setting), (*b, *setting)) for setting in settings for a, b in RATIOS]
    for quantity, first, second in pairs:
        if first in cells and second in cells:
            yield quantity, first[2:], first[:2], second[:2], contrast(episodes, quantity, first, second, bootstrap)
    whole = [setting for setting in settings if all((*cell, *setting) in cells for cell in (PP, PS, SP, SS))]
    for setting in whole:
        for name in ("score", "total_tokens"):
            found = _of_interaction(episodes, [setting], name, bootstrap)
            yield f"{name} interaction", setting, KINDS[:1], KINDS[1:], found
    for one, other in itertools.permutations(whole, 2):
        if one[0] == other[0] and one[1] < other[1]:
            found = _of_interaction(episodes, [one, other], "score", bootstrap)
            yield f"score interaction minus cap {other[1]}", one, KINDS[:1], KINDS[1:], found
    for split in dict.fromkeys(setting[0] for setting in settings):
        caps = sorted(cap for other, cap in settings if other == split)
        there = [end for end in (PP, PS, SP, SS) if all((*end, split, cap) in cells for cap in caps)]
        if len(caps) > 2:
            for end in there:
                found = _of_values(cap_slopes(episodes, [end], split, caps)[0], bootstrap)
                yield SLOPE, (split, caps[0]), end, (), found
            if {PP, PS} <= {*there}:
                away, home = cap_slopes(episodes, [PS, PP], split, caps)
                yield f"{SLOPE} difference", (split, caps[0]), PS, PP, _of_values(away - home, bootstrap)


def _of_training(facts: pd.DataFrame | None, bootstrap: Bootstrap) -> Iterator[tuple]:
    for name in OF_TRAINING if facts is not None and len(facts) else ():
        sides = facts.pivot(index="task_id", columns="runtime", values=name).sort_index()
        if sides.notna().all(axis=None):
            found = ratio_interval(sides["stateless"], sides["persistent"], bootstrap)
            yield f"{name} ratio", TRAINING, KINDS[1:], KINDS[:1], Estimate(len(sides), *found)


def _name(ends: Iterable[str]) -> str:
    return "→".join(ends)


def look_up(table: pd.DataFrame, quantity: str, setting: tuple, first: tuple, second: tuple = ()) -> Estimate:
    """The estimate of a cell (model, runtime) or a contrast in a setting (split, cap); n = 0 and NaN without a row.

    A difference that stands the other way round is given as asked for.
    """
    rows = setting_rows(table[table["quantity"] == quantity], setting)
    for one, other in ((first, second), (second, first)):
        row = rows[(rows["first"] == _name(one)) & (rows["second"] == _name(other))]
        if len(row):
            n, value, low, high, note = row[COLUMNS[5:]].iloc[0]
            turned = (one, other) != (first, second)
            return Estimate(n, 0 - value, 0 - high, 0 - low, note) if turned else Estimate(n, value, low, high, note)
        if not quantity.endswith("difference"):
            break
    return Estimate(0, math.nan, math.nan, math.nan, "no values")


def wide(table: pd.DataFrame, quantities: Iterable[str], unscored: bool = False) -> pd.DataFrame:
    """The cells with a scored episode, or all if ``unscored``, a row each: split, cap, model, runtime, n, and
    <quantity>, <quantity>_low and …_high for each quantity."""
    rows: dict[tuple, dict] = {}
    quantities = list(quantities)
    own = table[table["quantity"].isin(quantities) & (table["second"] == "") & ((table["n"] > 0) | unscored)]
    for one in own.to_dict("records"):
        model, runtime = one["first"].split("→")
        row = {name: one[name] for name in SETTING} | {"model": model, "runtime": runtime, "n": one["n"]}
        row = rows.setdefault((one["split"], one["cap"], one["first"]), row)
        row |= {one["quantity"] + end: one[name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}
    ends = [f"{name}{end}" for name in quantities for end in ("", "_low", "_high")]
    return pd.DataFrame(list(rows.values()), columns=[*SETTING, "model", "runtime", "n", *ends])


def cells_table(episodes: pd.DataFrame, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per cell, with CELL_COLUMNS, from ``estimates_table`` of the episodes (made here if left out).

    score_low and score_high are the interval of score_mean; the rates are shares of EPISODES with at least one; all
    others are means. ``unscored`` counts the tasks without a completed episode (``traces.Trace`` says which): they are
    in no mean.
    """
    table = estimates_table(episodes) if table is None else table
    cells = wide(table, (*MEANS, *SHARES, PER_1K), unscored=True)
    tasks = episodes.groupby(CELL).size().loc[pd.MultiIndex.from_frame(cells[CELL])]
    cells["unscored"] = tasks.to_numpy() - cells["n"]
    names = {name: f"{name}_rate" for name in SHARES if name != "solved"} | {"score": "score_mean"}
    return cells.rename(columns=names)[CELL_COLUMNS]

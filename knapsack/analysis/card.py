"""The card of a model: quality, cost and errors in each runtime, and the runtime that it behaves as if trained for.

**The verdict.** In each episode the first turn that says anything about the model's habit is looked at: it *leans* if
it reads a name of an earlier turn before it binds it, and *writes anew* if it binds such a name without reading it
(``metrics``: names_needed, names_bound_again). The first, because no error of a vanished name has answered the habit
yet: later turns repair it, most of all in the stateless runtime, and a long episode would count many times. Turns
that do neither, as one that only calls ``finish()``, say nothing.

A runtime's outcome is "leans" or "writes anew" if the 95 % Wilson interval of that share of all scored episodes lies
above one half, and undecided otherwise; episodes that show neither count against both, so that a model that mostly
fails before it gets there has no verdict.
"""

import math

import pandas as pd

from knapsack.analysis.comparisons import overview, per_later_turn
from knapsack.analysis.estimates import Estimate, look_up
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap, share_interval
from knapsack.analysis.metrics import CELL, MODELS, RUNTIMES, cell_rows, completed, later_turns, setting_columns
from knapsack.analysis.statistics import UNDECIDED
from knapsack.analysis.tables import Table, between, markdown, number
from knapsack.runtime import KINDS

LEANS, ANEW = "leans", "writes anew"
VERDICTS = {  # by the outcomes in the persistent and the stateless runtime
    (LEANS, LEANS): "as if trained for the persistent runtime",
    (ANEW, ANEW): "as if trained for the stateless runtime",
    (LEANS, ANEW): "adapts to the runtime that it is told",
    (ANEW, LEANS): "contrary to the runtime that it is told",
}
CARD = """# Card of `{model}`

{overview}

{cells}
Brackets are 95 % intervals: of means from resampled episodes, of shares of episodes by Wilson's formula; without
spread, no resample differed. An episode *misses a name* if a block uses one that an earlier turn bound and that is
gone; it *hits the cap* if a turn wants more tool calls than are allowed. A *later turn* has code that parses, after a
turn that bound names; it *leans* if it reads such a name before it binds it, so that it needs an interpreter that kept
it (interval from resampled episodes). "–": there is no such episode or turn.

## Which runtime it behaves as if trained for

**Verdict: {verdict}.**

{habits}
In each episode the first turn that tells is counted: it *leans*, or it *writes anew*, binding without reading it a
name that an earlier block had bound, one that ended without an error. What comes after may answer an error.
An episode without such a turn counts for neither. The outcome in a runtime is that whose share of all scored episodes
has its whole interval above one half. The outcomes in the persistent and in the stateless runtime give the verdict:

{rule}"""


def first_uses(episodes: pd.DataFrame, turns: pd.DataFrame, model: str) -> pd.DataFrame:
    """Per runtime that ``model`` completed episodes in: n of them, and how many first lean or first write anew.

    Index: runtime; columns: n, leans, anew (integers). Splits and caps are pooled.
    """
    done = completed(episodes[episodes["model"] == model])
    later = later_turns(turns[turns["model"] == model])
    telling = later[(later["names_needed"] > 0) | (later["names_bound_again"] > 0)].sort_values("turn", kind="stable")
    first = telling.drop_duplicates([*CELL, "task_id"])
    counted = pd.DataFrame(
        {
            "n": done["runtime"].value_counts(),
            "leans": first.loc[first["names_needed"] > 0, "runtime"].value_counts(),
            "anew": first.loc[first["names_needed"] == 0, "runtime"].value_counts(),
        }
    )
    played = [runtime for runtime in RUNTIMES if runtime in counted.index]
    return counted.reindex(played).fillna(0).astype(int)


def outcome(n: int, leans: int, anew: int) -> str:
    """LEANS or ANEW if the interval of that share of n episodes lies above one half, else UNDECIDED."""
    for name, count in ((LEANS, leans), (ANEW, anew)):
        if share_interval(count, n)[0] > 0.5:
            return name
    return UNDECIDED


def habit(uses: pd.DataFrame) -> str:
    """The verdict from ``first_uses``: one of VERDICTS, "undecided", or which runtime is missing."""
    missing = [kind for kind in KINDS if kind not in uses.index]
    if missing:
        return f"unknown, without a scored episode in the {' or '.join(missing)} runtime"
    return VERDICTS.get(tuple(outcome(*uses.loc[kind]) for kind in KINDS), UNDECIDED)


def model_card(
    episodes: pd.DataFrame,
    turns: pd.DataFrame,
    estimates: pd.DataFrame,
    model: str,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> str:
    """The card of ``model`` as Markdown, from the tables of ``metrics.read_cells`` and their ``estimates_table``.

    The other models of the tables appear for comparison of habits only; ``bootstrap`` is for the share of turns that
    lean. Raises ValueError for a model without any episode, naming those that are there.
    """
    models = list(dict.fromkeys(episodes["model"]))
    if model not in models:
        raise ValueError(f"there is no episode of the model {model!r}; there are: {', '.join(map(repr, models))}")
    own = episodes[episodes["model"] == model]
    uses = {model: first_uses(episodes, turns, model)}
    uses |= {name: first_uses(episodes, turns, name) for name in MODELS if name in models and name != model}
    missing = [kind for kind in KINDS if kind not in set(own["runtime"])]
    setting = setting_columns(own)
    rows = [
        {name: str(group[name].iloc[0]) for name in setting} | _cell(key, group, turns, estimates, bootstrap)
        for key, group in own.groupby(CELL, sort=False)
    ]
    return CARD.format(
        model=model,
        overview=overview(own) + (f" Not played in the {' or '.join(missing)} runtime." if missing else ""),
        cells=markdown(Table(pd.DataFrame(rows), "")),
        verdict=habit(uses[model]),
        habits=markdown(Table(pd.DataFrame([_habits(*use) for use in uses.items()]), "")),
        rule="".join(f"* {one}, {other}: {said}\n" for (one, other), said in VERDICTS.items()),
    )


def _cell(
    key: tuple, own: pd.DataFrame, turns: pd.DataFrame, estimates: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, str]:
    """A row of the table of cells, as text."""

    def found(quantity: str) -> Estimate:
        return look_up(estimates, quantity, key[2:], key[:2])

    later, _, leaning = per_later_turn(cell_rows(turns, key), bootstrap)
    row = {
        "score %": between(*found("score").interval, 1, 100),
        "solved %": number(100 * found("solved").value, 1),
        "turns": number(found("turns").value, 1),
        "total tokens": between(*found("total_tokens").interval),
        "misses a name %": between(*found("missing_binding").interval, scale=100),
        "hits the cap %": between(*found("cap_hit").interval, scale=100),
        "later turns": number(later),
        "of them lean %": between(*leaning, scale=100),
    }
    n = found("score").n
    counted = {"runtime": key[1], "n": number(n), "unscored": number(len(own) - n)}
    return counted | {title: text or "–" for title, text in row.items()}


def _habits(model: str, uses: pd.DataFrame) -> dict[str, str]:
    """A row of the table of habits, as text."""
    row = {"model": f"`{model}`"}
    for kind in KINDS:
        n, leans, anew = uses.loc[kind] if kind in uses.index else (0, 0, 0)
        row[f"{kind}: n"] = number(n)
        row |= {f"{kind}: leans %": _share(leans, n), f"{kind}: writes anew %": _share(anew, n)}
    return row | {"verdict": habit(uses) + (", by design" if model == "teacher" else "")}


def _share(count: int, n: int) -> str:
    return between(count / n if n else math.nan, *share_interval(count, n), scale=100) or "–"

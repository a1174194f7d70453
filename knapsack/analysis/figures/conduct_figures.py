"""Figures of how the episodes went: tokens turn by turn, errors and recovery, and what fills the replies."""

import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from knapsack.analysis.conduct import ERRORS, PARTS, Conduct, redundancy
from knapsack.analysis.figures.style import (
    CELL,
    GREY,
    INK,
    LINES,
    MARKERS,
    PALE,
    WIDTH,
    Drawing,
    NothingToShow,
    cell_label,
    cells_legend,
    colours_of,
    counts_text,
    interval_text,
    labels_text,
    legend_above,
    means,
    percent,
    scored,
    span,
    split_axes,
)
from knapsack.analysis.intervals import share_interval

SHOWN_EPISODES = 3  # a mean over fewer episodes is in the data file, not in the plot, unless there are never more
NO_TURN = "No scored turn of a model other than the teacher is there to show."
KINDS_OF_ERROR = {  # colour and hatch, from the bottom of the stack
    "missing binding": ("#D55E00", ""),
    "other NameError": ("#E69F00", "////"),
    "cap hit": ("#F0E442", ""),
    "tool error": ("#009E73", "\\\\\\\\"),
    "other code error": ("#56B4E9", ""),
    "malformed reply": ("#999999", "...."),
}
CONTENTS = {  # of PARTS: label, colour, hatch
    "restated": ("state restated", "#D55E00", ""),
    "repeated": ("code repeated", "#E69F00", "////"),
    "new": ("new code", "#0072B2", ""),
    "reasoning": ("reasoning", "#56B4E9", "...."),
    "malformed": ("malformed", "#BBBBBB", ""),
}


def tokens_by_turn(episodes: pd.DataFrame, turns: pd.DataFrame, **seeded: int) -> Drawing:
    """Mean completion and prompt tokens of the n-th turn over the episodes that reach it, and how many do."""
    shown = turns[turns["model"] != "teacher"]
    if shown.empty:
        raise NothingToShow(NO_TURN)
    data = means(shown, [*CELL, "turn"], ("completion_tokens", "prompt_tokens"), **seeded)
    data["turn"] += 1
    splits, colours = list(dict.fromkeys(data["split"])), colours_of(data["model"])
    least = min(SHOWN_EPISODES, int(data.groupby("split")["n"].max().min()))
    labels = {"completion_tokens": "completion tokens", "prompt_tokens": "prompt tokens", "n": "episodes running"}
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = split_axes(figure, 3, splits, sharex="col", sharey="row")
    for column, split in enumerate(splits):
        for (model, runtime), line in data[data["split"] == split].groupby(["model", "runtime"], sort=False):
            look = {"color": colours[model], "linestyle": LINES[runtime], "marker": MARKERS[runtime], "ms": 1.8}
            look["mfc"] = None if runtime == "persistent" else "white"
            seen = line[line["n"] >= least]
            for row, name in enumerate(("completion_tokens", "prompt_tokens")):
                axes[row][column].plot(seen["turn"], seen[name], mew=0.6, **look)
                low, high = seen[f"{name}_low"], seen[f"{name}_high"]
                axes[row][column].fill_between(seen["turn"], low, high, color=look["color"], alpha=0.12, lw=0)
            axes[2][column].plot(line["turn"], line["n"], mew=0.6, **look)
        axes[2][column].set(xlabel="turn")
        axes[2][column].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    for row, name in enumerate(labels):
        axes[row][0].set(ylabel=labels[name], ylim=(0, None if name != "n" else 1.06 * data["n"].max()))
        axes[row][0].yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    figure.align_ylabels(axes[:, 0])
    cells_legend(figure, dict.fromkeys(zip(data["model"], data["runtime"], strict=True)))
    caption = (
        f"Mean tokens of each turn over the episodes still running (where there are at least {least}), with the "
        f"{interval_text(**seeded)}, and how many are running. {labels_text(data['runtime'])} "
        f"{counts_text(episodes[episodes['model'] != 'teacher'])}"
    )
    return Drawing(figure, data, caption)


def _error_shares(turns: pd.DataFrame) -> pd.DataFrame:
    """Per cell and turn (from 1): n episodes still running, and the share of each of ERRORS among their turns."""
    counts = turns.groupby([*CELL, "turn"], sort=False)["error"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(ERRORS), fill_value=0)
    n = counts.sum(axis=1)
    data = counts.div(n, axis=0).reset_index()
    data.insert(4, "n", n.to_numpy())
    data["turn"] += 1
    return data


def _recovery_shares(recoveries: pd.DataFrame) -> pd.DataFrame:
    """Per cell: n missing-binding errors, how many a new item followed, with its share, and after how many turns."""
    rows = []
    for key, group in recoveries.groupby(CELL, sort=False):
        count, n = int(group["recovered"].sum()), len(group)
        low, high = share_interval(count, n)
        row = dict(zip(CELL, key, strict=True)) | {"n": n, "recovered": count, "share": count / n}
        found = group.loc[group["recovered"].astype(bool), "turns"]
        rows.append(row | {"low": low, "high": high, "median_turns": found.median() if count else float("nan")})
    return pd.DataFrame(rows)


def errors_and_recovery(episodes: pd.DataFrame, conduct: Conduct) -> Drawing:
    """Above, the share of each error among the episodes still running, turn by turn; below, how often and how soon a
    new item follows a missing-binding error.

    The trained cells are shown above, or those that there are if none is; all cells with such an error below.
    """
    trained = conduct.turns[~conduct.turns["model"].isin(["base", "teacher"])]
    turns = trained if len(trained) else conduct.turns[conduct.turns["model"] != "teacher"]
    if turns.empty:
        raise NothingToShow(NO_TURN)
    errors, recovery = _error_shares(turns), _recovery_shares(conduct.recoveries)
    cells = list(dict.fromkeys(zip(errors["model"], errors["runtime"], strict=True)))
    splits = list(dict.fromkeys(errors["split"]))
    least = min(SHOWN_EPISODES, int(errors.groupby("split")["n"].max().min()))
    heights = [0.35 + 0.62 * len(cells), 0.45 + 0.17 * len(recovery) if len(recovery) else 0.0]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=heights) if len(recovery) else [figure.subfigures(1, 1)]
    axes = parts[0].subplots(len(cells), len(splits), squeeze=False, sharex="col", sharey=True)
    for row, cell in enumerate(cells):
        for column, split in enumerate(splits):
            ax = axes[row][column]
            chosen = (errors[CELL] == [split, *cell]).all(axis=1)
            if not chosen.any():
                ax.set_axis_off()
                continue
            _stack(ax, errors[chosen], least)
            ax.set_title(f"{split}: {cell_label(*cell)}", fontsize=6.5, loc="left")
            if column == 0 or not axes[row][0].axison:
                ax.tick_params(labelleft=True)
        axes[row][0].set(ylim=(0, 1.04), yticks=[0, 0.5, 1], yticklabels=["0", "50 %", "100 %"])
    for column in range(len(splits)):
        last = errors.loc[errors["split"] == splits[column], "turn"].max()
        axes[-1][column].set(xlabel="turn", xlim=(0.4, last + 0.6))
        axes[-1][column].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if len(recovery):
        _recovery_panel(parts[1], recovery)
    seen = [name for name in KINDS_OF_ERROR if (errors[name] > 0).any()]
    handles = [_patch(name, *KINDS_OF_ERROR[name]) for name in seen]
    legend_above(figure, [*handles, Line2D([], [], color=INK, lw=0.9, label="episodes running")])
    caption = (
        "Above: share of the episodes still running that meet an error in a turn (at least "
        f"{least} running), one kind a turn; the line is the share still running. {labels_text(errors['runtime'])} "
        f"{_recovery_text(recovery)}"
        f"{counts_text(episodes[episodes['model'].isin(set(turns['model']))])}"
    )
    data = pd.concat([errors.assign(part="errors"), recovery.assign(part="recovery")], ignore_index=True)
    return Drawing(figure, data[["part", *(name for name in data if name != "part")]], caption)


def _recovery_text(recovery: pd.DataFrame) -> str:
    if recovery.empty:
        return "No missing-binding error whose task is at hand, so there is no recovery to show. "
    return (
        "Below: share of missing-binding errors after which the episode came to a new item, inspected or taken, with "
        f"the 95 % Wilson interval (n = {span(recovery['n'])} errors a cell, each counted alone), and the median of "
        "the turns until then. "
    )


def _patch(label: str, colour: str, hatch: str) -> Patch:
    return Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0, label=label)


def _stack(ax: Axes, rows: pd.DataFrame, least: int) -> None:
    """Bars of error shares by turn, and the share of episodes that are still running."""
    rows = rows.sort_values("turn")
    shown, bottom = rows[rows["n"] >= least], 0.0
    for name, (colour, hatch) in KINDS_OF_ERROR.items():
        ax.bar(shown["turn"], shown[name], 0.9, bottom, color=colour, hatch=hatch, edgecolor="white", lw=0)
        bottom = bottom + shown[name]
    ax.plot(rows["turn"], rows["n"] / rows["n"].max(), color=INK, lw=0.9, drawstyle="steps-mid")


def _recovery_panel(part: SubFigure, recovery: pd.DataFrame) -> None:
    ax, colours = part.subplots(), colours_of(recovery["model"])
    ax.set_title("missing-binding errors followed by a new item", fontsize=6.5, loc="right")
    for y, row in enumerate(recovery.to_dict("records")):
        look = {"color": colours[row["model"]], "clip_on": False}
        ax.plot([row["low"], row["high"]], [y, y], lw=1.2, **look)
        ax.plot(row["share"], y, MARKERS[row["runtime"]], ms=3.5, mfc="white", zorder=5, **look)
        median = f"; {row['median_turns']:g} turns" if row["recovered"] else ""
        text = f"{row['recovered']} of {row['n']}{median}".replace("; 1 turns", "; 1 turn")
        ax.annotate(text, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=6)
    names = [f"{row['split']}: {cell_label(row['model'], row['runtime'])}" for row in recovery.to_dict("records")]
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "50 %", "100 %"])
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0, pad=5)
    ax.grid(True, axis="x", lw=0.4, color=PALE)


def what_fills_the_tokens(episodes: pd.DataFrame, conduct: Conduct) -> Drawing:
    """What the replies of an episode consist of, mean per cell, and the redundancy of its code."""
    done = scored(episodes)
    sizes = done.groupby(CELL, sort=False).size()
    totals = conduct.turns.groupby(CELL, sort=False)[list(PARTS)].sum().reindex(sizes.index, fill_value=0)
    if not totals.to_numpy().sum():
        raise NothingToShow("No scored episode has a reply to show.")
    data = totals.div(sizes, axis=0).reset_index()  # an episode without any turn has no row there, but counts
    data.insert(3, "n", sizes.to_numpy())
    data["redundancy"] = [redundancy(row) for row in data.to_dict("records")]
    cells = list(dict.fromkeys(zip(data["model"], data["runtime"], strict=True)))
    splits = list(dict.fromkeys(data["split"]))
    figure = Figure(figsize=(WIDTH, 0.2 + len(splits) * (0.3 + 0.17 * len(cells))), layout="constrained")
    axes = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    for ax, split in zip(axes, splits, strict=True):
        rows = data[data["split"] == split].reset_index(drop=True)
        left = 0.0
        for name, (_label, colour, hatch) in CONTENTS.items():
            ax.barh(rows.index, rows[name], 0.72, left, color=colour, hatch=hatch, edgecolor="white", lw=0)
            left = left + rows[name]
        for y, share in enumerate(rows["redundancy"]):
            beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
            ax.annotate(percent(share), (1, y), (34, 0), ha="right", **beside)
        names = [cell_label(model, runtime) for model, runtime in zip(rows["model"], rows["runtime"], strict=True)]
        ax.set(yticks=rows.index, yticklabels=names, ylim=(len(rows) - 0.5, -0.5), title=split)
        above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "color": GREY}
        ax.annotate("redundancy", (1, 1), (34, 4), **above)
        ax.tick_params(axis="y", length=0, pad=5)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
    axes[-1].set(xlabel=f"{conduct.unit} of the replies of an episode")
    legend_above(figure, [_patch(label, colour, hatch) for label, colour, hatch in CONTENTS.values()])
    caption = (
        f"What the replies of an episode are made of, in {conduct.unit}, mean of the cell. State restated was printed "
        "before, code repeated was written before, each found as runs of words. Redundancy is the share of the "
        f"cell's code that is one or the other. {labels_text(data['runtime'])} {counts_text(episodes)}"
    )
    return Drawing(figure, data, caption)

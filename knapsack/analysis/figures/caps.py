"""Figures of what a cap on the tool calls of a turn does to an agent that loses its names (the paper's v3): one task
under two caps, the work turn by turn, and quality by cap."""

from itertools import product

import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from knapsack.analysis.conduct import WORK, Conduct
from knapsack.analysis.estimates import PS, SLOPE, look_up, wide
from knapsack.analysis.figures import style
from knapsack.analysis.figures.conduct import KINDS_OF_ERROR
from knapsack.analysis.figures.idea import ENDS
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap, mean_interval
from knapsack.analysis.metrics import CELL, cell_name, cell_rows
from knapsack.analysis.tables import between
from knapsack.runtime import KINDS
from knapsack.training_data import MIN_SCORE

EPISODE = [*CELL, "task_id"]
LOOKS = {"none": ("no error", "#EAF1F7", ""), **KINDS_OF_ERROR}
CALLS, ITEMS = "#D55E00", "#0072B2"
PANELS = {  # of bars: title, and what of an episode they show
    "score": ("normalized\noptimality", ["score"]),
    "total_tokens": ("total tokens\n(thousands)", ["total_tokens"]),
    "restart": ("restarts", ["restart"]),
    "items": ("inspect calls,\nitems found", ["inspect_calls", "new_items"]),
    "stopped": ("unfinished\n(%)", ["stopped"]),
}


def _under_caps(episodes: pd.DataFrame, conduct: Conduct) -> tuple[pd.DataFrame, list[str], list[int]]:
    """P→S's scored episodes with the sums of ``conduct.WORK`` over their turns, its splits, and its slackest and its
    tightest cap.

    Raises NothingToShow where it was played under one cap only.
    """
    done = style.scored(episodes)
    own = done[(done[["model", "runtime"]] == list(PS)).all(axis=1)]
    caps = sorted(own["cap"].unique())
    if len(caps) < 2:
        raise style.NothingToShow("P→S was not played under two caps on tool calls, so there is nothing to compare.")
    sums = conduct.turns.groupby(EPISODE)[WORK].sum(min_count=1)
    own = own.merge(sums.reset_index(), on=EPISODE, how="left")
    own["stopped"] = 100.0 * (own["finish_reason"] != "finish_tool")
    return own, list(own["split"].unique()), [caps[-1], caps[0]]


def _strip_task(own: pd.DataFrame, slack: int, tight: int) -> tuple[str, str]:
    """The (split, task) that loses most under the tight cap of those that P→S finished under the slack one with
    MIN_SCORE or more, the first of equals."""
    key = ["split", "task_id"]
    both = own[own["cap"] == slack].merge(own[own["cap"] == tight], on=key, suffixes=("", "_tight"))
    both = both[(both["finish_reason"] == "finish_tool") & (both["score"] >= MIN_SCORE)]
    if both.empty:
        raise style.NothingToShow(f"P→S finished no task with a score of {MIN_SCORE} or more under the slack cap.")
    return tuple(both.loc[(both["score"] - both["score_tight"]).idxmax(), key])


def the_cap(episodes: pd.DataFrame, conduct: Conduct, bootstrap: Bootstrap = BOOTSTRAP) -> style.Drawing:
    """Above, one task played by P→S under its slackest and its tightest cap, a box a turn; below, what all of its
    episodes came to."""
    own, splits, caps = _under_caps(episodes, conduct)
    split, task_id = _strip_task(own, *caps)
    figure = Figure(figsize=(style.WIDTH, 1.75 + 0.95 * len(splits)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.35, 0.95 * len(splits)])
    turns = conduct.turns[(conduct.turns[["split", "task_id"]] == [split, task_id]).all(axis=1)]
    strips, longest, seen = [], 0, set()
    for ax, cap in zip(above.subplots(2, 1, sharex=True), caps, strict=True):
        strip = cell_rows(turns, (*PS, split, cap)).sort_values("turn")
        end = own[(own["cap"] == cap) & (own["task_id"] == task_id) & (own["split"] == split)].iloc[0]
        _strip(ax, strip)
        told = f"{len(strip)} turns, {end['total_tokens']:,} tokens, {ENDS[end['finish_reason']]}"
        ax.set_title(f"cap {cap}: score {end['score']:.2f}", loc="left", fontsize=7)
        ax.set_title(told, loc="right", fontsize=6, color=style.GREY)
        longest, seen = max(longest, len(strip)), seen | set(strip["error"])
        strips.append(strip.assign(part="strip"))
    ax.set(xlim=(0.3, longest + 0.7), xlabel="turn")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))
    bars = _bars(below, own, splits, caps, bootstrap)
    style.legend_above(figure, style.patches({name: look for name, look in LOOKS.items() if name in seen}))
    sizes = own.groupby(["split", "cap"]).size()
    caption = (
        f"What a cap on the tool calls of a turn does to the agent that loses its names (P→S). Above: task {task_id} "
        f"({split}) under both caps, a box a turn: calls of inspect in it, and below them the items seen for the first "
        f"time. Chosen by rule: of the tasks finished under the slack cap with a score of {MIN_SCORE} or more, the one "
        "that loses most under the tight one. Below: means over the episodes of a split, with the "
        f"{style.interval_text(bootstrap)}. A restart is a turn that lists the items again; unfinished episodes end at "
        f"a limit: of turns, context, or malformed replies in a row. n = {style.span(sizes)} episodes a bar."
    )
    data = pd.concat([*strips, bars.assign(part="bars")], ignore_index=True)
    return style.Drawing(figure, data[["part", *(name for name in data if name != "part")]], caption)


def _strip(ax: Axes, strip: pd.DataFrame) -> None:
    for row in strip.to_dict("records"):
        _, colour, hatch = LOOKS[row["error"]]
        at = row["turn"] + 1
        ax.add_patch(Rectangle((at - 0.46, 0), 0.92, 1, fc=colour, hatch=hatch, ec="white", lw=0))
        for y, value in ((0.7, row["inspect_calls"]), (0.28, row["new_items"])):
            if value > 0:
                look = {"ha": "center", "va": "center", "fontsize": style.SMALLEST}
                ax.text(at, y, f"{value:.0f}", weight="bold" if y < 0.5 else None, **look)
    ax.set(ylim=(0, 1), yticks=[0.28, 0.7], yticklabels=["new items", "inspect"])
    ax.tick_params(axis="y", length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def _bars(part: SubFigure, own: pd.DataFrame, splits: list[str], caps: list[int], bootstrap: Bootstrap) -> pd.DataFrame:
    """Draws the bars; returns a row for each: split, cap, quantity, n, mean and its interval."""
    rows, axes = [], part.subplots(len(splits), len(PANELS), squeeze=False, sharex=True, sharey="col")
    for line, split in zip(axes, splits, strict=True):
        for ax, (title, names) in zip(line, PANELS.values(), strict=True):
            for place, cap in enumerate(caps):
                group = own[(own["split"] == split) & (own["cap"] == cap)]
                for name in names:
                    values = group[name].dropna().to_numpy(float) / (1000 if name == "total_tokens" else 1)
                    mean, ends = values.mean() if len(values) else 0.0, mean_interval(values, bootstrap)
                    thick, colour = 0.7 / len(names), ITEMS if name == "new_items" else CALLS
                    at = place + (names.index(name) - (len(names) - 1) / 2) * thick
                    ax.bar(at, mean, 0.92 * thick, color=colour, alpha=1 if place else 0.45)
                    ax.plot([at, at], ends, color=style.INK, lw=0.8)
                    row = {"split": split, "cap": cap, "quantity": name, "n": len(values)}
                    rows.append(row | {"mean": mean, "low": ends[0], "high": ends[1]})
            ax.set(xticks=range(len(caps)), xticklabels=caps, xlim=(-0.6, len(caps) - 0.4))
            ax.yaxis.set_major_locator(ticker.MaxNLocator(3))
            ax.set_title(title if ax in axes[0] else "", fontsize=6)
        line[0].set_ylabel(split)
    for ax in axes[0]:
        ax.set_ylim(bottom=0)  # shared by all splits, so only when all are drawn
    axes[-1][len(PANELS) // 2].set_xlabel("cap on tool calls")
    return pd.DataFrame(rows)


def throughput(episodes: pd.DataFrame, conduct: Conduct) -> style.Drawing:
    """P→S's calls of inspect and the items it has seen, cumulated turn by turn, under its slackest and tightest cap."""
    _, splits, caps = _under_caps(episodes, conduct)
    turns = conduct.turns[(conduct.turns[["model", "runtime"]] == list(PS)).all(axis=1)]
    rows = []
    for split, cap in product(splits, caps):
        group = cell_rows(turns, (*PS, split, cap)).dropna(subset=WORK)
        grid = {name: group.pivot(index="task_id", columns="turn", values=name) for name in WORK[:2]}
        means = pd.DataFrame({name: table.fillna(0).cumsum(axis=1).mean() for name, table in grid.items()})
        at = {"split": split, "cap": cap, "episodes": group["task_id"].nunique(), "turn": means.index + 1}
        rows.append(means.assign(**at, running=grid["new_items"].notna().sum()))
    data = pd.concat(rows, ignore_index=True)
    if data.empty:
        raise style.NothingToShow("No task of P→S is at hand, so what its turns inspected cannot be told.")
    data = data[["split", "cap", "episodes", "turn", "running", *WORK[:2]]]
    figure = Figure(figsize=(style.WIDTH, 1.9), layout="constrained")
    axes = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    styles = dict(zip(caps, ("-", (0, (3, 1.5))), strict=True))
    for ax, split in zip(axes, splits, strict=True):
        for cap in caps:
            line = data[(data["split"] == split) & (data["cap"] == cap)]
            for name, colour in (("inspect_calls", CALLS), ("new_items", ITEMS)):
                ax.plot(line["turn"], line[name], color=colour, linestyle=styles[cap])
        ax.set(title=split, xlabel="turn")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes[0].set_ylabel("an episode, cumulated")
    axes[0].set_ylim(bottom=0)
    handles = [Line2D([], [], color=CALLS, label="calls of inspect"), Line2D([], [], color=ITEMS, label="items seen")]
    handles += [Line2D([], [], color=style.INK, linestyle=styles[cap], label=f"cap {cap}") for cap in caps]
    style.legend_above(figure, handles)
    caption = (
        "Work of the agent that loses its names (P→S), cumulated turn by turn: calls of inspect, and distinct items "
        "seen; means over all episodes, those that have ended included. What is more in calls than in items was looked "
        f"at again. n = {style.span(data['episodes'])} episodes a line."
    )
    return style.Drawing(figure, data, caption)


def score_by_cap(episodes: pd.DataFrame, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> style.Drawing:
    """Mean normalized optimality of each trained cell by the cap on tool calls, with its slope."""
    data = wide(estimates, ("score",))
    data = data[data["model"].isin(KINDS) & data["runtime"].isin(KINDS)].reset_index(drop=True)
    splits, caps = list(data["split"].unique()), sorted(data["cap"].unique())
    if len(caps) < 2:
        raise style.NothingToShow("One cap on tool calls was played, so there is no effect of it to show.")
    figure = Figure(figsize=(style.WIDTH, 1.9), layout="constrained")
    axes = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    found, slopes = style.looks(style.cells_in(data)), []
    for ax, split in zip(axes, splits, strict=True):
        for number, (cell, look) in enumerate(found.items()):
            line = data[(data["split"] == split) & (data["model"] == cell[0]) & (data["runtime"] == cell[1])]
            line = line.sort_values("cap")
            x = line["cap"] * (1 + 0.03 * (number - (len(found) - 1) / 2))  # side by side
            reach = [line["score"] - line["score_low"], line["score_high"] - line["score"]]
            ax.errorbar(x, line["score"], yerr=reach, **look, ms=4, mew=1, elinewidth=0.8)
            slope = look_up(estimates, SLOPE, (split, caps[0]), cell)
            if slope.n:
                slopes.append(f"{split} {cell_name(*cell)} {between(*slope.interval, 2)}")
        ax.set(xscale="log", title=split, ylim=(-0.05, 1.05), xlim=(caps[0] / 1.3, caps[-1] * 1.3))
        ax.xaxis.set_major_locator(ticker.FixedLocator(caps))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.grid(True, axis="y", lw=0.4, color=style.PALE)
    figure.supxlabel("cap on the tool calls of a turn (log scale)", fontsize=6.5)
    axes[0].set_ylabel("normalized optimality")
    style.cells_legend(figure, found, mew=1, ms=4)
    told = f"Slope for a doubled cap, with task effects: {'; '.join(slopes)}. ".replace("-", "−") if slopes else ""
    caption = (
        "Mean normalized optimality of the trained models under each cap on tool calls, with its "
        f"{style.interval_text(bootstrap)}, moved a little aside where they would cover each other. "
        f"{told}{style.labels_text()} {style.counts_text(episodes[episodes['model'].isin(KINDS)])}"
    )
    return style.Drawing(figure, data, caption)

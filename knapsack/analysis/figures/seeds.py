"""The figure of several runs: how far each cell moves from run to run, beside how far it may move with the tasks."""

import math
from itertools import cycle

import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from knapsack.analysis.figures.style import (
    GREY,
    PALE,
    WIDTH,
    Drawing,
    NothingToShow,
    cell_label,
    colours_of,
    interval_text,
    legend_above,
    short,
    span,
    split_axes,
)

SHOWN = {"score": "normalized optimality", "total_tokens": "total tokens an episode (log scale)"}
GROUP_MARKERS = "os^Dv"
LONG = 14  # characters of a cell's name that fit beside the axes
ENDS = ["value", "low", "high"]


def seeds(values: pd.DataFrame, groups: list[list[str]], told: list[str], **seeded: int) -> Drawing:
    """Every run's mean and interval over tasks in every cell but the teacher's, runs from top to bottom.

    ``values`` are ``run_values.cell_values``. The runs of one of ``groups`` share a marker, and a grey line shows the
    mean over them; a run in no group has a marker of its own. ``told`` are sentences for the caption on what varies.
    Raises NothingToShow where nothing was scored.
    """
    runs = list(dict.fromkeys(values["run"]))
    data = values[values["quantity"].isin(SHOWN) & (values["model"] != "teacher") & (values["n"] > 0)]
    if data.empty:
        raise NothingToShow("No run has a scored episode to show.")
    groups = [*groups, *([run] for run in runs if not any(run in group for group in groups))]
    markers = {run: marker for group, marker in zip(groups, cycle(GROUP_MARKERS), strict=False) for run in group}
    cells = list(dict.fromkeys(zip(data["model"], data["runtime"], strict=True)))
    splits = list(dict.fromkeys(data["split"]))
    plotted = data.copy()
    plotted.loc[data["quantity"] == "total_tokens", ENDS] = data[ENDS].clip(lower=1)  # the axis is logarithmic
    labels = [name if len(name) <= LONG else name.replace("→", "→\n") for name in (cell_label(*cell) for cell in cells)]
    colours, step = colours_of(data["model"]), 0.75 / len(runs)
    figure = Figure(figsize=(WIDTH, 0.9 + 2 * len(cells) * (0.1 + 0.05 * len(runs))), layout="constrained")
    axes = split_axes(figure, len(SHOWN), splits, sharey=True, sharex="row")
    for row, quantity in enumerate(SHOWN):
        for ax, split in zip(axes[row], splits, strict=True):
            part = plotted[(data["quantity"] == quantity) & (data["split"] == split)]
            for one in part.to_dict("records"):
                y = cells.index((one["model"], one["runtime"])) + (runs.index(one["run"]) - (len(runs) - 1) / 2) * step
                look = {"color": colours[one["model"]], "clip_on": False, "zorder": 3}
                ax.plot([one["low"], one["high"]], [y, y], lw=0.8, solid_capstyle="butt", **look)
                face = look["color"] if one["runtime"] == "persistent" else "white"
                ax.plot(one["value"], y, markers[one["run"]], ms=2.8, mew=0.7, mfc=face, **look)
            for group in groups:
                for cell, inside in part[part["run"].isin(group)].groupby(["model", "runtime"], sort=False):
                    if len(inside) > 1:
                        places = [runs.index(run) - (len(runs) - 1) / 2 for run in inside["run"]]
                        ends = [cells.index(cell) + (end * step) for end in (min(places) - 0.6, max(places) + 0.6)]
                        ax.plot([inside["value"].mean()] * 2, ends, color=GREY, lw=0.7, zorder=2)
            for border in range(1, len(cells)):
                ax.axhline(border - 0.5, color=PALE, lw=0.4, zorder=1)
            ax.tick_params(axis="y", length=0)
            ax.set(ylim=(len(cells) - 0.5, -0.5), yticks=range(len(cells)), yticklabels=labels)
        axes[row][-1].set_xlabel(SHOWN[quantity], loc="right")
    for ax in axes[0]:
        ax.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    tokens = plotted[data["quantity"] == "total_tokens"]
    decades = math.log10(tokens["high"].max() / tokens["low"].min())
    labelled = (1,) if decades > 2 else (1, 3) if decades > 0.9 else (1, 2, 5)
    for ax in axes[1]:
        ax.set(xscale="log")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=labelled))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value / 1000:g}k"))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    if len(groups) > 1:
        look = {"color": GREY, "lw": 0, "ms": 3}
        names = (", ".join(map(short, group[:3])) + ", …" * (len(group) > 3) for group in groups)
        legend_above(
            figure, [Line2D([], [], marker=markers[g[0]], label=n, **look) for g, n in zip(groups, names, strict=True)]
        )
    counts = (f"{span(data.loc[data['split'] == split, 'n'])} {split}" for split in splits)
    pooled = " A grey line is the mean of runs that differ in seeds alone." if max(map(len, groups)) > 1 else ""
    caption = (
        f"Means of the runs {', '.join(runs)}, from top to bottom in each cell, each with its "
        f"{interval_text(**seeded)}.{pooled} {' '.join(told)} n = {', '.join(counts)} episodes a cell."
    )
    return Drawing(figure, data.reset_index(drop=True), caption.replace("  ", " "))

"""Figures of what the episodes came to: the matrix, cost against quality, missing bindings, paired differences."""

from collections import Counter

import numpy as np
import pandas as pd
import seaborn
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from knapsack.analysis.equivalence import LEVEL, MARGIN, equivalence
from knapsack.analysis.figures.style import (
    CELL,
    GREY,
    INK,
    MARKERS,
    PALE,
    WIDTH,
    Drawing,
    NothingToShow,
    cell_label,
    colours_of,
    counts_text,
    interval_text,
    label_points,
    labels_text,
    legend_above,
    means,
    percent,
    present,
    scored,
    short,
    span,
    split_axes,
)
from knapsack.analysis.intervals import mean_interval, share_interval
from knapsack.analysis.metrics import RUNTIMES
from knapsack.analysis.statistics import PP, PS, SP, SS
from knapsack.runtime import KINDS

BIN = 0.02  # of score: dots of tasks nearer than this are stacked


def numbers(values: list[float]) -> list[str]:
    """Alike, in three or four digits by the greatest: 0.87; 12; 4,263; 15.9k; 120k."""
    most = max(values)
    if most < 9_999.5:
        return [f"{value:.2f}" if most <= 1 else f"{value:,.0f}" for value in values]
    return [f"{value / 1000:,.{1 if most < 99_950 else 0}f}k" for value in values]


def thousands(value: float, _: int) -> str:
    """A tick of a log axis: 500, 2k, 2.5k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def matrix(episodes: pd.DataFrame, **seeded: int) -> Drawing:
    """Training × runtime: mean normalized optimality and mean total tokens of every cell, per split."""
    played = episodes[episodes["model"] != "teacher"]
    data = means(scored(played), CELL, ("score", "total_tokens"), **seeded)
    unscored = (played["status"] != "completed").groupby([played[name] for name in CELL]).sum()
    data["unscored"] = unscored.loc[pd.MultiIndex.from_frame(data[CELL])].to_numpy()
    splits, models = list(dict.fromkeys(data["split"])), list(dict.fromkeys(data["model"]))
    runtimes = present(RUNTIMES, data["runtime"])
    columns = 2 if len(runtimes) <= 2 else 1  # more cells would be too narrow side by side
    rows = 2 * len(splits) // columns
    figure = Figure(figsize=(WIDTH, rows * (0.5 + 0.32 * len(models))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    tokens = data["total_tokens"].clip(lower=1)
    looks = {
        "score": ("normalized optimality", "#0072B2", Normalize(0, 1.8)),
        "total_tokens": ("total tokens", "#D55E00", LogNorm(tokens.min() / 1.5, tokens.max() * 4)),
    }
    blank = False
    for index, ax in enumerate(axes.flat):
        split, quantity, first = splits[index // 2], list(looks)[index % 2], index % columns == 0
        title, colour, norm = looks[quantity]
        part = data[data["split"] == split]
        grid = part.pivot(index="model", columns="runtime", values=quantity).reindex(index=models, columns=runtimes)
        blank = blank or bool(grid.isna().any(axis=None))
        text = pd.DataFrame("", models, runtimes)
        for row in part.to_dict("records"):
            mean, low, high = numbers([row[quantity + end] for end in ("", "_low", "_high")])
            text.loc[row["model"], row["runtime"]] = f"{mean}\n{low}–{high}"
        look = {"cmap": seaborn.light_palette(colour, as_cmap=True), "norm": norm, "cbar": False, "linewidths": 1.2}
        font = {"fontsize": 6, "linespacing": 1.25, "color": "#111111"}
        seaborn.heatmap(grid, ax=ax, annot=text, fmt="", annot_kws=font, **look)
        last = index // columns == rows - 1
        ax.set(title=f"{split}: {title}", xlabel="runtime" if last else "", ylabel="trained on" if first else "")
        ax.tick_params(length=0)
        ax.set_yticklabels([short(name) for name in models] if first else [], rotation=0)
        ax.set_xticklabels([name.replace("over-", "over-\n") for name in runtimes], rotation=0)
    caption = (
        f"Mean normalized optimality and mean total tokens of each trained model in each runtime, each with its "
        f"{interval_text(**seeded)}. {'Blank: no scored episode. ' if blank else ''}{counts_text(played)}"
    )
    return Drawing(figure, data, caption)


def cost_quality(episodes: pd.DataFrame, **seeded: int) -> Drawing:
    """Mean total tokens (log) against mean normalized optimality, with arrows from a model's own runtime to the other.

    Rings are the teacher, the reference.
    """
    data = means(scored(episodes), CELL, ("score", "total_tokens"), **seeded)
    splits, colours = list(dict.fromkeys(data["split"])), colours_of(data["model"])
    tokens = [f"total_tokens{end}" for end in ("", "_low", "_high")]
    plotted = data.assign(**data[tokens].clip(lower=1))  # the axis is logarithmic
    figure = Figure(figsize=(WIDTH, 0.35 + 1.75 * len(splits)), layout="constrained")
    axes = figure.subplots(len(splits), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    arrows = []
    for ax, split in zip(axes, splits, strict=True):
        rows = plotted[plotted["split"] == split].to_dict("records")
        for row in rows:
            reach = {}  # errorbar wants distances from the mean
            for axis, name in (("xerr", "total_tokens"), ("yerr", "score")):
                reach[axis] = [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
            teacher, colour = row["model"] == "teacher", colours[row["model"]]
            face = "none" if teacher else colour if row["runtime"] == "persistent" else "white"
            look = {"fmt": MARKERS[row["runtime"]], "ms": 7 if teacher else 4.5, "color": colour, "mfc": face}
            x, y = row["total_tokens"], row["score"]
            ax.errorbar(x, y, **reach, **look, mew=1, elinewidth=0.8, zorder=2 if teacher else 3)
        at = {(row["model"], row["runtime"]): (row["total_tokens"], row["score"]) for row in rows}
        for home, away in ((PP, PS), (SS, SP)):
            if home in at and away in at:
                look = {"color": colours[home[0]], "lw": 1, "alpha": 0.55, "shrinkA": 4, "shrinkB": 4}
                look |= {"arrowstyle": "-|>", "mutation_scale": 7, "connectionstyle": "arc3,rad=0.12"}
                arrows.append(ax.annotate("", at[away], at[home], arrowprops=look, zorder=2.5).arrow_patch)
        ax.set(xscale="log", title=split, xmargin=0.14, ylabel="normalized optimality")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(thousands))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.grid(True, lw=0.4, color=PALE)
    axes[0].set(ylim=(-0.09, 1.09), yticks=[0, 0.25, 0.5, 0.75, 1])
    least, most = plotted["total_tokens_low"].min(), plotted["total_tokens_high"].max()
    if most / least < 2:  # too near for a tick between them
        axes[0].set(xlim=(least / 1.8, most * 1.8))
    axes[-1].set(xlabel="total tokens an episode (log scale)")
    figure.draw_without_rendering()
    for ax, split in zip(axes, splits, strict=True):
        rows = plotted[plotted["split"] == split].to_dict("records")
        points = [
            (row["total_tokens"], row["score"], cell_label(row["model"], row["runtime"]), colours[row["model"]])
            for row in rows
        ]
        taken = [box for row in rows for box in _crosses(ax, row)]
        for arrow in arrows:
            corners = arrow.get_transform().transform_path(arrow.get_path()).cleaned(curves=False).vertices
            taken += [Bbox([point - 2, point + 2]) for point in corners]
        label_points(ax, points, taken)
    caption = (
        f"Mean total tokens of an episode against mean normalized optimality, each with its {interval_text(**seeded)}; "
        f"up is better, left is cheaper. {labels_text(data['runtime'])} "
        f"{'Arrows lead from the runtime of the training traces to the other one. ' if arrows else ''}"
        f"{'Rings are the teacher that wrote them. ' if 'teacher' in set(data['model']) else ''}{counts_text(episodes)}"
    )
    return Drawing(figure, data, caption)


def _crosses(ax: Axes, row: dict) -> list[Bbox]:
    """The marker and both bars of a cell, as boxes in pixels."""
    pixel = ax.figure.dpi / 72
    x, y = ax.transData.transform((row["total_tokens"], row["score"]))
    left, low = ax.transData.transform((row["total_tokens_low"], row["score_low"]))
    right, high = ax.transData.transform((row["total_tokens_high"], row["score_high"]))
    half = (4.5 if row["model"] == "teacher" else 3) * pixel
    marker = Bbox.from_extents(x - half, y - half, x + half, y + half)
    return [marker, Bbox.from_extents(left, y - pixel, right, y + pixel), Bbox.from_extents(x - 1, low, x + 1, high)]


def missing_bindings(episodes: pd.DataFrame) -> Drawing:
    """Share of episodes with at least one missing-binding error, per cell, with its Wilson interval."""
    rows = []
    for key, group in scored(episodes).groupby(CELL, sort=False):
        count = int((group["missing_bindings"] > 0).sum())
        low, high = share_interval(count, len(group))
        row = dict(zip(CELL, key, strict=True)) | {"n": len(group), "episodes": count, "share": count / len(group)}
        rows.append(row | {"low": low, "high": high})
    data = pd.DataFrame(rows)
    cells = list(dict.fromkeys(zip(data["model"], data["runtime"], strict=True)))
    splits, colours = list(dict.fromkeys(data["split"])), colours_of(data["model"])
    figure = Figure(figsize=(WIDTH, 0.5 + 0.17 * len(cells)), layout="constrained")
    axes = split_axes(figure, 1, splits, sharey=True)[0]
    for ax, split in zip(axes, splits, strict=True):
        for row in data[data["split"] == split].to_dict("records"):
            y, colour = cells.index((row["model"], row["runtime"])), colours[row["model"]]
            ax.barh(y, row["share"], height=0.62, color=colour, alpha=0.35)
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.2, solid_capstyle="butt", clip_on=False)
            ax.plot(row["share"], y, MARKERS[row["runtime"]], color=colour, ms=3, clip_on=False, zorder=5)
        ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "50 %", "100 %"])
        ax.tick_params(axis="y", length=0, pad=5)
    names = [cell_label(*cell) for cell in cells]
    axes[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    caption = (
        "Share of episodes with a missing-binding error, a NameError for a name that an earlier turn had bound; "
        f"95 % Wilson interval. {labels_text(data['runtime'])} {counts_text(episodes)}"
    )
    return Drawing(figure, data, caption)


def _home_and_away(episodes: pd.DataFrame) -> list[tuple[str, tuple, tuple]]:
    """The comparisons of ``paired_differences`` that were played: (what, first cell, second cell), by split."""
    done = scored(episodes)
    have = set(zip(done["model"], done["runtime"], done["split"], strict=True))
    models = [name for name in dict.fromkeys(done["model"]) if name not in (*KINDS, "base", "teacher")]
    wanted = [("aligned cells", PP, SS), ("home − away", PP, PS), ("home − away", SS, SP)]
    wanted += [("runtimes", (model, "persistent"), (model, "stateless")) for model in models]
    rows = [(what, (*a, split), (*b, split)) for split in dict.fromkeys(done["split"]) for what, a, b in wanted]
    return [row for row in rows if row[1] in have and row[2] in have]


def _stacked(differences: np.ndarray, most: float) -> np.ndarray:
    """Heights of dots so that those within a BIN stand on each other, the highest stack ``most`` high at most."""
    bins = np.round(differences / BIN).astype(int)
    step = min(most / 12, most / max(Counter(bins.tolist()).values()))
    seen: Counter = Counter()
    heights = []
    for place in bins.tolist():
        heights.append(seen[place] * step)
        seen[place] += 1
    return np.array(heights)


def paired_differences(episodes: pd.DataFrame, margin: float = MARGIN, **seeded: int) -> Drawing:
    """The difference of scores on every task, between the aligned cells and between home and away; with its mean.

    Below the dots are the mean with its 95 % interval (thin) and 90 % interval (thick), to be held against the margin
    of equivalence, and the verdict of ``equivalence``.
    """
    rows, strips = [], []
    done = scored(episodes)
    for what, first, second in _home_and_away(episodes):
        a, b = (done[(done[["model", "runtime", "split"]] == list(cell)).all(axis=1)] for cell in (first, second))
        both = a.merge(b, on="task_id", suffixes=("_first", "_second"), validate="one_to_one").sort_values("task_id")
        if both.empty:
            continue
        one, other = both["score_first"].to_numpy(), both["score_second"].to_numpy()
        found = equivalence(one, other, margin, **seeded)
        low, high = mean_interval(one - other, **seeded)
        strip = {"split": first[2], "comparison": what, "first": "→".join(first[:2]), "second": "→".join(second[:2])}
        summary = {"n": found.n, "mean": found.difference, "low_95": low, "high_95": high, "low_90": found.low}
        summary |= {"high_90": found.high, "margin": margin, "verdict": found.verdict}
        title = f"{first[2]}: {cell_label(*first[:2])} − {cell_label(*second[:2])}"
        strips.append((title, one - other, first, second, summary))
        for task_id, difference in zip(both["task_id"], one - other, strict=True):
            rows.append(strip | {"task_id": task_id, "difference": difference} | summary)
    if not strips:
        raise NothingToShow("No two cells that could be compared by task were played.")
    models = {cell[0] for strip in strips for cell in strip[2:4]}
    figure = Figure(figsize=(WIDTH, 0.25 + 0.66 * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, (title, differences, first, second, summary) in zip(axes, strips, strict=True):
        colour = INK if first[0] != second[0] else colours_of(models)[first[0]]
        ax.axvspan(-margin, margin, color="#56B4E9", alpha=0.35, lw=0)
        ax.axvline(0, color=GREY, lw=0.5)
        ax.scatter(differences, 0.15 + _stacked(differences, 0.8), s=4, color=colour, alpha=0.6, lw=0, zorder=3)
        ax.plot([summary["low_95"], summary["high_95"]], [-0.18] * 2, color=colour, lw=0.9)
        ax.plot([summary["low_90"], summary["high_90"]], [-0.18] * 2, color=colour, lw=2.6, solid_capstyle="butt")
        ax.plot(summary["mean"], -0.18, "D", color=colour, mfc="white", ms=3.2, mew=0.9, zorder=5)
        told = f"{summary['mean']:+.2f}: {summary['verdict']}".replace("-", "−")
        if len(title) + len(told) > 60:
            title, told = f"{title}\n{told}", ""
        ax.set_title(title, loc="left", fontsize=6.5)
        ax.set_title(told, loc="right", fontsize=6.5)
        ax.set(ylim=(-0.4, 1.05), yticks=[], xlim=(-1.06, 1.06), xticks=[-1, -0.5, 0, 0.5, 1])
        ax.spines["left"].set_visible(False)
    axes[-1].set(xlabel="difference of normalized optimality on a task")
    handles = [
        Line2D([], [], color=INK, marker="o", ms=2, lw=0, label="task"),
        Line2D([], [], color=INK, marker="D", mfc="white", ms=3.2, lw=0.9, label="mean, 95 % interval"),
        Line2D([], [], color=INK, lw=2.6, label="90 % interval"),
        Patch(color="#56B4E9", alpha=0.35, lw=0, label=f"margin, ± {margin:.2f}"),
    ]
    legend_above(figure, handles)
    caption = (
        "Difference of normalized optimality on each task, a dot each, and its mean, with its "
        f"{interval_text(**seeded)} and the {percent(1 - 2 * LEVEL)} interval made alike. {labels_text(())} "
        f"The verdict is that of two one-sided t tests against ± {margin:.2f} and a t test against 0, each at "
        f"{percent(LEVEL)}. n = {span(strip[4]['n'] for strip in strips)} tasks scored in both cells; "
        f"unscored: {int((episodes['status'] != 'completed').sum())}."
    )
    return Drawing(figure, pd.DataFrame(rows), caption)

"""Figures of what the episodes came to: the matrix, cost against quality, paired differences, several runs."""

from itertools import product

import pandas as pd
import seaborn
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from knapsack.analysis.estimates import PP, PS, SP, SS, look_up, wide
from knapsack.analysis.excerpts import address
from knapsack.analysis.figures import style
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap
from knapsack.analysis.metrics import CELL, RUNTIMES, SETTING, cell_rows, setting_columns, setting_names, setting_rows
from knapsack.analysis.statistics import LEVEL, MARGIN, equivalence
from knapsack.analysis.tables import number
from knapsack.runtime import KINDS
from knapsack.traces import Cell

BIN = 0.02  # of score: dots of tasks nearer than this are stacked
GROUP_MARKERS = "os^Dv"  # of groups of runs
LONG = 14  # characters of a cell's name that fit beside the axes
SHOWN = {"score": "normalized optimality", "total_tokens": "total tokens an episode (log scale)"}
TOKENS = ["total_tokens", "total_tokens_low", "total_tokens_high"]


def numbers(values: list[float]) -> list[str]:
    """Alike, in three or four digits by the greatest: 0.87; 12; 4,263; 15.9k; 120k."""
    most = max(values)
    if most < 9_999.5:
        return [f"{value:.2f}" if most <= 1 else f"{value:,.0f}" for value in values]
    return [f"{value / 1000:,.{1 if most < 99_950 else 0}f}k" for value in values]


def matrix(episodes: pd.DataFrame, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> style.Drawing:
    """Training × runtime: mean normalized optimality and mean total tokens of every cell, per split and cap."""
    played = episodes[episodes["model"] != "teacher"]
    counted = style.counts_text(played)
    unscored = (played["status"] != "completed").groupby([played[name] for name in style.BY_SETTING]).sum()
    data = wide(estimates, ("score", "total_tokens")).query("model != 'teacher'").reset_index(drop=True)
    data["unscored"] = unscored.loc[pd.MultiIndex.from_frame(data[style.BY_SETTING])].to_numpy()
    names, models = setting_names(data), data["model"].unique()
    runtimes = [name for name in RUNTIMES if name in set(data["runtime"])]
    columns, few = 2 if len(runtimes) <= 2 else 1, len(runtimes) <= 4  # more cells would be too narrow side by side
    rows, between = 2 * len(names) // columns, "\n" if columns == 2 and len(setting_columns(data)) > 1 else " "
    figure = Figure(figsize=(style.WIDTH, rows * (0.5 + 0.32 * len(models))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    tokens = data["total_tokens"].clip(lower=1)
    shown = {
        "score": ("normalized optimality", "#0072B2", Normalize(0, 1.8)),
        "total_tokens": ("total tokens", "#D55E00", LogNorm(tokens.min() / 1.5, tokens.max() * 4)),
    }
    blank = False
    for index, ax in enumerate(axes.flat):
        setting, quantity, first = list(names)[index // 2], list(shown)[index % 2], index % columns == 0
        title, colour, norm = shown[quantity]
        part = setting_rows(data, setting)
        grid = part.pivot(index="model", columns="runtime", values=quantity).reindex(index=models, columns=runtimes)
        blank = blank or bool(grid.isna().any(axis=None))
        text = pd.DataFrame("", models, runtimes)
        for row in part.to_dict("records"):
            mean, low, high = numbers([row[quantity + end] for end in ("", "_low", "_high")])
            text.loc[row["model"], row["runtime"]] = f"{mean}\n{low}–{high}" if few else mean
        look = {"cmap": seaborn.light_palette(colour, as_cmap=True), "norm": norm, "cbar": False, "linewidths": 1.2}
        font = {"fontsize": 6, "linespacing": 1.25, "color": "#111111"}
        seaborn.heatmap(grid, ax=ax, annot=text, fmt="", annot_kws=font, **look)
        last = index // columns == rows - 1
        ax.set(
            title=f"{names[setting]}:{between}{title}",
            xlabel="runtime" if last else "",
            ylabel="trained on" if first else "",
        )
        ax.tick_params(length=0)
        ax.set_yticklabels([style.short(name) for name in models] if first else [], rotation=0)
        labels = [name.replace("over-", "over-\n") if few else style.SHORTEST[name] for name in runtimes]
        ax.set_xticklabels(labels, rotation=0)
    caption = (
        f"Mean normalized optimality and mean total tokens of each trained model in each runtime"
        f"{f', each with its {style.interval_text(bootstrap)}' * few}. "
        f"{'' if few else f'{style.labels_text(runtimes)} '}{'Blank: no scored episode. ' if blank else ''}{counted}"
    )
    return style.Drawing(figure, data, caption)


def cost_quality(episodes: pd.DataFrame, estimates: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> style.Drawing:
    """Mean total tokens (log) against mean normalized optimality, with arrows from a model's own runtime to the other.

    Rings are the teacher, the reference.
    """
    counted = style.counts_text(episodes)
    data = wide(estimates, ("score", "total_tokens"))
    names, ring = setting_names(data), {"ms": 6, "mfc": "none", "zorder": 2}
    splits, caps = style.splits_and_caps(names)
    found = {cell: look | {"ms": 4.5, "zorder": 3} for cell, look in style.looks(style.cells_in(data)).items()}
    found |= {cell: look | ring for cell, look in found.items() if cell[0] == "teacher"}
    plotted = data.assign(**data[TOKENS].clip(lower=1))  # the axis is logarithmic
    figure = Figure(figsize=(style.WIDTH, 0.35 + 1.75 * len(splits)), layout="constrained")
    axes = figure.subplots(len(splits), len(caps), sharex=True, sharey=True, squeeze=False)
    arrows = 0
    for ax, setting in zip(axes.flat, product(splits, caps), strict=True):
        at = {}
        for row in setting_rows(plotted, setting).to_dict("records"):
            cell = row["model"], row["runtime"]
            x, y = at[cell] = row["total_tokens"], row["score"]
            reach = {  # distances from the mean
                "xerr": [[x - row["total_tokens_low"]], [row["total_tokens_high"] - x]],
                "yerr": [[y - row["score_low"]], [row["score_high"] - y]],
            }
            ax.errorbar(x, y, **reach, **found[cell], mew=1, elinewidth=0.8)
        for home, away in ((PP, PS), (SS, SP)):
            if home in at and away in at:
                look = {"color": found[home]["color"], "lw": 1, "alpha": 0.55, "shrinkA": 4, "shrinkB": 4}
                look |= {"arrowstyle": "-|>", "mutation_scale": 7, "connectionstyle": "arc3,rad=0.12"}
                ax.annotate("", at[away], at[home], arrowprops=look, zorder=2.5)
                arrows += 1
        ax.set(title=names.get(setting, ""), xmargin=0.14, ylabel="normalized optimality")
        ax.label_outer()
        ax.grid(True, lw=0.4, color=style.PALE)
    style.token_axis(axes[0][0], plotted[TOKENS].stack(), len(caps) > 1)
    axes[0][0].set(ylim=(-0.09, 1.09), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes[-1][-1].set_xlabel("total tokens an episode (log scale)", loc="center" if len(caps) == 1 else "right")
    style.cells_legend(figure, found, linestyle="none", mew=1)
    caption = (
        "Mean total tokens of an episode against mean normalized optimality, each with its "
        f"{style.interval_text(bootstrap)}; up is better, left is cheaper. {style.labels_text(data['runtime'])} "
        f"{'Arrows lead from the runtime of the training traces to the other one. ' if arrows else ''}"
        f"{'Rings are the teacher that wrote them. ' if 'teacher' in set(data['model']) else ''}{counted}"
    )
    return style.Drawing(figure, data, caption)


def _home_and_away(done: pd.DataFrame) -> list[tuple[str, tuple, tuple]]:
    """The comparisons of ``paired_differences`` that were played: (what, first cell, second cell), by setting."""
    have = set(done[CELL].itertuples(index=False, name=None))
    models = [name for name in done["model"].unique() if name not in (*KINDS, "base", "teacher")]
    wanted = [("aligned cells", PP, SS), ("home − away", PP, PS), ("home − away", SS, SP)]
    wanted += [("runtimes", (model, "persistent"), (model, "stateless")) for model in models]
    rows = [(what, (*a, *setting), (*b, *setting)) for setting in setting_names(done) for what, a, b in wanted]
    return [row for row in rows if row[1] in have and row[2] in have]


def paired_differences(
    episodes: pd.DataFrame, estimates: pd.DataFrame, margin: float = MARGIN, bootstrap: Bootstrap = BOOTSTRAP
) -> style.Drawing:
    """The difference of scores on every task, between the aligned cells and between home and away; with its mean.

    Below the dots are the mean with its 95 % interval (thin) and 90 % interval (thick), to be held against the margin
    of equivalence, and the verdict of ``equivalence``.
    """
    done, strips, names = style.scored(episodes), [], setting_names(episodes)
    for what, *cells in _home_and_away(done):
        sides = [cell_rows(done, cell) for cell in cells]
        both = sides[0].merge(sides[1], on="task_id", suffixes=("_first", "_second"), validate="one_to_one")
        if both.empty:
            continue
        both, (first, second), setting = both.sort_values("task_id"), (cell[:2] for cell in cells), cells[0][2:]
        found = equivalence(both["score_first"], both["score_second"], margin, bootstrap)
        known = look_up(estimates, "score difference", setting, first, second)
        row = dict(zip(SETTING, setting, strict=True)) | {
            "comparison": what,
            "first": "→".join(first),
            "second": "→".join(second),
        }
        row |= {"task_id": both["task_id"], "difference": both["score_first"] - both["score_second"]}
        row |= {"n": found.n, "mean": known.value, "low_95": known.low, "high_95": known.high}
        row |= {"low_90": found.low, "high_90": found.high, "margin": margin, "verdict": found.verdict}
        strips.append((first, second, pd.DataFrame(row)))
    if not strips:
        raise style.NothingToShow("No two cells that could be compared by task were played.")
    found = style.looks(cell for strip in strips for cell in strip[:2])
    height = 0.66 - 0.12 * (len(setting_columns(done)) > 1)  # else the figure is as long as a page
    figure = Figure(figsize=(style.WIDTH, 0.25 + height * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, (first, second, rows) in zip(axes, strips, strict=True):
        colour, row = style.INK if first[0] != second[0] else found[first]["color"], rows.iloc[0]
        bins = rows["difference"].div(BIN).round()
        stack = bins.groupby(bins).cumcount()
        ax.axvspan(-margin, margin, color="#56B4E9", alpha=0.35, lw=0)
        ax.axvline(0, color=style.GREY, lw=0.5)
        heights = 0.15 + 0.8 * stack / max(12, stack.max() + 1)
        dots = ax.scatter(rows["difference"], heights, s=4, color=colour, alpha=0.6, lw=0, zorder=3)
        cell, beside = (Cell(*one, row["split"], row["cap"]).name for one in (first, second))
        dots.set_urls([address(cell, task_id, beside=beside) for task_id in rows["task_id"]])
        ax.plot([row["low_95"], row["high_95"]], [-0.18] * 2, color=colour, lw=0.9)
        ax.plot([row["low_90"], row["high_90"]], [-0.18] * 2, color=colour, lw=2.6, solid_capstyle="butt")
        ax.plot(row["mean"], -0.18, "D", color=colour, mfc="white", ms=3.2, mew=0.9, zorder=5)
        title = f"{names[row['split'], row['cap']]}: {style.cell_label(*first)} − {style.cell_label(*second)}"
        told = f"{'+' if round(row['mean'], 2) > 0 else ''}{number(row['mean'], 2)}: {row['verdict']}"
        if len(title) + len(told) > 60:
            title, told = f"{title}\n{told}", ""
        ax.set_title(title, loc="left", fontsize=6.5)
        ax.set_title(told, loc="right", fontsize=6.5)
        ax.set(ylim=(-0.4, 1.05), yticks=[], xlim=(-1.06, 1.06), xticks=[-1, -0.5, 0, 0.5, 1])
        ax.spines["left"].set_visible(False)
    axes[-1].set(xlabel="difference of normalized optimality on a task")
    handles = [
        Line2D([], [], color=style.INK, marker="o", ms=2, lw=0, label="task"),
        Line2D([], [], color=style.INK, marker="D", mfc="white", ms=3.2, lw=0.9, label="mean, 95 % interval"),
        Line2D([], [], color=style.INK, lw=2.6, label="90 % interval"),
        Patch(color="#56B4E9", alpha=0.35, lw=0, label=f"margin, ± {margin:.2f}"),
    ]
    style.legend_above(figure, handles)
    data = pd.concat([rows for *_, rows in strips], ignore_index=True)
    caption = (
        "Difference of normalized optimality on each task, a dot each, and its mean, with its "
        f"{style.interval_text(bootstrap)} and the {style.percent(1 - 2 * LEVEL)} interval made alike. "
        f"{style.labels_text()} The verdict is that of two one-sided t tests against ± {margin:.2f} and a t test "
        f"against 0, each at {style.percent(LEVEL)}. n = {style.span(data['n'])} tasks scored in both cells; "
        f"unscored: {int((episodes['status'] != 'completed').sum())}."
    )
    return style.Drawing(figure, data, caption)


def seeds(
    values: pd.DataFrame, groups: list[list[str]], told: list[str], bootstrap: Bootstrap = BOOTSTRAP
) -> style.Drawing:
    """Every run's mean and interval over tasks in every cell but the teacher's, runs from top to bottom.

    The arguments are those of ``several_runs.SideBySide``. The runs of one of ``groups`` share a marker, and a grey
    line shows the mean over them; a run in no group has a marker of its own. ``told`` are sentences for the caption on
    what varies. Raises NothingToShow for a single run and where nothing was scored.
    """
    if values.empty:
        raise style.NothingToShow("There is one run, and none to show beside it.")
    shown, interval = list(SHOWN), ["value", "low", "high"]
    data = values[values["quantity"].isin(shown) & (values["model"] != "teacher") & (values["n"] > 0)]
    data = data.sort_values("quantity", key=lambda names: names.map(shown.index), kind="stable", ignore_index=True)
    if data.empty:
        raise style.NothingToShow("No run has a scored episode to show.")
    runs, names, cells = list(values["run"].unique()), setting_names(data), style.cells_in(data)
    splits, caps = style.splits_and_caps(names)
    groups = [*groups, *([run] for run in runs if not any(run in group for group in groups))]
    of = {run: number for number, group in enumerate(groups) for run in group}
    markers = {run: GROUP_MARKERS[number % len(GROUP_MARKERS)] for run, number in of.items()}
    plotted, found, step = data.copy(), style.looks(cells), 0.75 / len(runs)
    plotted.loc[data["quantity"] == "total_tokens", interval] = data[interval].clip(lower=1)  # the axis is logarithmic
    rows = data["run"].map(runs.index) - (len(runs) - 1) / 2
    plotted["y"] = [cells.index(cell) for cell in zip(data["model"], data["runtime"], strict=True)] + rows * step
    height = 0.9 + 2 * len(caps) * len(cells) * (0.1 + 0.05 * len(runs))
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    axes = figure.subplots(len(SHOWN) * len(caps), len(splits), squeeze=False, sharey=True, sharex="row")
    tokens = plotted.loc[data["quantity"] == "total_tokens", interval].stack()
    for row, (quantity, cap) in enumerate(product(SHOWN, caps)):
        for ax, split in zip(axes[row], splits, strict=True):
            part = setting_rows(plotted[data["quantity"] == quantity], (split, cap))
            if row == 0 or len(caps) > 1:
                ax.set_title(names.get((split, cap), ""))
            for one in part.to_dict("records"):
                look = {**found[one["model"], one["runtime"]], "clip_on": False, "zorder": 3}
                look |= {"marker": markers[one["run"]], "linestyle": "-", "ms": 2.8, "mew": 0.7, "lw": 0.8}
                places = [one["low"], one["value"], one["high"]]
                ax.plot(places, [one["y"]] * 3, solid_capstyle="butt", markevery=[1], **look)
            for _, inside in part.groupby([part["run"].map(of), "model", "runtime"], sort=False):
                if len(inside) > 1:
                    reach = [inside["y"].min() - 0.6 * step, inside["y"].max() + 0.6 * step]
                    ax.plot([inside["value"].mean()] * 2, reach, color=style.GREY, lw=0.7, zorder=2)
            for border in range(1, len(cells)):
                ax.axhline(border - 0.5, color=style.PALE, lw=0.4, zorder=1)
            ax.tick_params(axis="y", length=0)
        if quantity == "score":
            axes[row][0].set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        else:
            style.token_axis(axes[row][0], tokens, narrow=True)
        if cap == caps[-1]:
            axes[row][-1].set_xlabel(SHOWN[quantity], loc="right")
    labels = [style.cell_label(*cell) for cell in cells]
    labels = [label if len(label) <= LONG else label.replace("→", "→\n") for label in labels]
    axes[0][0].set(ylim=(len(cells) - 0.5, -0.5), yticks=range(len(cells)), yticklabels=labels)
    if len(groups) > 1:
        look, handles = {"color": style.GREY, "lw": 0, "ms": 3}, []
        for group in groups:
            label = ", ".join(map(style.short, group[:3])) + ", …" * (len(group) > 3)
            handles.append(Line2D([], [], marker=markers[group[0]], label=label, **look))
        style.legend_above(figure, handles)
    pooled = " A grey line is the mean of runs that differ in seeds alone." if max(map(len, groups)) > 1 else ""
    caption = (
        f"Means of the runs {', '.join(runs)}, from top to bottom in each cell, each with its "
        f"{style.interval_text(bootstrap)}.{pooled} {' '.join(told)} "
        f"n = {style.sizes_text(data.set_index(SETTING)['n'])}."
    )
    return style.Drawing(figure, data, caption.replace("  ", " "))

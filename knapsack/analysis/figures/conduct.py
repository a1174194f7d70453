"""Figures of how the episodes went: tokens turn by turn, errors and recovery, and what fills the replies."""

import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from knapsack.analysis.conduct import ERRORS, PARTS, Conduct, redundancy
from knapsack.analysis.figures import style
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap, mean_interval, share_interval
from knapsack.analysis.metrics import SETTING, cell_rows, setting_columns, setting_names, setting_rows

SHOWN_EPISODES = 3  # a mean over fewer episodes is in the data file, not in the plot, unless there are never more
NO_TURN = "No scored turn of a model other than the teacher is there to show."
KINDS_OF_ERROR = {
    "missing binding": ("missing binding", "#D55E00", ""),
    "other NameError": ("other NameError", "#E69F00", "////"),
    "cap hit": ("cap hit", "#F0E442", ""),
    "tool error": ("tool error", "#009E73", "\\\\\\\\"),
    "other code error": ("other code error", "#56B4E9", ""),
    "malformed reply": ("malformed reply", "#999999", "...."),
}
CONTENTS = {  # of PARTS
    "restated": ("state restated", "#D55E00", ""),
    "repeated": ("code repeated", "#E69F00", "////"),
    "new": ("new code", "#0072B2", ""),
    "reasoning": ("reasoning", "#56B4E9", "...."),
    "malformed": ("malformed", "#BBBBBB", ""),
}


def _shown_from(data: pd.DataFrame) -> int:
    """How many episodes a mean or share of a turn must be of to be drawn."""
    return min(SHOWN_EPISODES, int(data.groupby(SETTING)["n"].max().min()))


def tokens_by_turn(episodes: pd.DataFrame, turns: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> style.Drawing:
    """Mean completion and prompt tokens of the n-th turn over the episodes that reach it, and how many do."""
    shown, rows = turns[turns["model"] != "teacher"], []
    if shown.empty:
        raise style.NothingToShow(NO_TURN)
    for key, group in shown.groupby([*style.BY_SETTING, "turn"], sort=False):
        row = dict(zip([*style.BY_SETTING, "turn"], key, strict=True)) | {"n": len(group)}
        for name in ("completion_tokens", "prompt_tokens"):
            low, high = mean_interval(group[name].to_numpy(float), bootstrap)
            row |= {name: group[name].mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"turn": row["turn"] + 1})
    data = pd.DataFrame(rows)
    names, found, least = setting_names(data), style.looks(style.cells_in(data)), _shown_from(data)
    labels = {"completion_tokens": "completion tokens", "prompt_tokens": "prompt tokens", "n": "episodes running"}
    figure = Figure(figsize=(style.WIDTH, 4.0), layout="constrained")
    axes = figure.subplots(3, len(names), squeeze=False, sharex="col", sharey="row")
    for column, (setting, name) in zip(axes.T, names.items(), strict=True):
        column[0].set_title(name.replace(", ", "\n"))
        for cell, look in found.items():
            line = cell_rows(data, (*cell, *setting))
            for ax, name in zip(column, labels, strict=True):
                seen = line if name == "n" else line[line["n"] >= least]
                ax.plot(seen["turn"], seen[name], ms=1.8, mew=0.6, **look)
                if name != "n":
                    ends = seen[f"{name}_low"], seen[f"{name}_high"]
                    ax.fill_between(seen["turn"], *ends, color=look["color"], alpha=0.12, lw=0)
        column[2].set(xlabel="turn")
        column[2].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    for row, name in zip(axes, labels, strict=True):
        row[0].set(ylabel=labels[name], ylim=(0, None if name != "n" else 1.06 * data["n"].max()))
        row[0].yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    figure.align_ylabels(axes[:, 0])
    style.cells_legend(figure, found, ms=3)
    caption = (
        f"Mean tokens of each turn over the episodes still running (where there are at least {least}), with the "
        f"{style.interval_text(bootstrap)}, and how many are running. {style.labels_text(data['runtime'])} "
        f"{style.counts_text(episodes[episodes['model'] != 'teacher'])}"
    )
    return style.Drawing(figure, data, caption)


def _error_shares(turns: pd.DataFrame) -> pd.DataFrame:
    """Per cell and turn (from 1): n episodes still running, and the share of each of ERRORS among their turns."""
    counts = turns.groupby([*style.BY_SETTING, "turn"], sort=False)["error"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(ERRORS), fill_value=0)
    n = counts.sum(axis=1)
    data = counts.div(n, axis=0).reset_index()
    data.insert(5, "n", n.to_numpy())
    data["turn"] += 1
    return data


def _recovery_shares(recoveries: pd.DataFrame) -> pd.DataFrame:
    """Per cell: n missing-binding errors; how many the first try of an item followed, and after how many turns."""
    rows = []
    for key, group in recoveries.groupby(style.BY_SETTING, sort=False):
        count, n = int(group["recovered"].sum()), len(group)
        low, high = share_interval(count, n)
        row = dict(zip(style.BY_SETTING, key, strict=True)) | {"n": n, "recovered": count, "share": count / n}
        found = group.loc[group["recovered"].astype(bool), "turns"]
        rows.append(row | {"low": low, "high": high, "median_turns": found.median()})
    return pd.DataFrame(rows)


def errors_and_recovery(episodes: pd.DataFrame, conduct: Conduct) -> style.Drawing:
    """Above, the share of each error among the episodes still running, turn by turn; below, how often and how soon
    the first try of an item follows a missing-binding error.

    The trained cells are shown above, or those that there are if none is; all cells with such an error below.
    """
    trained = conduct.turns[~conduct.turns["model"].isin(["base", "teacher"])]
    turns = trained if len(trained) else conduct.turns[conduct.turns["model"] != "teacher"]
    if turns.empty:
        raise style.NothingToShow(NO_TURN)
    errors, recovery = _error_shares(turns), _recovery_shares(conduct.recoveries)
    cells, names, least = style.cells_in(errors), setting_names(errors), _shown_from(errors)
    several = len(setting_columns(errors)) > 1  # then the titles have two lines
    heights = [0.35 + (0.62 + 0.16 * several) * len(cells), 0.45 + 0.17 * len(recovery)][: 1 + bool(len(recovery))]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(len(cells), len(names), squeeze=False, sharex="col", sharey=True)
    for row, cell in zip(axes, cells, strict=True):
        for ax, (setting, name) in zip(row, names.items(), strict=True):
            own = cell_rows(errors, (*cell, *setting)).sort_values("turn")
            if own.empty:
                ax.set_axis_off()
                continue
            seen = own[own["n"] >= least]
            style.stacked(ax.bar, seen["turn"], seen, 0.9, KINDS_OF_ERROR)
            ax.plot(own["turn"], own["n"] / own["n"].max(), color=style.INK, lw=0.9, drawstyle="steps-mid")
            title = f"{name}: {style.cell_label(*cell)}"
            ax.set_title(title.replace(": ", ":\n") if several else title, fontsize=6.5, loc="left")
            if ax is row[0] or not row[0].axison:
                ax.tick_params(labelleft=True)
        row[0].set(ylim=(0, 1.04), yticks=[0, 0.5, 1], yticklabels=["0", "50 %", "100 %"])
    for ax, setting in zip(axes[-1], names, strict=True):
        ax.set(xlabel="turn", xlim=(0.4, setting_rows(errors, setting)["turn"].max() + 0.6))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    told = "No missing-binding error whose task is at hand, so there is no recovery to show. "
    if len(recovery):
        _recovery_panel(parts[1], recovery)
        told = (
            "Below: share of missing-binding errors after which the agent inspected an item, or tried to take one, "
            f"for the first time, with the 95 % Wilson interval (n = {style.span(recovery['n'])} errors a cell, each "
            "counted alone), and the median of the turns until then. "
        )
    seen = style.patches({name: look for name, look in KINDS_OF_ERROR.items() if (errors[name] > 0).any()})
    style.legend_above(figure, [*seen, Line2D([], [], color=style.INK, lw=0.9, label="episodes running")])
    counted = style.counts_text(episodes[episodes["model"].isin(set(turns["model"]))])
    caption = (
        "Above: share of the episodes still running that meet an error in a turn (at least "
        f"{least} running), one kind a turn; the line is the share still running. "
        f"{style.labels_text(errors['runtime'])} {told}{counted}"
    )
    data = pd.concat([errors.assign(part="errors"), recovery.assign(part="recovery")], ignore_index=True)
    return style.Drawing(figure, data[["part", *(name for name in data if name != "part")]], caption)


def _recovery_panel(part: SubFigure, recovery: pd.DataFrame) -> None:
    ax, found, settings, names = part.subplots(), style.looks(style.cells_in(recovery)), setting_names(recovery), []
    ax.set_title("missing bindings, then the first try of an item", fontsize=6.5, loc="right")
    for y, row in enumerate(recovery.to_dict("records")):
        cell = row["model"], row["runtime"]
        names.append(f"{settings[row['split'], row['cap']]}: {style.cell_label(*cell)}")
        look = {**found[cell], "linestyle": "-", "lw": 1.2, "ms": 3.5, "mfc": "white", "clip_on": False, "zorder": 5}
        ax.plot([row["low"], row["share"], row["high"]], [y] * 3, markevery=[1], **look)
        median = f"; {row['median_turns']:g} turn{'s' * (row['median_turns'] != 1)}" if row["recovered"] else ""
        text = f"{row['recovered']} of {row['n']}{median}"
        ax.annotate(text, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=6)
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "50 %", "100 %"])
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0, pad=5)
    ax.grid(True, axis="x", lw=0.4, color=style.PALE)


def what_fills_the_tokens(episodes: pd.DataFrame, conduct: Conduct) -> style.Drawing:
    """What the replies of an episode consist of, mean per cell, and the redundancy of its code."""
    sizes = style.scored(episodes).groupby(style.BY_SETTING, sort=False).size()
    totals = conduct.turns.groupby(style.BY_SETTING, sort=False)[list(PARTS)].sum().reindex(sizes.index, fill_value=0)
    if not totals.to_numpy().sum():
        raise style.NothingToShow("No scored episode has a reply to show.")
    data = totals.div(sizes, axis=0).reset_index()  # an episode without any turn has no row there, but counts
    data.insert(4, "n", sizes.to_numpy())
    data["redundancy"] = [redundancy(row) for row in data.to_dict("records")]
    cells, settings = style.cells_in(data), setting_names(data)
    figure = Figure(figsize=(style.WIDTH, 0.2 + len(settings) * (0.3 + 0.17 * len(cells))), layout="constrained")
    axes = figure.subplots(len(settings), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (setting, title) in zip(axes, settings.items(), strict=True):
        rows = setting_rows(data, setting).reset_index(drop=True)
        style.stacked(ax.barh, rows.index, rows, 0.72, CONTENTS)
        beside = {"textcoords": "offset points", "ha": "right"}
        for y, share in enumerate(style.percent(share) for share in rows["redundancy"]):
            ax.annotate(share, (1, y), (34, 0), xycoords=("axes fraction", "data"), va="center", **beside)
        ax.annotate("redundancy", (1, 1), (34, 4), xycoords="axes fraction", color=style.GREY, **beside)
        names = [style.cell_label(*cell) for cell in style.cells_in(rows)]
        ax.set(yticks=rows.index, yticklabels=names, ylim=(len(rows) - 0.5, -0.5), title=title)
        ax.tick_params(axis="y", length=0, pad=5)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
    axes[-1].set(xlabel=f"{conduct.unit} of the replies of an episode")
    style.legend_above(figure, style.patches(CONTENTS))
    caption = (
        f"What the replies of an episode are made of, in {conduct.unit}, mean of the cell. State restated was printed "
        "before, code repeated was written before, each found as runs of words. Redundancy is the share of the "
        f"cell's code that is one or the other. {style.labels_text(data['runtime'])} {style.counts_text(episodes)}"
    )
    return style.Drawing(figure, data, caption)

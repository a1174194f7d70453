"""Four figures, each drawn from tables alone and saved as PNG, SVG and the CSV of what it shows.

Colours are Okabe and Ito's, which readers with a colour-vision deficiency can tell apart; the runtime is told by
marker and line style as well. Equal numbers give equal bytes. Models, runtimes and splits that were not played take
no room; a figure that has nothing to show raises NothingToShow.
"""

import math
import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pandas as pd
import seaborn
from IPython.display import Image, Markdown
from matplotlib import rc_context, ticker
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from knapsack.files import read_json, write_json
from knapsack.metrics import MODELS, RUNTIMES, write_csv
from knapsack.runs import Run, provenance
from knapsack.statistics import mean_interval, share_interval

SINGLE, DOUBLE = 3.4, 7.0  # widths of one and two columns of a paper, inches
COLOURS = {"base": "#555555", "persistent": "#0072B2", "stateless": "#D55E00", "teacher": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")  # models that a user adds
SHORT = {"persistent": "P", "stateless": "S"}
MARKERS = dict(zip(RUNTIMES, "os^D", strict=True))
LINES = dict(zip(RUNTIMES, ("-", (0, (3, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2))), strict=True))
SHOWN_EPISODES = 3  # a mean over fewer episodes is in the data file, not in the plot, unless there are never more
CELL = ["split", "model", "runtime"]

Drawn = tuple[Figure, pd.DataFrame]


class NothingToShow(ValueError):
    """The tables hold nothing that this figure could show; the message is a sentence for the reader."""


def style() -> dict:
    """Matplotlib settings of all figures: text of 7 points and more, reproducible SVG."""
    sizes = ("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize")
    lines = {"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2}
    text = dict.fromkeys(sizes, 7) | {"axes.titlesize": 8, "font.family": "DejaVu Sans", "legend.frameon": False}
    return seaborn.axes_style("ticks") | lines | text | {"svg.hashsalt": "knapsack", "svg.fonttype": "path"}


def cell_name(model: str, runtime: str) -> str:
    """P→S stands for the persistent-trained model in the stateless runtime."""
    return f"{SHORT.get(model, model)}→{SHORT.get(runtime, runtime)}"


def _means(frame: pd.DataFrame, keys: list[str], quantities: tuple[str, ...], **seeded: int) -> pd.DataFrame:
    """n, mean and interval of quantities per group, in the order of ``frame``."""
    rows = []
    for key, group in frame.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"n": len(group)}
        for name in quantities:
            low, high = mean_interval(group[name].to_numpy(float), **seeded)
            row |= {name: group[name].mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _completed(episodes: pd.DataFrame) -> pd.DataFrame:
    done = episodes[episodes["status"] == "completed"]
    if done.empty:
        raise NothingToShow("No cell has a completed episode to show: run notebook 04 first, or see what went wrong.")
    return done


def _note(figure: Figure, text: str, counts: pd.Series, unscored: int | None = None) -> None:
    n = f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()}–{counts.max()}"
    rest = "" if unscored is None else f"; unscored: {unscored}"
    figure.supxlabel(f"{text}; n = {n} episodes a cell{rest}.", fontsize=7, color="#444444")


def _present(known: tuple[str, ...], seen: pd.Series) -> list[str]:
    """The names that occur, those we know in their order, then others."""
    return [name for name in known if name in set(seen)] + sorted(set(seen) - set(known))


def _colours(models: pd.Series) -> dict[str, str]:
    return COLOURS | dict(zip(sorted(set(models) - set(COLOURS)), cycle(OTHERS), strict=False))


def _legend(figure: Figure, data: pd.DataFrame, line: bool) -> None:
    """One legend for the figure: colours are models, marker and line style are runtimes."""
    label, colours = {"persistent": "trained P", "stateless": "trained S"}, _colours(data["model"])
    handles = [
        Line2D([], [], color=colours[model], lw=2.5, label=label.get(model, model))
        for model in _present(MODELS, data["model"])
    ]
    for runtime in _present(RUNTIMES, data["runtime"]):
        face = "#222222" if runtime == "persistent" else "white"
        look = {"linestyle": LINES[runtime]} if line else {"linestyle": "", "marker": MARKERS[runtime]}
        handles.append(Line2D([], [], color="#222222", markerfacecolor=face, label=f"{runtime} runtime", **look))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 6))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=2)


def _number(value: float) -> str:
    """Short enough for a cell of the matrix."""
    if value < 9_999.5:
        return f"{value:.2f}" if value <= 1 else f"{value:,.0f}"
    return f"{value / 1000:,.{1 if value < 99_950 else 0}f}k"


def matrix(episodes: pd.DataFrame, **seeded: int) -> Drawn:
    """Training × runtime: mean normalized optimality and mean total tokens of every cell, per split."""
    played = episodes[episodes["model"] != "teacher"]
    data = _means(_completed(played), CELL, ("score", "total_tokens"), **seeded)
    unscored = (played["status"] != "completed").groupby([played[name] for name in CELL]).sum()
    data["unscored"] = unscored.loc[pd.MultiIndex.from_frame(data[CELL])].to_numpy()
    splits, models = list(dict.fromkeys(data["split"])), list(dict.fromkeys(data["model"]))
    runtimes = _present(RUNTIMES, data["runtime"])
    stacked = len(splits) * len(runtimes) > 4  # more would be too narrow side by side
    rows, columns = (len(splits), 2) if stacked else (1, 2 * len(splits))
    figure = Figure(figsize=(DOUBLE, 0.45 + rows * (0.5 + 0.5 * len(models))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    tokens = data["total_tokens"].clip(lower=1)
    looks = {
        "score": ("normalized optimality", "#0072B2", Normalize(0, 1.8)),
        "total_tokens": ("total tokens", "#D55E00", LogNorm(tokens.min() / 1.5, tokens.max() * 4)),
    }
    blank = False
    for index, ax in enumerate(axes):
        split, quantity, first = splits[index // 2], list(looks)[index % 2], index % columns == 0
        title, colour, norm = looks[quantity]
        part = data[data["split"] == split]
        grid = part.pivot(index="model", columns="runtime", values=quantity).reindex(index=models, columns=runtimes)
        blank = blank or bool(grid.isna().any(axis=None))
        text = pd.DataFrame("", models, runtimes)
        for row in part.to_dict("records"):
            mean, low, high = (_number(row[quantity + end]) for end in ("", "_low", "_high"))
            text.loc[row["model"], row["runtime"]] = f"{mean}\n{low}–{high}"
        look = {"cmap": seaborn.light_palette(colour, as_cmap=True), "norm": norm, "cbar": False, "linewidths": 1.5}
        font = {"fontsize": 7, "linespacing": 1.3, "color": "#111111"}
        seaborn.heatmap(grid, ax=ax, annot=text, fmt="", annot_kws=font, **look)
        ax.set(title=f"{split}: {title}", xlabel="runtime", ylabel="trained on" if first else "")
        ax.tick_params(length=0)
        ax.set_yticklabels(models if first else [], rotation=0)
        ax.set_xticklabels([name.replace("over-", "over-\n") for name in runtimes], rotation=0)
    text = "Mean and 95 % bootstrap interval" + ("; blank: no completed episode" if blank else "")
    _note(figure, text, data["n"], int(unscored.sum()))
    return figure, data


def cost_quality(episodes: pd.DataFrame, **seeded: int) -> Drawn:
    """Mean total tokens (log) against mean normalized optimality; rings are the teacher, the reference."""
    data = _means(_completed(episodes), CELL, ("score", "total_tokens"), **seeded)
    splits, colours = list(dict.fromkeys(data["split"])), _colours(data["model"])
    figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
    axes = figure.subplots(1, len(splits), sharey=True, sharex=True, squeeze=False)[0]
    for ax, split in zip(axes, splits, strict=True):
        for row in data[data["split"] == split].to_dict("records"):
            reach = {}  # errorbar wants distances from the mean
            for axis, name in (("xerr", "total_tokens"), ("yerr", "score")):
                reach[axis] = [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
            teacher, colour = row["model"] == "teacher", colours[row["model"]]
            face = "none" if teacher else colour if row["runtime"] == "persistent" else "white"
            look = {"fmt": MARKERS[row["runtime"]], "ms": 9 if teacher else 5, "color": colour, "mfc": face}
            x, y = row["total_tokens"], row["score"]
            ax.errorbar(x, y, **reach, **look, mew=1.1, elinewidth=0.9, zorder=2 if teacher else 3)
        ax.set(xscale="log", title=split, xlabel="total tokens an episode (log scale)", xmargin=0.1)
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _number(value).replace(".0k", "k")))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.grid(True, lw=0.4, color="#DDDDDD")
    axes[0].set(ylim=(-0.03, 1.03), ylabel="normalized optimality")
    _legend(figure, data, line=False)
    rings = "; teacher as rings" if "teacher" in set(data["model"]) else ""
    unscored = int((episodes["status"] != "completed").sum())
    _note(figure, f"Mean and 95 % bootstrap interval{rings}", data["n"], unscored)
    return figure, data


def missing_bindings(episodes: pd.DataFrame) -> Drawn:
    """Share of episodes with at least one missing-binding error, per cell, with its Wilson interval."""
    rows = []
    for key, group in _completed(episodes).groupby(CELL, sort=False):
        count = int((group["missing_bindings"] > 0).sum())
        low, high = share_interval(count, len(group))
        row = dict(zip(CELL, key, strict=True)) | {"n": len(group), "episodes": count, "share": count / len(group)}
        rows.append(row | {"low": low, "high": high})
    data = pd.DataFrame(rows)
    names = list(dict.fromkeys(map(cell_name, data["model"], data["runtime"])))
    splits, colours = list(dict.fromkeys(data["split"])), _colours(data["model"])
    width = SINGLE if max(map(len, names)) <= 16 else DOUBLE
    figure = Figure(figsize=(width, 0.85 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for ax, split in zip(axes, splits, strict=True):
        for row in data[data["split"] == split].to_dict("records"):
            y, colour = names.index(cell_name(row["model"], row["runtime"])), colours[row["model"]]
            ax.barh(y, row["share"], height=0.62, color=colour, alpha=0.35)
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.4, solid_capstyle="butt", clip_on=False)
            ax.plot(row["share"], y, "o", color=colour, ms=3.5, clip_on=False, zorder=5)
        ax.set(xlim=(0, 1), title=split, xticks=[0, 0.5, 1], xticklabels=["0", "50 %", "100 %"])
    axes[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    _note(figure, "Episodes with a missing-binding error,\n95 % Wilson interval", data["n"])
    return figure, data


def tokens_by_turn(turns: pd.DataFrame, **seeded: int) -> Drawn:
    """Mean completion and prompt tokens of the n-th turn over the episodes that reach it, and how many do."""
    shown = turns[turns["model"] != "teacher"]
    if shown.empty:
        raise NothingToShow("No completed turn of a model other than the teacher is there to show.")
    data = _means(shown, [*CELL, "turn"], ("completion_tokens", "prompt_tokens"), **seeded)
    data["turn"] += 1
    splits, colours = list(dict.fromkeys(data["split"])), _colours(data["model"])
    least = min(SHOWN_EPISODES, int(data.groupby("split")["n"].max().min()))
    labels = {"completion_tokens": "completion tokens", "prompt_tokens": "prompt tokens", "n": "episodes still running"}
    figure = Figure(figsize=(DOUBLE, 5.2), layout="constrained")
    axes = figure.subplots(3, len(splits), sharex="col", sharey="row", squeeze=False)
    for column, split in enumerate(splits):
        for (model, runtime), line in data[data["split"] == split].groupby(["model", "runtime"], sort=False):
            look = {"color": colours[model], "linestyle": LINES[runtime]}
            seen = line[line["n"] >= least]
            for row, name in enumerate(("completion_tokens", "prompt_tokens")):
                axes[row][column].plot(seen["turn"], seen[name], marker=".", ms=3, **look)
                low, high = seen[f"{name}_low"], seen[f"{name}_high"]
                axes[row][column].fill_between(seen["turn"], low, high, color=look["color"], alpha=0.12, lw=0)
            axes[2][column].plot(line["turn"], line["n"], marker=".", ms=3, **look)
        axes[0][column].set(title=split)
        axes[2][column].set(xlabel="turn")
        axes[2][column].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for row, name in enumerate(labels):
        axes[row][0].set(ylabel=labels[name], ylim=(0, None if name != "n" else 1.06 * data["n"].max()))
    axes[2][0].yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    figure.align_ylabels(axes[:, 0])
    _legend(figure, data, line=True)
    text = f"Mean and 95 % bootstrap interval over the episodes still running (at least {least})"
    _note(figure, text, data.loc[data["turn"] == 1, "n"])
    return figure, data


def save(folder: str | Path, name: str, draw: Callable[[], Drawn]) -> list[str]:
    """Draw and write ``name``.png (300 dpi), .svg and .csv; returns the three file names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(style()):
        figure, data = draw()
        figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None})
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    write_csv(folder / f"{name}.csv", data)
    return [f"{name}.{kind}" for kind in ("png", "svg", "csv")]


def draw_all(
    run: Run, episodes: pd.DataFrame, turns: pd.DataFrame, notebook: str, parameters: dict
) -> dict[str, Path | str]:
    """Draw every figure into the run's folder and write the manifest; returns name → PNG, or why there is none.

    ``parameters`` are the notebook's, n_resamples and seed among them. A row of the manifest says which notebook,
    parameters and commit made the figure, and from which run.
    """
    seeded = {name: parameters[name] for name in ("n_resamples", "seed")}
    drawings: dict[str, Callable[[], Drawn]] = {
        "train_runtime_matrix": lambda: matrix(episodes, **seeded),
        "cost_quality": lambda: cost_quality(episodes, **seeded),
        "missing_bindings": lambda: missing_bindings(episodes),
        "tokens_by_turn": lambda: tokens_by_turn(turns, **seeded),
    }
    known = provenance()
    origin = {"notebook": notebook, "parameters": parameters, "commit": known["commit"], "dirty": known["dirty"]}
    manifest, drawn = {}, {}
    for name, draw in drawings.items():
        try:
            manifest[name] = {"files": save(run.figures, name, draw), **origin}
            drawn[name] = run.figures / f"{name}.png"
        except NothingToShow as nothing:
            drawn[name] = str(nothing)
    write_json(run.figures / "manifest.json", manifest)
    for old in orphans(run.figures):  # of a figure that is not drawn any more
        (run.figures / old).unlink()
    return drawn


def shown(drawn: Path | str, width: int) -> Image | Markdown:
    """For a notebook: the picture ``width`` pixels wide, or the sentence that stands in for it."""
    return Markdown(drawn) if isinstance(drawn, str) else Image(drawn, width=width)


def orphans(folder: str | Path) -> list[str]:
    """Files in a folder of figures that no row of its manifest names, and files named there that are missing."""
    folder = Path(folder)
    there = {path.name for path in folder.glob("*") if path.suffix in (".png", ".svg", ".csv", ".pdf")}
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    return sorted(there ^ {name for row in manifest.values() for name in row["files"]})


def publish(run: Run, folder: str | Path) -> None:
    """Make ``folder`` hold exactly the run's figures. Raises ValueError naming figures whose origin is unknown."""
    if not (run.figures / "manifest.json").exists():
        raise FileNotFoundError(f"{run.figures} holds no manifest.json: run notebook 05 first")
    if wrong := orphans(run.figures):
        raise ValueError(f"{run.figures}: {', '.join(wrong)} and the manifest disagree; run notebook 05 again")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(run.figures.iterdir()):
        shutil.copyfile(path, folder / path.name)
    for old in orphans(folder):
        (folder / old).unlink()

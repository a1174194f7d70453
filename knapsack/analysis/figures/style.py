"""What all figures share: one style, colours, the names of cells, and the parts of a caption.

Every figure is drawn at the width of one column, 3.35 inches, with text of 6 points and more. Colours are Okabe and
Ito's, which readers with a colour-vision deficiency can tell apart; what a colour says, a marker, a line style, a
hatch or a label says as well.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from knapsack.analysis.intervals import CONFIDENCE, METHOD, mean_interval
from knapsack.analysis.metrics import RUNTIMES, SHORT, completed

WIDTH = 3.35  # inches; 8.5 cm
SMALLEST = 6.0  # points
COLOURS = {"base": "#555555", "persistent": "#0072B2", "stateless": "#D55E00", "teacher": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")  # models that a user adds
SHORTEST = SHORT | {"carry-over": "C", "carry-over-announced": "C+"}
LONGEST = 14  # characters of a model's name in a figure; its data has the whole name
MARKERS = dict(zip(RUNTIMES, "os^D", strict=True))
LINES = dict(zip(RUNTIMES, ("-", (0, (3, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2))), strict=True))
CELL = ["split", "model", "runtime"]
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers it shows, and the sentences that belong below it."""

    figure: Figure
    data: pd.DataFrame
    caption: str


class NothingToShow(ValueError):
    """The tables hold nothing that this figure could show; the message is a sentence for the reader."""


def style() -> dict:
    """Matplotlib settings of all figures: text of 6 points and more, reproducible SVG."""
    sizes = ("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize")
    lines = {"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.1}
    ticks = {f"{axis}tick.major.{name}": size for axis in "xy" for name, size in (("size", 2.5), ("width", 0.6))}
    ticks |= {f"{axis}tick.minor.{name}": size for axis in "xy" for name, size in (("size", 1.5), ("width", 0.4))}
    text = dict.fromkeys(sizes, 6.5) | {"axes.titlesize": 7.5, "font.family": "DejaVu Sans", "legend.frameon": False}
    pads = {"axes.labelpad": 2.5, "axes.titlepad": 4, "xtick.major.pad": 2, "ytick.major.pad": 2}
    return seaborn.axes_style("ticks") | lines | ticks | text | pads | {"svg.hashsalt": "knapsack"}


def short(name: str) -> str:
    """A model's name, cut in its middle to LONGEST characters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 6]}…{name[-5:]}"


def cell_label(model: str, runtime: str) -> str:
    """``cell_name`` as short as a figure needs it; ``labels_text`` explains it."""
    return f"{SHORT.get(model, short(model))}→{SHORTEST.get(runtime, runtime)}"


def labels_text(runtimes: Iterable[str]) -> str:
    """The sentence that explains ``cell_label``."""
    told = ["P→S: trained on persistent traces, run in the stateless runtime"]
    names = {"carry-over": "C: a carry-over runtime", "carry-over-announced": "C+: one that is announced"}
    return "; ".join(told + [words for name, words in names.items() if name in set(runtimes)]) + "."


def present(known: tuple[str, ...], seen: Iterable[str]) -> list[str]:
    """The names that occur, those we know in their order, then others."""
    seen = set(seen)
    return [name for name in known if name in seen] + sorted(seen - set(known))


def colours_of(models: Iterable[str]) -> dict[str, str]:
    """A colour for every model."""
    return COLOURS | dict(zip(sorted(set(models) - set(COLOURS)), cycle(OTHERS), strict=False))


def scored(episodes: pd.DataFrame) -> pd.DataFrame:
    """The ``completed`` episodes; NothingToShow if there are none."""
    done = completed(episodes)
    if done.empty:
        raise NothingToShow("No cell has a completed episode to show: run notebook 04 first, or see what went wrong.")
    return done


def means(frame: pd.DataFrame, keys: list[str], quantities: tuple[str, ...], **seeded: int) -> pd.DataFrame:
    """n, mean and interval of quantities per group, in the order of ``frame``."""
    rows = []
    for key, group in frame.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"n": len(group)}
        for name in quantities:
            low, high = mean_interval(group[name].to_numpy(float), **seeded)
            row |= {name: group[name].mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def span(numbers: Iterable[int]) -> str:
    """"4" for equal numbers, else "2–4"."""
    numbers = list(numbers)
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)}–{max(numbers)}"


def percent(share: float) -> str:
    """0.95 as "95 %"; no number, "–", for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def interval_text(n_resamples: int, seed: int) -> str:
    """How the intervals of means were made."""
    method = {"bca": "BCa", "percentile": "percentile"}[METHOD]
    return f"{percent(CONFIDENCE)} interval ({method} bootstrap over tasks, {n_resamples:,} resamples, seed {seed})"


def counts_text(episodes: pd.DataFrame) -> str:
    """How many episodes of a cell were scored, per split, and how many were not in all."""
    done = scored(episodes)
    sizes = done.groupby(CELL, sort=False).size()
    parts = [f"{span(sizes[split])} {split}" for split in dict.fromkeys(done["split"])]
    return f"n = {', '.join(parts)} episodes a cell; unscored: {len(episodes) - len(done)}."


def split_axes(figure: Figure, rows: int, splits: list[str], **settings):
    """Axes of shape (rows, splits), titled with the splits where there are several."""
    axes = figure.subplots(rows, len(splits), squeeze=False, **settings)
    for ax, split in zip(axes[0], splits, strict=True):
        ax.set_title(split)
    return axes


def cells_legend(figure: Figure, cells: Iterable[tuple[str, str]]) -> None:
    """A line in the colour of the model and the style of the runtime for every (model, runtime)."""
    cells = list(cells)
    colours = colours_of(model for model, _ in cells)
    handles = [
        Line2D([], [], color=colours[model], linestyle=LINES[runtime], label=cell_label(model, runtime))
        for model, runtime in cells
    ]
    legend_above(figure, handles)


def legend_above(figure: Figure, handles: list[Artist]) -> None:
    """A legend over the whole figure, in as many columns as its longest label leaves room for; the figure grows."""
    longest = max(len(handle.get_label()) for handle in handles)
    rows = math.ceil(len(handles) / max(1, int(WIDTH * 72 / (4 * longest + 30))))
    columns = math.ceil(len(handles) / rows)
    figure.set_figheight(figure.get_figheight() + 0.05 + 0.12 * rows)
    look = {"columnspacing": 1.0, "handlelength": 1.9, "handletextpad": 0.5, "borderpad": 0.1, "labelspacing": 0.3}
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look)


def label_points(ax: Axes, points: list[tuple[float, float, str, str]], taken: list[Bbox]) -> None:
    """Write a name beside each point (x, y, name, colour), clear of every box of ``taken`` and of each other.

    ``taken`` are boxes in pixels. Of the nearest free places, the one farthest from all other points is chosen; one
    that is not beside its point gets a line to it. Call it last: it needs the final place of the axes.
    """
    pixel, room, taken = ax.figure.dpi / 72, ax.get_window_extent(), list(taken)
    look = {"fontsize": 6.5, "ha": "center", "va": "center", "zorder": 6, "in_layout": False}
    look["path_effects"] = [patheffects.withStroke(linewidth=1.6, foreground="white")]
    ways = [(1, 0), (-1, 0), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (0, 1), (0, -1)]
    pixels = ax.transData.transform([point[:2] for point in points])
    for index, (x, y, name, colour) in enumerate(points):
        label = ax.annotate(name, (x, y), (0, 0), textcoords="offset points", color=colour, **look)
        size, at = label.get_window_extent(), pixels[index]
        half = np.array([size.width, size.height]) / 2
        places = []
        for reach, way in ((reach, np.array(way)) for reach in (6, 10, 15, 21, 28, 36, 46, 60, 75, 90) for way in ways):
            centre = np.clip(at + way * (reach * pixel + half), room.min + half, room.max - half)
            box = Bbox([centre - half, centre + half])
            near = min((math.dist(centre, other) for k, other in enumerate(pixels) if k != index), default=0.0)
            places.append((any(box.overlaps(other) for other in taken), reach, -near, tuple(centre), box))
        _, reach, _, centre, box = min(places, key=lambda place: place[:4])  # all taken: the nearest
        label.set_position((np.array(centre) - at) / pixel)
        taken.append(box)
        if reach > 10:
            ends = ax.transData.inverted().transform([at, centre])
            ax.plot(*ends.T, color=colour, lw=0.4, zorder=1.5, scalex=False, scaley=False)

"""What all figures share: one style, colours, the names of cells, and the parts of a caption.

Every figure is drawn at the width of one column, 3.35 inches, with text of 6 points and more. Colours are Okabe and
Ito's, which readers with a colour-vision deficiency can tell apart; what a colour says, a marker, a line style, a
hatch or a label says as well.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle

import pandas as pd
import seaborn
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from knapsack.analysis.intervals import CONFIDENCE, METHOD, Bootstrap
from knapsack.analysis.metrics import RUNTIMES, SETTING, SHORT, completed
from knapsack.runtime import KINDS

WIDTH = 3.35  # inches; 8.5 cm
SMALLEST = 6.0  # points
COLOURS = {"base": "#555555", "persistent": "#0072B2", "stateless": "#D55E00", "teacher": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")  # models that a user adds
SHORTEST = SHORT | {"carry-over": "C", "carry-over-announced": "C+"}
SHORTEST |= {
    f"{kind}{end}": f"{SHORT[kind]}{mark}" for kind in KINDS for end, mark in (("-untold", "?"), ("-false", "!"))
}
LONGEST = 14  # characters of a model's name in a figure; its data has the whole name
MARKERS = dict(zip(RUNTIMES, "os^Dv<>p", strict=True))
LINES = dict(zip(RUNTIMES, 2 * ("-", (0, (3, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2))), strict=True))
BY_SETTING = [*SETTING, "model", "runtime"]  # the first columns of a figure's data
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"

Looks = dict[str, tuple[str, str, str]]  # label, colour and hatch of each part of a stack, from its bottom


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
    """A model's name, "P-matched" for "persistent-matched", cut in its middle to LONGEST characters."""
    regime, dash, rest = name.partition("-")
    name = SHORT[regime] + dash + rest if dash and regime in SHORT else name
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 6]}…{name[-5:]}"


def cell_label(model: str, runtime: str) -> str:
    """``cell_name`` as short as a figure needs it; ``labels_text`` explains it."""
    return f"{SHORT.get(model, short(model))}→{SHORTEST.get(runtime, runtime)}"


def cells_in(data: pd.DataFrame) -> list[tuple[str, str]]:
    """Every (model, runtime) in a table, in its order."""
    return list(dict.fromkeys(zip(data["model"], data["runtime"], strict=True)))


def looks(cells: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict]:
    """How each (model, runtime) is drawn: the colour of the model, the marker, its face and the line of the runtime."""
    cells = list(cells)
    added = sorted({model for model, _ in cells} - set(COLOURS))
    colours = COLOURS | dict(zip(added, cycle(OTHERS), strict=False))
    return {
        (model, runtime): {
            "color": colours[model],
            "marker": MARKERS[runtime],
            "mfc": colours[model] if runtime == "persistent" else "white",
            "linestyle": LINES[runtime],
        }
        for model, runtime in cells
    }


def scored(episodes: pd.DataFrame) -> pd.DataFrame:
    """The ``completed`` episodes; NothingToShow if there are none."""
    done = completed(episodes)
    if done.empty:
        raise NothingToShow("No cell has a completed episode to show: run notebook 04 first, or see what went wrong.")
    return done


def span(numbers: Iterable[int]) -> str:
    """ "4" for equal numbers, else "2–4"."""
    numbers = list(numbers)
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)}–{max(numbers)}"


def percent(share: float) -> str:
    """0.95 as "95 %"; no number, "–", for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def labels_text(runtimes: Iterable[str] = ()) -> str:
    """The sentence that explains ``cell_label``."""
    told = ["P→S: trained on persistent traces, run in the stateless runtime"]
    names = {"carry-over$": "C: a carry-over runtime", "carry-over-announced": "C+: one that is announced"}
    names |= {".*-untold": "?: a runtime that the agent is not told", ".*-false": "!: one that it is told falsely"}
    found = (words for name, words in names.items() if any(re.match(name, one) for one in runtimes))
    return "; ".join([*told, *found]) + "."


def interval_text(bootstrap: Bootstrap) -> str:
    """How the intervals of means were made. The seed is the bootstrap's, not that of a run (``origin_text``)."""
    method = {"bca": "BCa", "percentile": "percentile"}[METHOD]
    made = f"{method} bootstrap over tasks, {bootstrap.n_resamples:,} resamples, bootstrap seed {bootstrap.seed}"
    return f"{percent(CONFIDENCE)} interval ({made})"


def counts_text(episodes: pd.DataFrame) -> str:
    """How many episodes of a cell were scored, per split, and how many were not in all."""
    done = scored(episodes)
    return f"n = {sizes_text(done.groupby(BY_SETTING, sort=False).size())}; unscored: {len(episodes) - len(done)}."


def sizes_text(sizes: pd.Series) -> str:
    """Numbers by SETTING (their index), per split: "4 easy, 2–4 hard episodes a cell", with the caps if several."""
    splits, caps = (sizes.index.get_level_values(name).unique() for name in SETTING)
    parts = [f"{span(sizes.xs(split, level='split'))} {split}" for split in splits]
    told = f" under each cap ({', '.join(map(str, caps))})" * (len(caps) > 1)
    return f"{', '.join(parts)} episodes a cell{told}"


def splits_and_caps(names: Iterable[tuple[str, int]]) -> tuple[list[str], list[int]]:
    """The rows and columns of a grid of all (split, cap)."""
    splits, caps = zip(*names, strict=True)
    return list(dict.fromkeys(splits)), sorted(set(caps))


def token_axis(ax: Axes, ends: pd.Series, narrow: bool = False) -> None:
    """A log axis of tokens, labelled as 500, 2k, 5k, or more sparsely on a ``narrow`` one. ``ends``: all that it must
    hold."""
    decades = math.log10(ends.max() / ends.min())
    subs = (1, 2, 5) if not narrow or decades <= 0.9 else (1,) if decades > 2 else (1, 3)
    ax.set(xscale="log")
    ax.update_datalim([(end, 0) for end in (ends.min(), ends.max())], updatey=False)
    if ends.max() < 2 * ends.min():  # too near for a tick between them
        ax.set(xlim=(ends.min() / 1.8, ends.max() * 1.8))
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def stacked(bar: Callable, at: pd.Series, rows: pd.DataFrame, size: float, parts: Looks) -> None:
    """Bars ``size`` thick at ``at``, by ``Axes.bar`` or ``barh``: the columns of ``rows`` named by ``parts``."""
    start = 0.0
    for name, (_, colour, hatch) in parts.items():
        bar(at, rows[name], size, start, color=colour, hatch=hatch, edgecolor="white", lw=0)
        start = start + rows[name]


def patches(parts: Looks) -> list[Patch]:
    """What a legend shows of ``stacked``."""
    return [Patch(fc=colour, hatch=hatch, ec="white", lw=0, label=label) for label, colour, hatch in parts.values()]


def cells_legend(figure: Figure, found: dict[tuple[str, str], dict], **other) -> None:
    """A legend of every (model, runtime) by its ``looks``, or as ``other`` says."""
    legend_above(figure, [Line2D([], [], label=cell_label(*cell), **look | other) for cell, look in found.items()])


def legend_above(figure: Figure, handles: list[Artist]) -> None:
    """A legend over the whole figure, in as many columns as its longest label leaves room for; the figure grows."""
    longest = max(len(handle.get_label()) for handle in handles)
    rows = math.ceil(len(handles) / max(1, int(WIDTH * 72 / (4 * longest + 30))))
    columns = math.ceil(len(handles) / rows)
    figure.set_figheight(figure.get_figheight() + 0.05 + 0.12 * rows)
    look = {"columnspacing": 1.0, "handlelength": 1.9, "handletextpad": 0.5, "borderpad": 0.1, "labelspacing": 0.3}
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look)

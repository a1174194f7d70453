"""The idea of the study in one picture: two real rollouts of one model on one task, side by side in both runtimes."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from knapsack.agent import FENCE, Turn
from knapsack.analysis.figures.style import COLOURS, GREY, INK, SMALLEST, WIDTH, Drawing, NothingToShow, scored
from knapsack.analysis.statistics import PP, PS
from knapsack.runtime import KINDS
from knapsack.traces import Cell, Trace, read_trace, trace_path
from knapsack.training_data import MIN_SCORE

CODE_LINES = 6  # of a turn
WIDE_LINES = 9  # of a turn that takes the whole width
PAGE, EDGE, GAP = 72 * WIDTH, 3.0, 7.0  # points: width, margin, between the columns
COLUMN = (PAGE - 2 * EDGE - GAP) / 2
LINE, LETTER, PAD = 8.2, 0.60205 * SMALLEST, 3.0  # points: a line, a letter of code (DejaVu Sans Mono), inside a box
KEPT, LOST = COLOURS["persistent"], COLOURS["stateless"]
BACK, GOOD, BAD = "#F3F3F3", "#DCEBF5", "#FADFCF"
ENDS = {"finish_tool": "finished", "max_turns": "turn limit", "error": "ended by an error"}

Line = tuple[str, int, str, str]  # runtime, turn from 1, part, text


@dataclass(frozen=True)
class Pair:
    """Two rollouts of a task. ``missing``: the turn (from 0) of the first missing binding, of the name ``name``;
    ``bound``: the last turn before it with the name in its code; ``same``: whether both rollouts wrote the same code
    up to and in turn ``missing``."""

    split: str
    task_id: str
    traces: tuple[Trace, Trace]  # persistent, stateless runtime
    missing: int
    bound: int
    name: str
    same: bool


def find_pairs(episodes: pd.DataFrame, folder: str | Path) -> list[Pair]:
    """The tasks that P→P finished with MIN_SCORE or more and on which P→S met a missing binding, best first.

    First come pairs with the same code up to that moment, then higher scores of P→P, then the order of ``episodes``.
    ``folder`` is that of the cells.
    """
    done = scored(episodes)
    home, away = (done[(done[["model", "runtime"]] == list(cell)).all(axis=1)] for cell in (PP, PS))
    home = home[(home["finish_reason"] == "finish_tool") & (home["score"] >= MIN_SCORE)]
    both = home.merge(away[away["missing_bindings"] > 0][["split", "task_id"]], on=["split", "task_id"])
    pairs = []
    for split, task_id in zip(both["split"], both["task_id"], strict=True):
        cells = [Path(folder) / Cell(*cell, split).name for cell in (PP, PS)]
        traces = tuple(read_trace(trace_path(cell, task_id)) for cell in cells)
        if found := _moment(traces[1]):
            codes = [[turn.code for turn in trace.turns[: found[0] + 1]] for trace in traces]
            pairs.append(Pair(split, task_id, traces, *found, codes[0] == codes[1]))
    return sorted(pairs, key=lambda pair: (not pair.same, -pair.traces[0].score))


def _moment(trace: Trace) -> tuple[int, int, str] | None:
    """The first missing binding, the last earlier turn that has the name in its code, and the name."""
    for index, turn in enumerate(trace.turns):
        if turn.observation is not None and turn.observation.missing_binding:
            name = turn.observation.missing_name
            wrote = [earlier for earlier in range(index) if name and _has(trace.turns[earlier].code or "", name)]
            return (index, wrote[-1], name) if wrote else None
    return None


def _has(line: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", line) is not None


def excerpt(code: str, name: str, columns: int, most: int) -> list[str]:
    """At most ``most`` lines of code, ``columns`` wide: those with ``name`` and the nearest to them, or the first ones;
    what is left out shows as "…"."""
    lines = [line.rstrip() for line in code.splitlines() if line.strip()]
    uses = [index for index, line in enumerate(lines) if _has(line, name)] or [0]
    order = sorted(range(len(lines)), key=lambda index: (min(abs(index - use) for use in uses), index))
    shown: list[str] = []
    for count in range(1, len(lines) + 1):
        chosen, tried = sorted(order[:count]), []
        for place, index in enumerate(chosen):
            tried += ["…"] * (index > (chosen[place - 1] + 1 if place else 0)) + [cut(lines[index], columns)]
        tried += ["…"] * (chosen[-1] < len(lines) - 1)
        if len(tried) <= most or not shown:
            shown = tried
    return shown


def cut(text: str, columns: int) -> str:
    """The text, or its beginning and "…", in at most ``columns`` characters, none of them unprintable."""
    text = "".join(letter if letter.isprintable() else " " for letter in text.expandtabs(4))
    return text if len(text) <= columns else text[: columns - 1].rstrip() + "…"


def _wrapped(text: str, columns: int) -> list[str]:
    """The text on two lines at most."""
    if len(text) <= columns:
        return [cut(text, columns)]
    at = text.rfind(" ", 0, columns + 1)
    at = at if at > 0 else columns
    return [cut(text[:at], columns), cut(text[at:].strip(), columns)]


def _parts(turn: Turn, name: str, columns: int, most: int = CODE_LINES) -> tuple[str, list[str], list[str], bool]:
    """What a turn shows: first words of the model, lines of code, what came back, and whether that is an error."""
    block = FENCE.search(turn.text)
    words = cut(" ".join(turn.text[: block.start() if block else None].split()), columns + 2)
    if turn.observation is None:
        return words, [], ["no single code block"], True
    code, seen = excerpt(turn.code, name, columns, most), turn.observation
    if seen.error:
        return words, code, _wrapped(" ".join(seen.error.split()), columns), True
    printed = [cut(line, columns) for line in seen.output.splitlines() if line.strip()]
    return words, code, printed[:2] + ["…"] * (len(printed) > 2) or ["(prints nothing)"], False


def the_idea(episodes: pd.DataFrame, folder: str | Path) -> Drawing:
    """The first of ``find_pairs``: the turn that binds a name, the turn that misses it, the next one, and the end."""
    pairs = find_pairs(episodes, folder)
    if not pairs:
        raise NothingToShow(
            f"No task that P→P finished with a score of {MIN_SCORE} or more met a missing binding in P→S, so there are "
            "no two rollouts to show side by side."
        )
    pair = pairs[0]
    figure, lines = draw_pair(pair)
    data = pd.DataFrame(lines, columns=["runtime", "turn", "part", "text"])
    data.insert(0, "split", pair.split)
    data.insert(1, "task_id", pair.task_id)
    done, same = scored(episodes), sum(one.same for one in pairs)
    tasks = int((done[["model", "runtime"]] == list(PP)).all(axis=1).sum())
    caption = (
        "Two rollouts of the model trained on persistent traces, on the same task in both runtimes: real words, code "
        f"and output, cut at “…”. In turn {pair.missing + 1} the stateless runtime has lost the name `{pair.name}`. "
        f"Chosen by rule: n = {tasks} tasks were scored in P→P; {len(pairs)} of them were finished there with a score "
        f"of {MIN_SCORE} or more and met a missing binding in P→S, {same} after the same code in both; shown is the "
        f"first with the highest score in P→P{' among these' if same else ''}."
    )
    return Drawing(figure, data, caption)


def draw_pair(pair: Pair) -> tuple[Figure, list[Line]]:
    """The picture of two rollouts, drawn from the top down in points, and every line that it shows of them."""
    figure = Figure(figsize=(WIDTH, WIDTH))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.text(EDGE, 11, "One model, one task, two runtimes", fontsize=9, weight="bold", color=INK)
    ax.text(EDGE, 20, f"trained on persistent traces · {pair.split} task {pair.task_id}", color=GREY)
    y, lines = 25.0, []
    first = [trace.turns[pair.bound] for trace in pair.traces if pair.bound < len(trace.turns)]
    first = [turn for turn in first if turn.observation is not None]
    replies = [(turn.text, turn.observation.output, turn.observation.error) for turn in first]
    once = len(replies) == 2 and replies[0] == replies[1]
    if once:
        y, lines = _row(ax, y, pair, pair.bound, first[:1])
        y = _links(ax, y, pair.name)
    y = _bands(ax, y)
    for index in [pair.missing, pair.missing + 1] if once else [pair.bound, pair.missing, pair.missing + 1]:
        if index == pair.missing and not once:
            y = _links(ax, y, pair.name)
        turns = [trace.turns[index] if index < len(trace.turns) else None for trace in pair.traces]
        if any(turns):
            y, more = _row(ax, y, pair, index, turns)
            lines += more
    height = _ends(ax, y, pair)
    figure.set_size_inches(WIDTH, height / 72)
    ax.set(xlim=(0, PAGE), ylim=(height, 0))
    for text in ax.texts:
        text.set_parse_math(False)  # a model may write dollar signs
    return figure, lines


def _box(ax: Axes, x: float, y: float, width: float, height: float, **look) -> None:
    look = {"lw": 0, "boxstyle": "round,pad=0,rounding_size=2"} | look
    ax.add_patch(FancyBboxPatch((x, y), width, height, **look))


def _left(column: int) -> float:
    return EDGE + column * (COLUMN + GAP)


def _row(ax: Axes, y: float, pair: Pair, index: int, turns: list[Turn | None]) -> tuple[float, list[Line]]:
    """One turn of both rollouts, or of a single one over the whole width; returns where it ends, and its lines."""
    wide = len(turns) == 1
    width = PAGE - 2 * EDGE if wide else COLUMN
    lines, end = [], y
    for column, turn in enumerate(turns):
        if turn is None:
            continue
        x, gone = _left(column), not wide and column == 1 and index == pair.missing
        columns, most = int((width - 2 * PAD) / LETTER), WIDE_LINES if wide else CODE_LINES
        words, code, output, failed = _parts(turn, pair.name, columns, most)
        label = f"turn {index + 1}{', the same in both' if wide else ''}"
        ax.text(x, y + 6.5, label, fontsize=6, color=LOST if gone else GREY, weight="bold" if gone else "normal")
        if gone:
            ax.text(x + width, y + 6.5, "missing binding", fontsize=6, color=LOST, weight="bold", ha="right")
        top, middle = y + 9, y + 9 + PAD + LINE * (1 + len(code))
        bottom = middle + LINE * len(output) + PAD + 1
        _box(ax, x, top, width, bottom - top, fc=BACK)
        _box(ax, x, middle, width, bottom - middle, fc=BAD if failed else GOOD)
        if gone:
            _box(ax, x, top, width, bottom - top, fc="none", ec=LOST, lw=1.2)
        ax.text(x + PAD, top + LINE - 0.5, words, fontsize=6, style="italic", color=GREY)
        for place, text in enumerate(code):
            _code(ax, x + PAD, top + PAD / 2 + LINE * (place + 2) - 1.5, text, pair.name, LOST if gone else KEPT)
        for place, text in enumerate(output):
            look = {"color": LOST, "weight": "bold"} if gone else {"color": INK}
            ax.text(x + PAD, middle + LINE * (place + 1) - 0.8, text, family="monospace", fontsize=6, **look)
        runtime = "both" if wide else KINDS[column]
        for part, texts in (("words", [words]), ("code", code), ("output", output)):
            lines += [(runtime, index + 1, part, text) for text in texts]
        end = max(end, bottom)
    return end + 4, lines


def _code(ax: Axes, x: float, y: float, text: str, name: str, colour: str) -> None:
    """A line of code, with every use of ``name`` marked."""
    for use in re.finditer(rf"\b{name}\b", text):
        _box(ax, x + use.start() * LETTER - 1, y - 6.2, len(name) * LETTER + 2, 8, fc=colour, alpha=0.25)
    ax.text(x, y, text, family="monospace", fontsize=6, color=INK)


def _links(ax: Axes, y: float, name: str) -> float:
    """From the turn that binds the name to the one that needs it: an arrow where it stays, a broken one where not."""
    for column, (colour, words, line) in enumerate(((KEPT, "stays bound", "-"), (LOST, "is lost", (0, (2, 1.5))))):
        x = _left(column) + 12
        look = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "linestyle": line, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (x, y + 13), (x, y - 3), arrowprops=look | {"mutation_scale": 7})
        if column:
            ax.plot(x, y + 4, "x", color=colour, ms=5, mew=1.5)
        ax.text(x + 8, y + 7, f"{cut(name, 18)} {words}", color=colour, weight="bold")
    return y + 15


def _bands(ax: Axes, y: float) -> float:
    for column, colour in enumerate((KEPT, LOST)):
        _box(ax, _left(column), y, COLUMN, 12, fc=colour)
        look = {"color": "white", "weight": "bold", "ha": "center", "fontsize": 7}
        ax.text(_left(column) + COLUMN / 2, y + 8.6, f"{KINDS[column]} runtime", **look)
    return y + 14


def _ends(ax: Axes, y: float, pair: Pair) -> float:
    """What became of both; returns the height of the page."""
    for column, (trace, colour) in enumerate(zip(pair.traces, (KEPT, LOST), strict=True)):
        tokens = sum(turn.prompt_tokens + turn.completion_tokens for turn in trace.turns)
        x = _left(column)
        _box(ax, x, y + 1, COLUMN, 23, fc="none", ec=colour, lw=1)
        ax.text(x + PAD + 1, y + 10, f"score {trace.score:.2f}", color=colour, weight="bold", fontsize=7.5)
        text = f"{ENDS[trace.finish_reason]} · {len(trace.turns)} turns · {tokens:,} tokens"
        ax.text(x + PAD + 1, y + 19.5, text, fontsize=6, color=INK)
    return y + 27

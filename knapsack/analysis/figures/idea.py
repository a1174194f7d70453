"""The idea of the study in one picture: two real rollouts of one model on one task, side by side in both runtimes."""

import re
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from knapsack.agent import FENCE, Turn
from knapsack.analysis.estimates import PP, PS
from knapsack.analysis.figures import style
from knapsack.analysis.metrics import SETTING, setting_columns
from knapsack.traces import Cell, Trace, read_trace, trace_path
from knapsack.training_data import MIN_SCORE

# The page is a grid of letters (of code, in DejaVu Sans Mono) and lines.
LETTER, LINE = 0.60205 * style.SMALLEST, 8.2  # points
PAGE, EDGE, GAP = 72 * style.WIDTH / LETTER, 0.8, 2.0  # letters
COLUMN = (PAGE - 2 * EDGE - GAP) / 2
SIDES = {"persistent": EDGE, "stateless": EDGE + COLUMN + GAP}  # where the columns begin
NARROW, WIDE = (29, 6), (63, 9)  # letters a line and lines of code of a turn in a column, and over the whole width
LOST, BACK, GOOD, BAD = style.COLOURS["stateless"], "#F3F3F3", "#DCEBF5", "#FADFCF"
TASK = [*SETTING, "task_id"]
ENDS = {"finish_tool": "finished", "max_turns": "turn limit", "error": "broken off"}


@dataclass(frozen=True)
class Pair:
    """Two rollouts of a task. ``missing``: the turn (from 0) of the first missing binding, of the name ``name``;
    ``bound``: the last turn before it with the name in its code; ``same``: whether both rollouts wrote the same code
    up to and in turn ``missing``."""

    split: str
    cap: int
    where: str  # "easy task", or with several caps "easy, cap 25:"
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
    done = style.scored(episodes)
    home, away = (done[(done[["model", "runtime"]] == list(cell)).all(axis=1)] for cell in (PP, PS))
    home = home[(home["finish_reason"] == "finish_tool") & (home["score"] >= MIN_SCORE)]
    both = home.merge(away.loc[away["missing_bindings"] > 0, TASK], on=TASK)
    pairs, where = [], "{}, cap {}:" if len(setting_columns(episodes)) > 1 else "{} task"
    for *setting, task_id in both[TASK].itertuples(index=False, name=None):
        cells = [Path(folder) / Cell(*cell, *setting).name for cell in (PP, PS)]
        traces = tuple(read_trace(trace_path(cell, task_id)) for cell in cells)
        if found := _moment(traces[1]):
            codes = [[turn.code for turn in trace.turns[: found[0] + 1]] for trace in traces]
            pairs.append(Pair(*setting, where.format(*setting), task_id, traces, *found, codes[0] == codes[1]))
    return sorted(pairs, key=lambda pair: (not pair.same, -pair.traces[0].score))


def _moment(trace: Trace) -> tuple[int, int, str] | None:
    """The first missing binding, the last earlier turn that has the name in its code, and the name."""
    for index, turn in enumerate(trace.turns):
        if turn.observation is not None and turn.observation.missing_binding:
            name = turn.observation.missing_name
            wrote = [earlier for earlier in range(index) if name and _uses(trace.turns[earlier].code or "", name)]
            return (index, wrote[-1], name) if wrote else None
    return None


def _uses(line: str, name: str) -> list[re.Match]:
    return list(re.finditer(rf"\b{name}\b", line))


def excerpt(code: str, name: str, columns: int, most: int) -> list[str]:
    """At most ``most`` lines of code, ``columns`` wide: those with ``name`` and the nearest to them, or the first ones;
    what is left out shows as "…"."""
    lines, shown = [line.rstrip() for line in code.splitlines() if line.strip()], []
    uses = [index for index, line in enumerate(lines) if _uses(line, name)] or [0]
    nearest = sorted(range(len(lines)), key=lambda index: (min(abs(index - use) for use in uses), index))
    for count in range(len(lines), 0, -1):
        shown = []
        for before, index in pairwise([-1, *sorted(nearest[:count]), len(lines)]):
            shown += ["…"] * (index > before + 1) + [cut(line, columns) for line in lines[index : index + 1]]
        if len(shown) <= most:
            break
    return shown


def cut(text: str, columns: int) -> str:
    """The text, or its beginning and "…", in at most ``columns`` characters, none of them unprintable."""
    text = "".join(letter if letter.isprintable() else " " for letter in text.expandtabs(4))
    return text if len(text) <= columns else text[: columns - 1].rstrip() + "…"


def _parts(turn: Turn, name: str, columns: int, most: int) -> tuple[dict[str, list[str]], bool]:
    """What a turn shows: first words of the model, lines of code, what came back; and whether that is an error."""
    block, seen = FENCE.search(turn.text), turn.observation
    words = [cut(" ".join(turn.text[: block.start() if block else None].split()), columns + 2)]
    if seen is None:
        return {"words": words, "code": [], "output": ["no single code block"]}, True
    if seen.error:
        lines = textwrap.wrap(seen.error, columns, break_long_words=False, break_on_hyphens=False)
        output = [cut(" ".join(some), columns) for some in (lines[:1], lines[1:]) if some]
    else:
        printed = [cut(line, columns) for line in seen.output.splitlines() if line.strip()]
        output = printed[:2] + ["…"] * (len(printed) > 2) or ["(prints nothing)"]
    return {"words": words, "code": excerpt(turn.code, name, columns, most), "output": output}, bool(seen.error)


def the_idea(episodes: pd.DataFrame, folder: str | Path) -> style.Drawing:
    """The first of ``find_pairs``: the turn that binds a name, the turn that misses it, the next one, and the end."""
    pairs = find_pairs(episodes, folder)
    if not pairs:
        raise style.NothingToShow(
            f"No task that P→P finished with a score of {MIN_SCORE} or more met a missing binding in P→S, so there are "
            "no two rollouts to show side by side."
        )
    pair, done, same = pairs[0], style.scored(episodes), sum(one.same for one in pairs)
    figure, data = draw_pair(pair)
    twice = " (a task counts once for each cap)" * (len(setting_columns(episodes)) > 1)
    tasks = int((done[["model", "runtime"]] == list(PP)).all(axis=1).sum())
    caption = (
        "Two rollouts of the model trained on persistent traces, on the same task in both runtimes: real words, code "
        f"and output, cut at “…”. In turn {pair.missing + 1} the stateless runtime has lost the name `{pair.name}`. "
        f"Chosen by rule: n = {tasks} tasks were scored in P→P{twice}; {len(pairs)} of them were finished there with a "
        f"score of {MIN_SCORE} or more and met a missing binding in P→S, {same} after the same code in both; shown is "
        f"the first with the highest score in P→P{' among these' if same else ''}."
    )
    return style.Drawing(figure, data, caption)


def draw_pair(pair: Pair) -> tuple[Figure, pd.DataFrame]:
    """The picture of two rollouts, drawn from the top down, and every line that it shows of them."""
    figure, lines = Figure(figsize=(style.WIDTH, style.WIDTH)), []
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    _write(ax, EDGE, 1.3, "One model, one task, two runtimes", fontsize=9, weight="bold")
    told = f"trained on persistent traces · {pair.where} {pair.task_id}"
    _write(ax, EDGE, 2.4, told, fontsize=6.5, color=style.GREY)

    def both(y: float, index: int) -> float:
        turns = {kind: trace.turns[index : index + 1] for kind, trace in zip(SIDES, pair.traces, strict=True)}
        return max([y, *(_turn(ax, y, pair, index, *turn, kind, lines) for kind, turn in turns.items() if turn)])

    y, name = 3.0, cut(pair.name, 18)
    first, other = (trace.turns[pair.bound : pair.bound + 1] for trace in pair.traces)
    once = bool(first) and _told(first) == _told(other)
    if once:
        y = _turn(ax, y, pair, pair.bound, *first, "both", lines)
    for kind, x in SIDES.items():
        _box(ax, x, y, COLUMN, 1.45, fc=style.COLOURS[kind])
        look = {"color": "white", "weight": "bold", "ha": "center", "fontsize": 7}
        _write(ax, x + COLUMN / 2, y + 1, f"{kind} runtime", **look)
    y = both(y + 1.7, pair.bound) if not once else y + 1.7
    for (kind, x), told in zip(SIDES.items(), (f"↓ {name} stays bound", f"✗ {name} is lost"), strict=True):
        _write(ax, x + 0.8, y + 0.8, told, color=style.COLOURS[kind], weight="bold", fontsize=6.5)
    y = both(both(y + 1.1, pair.missing), pair.missing + 1)
    for (kind, x), trace in zip(SIDES.items(), pair.traces, strict=True):
        tokens = sum(turn.prompt_tokens + turn.completion_tokens for turn in trace.turns)
        _box(ax, x, y, COLUMN, 2.7, fc="none", ec=style.COLOURS[kind], lw=1)
        _write(ax, x + 1, y + 1.15, f"score {trace.score:.2f}", color=style.COLOURS[kind], weight="bold", fontsize=7.5)
        _write(ax, x + 1, y + 2.2, f"{ENDS[trace.finish_reason]} · {len(trace.turns)} turns · {tokens:,} tokens")
    figure.set_size_inches(style.WIDTH, (y + 3) * LINE / 72)
    ax.set(xlim=(0, PAGE), ylim=(y + 3, 0))
    return figure, pd.DataFrame(lines, columns=[*TASK, "runtime", "turn", "part", "text"])


def _told(turns: list[Turn]) -> list[tuple]:
    """What the model wrote and was shown."""
    return [(turn.text, turn.observation and (turn.observation.output, turn.observation.error)) for turn in turns]


def _turn(ax: Axes, y: float, pair: Pair, index: int, turn: Turn, runtime: str, lines: list[tuple]) -> float:
    """Turn ``index`` of one rollout, or of "both" over the whole width, from line ``y`` on; returns where it ends.

    What it shows is added to ``lines``."""
    wide, gone = runtime == "both", runtime == "stateless" and index == pair.missing
    x, width = (EDGE, 2 * COLUMN + GAP) if wide else (SIDES[runtime], COLUMN)
    parts, failed = _parts(turn, pair.name, *(WIDE if wide else NARROW))
    loud = {"color": LOST, "weight": "bold"} if gone else {}
    _write(ax, x, y + 0.8, f"turn {index + 1}{', the same in both' if wide else ''}", **{"color": style.GREY} | loud)
    if gone:
        _write(ax, x + width, y + 0.8, "missing binding", ha="right", **loud)
    y, sizes = y + 1.1, {part: len(texts) for part, texts in parts.items()}
    _box(ax, x, y, width, sum(sizes.values()) + 0.6, fc=BACK)
    _box(ax, x, y + 0.2 + sizes["words"] + sizes["code"], width, sizes["output"] + 0.4, fc=BAD if failed else GOOD)
    if gone:
        _box(ax, x, y, width, sum(sizes.values()) + 0.6, fc="none", ec=LOST, lw=1.2)
    code = {"family": "monospace"}
    looks = {"words": {"style": "italic", "color": style.GREY}, "code": code, "output": code | loud}
    for part, text in ((part, text) for part, texts in parts.items() for text in texts):
        y += 1
        for use in _uses(text, pair.name) if part == "code" else ():
            mark = {"fc": LOST if gone else style.COLOURS["persistent"], "alpha": 0.25}
            _box(ax, x + 0.8 + use.start(), y - 0.85, len(pair.name), 1, **mark)
        _write(ax, x + 0.8, y - 0.1 + 0.2 * (part == "output"), text, **looks[part])
        lines.append((pair.split, pair.cap, pair.task_id, runtime, index + 1, part, text))
    return y + 1.1


def _box(ax: Axes, x: float, y: float, width: float, height: float, **look) -> None:
    ax.add_patch(Rectangle((x, y), width, height, **{"lw": 0} | look))


def _write(ax: Axes, x: float, y: float, text: str, **look) -> None:
    """A line of text that stands on ``y``; a model may write dollar signs."""
    ax.text(x, y, text, parse_math=False, **{"fontsize": style.SMALLEST, "color": style.INK} | look)

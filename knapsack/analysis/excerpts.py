"""Episodes to read: some turns in a notebook, or a whole episode as a page of Markdown."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlencode

import pandas as pd

from knapsack.agent import Turn
from knapsack.analysis.causes import CAUSES
from knapsack.analysis.metrics import CELL, cell_name, completed, setting_names
from knapsack.runs import Run, write_text
from knapsack.runtime import KINDS
from knapsack.traces import Cell, Trace, read_trace, trace_path

FOLDER = "examples"  # below the results of a run, and below the published figures


def address(cell: str = "", task_id: str = "", **more: object) -> str:
    """Where the page of all episodes (``report.episodes``) shows one of a cell (the name of its folder). ``turn`` goes
    to a turn (from 1), ``beside`` is the cell beside it, ``cause`` keeps the tasks on which the cell failed like this.
    """
    return f"episodes.html#{quote(cell)}/{quote(task_id)}{'?' * bool(more)}{urlencode(more)}"


def excerpt(trace: Trace, turns: Iterable[int], reply_most: int = 1500, seen_most: int = 600) -> str:
    """Turns of an episode (numbers from 0) as Markdown: what the model wrote, and what it was shown.

    Replies of more than ``reply_most`` characters and observations of more than ``seen_most`` are cut, and say so.
    """
    parts = []
    for index in turns:
        reply, seen = _told(trace.turns[index])
        parts += [f"**Turn {index + 1}**", _reply(_cut(reply, reply_most)), "→", _shown(_cut(seen, seen_most))]
    return "\n\n".join(parts)


def page(trace: Trace, title: str, head: str, marked: int) -> str:
    """A whole episode as Markdown: what the model was told, and every turn; ``marked`` (from 0) is pointed out."""
    parts = [f"# {title}", head, "## What the model was told"]
    parts += [_fenced(message["content"]) for message in trace.messages[:2]]
    for index, turn in enumerate(trace.turns):
        reply, seen = _told(turn)
        parts += [f"## Turn {index + 1}{' ←' if index == marked else ''}", _reply(reply), "→", _shown(seen)]
    return "\n\n".join(parts) + "\n"


def write_examples(run: Run, failures: pd.DataFrame, cells: str | Path) -> str:
    """Write a page for one episode of each cause that occurs, below the run's results; returns a list of links.

    ``failures`` is that of ``conduct.read_conduct``, ``cells`` the folder of the cells. The episode is the first in
    the table, one of a trained model if there is one. The links lead from a folder in the run, such as notebooks.
    """
    lines, pages, names = [], {}, setting_names(failures)
    for cause in CAUSES:
        own = failures[failures["cause"] == cause]
        trained = own[own["model"].isin(KINDS)]
        for row in (own if trained.empty else trained).head(1).to_dict("records"):
            path = _path(cells, row)
            trace = read_trace(path)
            cell = cell_name(row["model"], row["runtime"])
            where = f"{cell}, {names[row['split'], row['cap']]}, task {row['task_id']}"
            head = (
                f"The model *{row['model']}* in the {row['runtime']} runtime scored {trace.score:.2f} here, "
                f"the teacher {row['teacher_score']:.2f}. The episode has {len(trace.turns)} turns and ended by "
                f"`{trace.finish_reason}`. Turn {row['turn'] + 1} shows the cause; the rules are at the head of "
                f"`knapsack/analysis/causes.py`. The trace is `{path.relative_to(Path(cells).parent).as_posix()}`."
            )
            name = f"{cause.replace(' ', '-')}.md"
            pages[name] = page(trace, f"{cause.capitalize()}: {where}", head, row["turn"])
            link = f"[{where}](../{run.results.name}/{FOLDER}/{name}), turn {row['turn'] + 1}"
            beside = address(path.parent.parent.name, row["task_id"], turn=row["turn"] + 1)
            more = f"[beside another cell](../{beside}); [all {len(own)}](../{address(cause=cause)})"
            lines.append(f"* **{cause}**: {link}; {more}\n")
    write_folder(run.results / FOLDER, pages)
    return "".join(lines)


def write_folder(folder: str | Path, texts: dict[str, str]) -> None:
    """Make ``folder`` hold exactly these files, name → text; raises what ``write_text`` raises."""
    for old in Path(folder).glob("*"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        write_text(Path(folder) / name, text)


def one_episode(cells: str | Path, episodes: pd.DataFrame) -> str:
    """Of the shortest completed episode that misses a name the first turn and those around the error, as Markdown.

    Failing that, of the longest episode of all. ``cells`` is the folder of the cells.
    """
    by_length = completed(episodes).sort_values("turns", kind="stable")
    if by_length.empty:
        return "No episode is completed."
    missed = by_length[by_length["missing_bindings"] > 0]
    row = missed.iloc[0] if len(missed) else by_length.iloc[-1]
    trace = read_trace(_path(cells, row))
    errors = [turn.observation is not None and turn.observation.missing_binding for turn in trace.turns]
    middle = errors.index(True) if True in errors else 1
    setting = setting_names(episodes)[row["split"], row["cap"]]
    head = (
        f"Model **{row['model']}**, **{row['runtime']}** runtime, {setting}, task `{row['task_id']}`: "
        f"{len(trace.turns)} turns, score {trace.score:.2f}, ended by `{trace.finish_reason}`."
    )
    turns = sorted({0, middle - 1, middle, middle + 1} & set(range(len(trace.turns))))
    return f"{head}\n\n{_fenced(trace.messages[1]['content'])}\n\n{excerpt(trace, turns)}"


def _path(cells: str | Path, row: dict | pd.Series) -> Path:
    """The trace of a row of a table of episodes."""
    return trace_path(Path(cells) / Cell(*(row[name] for name in CELL)).name, row["task_id"])


def _told(turn: Turn) -> tuple[str, str]:
    """What the model wrote, and what it was shown."""
    seen = turn.observation
    shown = turn.protocol_error if seen is None else seen.error or seen.output
    return turn.text.strip(), (shown or "").strip()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = "\n```" if text[:most].count("```") % 2 else ""
    return f"{text[:most]} … (cut){end}"


def _reply(text: str) -> str:
    """A reply as Markdown; one that could swallow what follows it (open fences, HTML) is fenced itself."""
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return _fenced(text) if re.search("```|~~~|<", prose) else text


def _shown(seen: str) -> str:
    return _fenced(seen) if seen else "*(no output)*"


def _fenced(text: str) -> str:
    """Text in a fence longer than any in it."""
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"{ticks}text\n{text}\n{ticks}"

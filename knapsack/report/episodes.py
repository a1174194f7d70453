"""Every episode of a run to look into, two of a task side by side: ``episodes.html``, beside the run's report.

One file that opens without a network: the traces, compressed, and a small script (``episodes.js``) that shows two of
them turn by turn. What a model wrote is only ever set as text, and the page allows no other script than its own.
What stands in its address is told by ``excerpts.address``.
"""

import base64
import gzip
import hashlib
import json
from pathlib import Path

import jinja2
import pandas as pd

from knapsack.agent import FENCE, Turn
from knapsack.analysis.figures.idea import ENDS
from knapsack.analysis.metrics import CELL, cell_name, completed, setting_names, source_folder, turn_names
from knapsack.runs import Run, write_text
from knapsack.traces import Cell, Trace, read_trace, trace_path

HERE = Path(__file__).resolve().parent


def write_episodes(run: Run) -> Path:
    """Write ``episodes.html`` into the run's folder and return its path.

    Raises FileNotFoundError for a run without the tables of notebook 05, CorruptFileError for a damaged trace."""
    script = (HERE / "episodes.js").read_text(encoding="utf-8")
    packed = gzip.compress(json.dumps(content(run), ensure_ascii=False).encode(), mtime=0)
    page = jinja2.Template((HERE / "episodes.html.j2").read_text(encoding="utf-8")).render(
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        script=script,
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=base64.b64encode(packed).decode(),
    )
    write_text(run.episodes, page)
    return run.episodes


def content(run: Run) -> dict:
    """What the page shows: the completed episodes by cell and task, and, told once, what the models were told."""
    parameters = run.read_manifest().get("05_analysis", {}).get("parameters", {})
    folder = source_folder(run, parameters.get("published_folder", ""))
    text = {"task_id": str}  # a published one may be a number
    episodes = completed(pd.read_csv(run.results / "episodes.csv", dtype=text))
    failures = pd.read_csv(run.results / "failures.csv", dtype=text).set_index([*CELL, "task_id"]).to_dict("index")
    names, told, cells = setting_names(episodes), {}, []
    for key, rows in episodes.groupby(CELL, sort=False):
        cell = Cell(*key)
        played = {
            task_id: _episode(read_trace(trace_path(folder / cell.name, task_id)), failures.get((*key, task_id)), told)
            for task_id in rows["task_id"]
        }
        facts = {"name": cell.name, "label": cell_name(cell.model, cell.runtime), "setting": names[key[2:]]}
        cells.append(facts | {"model": cell.model, "runtime": cell.runtime, "episodes": played})
    return {"cells": cells, "told": list(told)}


def _episode(trace: Trace, failed: dict | None, told: dict[str, int]) -> dict:
    """An episode; ``failed`` is its row of the failures, if it has one."""
    shown = {"score": trace.score, "end": ENDS.get(trace.finish_reason, trace.finish_reason)}
    shown |= {name: failed[name] for name in ("cause", "turn", "teacher_score")} if failed else {}
    shown["told"] = [told.setdefault(message["content"], len(told)) for message in trace.messages[:2]]
    shown["turns"] = [_turn(turn, names) for turn, (_, names) in zip(trace.turns, turn_names(trace), strict=True)]
    return shown


def _turn(turn: Turn, names: dict[str, frozenset[str]]) -> dict:
    """A turn: the words around its code, the code, what came back, its tokens (prompt, completion), the name that was
    lost and those that are written down again."""
    seen, words = turn.observation, turn.text if turn.code is None else FENCE.sub("", turn.text)
    shown = {"words": words.strip(), "code": turn.code, "output": seen.output if seen else ""}
    shown |= {"error": seen.error if seen else turn.protocol_error, "lost": seen and seen.missing_name}
    shown |= {"tokens": [turn.prompt_tokens, turn.completion_tokens], "again": sorted(names.get("bound_again", ()))}
    return shown

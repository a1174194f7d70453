"""Tables of what the agents did in their episodes: the turns' content and errors, recoveries, causes of failure.

``metrics`` counts what an episode came to; this module reads the same traces once more for how it went, and executes
their code again where only the tools know (``behaviour``, ``failures``; some five milliseconds an episode).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from knapsack.analysis.behaviour import PARTS, play_again, recoveries, reply_parts, turn_errors
from knapsack.analysis.causes import failure
from knapsack.analysis.metrics import completed, write_csv
from knapsack.runs import Run, read_json
from knapsack.runtime import KINDS, MAX_TOOL_CALLS, interpreter_pool
from knapsack.tasks import Task
from knapsack.traces import Cell, read_trace, trace_path

KEY = ["model", "runtime", "split", "task_id"]
TURN_COLUMNS = [*KEY, "turn", "error", *PARTS]
RECOVERY_COLUMNS = [*KEY, "turn", "turns", "tokens", "recovered"]
FAILURE_COLUMNS = [*KEY, "score", "teacher_score", "cause", "turn", "turns"]


@dataclass(frozen=True)
class Conduct:
    """``turns`` (TURN_COLUMNS): a row per turn of a completed episode; ``error`` is one of ``behaviour.ERRORS``, the
    PARTS are in ``unit`` ("tokens" or "characters"). ``recoveries`` (RECOVERY_COLUMNS): a row per missing-binding
    error of an episode whose task is at hand. ``failures`` (FAILURE_COLUMNS): a row per completed episode that scored
    below the teacher on its task, in the same runtime (a carry-over runtime: in the stateless one).
    """

    turns: pd.DataFrame
    recoveries: pd.DataFrame
    failures: pd.DataFrame
    unit: str


def read_conduct(folder: str | Path, episodes: pd.DataFrame, tokenizer=None) -> Conduct:
    """Conduct of the completed ``episodes`` (``metrics.read_cells``), whose traces lie below ``folder``.

    Tasks are looked for in ``<split>/tasks/knapsack/`` below ``folder``, its ``tasks/`` and the ``tasks/`` beside it.
    With a ``tokenizer`` the content of replies is counted in its tokens. Raises CorruptFileError for a damaged file.
    """
    folder, tables = Path(folder), ([], [], [])
    done = completed(episodes)
    teacher = done[done["model"] == "teacher"].set_index(["runtime", "split", "task_id"])["score"].to_dict()
    caps: dict[Path, int] = {}
    with interpreter_pool(1) as pool:
        for row in tqdm(done.to_dict("records"), unit="episode", desc="looking closer", mininterval=1, delay=5):
            key = {name: row[name] for name in KEY}
            cell = folder / Cell(row["model"], row["runtime"], row["split"]).name
            trace = read_trace(trace_path(cell, row["task_id"]))
            contents = enumerate(zip(turn_errors(trace), reply_parts(trace, tokenizer), strict=True))
            tables[0].extend(key | {"turn": turn, "error": error} | parts for turn, (error, parts) in contents)
            if cell not in caps:
                caps[cell] = _cap(cell)
            task = _task(folder, row["split"], row["task_id"])
            steps = play_again(task, trace, caps[cell], pool) if task else None
            if steps is not None:
                tables[1].extend(key | asdict(recovery) for recovery in recoveries(trace, steps))
            runtime = row["runtime"] if row["runtime"] in KINDS else "stateless"
            best = teacher.get((runtime, row["split"], row["task_id"]))
            if best is not None and (found := failure(trace, best, task, steps)):
                tables[2].append(key | {"score": row["score"], "teacher_score": best} | asdict(found))
    columns = (TURN_COLUMNS, RECOVERY_COLUMNS, FAILURE_COLUMNS)
    frames = (pd.DataFrame(rows, columns=names) for rows, names in zip(tables, columns, strict=True))
    return Conduct(*frames, "tokens" if tokenizer else "characters")


def write_conduct(run: Run, conduct: Conduct) -> None:
    """Write ``results/contents.csv``, ``recoveries.csv`` and ``failures.csv``."""
    for name, frame in (
        ("contents", conduct.turns),
        ("recoveries", conduct.recoveries),
        ("failures", conduct.failures),
    ):
        write_csv(run.results / f"{name}.csv", frame)


def _cap(cell: Path) -> int:
    """Tool calls a turn could make: as recorded, or for downloaded traces the paper's 25."""
    path = cell / "settings.json"
    return read_json(path, "run notebook 04 again")["max_tool_calls"] if path.exists() else MAX_TOOL_CALLS


def _task(folder: Path, split: str, task_id: str) -> Task | None:
    for root in (folder, folder / "tasks", folder.parent / "tasks"):
        path = root / split / "tasks" / "knapsack" / f"{task_id}.json"
        if path.exists():
            return Task.from_json(read_json(path), str(path))
    return None

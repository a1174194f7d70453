"""From result files to numbers: a table of episodes and one of turns. Reads files of results, nothing else.

An episode's quantities (paper, section 3 and table 2):

* score: normalized optimality, value taken ÷ optimal value; solved: score equals 1;
* prompt_tokens, completion_tokens: summed over all model calls, as an endpoint would bill them; total_tokens: both;
* name_errors, missing_bindings, cap_hits: turns with a NameError, with a NameError for a name bound in an earlier
  turn, and with the tool-call cap reached; other_errors: turns with any other uncaught error of the code;
* tool_calls: those made, also the refused ones; inspected: distinct items inspected ÷ inspection budget.

What a published trace does not tell is NaN: tool_calls, and inspected where its task file is not at hand.

A turn's names, by the syntax of the code (``names``), whatever the runtime kept of them: names_bound, how many the
episode's earlier turns bound; names_needed, how many of those the block reads before it binds them, so that it leans
on an interpreter that kept them; names_bound_again, how many it binds without reading them first, although a block
that ended without an error had bound them (one that failed may have to be written again in any runtime). The last two
are NaN for a turn without code that parses.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from knapsack.names import block_names
from knapsack.runs import CorruptFileError, Run, check, project_folder, read_json, write_text
from knapsack.runtime import RUNTIME_KINDS
from knapsack.tasks import Task
from knapsack.traces import Cell, Trace, details_path, read_trace, result_path, task_id_of, trace_path

REMEDY = "run notebook 04 again: it makes the file again"
MODELS = ("base", "persistent", "stateless", "teacher")  # the order of rows in every table
RUNTIMES = RUNTIME_KINDS
SPLITS = ("easy", "hard")
SETTING = ["split", "cap"]  # on which tasks, and how many tool calls a turn could make
CELL = ["model", "runtime", *SETTING]  # what makes a cell, in the order of every file and key
SHORT = {"persistent": "P", "stateless": "S"}
EPISODE_COLUMNS = (
    "model,runtime,split,cap,task_id,status,score,solved,finish_reason,turns,prompt_tokens,completion_tokens,total_tokens,"
    "seconds,tool_calls,name_errors,missing_bindings,cap_hits,other_errors,protocol_errors,inspected"
).split(",")
NUMBERS = [name for name in EPISODE_COLUMNS[5:] if name not in ("status", "finish_reason")]
TURN_NUMBERS = "turn,prompt_tokens,completion_tokens,names_bound,names_needed,names_bound_again".split(",")
TURN_COLUMNS = [*CELL, "task_id", *TURN_NUMBERS]


def source_folder(run: Run, published_folder: str = "") -> Path:
    """The folder of cells to analyse: the run's evaluations, or downloaded ones.

    A relative ``published_folder`` lies below the checkout. Raises ValueError for a run folder with evaluations of its
    own, and FileNotFoundError for a folder that is not there.
    """
    if not published_folder:
        return run.evaluations
    folder = project_folder() / Path(published_folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"published_folder = {published_folder!r}: there is no folder {folder}")
    if run.evaluations.exists() and run.evaluations.resolve() != folder.resolve():
        raise ValueError(f"{run.folder} has evaluations of its own: choose another run_folder for downloaded data")
    return folder


def read_cells(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Episodes and turns of every cell's folder (``traces.Cell``) below ``folder``, in a fixed order of rows.

    The first table has EPISODE_COLUMNS and a row per task of the cell, also for those without a completed episode
    (a trace's status, or "missing"; quantities NaN); the tasks are those in the cell's ``settings.json`` (key
    task_ids) and those with files. The second has TURN_COLUMNS. An inspection budget that a trace does not tell
    comes from ``<split>/tasks/knapsack/`` below ``folder`` or its ``tasks/``. One trace is in memory at a time.
    Raises FileNotFoundError without any cell, CorruptFileError for a damaged file, a folder of another name, one
    whose settings have another cap than its name (downloaded cells have no settings, and the paper's cap), or a task
    that is not the trace's.
    """
    folder = Path(folder)
    cells = sorted(
        path for path in folder.glob("*") if (path / "knapsack").is_dir() or (path / "settings.json").exists()
    )
    if not cells:
        raise FileNotFoundError(
            f"{folder} holds no folder <model>_<runtime>_<split> with episodes: run notebook 04 first, "
            "or name the folder above the downloaded cells"
        )
    found = []
    for cell in cells:
        named = Cell.of(cell.name)
        if named is None:
            raise CorruptFileError(f"{cell} is not named <model>_<runtime>_<split>; move it out of {folder}")
        key, known = vars(named), {task_id_of(path) for path in cell.glob("knapsack/*.json")}
        ours = (cell / "settings.json").exists() or (cell / "details").is_dir()
        if ours:
            known |= {task_id_of(path) for path in cell.glob("details/*.json")}
            check(cell, REMEDY)
            settings = read_json(cell / "settings.json", REMEDY)
            if settings.get("max_tool_calls", named.cap) != named.cap:
                right = replace(named, cap=settings["max_tool_calls"])
                raise CorruptFileError(f"{cell} was played with a cap of {right.cap}: rename it to {right.name}")
            known |= set(settings.get("task_ids", ()))
        found += [(key, ours, trace_path(cell, task_id)) for task_id in sorted(known)]
    episodes, turns = [], []
    for key, ours, path in tqdm(found, unit="trace", desc="reading", mininterval=1, delay=5):
        row, spent = _read_episode(path, ours, folder, key["split"])
        episodes.append(key | row)
        turns += [key | {"task_id": row["task_id"]} | turn for turn in spent]
    tables = pd.DataFrame(episodes, columns=EPISODE_COLUMNS), pd.DataFrame(turns, columns=TURN_COLUMNS)
    for table, numbers in zip(tables, (NUMBERS, TURN_NUMBERS), strict=True):
        table[numbers] = table[numbers].apply(pd.to_numeric)
    return _ordered(tables[0], ["task_id"]), _ordered(tables[1], ["task_id", "turn"])


def _read_episode(path: Path, ours: bool, folder: Path, split: str) -> tuple[dict, list[dict]]:
    """The row of an episode, and those of its turns if it was completed."""
    result, task_id = result_path(path), task_id_of(path)
    last = details_path(path) if ours else result
    if not last.exists():  # it is written last, so the episode was broken off, or never begun
        return {"task_id": task_id, "status": "missing"}, []
    if not ours and not path.exists():
        status = read_json(result).get("status")
        if status in ("timeout", "error"):
            return {"task_id": task_id, "status": status}, []
        raise CorruptFileError(f"{path} is missing beside its result; download it, or delete both and run again")
    trace = read_trace(path)
    row = episode_row(trace)
    if trace.status != "completed":
        return row, []
    if trace.inspect_budget is None and (task := find_task(folder, split, trace)):
        row["inspected"] = trace.metrics["inspected_count"] / task.inspect_budget
    return row, turn_rows(trace)


def find_task(folder: str | Path, split: str, trace: Trace) -> Task | None:
    """The task of a trace in a cell below ``folder``, if its file is in ``<split>/tasks/knapsack/`` below ``folder``,
    its ``tasks/`` or the ``tasks/`` beside it. Raises CorruptFileError for a damaged file or another task."""
    folder = Path(folder)
    for root in (folder, folder / "tasks", folder.parent / "tasks"):
        path = root / split / "tasks" / "knapsack" / f"{trace.task_id}.json"
        if path.exists():
            task = Task.from_json(read_json(path), str(path))
            for name in ("capacity", "optimal_value"):
                if getattr(task, name) != trace.metrics.get(name):
                    raise CorruptFileError(
                        f"{path} is not the task of the {split} traces (its {name} is {getattr(task, name)}, theirs "
                        f"{trace.metrics.get(name)}): put the tasks they were played on there, or take it away"
                    )
            return task
    return None


def run_tokenizer(run: Run):
    """The tokenizer of the base that the run's manifest names; None if it names none, or it is not at hand."""
    rows = run.read_manifest()
    bases = (rows.get(step, {}).get("parameters", {}).get("base") for step in ("02_traces", "04_evaluate"))
    base = next(filter(None, bases), None)
    if base is None:
        return None
    from knapsack.models import load_tokenizer  # takes seconds to import, and only this needs it

    try:
        return load_tokenizer(base)
    except FileNotFoundError:
        return None


def episode_row(trace: Trace) -> dict:
    """The quantities of one episode; without those of its score and costs if it was not completed."""
    if trace.status != "completed":
        return {"task_id": trace.task_id, "status": trace.status}
    seen = [turn.observation for turn in trace.turns if turn.observation is not None]
    prompt, completion = (sum(getattr(t, name) for t in trace.turns) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "task_id": trace.task_id,
        "status": trace.status,
        "score": trace.score,
        "solved": int(trace.solved),
        "finish_reason": trace.finish_reason,
        "turns": len(trace.turns),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "seconds": trace.seconds,
        "tool_calls": math.nan if trace.taken is None else sum(len(observation.tool_calls) for observation in seen),
        "name_errors": sum(observation.name_error for observation in seen),
        "missing_bindings": sum(observation.missing_binding for observation in seen),
        "cap_hits": sum(observation.cap_hit for observation in seen),
        "other_errors": sum(o.error_type is not None and not o.name_error and o.error_source == "code" for o in seen),
        "protocol_errors": len(trace.turns) - len(seen),
        "inspected": trace.metrics["inspected_count"] / trace.inspect_budget if trace.inspect_budget else math.nan,
    }


def turn_rows(trace: Trace) -> list[dict]:
    """The quantities of each turn of an episode: TURN_COLUMNS from ``turn`` on; what is NaN is left out."""
    rows = []
    for index, (turn, (earlier, names)) in enumerate(zip(trace.turns, turn_names(trace), strict=True)):
        row = {"turn": index, "prompt_tokens": turn.prompt_tokens, "completion_tokens": turn.completion_tokens}
        row |= {"names_bound": len(earlier)} | {f"names_{use}": len(found) for use, found in names.items()}
        rows.append(row)
    return rows


def turn_names(trace: Trace) -> Iterator[tuple[frozenset[str], dict[str, frozenset[str]]]]:
    """For each turn the names that earlier turns bound, and those it "needed" and "bound_again" (see above); {} for a
    turn without code that parses."""
    earlier, settled = frozenset(), frozenset()  # settled: by blocks that ended without an error
    for turn in trace.turns:
        names = None if turn.code is None else block_names(turn.code)
        if names is None:
            yield earlier, {}
            continue
        yield earlier, {"needed": names.free & earlier, "bound_again": (names.bound & settled) - names.free}
        earlier |= names.bound
        settled |= names.bound if turn.observation and turn.observation.error is None else frozenset()


def cell_name(model: str, runtime: str) -> str:
    """P→S stands for the persistent-trained model in the stateless runtime."""
    return f"{SHORT.get(model, model)}→{SHORT.get(runtime, runtime)}"


def setting_columns(table: pd.DataFrame) -> list[str]:
    """Those of SETTING that tell the rows of a table apart: the cap only where there is more than one."""
    return SETTING if table["cap"].nunique() > 1 else SETTING[:1]


def setting_names(table: pd.DataFrame) -> dict[tuple[str, int], str]:
    """Every (split, cap) of a table, in its order, with its name: "easy", or with several caps "easy, cap 25"."""
    told = "{}, cap {}" if len(setting_columns(table)) > 1 else "{}"
    return {key: told.format(*key) for key in zip(table["split"], table["cap"], strict=True)}


def setting_rows(table: pd.DataFrame, setting: Iterable) -> pd.DataFrame:
    """The rows of a (split, cap)."""
    return table[(table[SETTING] == list(setting)).all(axis=1)]


def cell_rows(table: pd.DataFrame, cell: Iterable) -> pd.DataFrame:
    """The rows of a (model, runtime, split, cap)."""
    return table[(table[CELL] == list(cell)).all(axis=1)]


def completed(episodes: pd.DataFrame) -> pd.DataFrame:
    """The scored episodes of a table of episodes."""
    return episodes[episodes["status"] == "completed"]


def later_turns(turns: pd.DataFrame) -> pd.DataFrame:
    """The turns with code that parses, after a turn of the episode that bound a name."""
    return turns[(turns["names_bound"] > 0) & turns["names_needed"].notna()]


def write_results(run: Run, folder: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``read_cells`` of ``folder``, or of the run's evaluations, as ``results/episodes.csv`` and ``turns.csv``;
    returns both tables."""
    tables = read_cells(run.evaluations if folder is None else folder)
    for name, table in zip(("episodes", "turns"), tables, strict=True):
        write_csv(run.results / f"{name}.csv", table)
    return tables


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table so that equal numbers give equal bytes: ten significant digits, empty for NaN."""
    write_text(path, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _ordered(frame: pd.DataFrame, more: list[str]) -> pd.DataFrame:
    def rank(column: pd.Series) -> pd.Series:
        known = {"model": MODELS, "runtime": RUNTIMES, "split": SPLITS}.get(column.name, ())
        return column.map(lambda name: f"{known.index(name):02d}" if name in known else name)

    return frame.sort_values([*SETTING, "model", "runtime", *more], key=rank, ignore_index=True)

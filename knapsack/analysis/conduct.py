"""What an agent does in an episode, turn by turn: what fills its replies, which errors it meets, how it recovers.

``read_conduct`` makes tables of it for all episodes; everything else here is about one ``Trace``. What only the tools
know (which item was inspected or taken in which turn) comes from executing the recorded code again (``play_again``,
some five milliseconds an episode), which needs the task.

**What fills a reply** (``reply_parts``). Every character belongs to exactly one of PARTS:

* malformed: the whole reply, if it held no single code block;
* reasoning: all outside the code block, its fences included;
* restated: code that writes down known state again;
* repeated: code that was written before;
* new: all other code.

The unit of comparison is the word (letters, digits and underscores); spacing, quotes and punctuation are not
compared, so that ``[7, "A"]`` restates ``(7, 'A')``. A word is *known* if it lies within RUN consecutive words of the
block that stand, consecutive too, in what an earlier turn printed or in the code of an earlier turn; nothing within
the same turn counts, nor what the task says. A known word is restated if such a run was printed, or if it was only in
code but its line is data: literals alone, or a name bound to them. Otherwise it is repeated. A word brings the
characters up to the next word with it.

*Redundancy* is the share of code that is restated or repeated, new code included in the whole: the cost of writing
down again what the conversation already holds. A block of fewer than RUN words is always new: calling a helper again
restates nothing.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from knapsack.agent import FENCE, Episode, Turn
from knapsack.analysis.causes import failure
from knapsack.analysis.metrics import CELL, completed, find_task, write_csv
from knapsack.environment import KnapsackEnvironment
from knapsack.runs import Run
from knapsack.runtime import MAX_TOOL_CALLS, Runtime, acts_as, interpreter_pool
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import Task
from knapsack.traces import Cell, Trace, read_trace, trace_path

PARTS = ("reasoning", "restated", "repeated", "new", "malformed")
# A record (id, weight, value, class) is four words, so a longer run would miss one. A shorter one finds chance: of
# functions of 30 to 200 words of Python's standard library, 3.1 % (runs of 3), 0.7 % (4) and 0.3 % (5) of the words
# stand so in 2,000 words of its other modules.
RUN = 4
ERRORS = ("none", "missing binding", "other NameError", "cap hit", "tool error", "other code error", "malformed reply")
KEY = [*CELL, "task_id"]
WORK = ["inspect_calls", "new_items", "restart"]
TURN_COLUMNS = [*KEY, "turn", "error", *WORK, *PARTS]
RECOVERY_COLUMNS = [*KEY, "turn", "turns", "tokens", "recovered"]
FAILURE_COLUMNS = [*KEY, "score", "teacher_score", "cause", "turn", "turns"]

_WORD = re.compile(r"\w+")
_STRING = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_BOUND = re.compile(r"^\s*\w+\s*=(?!=)")
_CONSTANT = re.compile(r"\b(?:True|False|None)\b")
_NAME = re.compile(r"\b[^\W\d]")


def reply_parts(trace: Trace | Episode, tokenizer=None) -> list[dict[str, int]]:
    """For each turn, how much of its reply each of PARTS holds; together, the whole reply.

    In characters, or in tokens of a (fast) ``tokenizer``: those of the reply's text split anew, which is not always as
    the model wrote it, and without the end token that completion_tokens counts. A token belongs to the part of its
    last character.
    """
    printed: set[tuple[str, ...]] = set()
    written: set[tuple[str, ...]] = set()
    rows = []
    for turn in trace.turns:
        parts = ["malformed"] * len(turn.text)  # of each character
        if turn.code is not None:
            start, end = _code_span(turn)
            code = turn.text[start:end]
            parts = ["reasoning"] * len(turn.text)
            parts[start:end] = _code_parts(code, printed, written)
            written.update(_runs(_WORD.findall(code)))
        if turn.observation is not None:
            printed.update(_runs(_WORD.findall(turn.observation.output)))
        if tokenizer is not None:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            spans = tokenizer(turn.text, return_offsets_mapping=True, **options)["offset_mapping"]
            parts = [parts[max(start, end - 1)] for start, end in spans]
        rows.append({part: parts.count(part) for part in PARTS})
    return rows


def redundancy(parts: Mapping[str, int]) -> float:
    """The share of code that writes down again what an earlier turn printed or wrote; NaN without code."""
    again = parts["restated"] + parts["repeated"]
    return again / (again + parts["new"]) if again + parts["new"] else math.nan


def _code_span(turn: Turn) -> tuple[int, int]:
    """Where the executed code stands in the reply; an empty span at its end if it does not (other harnesses)."""
    for block in FENCE.finditer(turn.text):
        if block[2].strip() == turn.code.strip():
            return block.span(2)
    at = turn.text.find(turn.code)
    return (at, at + len(turn.code)) if at >= 0 else (len(turn.text), len(turn.text))


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[shift:] for shift in range(RUN)), strict=False))


def _code_parts(code: str, printed: set, written: set) -> list[str]:
    """The part of each character; what stands before the first word goes with it."""
    words = list(_WORD.finditer(code))
    runs, parts = _runs([word[0] for word in words]), ["new"] * max(1, len(words))
    data = [flag for line in code.splitlines(keepends=True) for flag in [_is_data(line)] * len(line)]
    for index, run in enumerate(runs):
        if run in written:
            near = range(index, index + RUN)
            parts[index : index + RUN] = ["restated" if data[words[i].start()] else "repeated" for i in near]
    for index, run in enumerate(runs):
        if run in printed:
            parts[index : index + RUN] = ["restated"] * RUN
    borders = [0, *(word.start() for word in words[1:]), len(code)]
    sizes = (end - start for start, end in itertools.pairwise(borders))
    return [part for part, size in zip(parts, sizes, strict=True) for _ in range(size)]


def _is_data(line: str) -> bool:
    """Whether a line holds literals only, or a name bound to them."""
    return _NAME.search(_CONSTANT.sub("", _BOUND.sub("", _STRING.sub("''", line)))) is None


def turn_error(turn: Turn) -> str:
    """The first of ERRORS that applies:

    * malformed reply: no single code block;
    * missing binding: an uncaught NameError for a name that an earlier turn had bound; other NameError: any other;
    * cap hit: the tool-call cap was reached, whether or not the code caught its error;
    * tool error: an uncaught refusal by a tool; other code error: any other uncaught error;
    * none.
    """
    seen = turn.observation
    if seen is None:
        return "malformed reply"
    if seen.name_error:
        return "missing binding" if seen.missing_binding else "other NameError"
    if seen.cap_hit:
        return "cap hit"
    if seen.error_type is None:
        return "none"
    return "tool error" if seen.error_source == "tool" else "other code error"


@dataclass(frozen=True)
class Step:
    """What the tools did in one turn: items inspected and taken for the first time, refusals in order as
    (tool, type of error), the names of all tools called, and how many items a tool was called with that it never had
    been called with before, refused or not. The cap acts before a tool: it refuses nothing here, and what it stops is
    no call."""

    inspected: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    called: tuple[str, ...] = ()
    first_tries: int = 0

    @property
    def gained(self) -> bool:
        """Whether there is a new item, inspected or taken."""
        return bool(self.inspected or self.taken)

    @property
    def tries(self) -> int:
        """How often ``take_item`` was called."""
        return len(self.taken) + sum(tool == "take_item" for tool, _ in self.refused)


def play_again(
    task: Task, trace: Trace | Episode, max_tool_calls: int = MAX_TOOL_CALLS, pool: InterpreterPool | None = None
) -> list[Step] | None:
    """The Step of each turn, from executing the recorded code again in a new environment and runtime.

    ``max_tool_calls`` must be the recorded episode's. None if the trace does not tell its runtime, or if the items
    taken, their value or the number inspected are not those on record: then nothing is known of the turns.
    """
    if trace.kind is None:
        return None
    environment, steps, called, refused, tried = KnapsackEnvironment(task), [], [], [], set()
    tools = {name: _noting(name, tool, called, refused) for name, tool in environment.tools.items()}
    with Runtime(trace.kind, tools, max_tool_calls, pool=pool) as runtime:
        for turn in trace.turns:
            before = len(environment.inspected), len(environment.taken)
            called.clear()
            refused.clear()
            if turn.code is None:
                runtime.skip_turn()
            else:
                runtime.run(turn.code)
            inspected = tuple(environment.inspected)[before[0] :]
            taken, names = tuple(environment.taken[before[1] :]), tuple(name for name, _ in called)
            first = {call for call in called if call[1] in task.items} - tried
            tried |= first
            steps.append(Step(inspected, taken, tuple(refused), names, len(first)))
    now = environment.metrics()
    same = all(trace.metrics.get(name) == now[name] for name in ("agent_value", "items_taken_count", "inspected_count"))
    return steps if same and trace.taken in (None, environment.taken) else None


def _noting(name: str, tool: Callable, called: list[tuple[str, str]], refused: list[tuple[str, str]]) -> Callable:
    @functools.wraps(tool)
    def call(*arguments, **keywords):
        called.append((name, str(next(iter([*arguments, *keywords.values()]), ""))))
        try:
            return tool(*arguments, **keywords)
        except Exception as error:
            refused.append((name, type(error).__name__))
            raise

    return call


def work(steps: list[Step]) -> list[dict[str, int]]:
    """For each turn WORK: calls of ``inspect``, items inspected for the first time, and whether it is a restart, a
    turn that calls ``list_items`` though an earlier one had (0 or 1)."""
    listed = [index for index, step in enumerate(steps) if "list_items" in step.called]
    return [
        {
            "inspect_calls": step.called.count("inspect"),
            "new_items": len(step.inspected),
            "restart": int(index in listed[1:]),
        }
        for index, step in enumerate(steps)
    ]


def recoveries(trace: Trace | Episode, steps: list[Step]) -> list[dict]:
    """What followed each missing-binding error, with ``steps`` from ``play_again``; errors in a row overlap.

    ``turn`` had the error (from 0); ``turns`` and ``tokens`` (prompt and completion) count the turns after it, up to
    and including the next with a first try of an item, or to the end if there was none (``recovered`` is False: the
    numbers are then lower bounds). An item that is refused counts: whoever gets to it has found the way back.
    """
    found = []
    for index, turn in enumerate(trace.turns):
        if turn_error(turn) == "missing binding":
            back = [later for later in range(index + 1, len(steps)) if steps[later].first_tries]
            spent = trace.turns[index + 1 : back[0] + 1 if back else len(steps)]
            tokens = sum(turn.prompt_tokens + turn.completion_tokens for turn in spent)
            found.append({"turn": index, "turns": len(spent), "tokens": tokens, "recovered": bool(back)})
    return found


@dataclass(frozen=True)
class Conduct:
    """``turns`` (TURN_COLUMNS): a row per turn of a completed episode; ``error`` is one of ERRORS, WORK that of
    ``work`` (NaN where the task is not at hand), the PARTS are in ``unit`` ("tokens" or "characters").
    ``recoveries`` (RECOVERY_COLUMNS): a row per missing-binding error of an episode whose task is at hand.
    ``failures`` (FAILURE_COLUMNS): a row per completed episode that scored below the teacher on its task, in the
    runtime that its own ``acts_as``, with ``causes.failure``.
    """

    turns: pd.DataFrame
    recoveries: pd.DataFrame
    failures: pd.DataFrame
    unit: str


def read_conduct(folder: str | Path, episodes: pd.DataFrame, tokenizer=None) -> Conduct:
    """Conduct of the completed ``episodes`` (``metrics.read_cells``), whose traces lie below ``folder``.

    ``metrics.find_task`` says where tasks are looked for. With a ``tokenizer`` the content of replies is counted in its
    tokens. Raises CorruptFileError for a damaged file.
    """
    folder, done = Path(folder), completed(episodes)
    turns, recovered, failures = [], [], []
    teacher = done[done["model"] == "teacher"].set_index(KEY[1:])["score"].to_dict()
    with interpreter_pool(1) as pool:
        for row in tqdm(done.to_dict("records"), unit="episode", desc="looking closer", mininterval=1, delay=5):
            key = {name: row[name] for name in KEY}
            cell = Cell(*(row[name] for name in CELL))
            trace = read_trace(trace_path(folder / cell.name, row["task_id"]))
            errors = [turn_error(turn) for turn in trace.turns]
            task = find_task(folder, cell.split, trace)
            steps = play_again(task, trace, cell.cap, pool) if task else None
            done_work = work(steps) if steps is not None else [{}] * len(errors)
            told = zip(errors, done_work, reply_parts(trace, tokenizer), strict=True)
            for turn, (error, worked, parts) in enumerate(told):
                turns.append(key | {"turn": turn, "error": error} | worked | parts)
            if steps is not None:
                recovered += [key | recovery for recovery in recoveries(trace, steps)]
            best = teacher.get((acts_as(cell.runtime), cell.split, cell.cap, row["task_id"]))
            if best is not None and (found := failure(trace, best, errors, task, steps)):
                failures.append(key | {"score": row["score"], "teacher_score": best} | asdict(found))
    return Conduct(
        pd.DataFrame(turns, columns=TURN_COLUMNS),
        pd.DataFrame(recovered, columns=RECOVERY_COLUMNS),
        pd.DataFrame(failures, columns=FAILURE_COLUMNS),
        "tokens" if tokenizer else "characters",
    )


def write_conduct(run: Run, conduct: Conduct) -> None:
    """Write ``results/contents.csv``, ``recoveries.csv`` and ``failures.csv``."""
    write_csv(run.results / "contents.csv", conduct.turns)
    write_csv(run.results / "recoveries.csv", conduct.recoveries)
    write_csv(run.results / "failures.csv", conduct.failures)

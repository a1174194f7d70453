"""What an agent does in an episode, turn by turn: what fills its replies, which errors it meets, how it recovers.

Everything is computed from a ``Trace``. What only the tools know (which item was inspected or taken in which turn)
comes from executing the recorded code again (``play_again``), which needs the task.

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
import math
import operator
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from knapsack.agent import FENCE, Episode, Turn
from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import MAX_TOOL_CALLS, Runtime
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import Task
from knapsack.traces import Trace

PARTS = ("reasoning", "restated", "repeated", "new", "malformed")
# A record (id, weight, value, class) is four words, so a longer run would miss one. A shorter one finds chance: of
# functions of 30 to 200 words of Python's standard library, 3.1 % (runs of 3), 0.7 % (4) and 0.3 % (5) of the words
# stand so in 2,000 words of its other modules.
RUN = 4
ERRORS = ("none", "missing binding", "other NameError", "cap hit", "tool error", "other code error", "malformed reply")

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
        pieces = [(len(turn.text), "malformed")]
        if turn.code is not None:
            start, end = _code_span(turn)
            code = turn.text[start:end]
            words = list(_WORD.finditer(code))
            runs = _runs([word[0] for word in words])
            parts = _word_parts(code, words, runs, printed, written)
            pieces = [(start, "reasoning"), *_code_pieces(code, words, parts), (len(turn.text) - end, "reasoning")]
            written.update(runs)
        if turn.observation is not None:
            printed.update(_runs(_WORD.findall(turn.observation.output)))
        rows.append(_in_tokens(turn.text, pieces, tokenizer) if tokenizer else _in_characters(pieces))
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


def _word_parts(code: str, words: list[re.Match], runs: list[tuple[str, ...]], printed: set, written: set) -> list[str]:
    parts = ["new"] * len(words)
    was_written = [index for index, run in enumerate(runs) if run in written]
    if was_written:
        data = _data_words(code, [word.start() for word in words])
        for index in was_written:
            parts[index : index + RUN] = ["restated" if data[i] else "repeated" for i in range(index, index + RUN)]
    for index, run in enumerate(runs):
        if run in printed:
            parts[index : index + RUN] = ["restated"] * RUN
    return parts


def _data_words(code: str, starts: list[int]) -> list[bool]:
    """For each word, whether its line holds literals only, or a name bound to them."""
    found: list[bool] = []
    end = 0
    for line in code.splitlines(keepends=True):
        end += len(line)
        rest = _CONSTANT.sub("", _BOUND.sub("", _STRING.sub("''", line)))
        found += [_NAME.search(rest) is None] * (bisect_left(starts, end) - len(found))
    return found


def _code_pieces(code: str, words: list[re.Match], parts: list[str]) -> list[tuple[int, str]]:
    """The code as (length, part), a word with all up to the next; what stands before the first goes with it."""
    borders = [0, *(word.start() for word in words[1:]), len(code)]
    return list(zip(map(operator.sub, borders[1:], borders), parts or ["new"], strict=True))


def _in_characters(pieces: list[tuple[int, str]]) -> dict[str, int]:
    sizes = dict.fromkeys(PARTS, 0)
    for length, part in pieces:
        sizes[part] += length
    return sizes


def _in_tokens(text: str, pieces: list[tuple[int, str]], tokenizer) -> dict[str, int]:
    sizes, ends, position = dict.fromkeys(PARTS, 0), [], 0
    for length, _ in pieces:
        position += length
        ends.append(position)
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    for start, end in tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]:
        sizes[pieces[bisect_right(ends, max(start, end - 1))][1]] += 1
    return sizes


def turn_errors(trace: Trace | Episode) -> list[str]:
    """One of ERRORS for each turn: the first that applies of

    * malformed reply: no single code block;
    * missing binding: an uncaught NameError for a name that an earlier turn had bound; other NameError: any other;
    * cap hit: the tool-call cap was reached, whether or not the code caught its error;
    * tool error: an uncaught refusal by a tool; other code error: any other uncaught error;
    * none.
    """
    return [_turn_error(turn) for turn in trace.turns]


def _turn_error(turn: Turn) -> str:
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
    """What the tools did in one turn: items inspected and taken for the first time, and refusals in order as
    (tool, type of error). The cap refuses nothing here: it acts before the tool."""

    inspected: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

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
    environment, steps, refused = KnapsackEnvironment(task), [], []
    tools = {name: _noting(name, tool, refused) for name, tool in environment.tools.items()}
    with Runtime(trace.kind, tools, max_tool_calls, pool=pool) as runtime:
        for turn in trace.turns:
            before = len(environment.inspected), len(environment.taken)
            refused.clear()
            if turn.code is None:
                runtime.skip_turn()
            else:
                runtime.run(turn.code)
            inspected = tuple(environment.inspected)[before[0] :]
            steps.append(Step(inspected, tuple(environment.taken[before[1] :]), tuple(refused)))
    now = environment.metrics()
    same = all(trace.metrics.get(name) == now[name] for name in ("agent_value", "items_taken_count", "inspected_count"))
    return steps if same and trace.taken in (None, environment.taken) else None


def _noting(name: str, tool: Callable, refused: list[tuple[str, str]]) -> Callable:
    @functools.wraps(tool)
    def call(*arguments, **keywords):
        try:
            return tool(*arguments, **keywords)
        except Exception as error:
            refused.append((name, type(error).__name__))
            raise

    return call


@dataclass(frozen=True)
class Recovery:
    """What followed a missing-binding error in turn ``turn``: ``turns`` and ``tokens`` (prompt and completion) of the
    turns after it, up to and including the next with a new item, or to the end if there was none (``recovered`` is
    False: the numbers are then lower bounds)."""

    turn: int
    turns: int
    tokens: int
    recovered: bool


def recoveries(trace: Trace | Episode, steps: list[Step]) -> list[Recovery]:
    """One Recovery for each turn with a missing-binding error; errors in a row overlap. ``steps``: ``play_again``'s."""
    found = []
    for index, error in enumerate(turn_errors(trace)):
        if error == "missing binding":
            gains = [later for later in range(index + 1, len(steps)) if steps[later].gained]
            last = gains[0] if gains else len(steps) - 1
            spent = trace.turns[index + 1 : last + 1]
            tokens = sum(turn.prompt_tokens + turn.completion_tokens for turn in spent)
            found.append(Recovery(index, len(spent), tokens, bool(gains)))
    return found

"""Why an episode scored below the teacher: exactly one cause each, by ordered rules.

``failure`` looks at where the episode ended. *Work was left* if an inspected, allowed item that was not taken still
fitted, or if less than BUDGET_USED of the inspection budget (or of the items, if fewer) was used and the best
selection of what was inspected is worth less than the teacher's. The cause is the first rule that applies.

If work was left:

1. The first failure from the last turn with a new item (inspected or taken) on, that turn included: what came after
   it gained nothing. The failures are

   * missing binding: a NameError for a name that an earlier turn had bound;
   * tool-call cap: the cap was reached;
   * malformed reply: no single code block, or a block that is not Python (SyntaxError);
   * class not allowed: the block ended with ``take_item`` refusing a class;
   * wrong or stale record: the block ended with ``take_item`` refusing for the capacity, an unknown id or an item
     taken before: what the agent acted on was not so (any more);
   * code error: any other uncaught error, also of a name never bound.
2. One failure in at least LIMIT_SHARE of the turns, if the episode ran into the turn or context limit: the agent got
   over it each time, but had no turns left for the rest. The turn that shows it is the first such.
3. wrong or stale record: executed code carries a record of an item that still fitted, and it contradicts the item;
   or a block that tries to take restates at least LEDGER of the items inspected and not taken, but leaves such an
   item out.
4. turn or context limit: the episode did not end by ``finish``.
5. class not allowed: in the last turn that tried to take, more than TRIES_REFUSED of the tries were refused for the
   class.
6. budget unused: the condition above on the inspection budget holds.
7. stopped early: the agent called ``finish`` though an inspected item still fitted.

If no work was left:

8. wrong or stale record: as 3, for an item that was taken or is in the best selection of what was inspected.
9. poorer selection: the best selection of what was inspected is worth at least the teacher's.
10. other items inspected: it is not. The agent looked at items that hold less than those the teacher saw.

A record contradicts an item if it holds two or more integers but not both the item's weight and value, or a class
other than the item's. A record is the constants beside an id in a literal: the value of an id as key, or the other
entries of a display with one id.

Without the task, or if the recorded code does not do again what is on record, the cause is unknown.
"""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from knapsack.agent import Episode, Turn
from knapsack.analysis.behaviour import Step, turn_errors
from knapsack.tasks import Item, Task, optimum
from knapsack.traces import Trace

FAILURES = (
    "missing binding",
    "tool-call cap",
    "malformed reply",
    "class not allowed",
    "wrong or stale record",
    "code error",
)
CAUSES = (
    *FAILURES,
    "turn or context limit",
    "budget unused",
    "stopped early",
    "poorer selection",
    "other items inspected",
    "unknown",
)
BUDGET_USED = 0.9  # the released tasks' budget covers about 80 % of the items: a tenth of it is three items or more
LIMIT_SHARE = 0.5  # a failure in half of the turns took at least as many of them as all work did
TRIES_REFUSED = 0.5  # more tries told what is not allowed than took something
LEDGER = 0.5  # fewer records are a selection: to leave an item out is then a choice
SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


@dataclass(frozen=True)
class Failure:
    """One of CAUSES; the turn (from 0) that shows it; how many turns of the episode show it, where the cause is one
    of FAILURES (for "missing binding" and "tool-call cap", more than one is a loop), else 1."""

    cause: str
    turn: int
    turns: int = 1


def failure(
    trace: Trace | Episode, teacher_score: float, task: Task | None = None, steps: list[Step] | None = None
) -> Failure | None:
    """Why a completed episode scored below ``teacher_score``, the teacher's on the same task in the same runtime.

    ``steps`` is what ``behaviour.play_again`` returned. None if the episode scored as much or was not completed.
    """
    if getattr(trace, "status", "completed") != "completed" or trace.score >= teacher_score:
        return None
    last = max(0, len(trace.turns) - 1)
    if task is None or steps is None:
        return Failure("unknown", last)
    end = _End(task, steps, teacher_score)
    kinds = [_kind(turn, error, step) for turn, error, step in zip(trace.turns, turn_errors(trace), steps, strict=True)]
    trying = [index for index, step in enumerate(steps) if step.tries]
    if not (end.fitting or end.unused):
        if (wrong := _wrong_record(trace, task, steps, {*end.taken, *end.best})) is not None:
            return Failure("wrong or stale record", wrong)
        if end.reachable:
            return Failure("poorer selection", trying[-1] if trying else last)
        looked = [index for index, step in enumerate(steps) if step.inspected]
        return Failure("other items inspected", looked[-1] if looked else last)
    limited = trace.finish_reason != "finish_tool"
    for index in range(end.last_gain, len(kinds)):
        if kinds[index] is not None:
            return Failure(kinds[index], index, kinds.count(kinds[index]))
    for cause in FAILURES if limited else ():
        if kinds.count(cause) >= LIMIT_SHARE * len(kinds) > 0:
            return Failure(cause, kinds.index(cause), kinds.count(cause))
    if (wrong := _wrong_record(trace, task, steps, set(end.fitting))) is not None:
        return Failure("wrong or stale record", wrong)
    if limited:
        return Failure("turn or context limit", last)
    if trying and end.fitting:
        refused = steps[trying[-1]].refused.count(("take_item", "PermissionError"))
        if refused > TRIES_REFUSED * steps[trying[-1]].tries:
            return Failure("class not allowed", trying[-1])
    return Failure("budget unused" if end.unused else "stopped early", last)


class _End:
    """Where an episode ended, and what it could still have done."""

    def __init__(self, task: Task, steps: list[Step], teacher_score: float):
        self.task, self.teacher_score = task, teacher_score
        self.inspected = [i for step in steps for i in step.inspected]
        self.taken = [i for step in steps for i in step.taken]
        self.last_gain = max((index for index, step in enumerate(steps) if step.gained), default=0)

    @cached_property
    def fitting(self) -> list[str]:
        """Inspected items that could still have been taken."""
        items, room = self.task.items, self.task.capacity - sum(self.task.items[i].weight for i in self.taken)
        left = [i for i in self.inspected if i not in self.taken and items[i].weight <= room]
        return [i for i in left if items[i].item_class in self.task.allowed_classes]

    @cached_property
    def best(self) -> tuple[str, ...]:
        """The best selection of what was inspected or taken unseen."""
        known = {i: self.task.items[i] for i in dict.fromkeys([*self.inspected, *self.taken])}
        return optimum(known, self.task.allowed_classes, self.task.capacity)

    @property
    def reachable(self) -> bool:
        value = sum(self.task.items[i].value for i in self.best)
        return value / self.task.optimal_value >= self.teacher_score

    @property
    def unused(self) -> bool:
        budget = min(self.task.inspect_budget, len(self.task.items))
        return len(self.inspected) < BUDGET_USED * budget and not self.reachable


def _kind(turn: Turn, error: str, step: Step) -> str | None:
    """The one of FAILURES that a turn shows, if any."""
    if error == "none":
        return None
    if error in ("missing binding", "malformed reply"):
        return error
    if error == "cap hit":
        return "tool-call cap"
    if turn.observation.error_type in SYNTAX_ERRORS:
        return "malformed reply"
    if error == "tool error" and step.refused and step.refused[-1][0] == "take_item":
        return "class not allowed" if step.refused[-1][1] == "PermissionError" else "wrong or stale record"
    return "code error"


def _wrong_record(trace: Trace | Episode, task: Task, steps: list[Step], matter: set[str]) -> int | None:
    """The first turn whose code carries a contradicting record of an item that matters, or takes from a ledger
    without it."""
    inspected: set[str] = set()
    taken: set[str] = set()
    for index, (turn, step) in enumerate(zip(trace.turns, steps, strict=True)):
        carried = dict(_records(turn.code)) if turn.observation is not None else {}
        if any(i in matter and _contradicts(carried[i], task.items[i], task) for i in carried):
            return index
        untaken = inspected - taken
        ledger = len(untaken & carried.keys()) >= LEDGER * len(untaken) > 0
        if ledger and step.tries and (untaken & matter) - carried.keys():
            return index
        inspected.update(step.inspected)
        taken.update(step.taken)
    return None


def _contradicts(record: list, item: Item, task: Task) -> bool:
    numbers = [value for value in record if type(value) is int]
    classes = [value for value in record if isinstance(value, str) and value in task.class_names]
    wrong_numbers = len(numbers) > 1 and not {item.weight, item.value} <= set(numbers)
    return wrong_numbers or any(value != item.item_class for value in classes)


def _records(code: str) -> Iterator[tuple[str, list]]:
    """(id, constants beside it) of every record in a literal of ``code``; none if it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code's own oddities
        try:
            waiting: list[ast.AST] = [ast.parse(code)]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Dict | ast.List | ast.Tuple):
            try:
                yield from _beside_ids(ast.literal_eval(node))
                continue
            except (ValueError, TypeError, RecursionError, MemoryError):  # not a literal
                pass
        waiting.extend(ast.iter_child_nodes(node))


def _beside_ids(literal) -> Iterator[tuple[str, list]]:
    """The records of a literal."""
    values = list(literal.values()) if isinstance(literal, dict) else list(literal)
    ids = [value for value in values if _is_id(value)]
    if len(ids) == 1:
        yield ids[0], [value for value in _constants(values) if value != ids[0]]
    if isinstance(literal, dict):
        for key, value in literal.items():
            if _is_id(key):
                yield key, _constants([value])
            elif isinstance(value, dict | list | tuple):
                yield from _beside_ids(value)
    else:
        for value in values:
            if isinstance(value, dict | list | tuple):
                yield from _beside_ids(value)


def _is_id(value) -> bool:
    return isinstance(value, str) and value.startswith("item_")


def _constants(values: list) -> list:
    found = []
    for value in values:
        if isinstance(value, dict | list | tuple):
            found += _constants(list(value.values()) if isinstance(value, dict) else list(value))
        else:
            found.append(value)
    return found

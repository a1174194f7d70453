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
3. turn or context limit: the episode did not end by ``finish``.
4. class not allowed: in the last turn that tried to take, more than TRIES_REFUSED of the tries were refused for the
   class.
5. budget unused: the condition above on the inspection budget holds.
6. stopped early: the agent called ``finish`` though an inspected item still fitted.

If no work was left:

7. poorer selection: the best selection of what was inspected is worth at least the teacher's. Whether the agent kept
   a wrong record or chose badly from right ones is not told apart.
8. other items inspected: it is not. The agent looked at items that hold less than those the teacher saw.

Without the task, or if the recorded code does not do again what is on record, the cause is unknown.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from knapsack.agent import Episode, Turn
from knapsack.tasks import Task, optimum
from knapsack.traces import Trace

if TYPE_CHECKING:  # it imports this module
    from knapsack.analysis.conduct import Step

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
SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


@dataclass(frozen=True)
class Failure:
    """One of CAUSES; the turn (from 0) that shows it; how many turns of the episode show it, where the cause is one
    of FAILURES (for "missing binding" and "tool-call cap", more than one is a loop), else 1."""

    cause: str
    turn: int
    turns: int = 1


def failure(
    trace: Trace | Episode, teacher_score: float, errors: list[str], task: Task | None, steps: "list[Step] | None"
) -> Failure | None:
    """Why a completed episode scored below ``teacher_score``, the teacher's on the same task in the same runtime.

    ``errors`` are ``conduct.turn_error`` of its turns; ``steps`` is what ``conduct.play_again`` returned. None if the
    episode scored as much or was not completed.
    """
    if getattr(trace, "status", "completed") != "completed" or trace.score >= teacher_score:
        return None
    last = max(0, len(trace.turns) - 1)
    if task is None or steps is None:
        return Failure("unknown", last)
    inspected = [i for step in steps for i in step.inspected]
    taken = [i for step in steps for i in step.taken]
    known = {i: task.items[i] for i in dict.fromkeys([*inspected, *taken])}  # some may be taken unseen
    best = sum(known[i].value for i in optimum(known, task.allowed_classes, task.capacity))
    reachable = best / task.optimal_value >= teacher_score
    unused = len(inspected) < BUDGET_USED * min(task.inspect_budget, len(task.items)) and not reachable
    allowed = [known[i] for i in known if i not in taken and known[i].item_class in task.allowed_classes]
    room = task.capacity - sum(known[i].weight for i in taken)
    fitting = any(item.weight <= room for item in allowed)
    trying = [index for index, step in enumerate(steps) if step.tries]
    if not (fitting or unused):
        if reachable:
            return Failure("poorer selection", trying[-1] if trying else last)
        looked = [index for index, step in enumerate(steps) if step.inspected]
        return Failure("other items inspected", looked[-1] if looked else last)
    kinds = [_kind(*turn) for turn in zip(trace.turns, errors, steps, strict=True)]
    last_gain = max((index for index, step in enumerate(steps) if step.gained), default=0)
    for index in range(last_gain, len(kinds)):
        if kinds[index] is not None:
            return Failure(kinds[index], index, kinds.count(kinds[index]))
    if trace.finish_reason != "finish_tool":
        for cause in FAILURES:
            if kinds.count(cause) >= LIMIT_SHARE * len(kinds) > 0:
                return Failure(cause, kinds.index(cause), kinds.count(cause))
        return Failure("turn or context limit", last)
    if trying and fitting:
        refused = steps[trying[-1]].refused.count(("take_item", "PermissionError"))
        if refused > TRIES_REFUSED * steps[trying[-1]].tries:
            return Failure("class not allowed", trying[-1])
    return Failure("budget unused" if unused else "stopped early", last)


def _kind(turn: Turn, error: str, step: "Step") -> str | None:
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

import dataclasses
import functools

import pytest
import scripted
from places import EXAMPLES

from knapsack import traces
from knapsack.agent import Episode
from knapsack.analysis import causes, conduct
from knapsack.analysis.causes import Failure
from knapsack.runs import read_json
from knapsack.sandbox import interpreter_pool
from knapsack.tasks import Item, Task, optimum

PLAIN = "import json\nids = json.loads(list_items())\n"
LOOK = f"{PLAIN}for i in ids[:budget]:\n    inspect(i)"


@functools.cache
def task() -> Task:
    """Four items of the allowed class "A", two of "B"; a, b and c are the best and fill the capacity."""
    items = {"item_a": (4, 40, "A"), "item_b": (3, 27, "A"), "item_c": (3, 24, "A"), "item_d": (6, 42, "A")}
    items |= {"item_e": (2, 90, "B"), "item_f": (5, 80, "B")}
    items = {i: Item(*attributes) for i, attributes in items.items()}
    best = optimum(items, "A", 10)
    return Task("t", 0, items, 10, ("A",), 6, ("A", "B"), best, 91, 10)


@pytest.fixture(scope="module")
def pool():
    with interpreter_pool() as opened:
        yield opened


@pytest.fixture
def cause(pool):
    """The failure of an episode of these blocks ("!" begins a reply without one), compared with ``teacher_score``."""

    def explain(*codes, kind="stateless", teacher_score=1.0, max_turns=10, max_tool_calls=25, of=None) -> Failure:
        of = of or task()
        filled = (code.replace("budget", str(of.inspect_budget)) for code in codes)
        texts = [code if code.startswith("!") else scripted.block(code) for code in filled]
        episode = scripted.play(of, kind, texts, max_turns, max_tool_calls, pool)
        return failure(episode, teacher_score, of, conduct.play_again(of, episode, max_tool_calls, pool))

    return explain


def failure(episode, teacher_score, of=None, steps=None) -> Failure | None:
    return causes.failure(episode, teacher_score, [conduct.turn_error(turn) for turn in episode.turns], of, steps)


def look(ids: str) -> str:
    return f"for i in {ids!r}:\n    inspect('item_' + i)"


def take(*ids: str) -> str:
    return "\n".join(f"take_item('item_{i}')" for i in ids)


def carefully(*ids: str) -> str:
    return f"for i in {ids}:\n    try:\n        take_item('item_' + i)\n    except Exception:\n        pass"


def test_an_episode_as_good_as_the_teachers_did_not_fail(cause):
    assert cause(LOOK, take("a", "b", "c"), "finish()") is None
    assert cause("!", teacher_score=0.0) is None


def test_an_unscored_episode_has_no_cause():
    unscored = type("Unanswered", (Episode,), {"status": "unanswered"})(task(), "stateless", [])
    assert failure(unscored, 1.0, task(), []) is None


def test_without_the_task_or_its_replay_nothing_is_claimed():
    episode = scripted.play(task(), "stateless", ["no code"], 3)
    assert failure(episode, 1.0) == Failure("unknown", 2)
    assert failure(episode, 1.0, task()) == Failure("unknown", 2)
    assert failure(episode, 1.0, None, conduct.play_again(task(), episode)) == Failure("unknown", 2)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((f"{PLAIN}inspect(ids[0])", "inspect(ids[1])", "print(1)", "finish()"), Failure("missing binding", 1)),
        ((f"{PLAIN}inspect(ids[0])", "inspect(ids[1])", "ids", "finish()"), Failure("missing binding", 1, 2)),
        (("for i in range(30):\n    list_items()", "finish()"), Failure("tool-call cap", 0)),
        ((LOOK, "!what now", "seen +", "ids", "finish()"), Failure("malformed reply", 1, 2)),
        ((LOOK, "print(seen", "finish()"), Failure("malformed reply", 1)),
        ((LOOK, take("a", "e", "b"), "!", "finish()"), Failure("class not allowed", 1)),
        ((LOOK, take("a", "b", "d"), "finish()"), Failure("wrong or stale record", 1)),  # c still fitted
        ((LOOK, take("a", "d", "b"), "finish()"), Failure("poorer selection", 1)),  # full: the refusal cost nothing
        ((LOOK, take("a", "a", "b"), "finish()"), Failure("wrong or stale record", 1)),
        ((LOOK, take("x"), "finish()"), Failure("wrong or stale record", 1)),
        ((LOOK, "inspect('item_x')", "finish()"), Failure("code error", 1)),
        ((LOOK, "never_bound", "1 / 0", "finish()"), Failure("code error", 1, 2)),
    ],
)
def test_the_first_failure_that_nothing_was_gained_after(cause, codes, expected):
    assert cause(*codes) == expected


def test_a_failure_that_was_got_over_is_not_the_cause(cause):
    codes = ("ids = []\nprint(never)", f"{PLAIN}inspect(ids[0])", "!", f"{PLAIN}inspect(ids[1])", "finish()")
    assert cause(*codes) == Failure("budget unused", 4)


def test_the_limit_is_put_down_to_what_filled_the_turns(cause):
    gain = [f"kept = inspect('item_{i}')" for i in "abc"]
    assert cause(gain[0], "kept", "kept", gain[1], max_turns=4) == Failure("missing binding", 1, 2)
    assert cause(gain[0], "kept", gain[1], gain[2], max_turns=4) == Failure("turn or context limit", 3)
    assert cause(LOOK, "print(1)", max_turns=5) == Failure("turn or context limit", 4)


def test_wrong_records_are_not_told_from_poor_choices(cause):
    records = "seen = {'item_a': (6, 40, 'A'), 'item_b': (3, 27, 'A')}\n"  # item_a weighs 4
    assert cause(LOOK, records + take("d", "b"), "finish()") == Failure("poorer selection", 1)


def test_tries_spent_on_refused_classes(cause):
    assert cause(LOOK, carefully("e", "f", "a"), "finish()") == Failure("class not allowed", 1)
    assert cause(LOOK, carefully("e", "a"), "finish()") == Failure("stopped early", 2)


def test_stopped_early_and_budget_unused(cause):
    assert cause(LOOK, take("a"), "finish()") == Failure("stopped early", 2)
    assert cause(LOOK, "finish()") == Failure("stopped early", 1)
    assert cause("inspect('item_d')\ntake_item('item_d')", "finish()") == Failure("budget unused", 1)
    assert cause("finish()") == Failure("budget unused", 0)
    assert cause(look("de"), f"{take('d')}\n{carefully('e', 'f')}", "finish()") == Failure("budget unused", 2)


def test_what_was_seen_decides_between_selection_and_luck(cause):
    assert cause(LOOK, take("d", "c"), "!", "finish()") == Failure("poorer selection", 1)
    few = dataclasses.replace(task(), inspect_budget=3)
    assert cause(look("bcd"), take("d", "b"), "finish()", of=few) == Failure("other items inspected", 0)
    reached = (42 + 27) / 91
    assert cause(look("bcd"), take("d", "b"), "finish()", of=few, teacher_score=reached) is None
    for of in (few, task()):  # the rest of the budget was not needed for the teacher's score
        assert cause(look("bcd"), take("d", "c"), "finish()", of=of, teacher_score=reached) == Failure(
            "poorer selection", 1
        )


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the published examples are not on this machine")
def test_published_episodes_get_a_cause(pool):
    expected = {"knapsack-0000000000": ("other items inspected", 1), "knapsack-0000000001": ("poorer selection", 2)}
    for path in sorted(EXAMPLES.glob("*/knapsack/*.trace.json")):
        trace = traces.read_trace(path)
        of = Task.from_json(read_json(EXAMPLES / "easy" / "tasks" / "knapsack" / f"{trace.task_id}.json"))
        found = failure(trace, 1.0, of, conduct.play_again(of, trace, pool=pool))
        assert (found.cause, found.turn) == expected[trace.task_id]  # only the second saw every item
        assert failure(trace, trace.score, of) is None

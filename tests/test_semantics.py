"""What the comparison rests on: persistence alone differs, cap and tools keep the rules, the score is right.

Each property holds in both engines; engine "cpython" starts a process a session and so gets fewer examples.
"""

import copy
import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scripted import CONFIG, small_task

from knapsack import prompts
from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import KINDS, RUNTIME_KINDS, Runtime, interpreter_pool
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import Item, Task, preset, sample_task

TASK = small_task()
IDS = list(TASK.items)
CARRY_OVER = ("carry-over", "carry-over-announced")


@dataclass(frozen=True)
class Engine:
    pool: InterpreterPool
    share: float  # of the examples that the default engine gets

    def examples(self, number: int):
        return settings(max_examples=max(2, int(number * self.share)), deadline=None)

    def play(self, kind: str, blocks: list[str], cap: int = 25, task: Task = TASK):
        """The observations of an episode, and the environment at its end."""
        environment = KnapsackEnvironment(task)
        with Runtime(kind, environment.tools, cap, pool=self.pool) as runtime:
            return [runtime.run(code) for code in blocks], environment


@pytest.fixture(scope="module", params=[("monty", 1.0), ("cpython-outside-container", 0.05)], ids=lambda p: p[0])
def engine(request):
    name, share = request.param
    with interpreter_pool(engine=name) as pool:
        yield Engine(pool, share)


def state(environment: KnapsackEnvironment) -> tuple:
    """All that an agent, or the report, can see of an environment."""
    shown = {i: environment.inspect(i) for i in environment.inspected}
    own = (list(environment.taken), dict(environment.inspected), environment.finished)
    return own, shown, environment.list_items(), environment.score, environment.solved, environment.metrics()


# Persistence is the only difference

NAMES = ("a", "b", "c")
own = st.sampled_from(NAMES)
place = st.integers(0, len(IDS) + 1)  # the last two are no item's
# Statements that read only names which the turn has bound before: a, b, c and ids at its start, or their own.
STATEMENTS = st.one_of(
    st.builds("{} = {} + {}".format, own, own, own),
    st.builds("{0} = sum({1} * i for i in range(3)); print({0})".format, own, own),
    st.builds("if {} > {}:\n    print({})\nelse:\n    new = {}".format, own, own, own, own),
    st.builds("def f(x, y={}):\n    return x + y + {}\nprint(f({}))".format, own, own, own),
    st.builds("def g():\n    global {0}\n    {0} += 1\ng()\nprint({0})".format, own),
    st.builds("class Box:\n    def __init__(self):\n        self.n = {}\nprint(Box().n)".format, own),
    st.builds("seen = {{}}\nfor i in ids[{}:][:3]:\n    seen[i] = json.loads(inspect(i))\nprint(seen)".format, place),
    st.builds("(last := inspect(ids[{}]))\nprint(len(last))".format, place),
    st.builds("take_item(ids[{}])".format, place),
    st.builds("try:\n    take_item(ids[{}])\nexcept Exception as error:\n    print(error, {})".format, place, own),
    st.just("for i in ids * 2:\n    try:\n        inspect(i)\n    except RuntimeError:\n        pass"),
    st.builds("try:\n    print({} // {})\nfinally:\n    print('on')".format, own, own),
    st.builds("[kept := {} for _ in range(2)]\nprint(kept)".format, own),
    st.builds("match {}:\n    case 0:\n        print('zero')\n    case other:\n        print(other)".format, own),
    st.sampled_from(["print(never_bound)", "take_item('nothing')", "inspect()", "raise ValueError('so')", "step("]),
    st.builds("({}, ids[0])".format, own),  # shown, if it comes last
)
TURNS = st.builds(
    lambda start, body: "\n".join(
        ["import json", "ids = [*json.loads(list_items()), 'item_x', 'item_y']"]
        + [f"{name} = {value}" for name, value in zip(NAMES, start, strict=True)]
        + body
    ),
    st.tuples(*[st.integers(-9, 9)] * 3),
    st.lists(STATEMENTS, max_size=6),
)


def test_persistence_is_the_only_difference(engine):
    """Blocks that read only what they bind themselves do the same in every kind of runtime, on the real tools."""

    @engine.examples(40)
    @given(st.lists(TURNS, min_size=1, max_size=4), st.integers(2, 9))
    def holds(program, cap):
        seen = []
        for kind in RUNTIME_KINDS:
            observations, environment = engine.play(kind, program, cap)
            # Which names are bound is the difference itself; all else that is observed must agree.
            plain = [replace(one, last_step_globals=(), active_globals=()) for one in observations]
            seen.append((plain, state(environment)))
        assert all(one == seen[0] for one in seen)

    holds()


# The cap

CALLS = st.one_of(
    st.just("list_items()"),
    st.builds("inspect({!r})".format, st.sampled_from([*IDS, "item_x"])),
    st.builds("take_item({!r})".format, st.sampled_from([*IDS, "item_x"])),
    st.sampled_from(["inspect()", "take_item(1, 2)", "finish()"]),
)


def tried(call: str) -> str:
    return f"try:\n    {call}\nexcept Exception:\n    pass"


def expected(blocks: list[list[tuple[str, bool]]], cap: int) -> tuple[list[tuple], KnapsackEnvironment]:
    """For each block (tools called, cap hit, source of the error), by making its first ``cap`` calls here."""
    environment = KnapsackEnvironment(TASK)
    outcomes = []
    for calls in blocks:
        made, hit, source = [], False, None
        for call, caught in calls:
            if len(made) == cap:
                hit = True
                source = None if caught else "cap"
            else:
                made.append(call.partition("(")[0])
                try:
                    eval(call, dict(environment.tools))  # one of CALLS
                except Exception:
                    source = None if caught else "tool"
            if source:
                break
        outcomes.append((tuple(made), hit, source))
    return outcomes, environment


def test_exactly_as_many_calls_pass_as_the_cap_allows(engine):
    """Whatever the mix of tools, refusals and caught errors; and the environment changes by exactly those calls."""

    @engine.examples(80)
    @given(
        st.lists(st.lists(st.tuples(CALLS, st.booleans()), max_size=9), min_size=1, max_size=3),
        st.integers(1, 6),
        st.sampled_from(RUNTIME_KINDS),
    )
    def holds(blocks, cap, kind):
        code = ["\n".join(tried(call) if caught else call for call, caught in calls) + "\nNone" for calls in blocks]
        observations, environment = engine.play(kind, code, cap)
        outcomes, changed = expected(blocks, cap)
        assert [(one.tool_calls, one.cap_hit, one.error_source) for one in observations] == outcomes
        assert state(environment) == state(changed)

    holds()


# The tools

ACTIONS = st.lists(st.tuples(st.sampled_from(["inspect", "take_item"]), st.sampled_from([*IDS, "item_x"])), max_size=30)


def act(environment: KnapsackEnvironment, actions: list[tuple[str, str]]) -> list[str]:
    """What the tools answer, errors included."""
    answers = []
    for tool, item_id in actions:
        try:
            answers.append(repr(environment.tools[tool](item_id)))
        except (ValueError, PermissionError, RuntimeError) as error:
            answers.append(repr(error))
    return answers


@given(ACTIONS, st.sampled_from([*IDS, "item_x", "", None, 7]), ACTIONS)
@settings(max_examples=100, deadline=None)
def test_refused_item_changes_nothing_now_or_later(before, item_id, after):
    """Neither what can be seen nor what any later call does."""
    environment = KnapsackEnvironment(TASK)
    act(environment, before)
    untouched = copy.deepcopy(environment)
    try:
        environment.take_item(item_id)
    except (ValueError, PermissionError, RuntimeError):
        assert state(environment) == state(untouched)
        assert act(environment, after) == act(untouched, after) and state(environment) == state(untouched)
    else:
        assert environment.taken == [*untouched.taken, item_id]


# The score


def recomputed(task: Task, order: list[str]) -> int:
    """The value of trying to take the items in this order, by the rules of the paper alone."""
    left = {i: item for i, item in task.items.items() if item.item_class in task.allowed_classes}
    room, value = task.capacity, 0
    for i in order:
        if i in left and left[i].weight <= room:
            item = left.pop(i)
            room, value = room - item.weight, value + item.value
    return value


def greatest(task: Task) -> int:
    """The greatest value of all subsets of allowed items that fit, each subset looked at."""
    sums = [(0, 0)]
    for item in task.items.values():
        if item.item_class in task.allowed_classes:
            sums += [(weight + item.weight, value + item.value) for weight, value in sums]
    return max(value for weight, value in sums if weight <= task.capacity)


def allowed(task: Task) -> int:
    return sum(item.item_class in task.allowed_classes for item in task.items.values())


CONFIGS = st.sampled_from([CONFIG, preset("easy")])


def test_score_is_that_of_a_recomputation(engine):
    """For any program of tool calls, in any number of turns."""

    @engine.examples(60)
    @given(st.integers(0, 10**6), CONFIGS, st.sampled_from(KINDS), st.data())
    def holds(seed, config, kind, data):
        task = sample_task(seed, config)
        assume(allowed(task) <= 14)
        orders = data.draw(st.lists(st.lists(st.sampled_from([*task.items, "item_x"]), max_size=25), max_size=3))
        loop = "for i in {}:\n    try:\n        take_item(i)\n    except Exception:\n        pass"
        _, environment = engine.play(kind, [loop.format(order) for order in orders], task=task)
        value, best = recomputed(task, [i for order in orders for i in order]), greatest(task)
        assert environment.metrics()["agent_value"] == value
        assert environment.score == value / best and 0 <= environment.score <= 1
        assert environment.solved == (value == best)

    holds()


def test_whole_weight_of_the_optimum_is_needed_only_where_it_helps():
    """A subset of less weight may be worth as much; both count as solved."""
    items = {"a": Item(5, 40, "A"), "b": Item(5, 40, "A"), "c": Item(4, 40, "A")}
    for optimum in (("a", "b"), ("a", "c")):
        weight = sum(items[i].weight for i in optimum)
        environment = KnapsackEnvironment(Task("t", 0, items, 10, ("A",), 3, ("A",), optimum, 80, weight))
        act(environment, [("take_item", "b"), ("take_item", "c")])
        assert environment.solved


# Carry-over: the names of a turn that the cap cut short stay for one turn

CUT = "\nfor i in range({}):\n    list_items()"
READ = "for read in [{}]:\n    try:\n        print(read())\n    except NameError:\n        print('gone')"


def turn(bound: set[str], number: int, cut: bool, cap: int = 3) -> str:
    """Show which of NAMES are there, bind some of them to the turn's number, and run into the cap or not."""
    shown = READ.format(", ".join(f"lambda: ('{name}', {name})" for name in NAMES))
    bindings = "".join(f"\n{name} = {number}" for name in sorted(bound))
    return shown + bindings + CUT.format(cap + 1 if cut else cap)


@pytest.mark.parametrize("kind", CARRY_OVER)
def test_names_of_a_cut_turn_stay_for_exactly_one_turn(engine, kind):
    """In chains of cut turns too: a name of the first is gone in the third, unless the second bound it again."""

    @engine.examples(60)
    @given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.booleans()), min_size=2, max_size=5))
    def holds(turns):
        blocks = [turn(bound, number, cut) for number, (bound, cut) in enumerate(turns)]
        observations, _ = engine.play(kind, blocks, cap=3)
        assert [one.cap_hit for one in observations] == [cut for _, cut in turns]
        before, expected_lines, found = {}, [], []
        for number, ((bound, cut), observation) in enumerate(zip(turns, observations, strict=True)):
            expected_lines.append([f"('{name}', {before[name]})" if name in before else "gone" for name in NAMES])
            found.append(observation.output.splitlines())
            before = dict.fromkeys(bound, number) if cut else {}
        assert found == expected_lines

    holds()


@pytest.mark.parametrize("kind", CARRY_OVER)
def test_functions_and_imports_of_a_cut_turn_stay_too(engine, kind):
    first = "import json\nseen = {}\ndef look(i):\n    seen[i] = json.loads(inspect(i))\n    return len(seen)"
    blocks = [first + "\nfor i in json.loads(list_items()):\n    look(i)", "print(look(list(seen)[0]))", "print(seen)"]
    (cut, after, later), _ = engine.play(kind, blocks, cap=4)
    assert cut.cap_hit and cut.active_globals == ("i", "json", "look", "seen")
    assert after.output == "3\n" and after.active_globals == ()
    assert later.error == "NameError: name 'seen' is not defined" and later.missing_binding


# Programs that may read names of earlier turns, but stay below the cap.
LOOSE = st.lists(
    st.one_of(
        st.builds("{} = {}".format, own, st.integers(0, 9)),
        st.builds("print({})".format, own),
        st.builds("{} = {} + 1".format, own, own),
        st.builds("def f():\n    return {}\nprint(f())".format, own),
        CALLS,
        CALLS.map(tried),
    ),
    max_size=5,
).map("\n".join)


def test_carry_over_without_a_cut_is_stateless(engine):
    @engine.examples(60)
    @given(st.lists(LOOSE, min_size=1, max_size=4))
    def holds(program):
        stateless, *others = (engine.play(kind, program) for kind in ("stateless", *CARRY_OVER))
        assert not any(one.cap_hit for one in stateless[0])
        for observations, environment in others:
            assert observations == stateless[0] and state(environment) == state(stateless[1])
            for kind in CARRY_OVER:
                shown = [prompts.observation_message(one, kind) for one in observations]
                assert shown == [prompts.observation_message(one, "stateless") for one in stateless[0]]

    holds()


def test_announced_carry_over_differs_only_in_what_the_agent_is_told(engine):
    @engine.examples(60)
    @given(st.lists(st.tuples(LOOSE, st.booleans()), min_size=1, max_size=4))
    def holds(turns):
        program = ["x = 1\n" + code + CUT.format(9) * cut for code, cut in turns]
        (silent, one), (announced, other) = (engine.play(kind, program, cap=5) for kind in CARRY_OVER)
        assert silent == announced and state(one) == state(other)
        for observation in silent:
            quiet, loud = (json.loads(prompts.observation_message(observation, k)["content"]) for k in CARRY_OVER)
            hidden = replace(observation, active_globals=())
            assert quiet == json.loads(prompts.observation_message(hidden, "stateless")["content"])
            if observation.active_globals:  # the announcement is made when names are carried, and only then
                told = loud["runtime_state"]
                assert told.pop("note") == prompts.CARRIED
                assert told.pop("active_globals") == list(observation.active_globals)
                assert quiet["runtime_state"].pop("active_globals") == []
            assert loud == quiet

    holds()

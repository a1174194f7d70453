"""The two interpreters: what survives a turn, what a turn may do, and that nothing a block does harms the host."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import KINDS, InterpreterError, Runtime, interpreter_pool
from knapsack.tasks import preset, sample_task


class Counter:
    """Tools with a state of their own."""

    def __init__(self):
        self.count = 0

    def step(self, by=1):
        self.count += by
        return self.count

    def refuse(self, text="not now"):
        raise PermissionError(text)

    @property
    def tools(self):
        return {"step": self.step, "refuse": self.refuse}


@pytest.fixture(scope="module", params=["monty", "cpython-outside-container"])
def pool(request):
    """Both engines pass all of these tests."""
    with interpreter_pool(2, engine=request.param) as workers:
        yield workers


@pytest.fixture
def play(pool):
    """Runs blocks one after the other in a new episode; returns their observations."""

    def run(kind, *blocks, tools=None, **options):
        with Runtime(kind, Counter().tools if tools is None else tools, pool=pool, **options) as runtime:
            return [runtime.run(code) for code in blocks]

    return run


# What survives a turn


def test_persistent_names_stay_and_stateless_names_go(play):
    blocks = ("import math\nx = 3\ndef double(n):\n    return 2 * n", "print(double(x), math.floor(1.5))")
    assert play("persistent", *blocks)[1].output == "6 1\n"
    for name in ("x", "double", "math"):
        gone = play("stateless", blocks[0], f"print({name})")[1]
        assert (gone.output, gone.error) == ("", f"NameError: name '{name}' is not defined")


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_the_tools_survives_in_both(play, kind):
    assert play(kind, "step()", "step()", "print(step())")[2].output == "3\n"


def test_missing_binding_is_a_name_bound_in_an_earlier_turn(play):
    found = play("stateless", "x = 1\nif False:\n    y = 1\nprint(y)", "print(x)", "print(y)")
    assert all(observation.name_error for observation in found)
    assert [observation.missing_name for observation in found] == [None, "x", None]


# Which names a block leaves bound


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = y = 1\nz: int = 2\nw: int", "x y z"),
        ("(p, [q, *r]) = (1, (2, 3))", "p q r"),
        ("def f(argument):\n    inner = 1\nclass C:\n    attribute = 1", "C f"),
        ("import json, math as m\nfrom re import sub as s", "json m s"),
        ("for i in range(3):\n    pass\nfor j in []:\n    pass", "i"),
        ("[c for c in range(3)]\n{k: v for k, v in []}", ""),
        ("[(last := c) for c in range(3)]\nif (n := 5):\n    pass", "last n"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    seen = 1", "seen"),
        ("def f():\n    global g, h\n    g = 1\nf()", "f g"),
        ("match {'a': 1, 'b': [2, 3]}:\n    case {'a': x, **rest}:\n        pass", "rest x"),
        ("if False:\n    never = 1", ""),
        ("list = [1]\nif False:\n    print = 1", "list"),
        ("before = 1\n1 / 0\nafter = 2", "before"),
        ('quoted = f\'{ {"a": 1}["a"] }\'', "quoted"),  # newer syntax than some hosts can parse
    ],
)
def test_bound_names_are_exact(play, code, names):
    for kind in KINDS:
        (observation,) = play(kind, code)
        assert observation.last_step_globals == tuple(names.split())
        assert observation.active_globals == (tuple(names.split()) if kind == "persistent" else ())


def test_active_names_add_up_only_when_persistent(play):
    assert [o.active_globals for o in play("persistent", "x = 1", "y = 2", "1 / 0")] == [("x",), ("x", "y"), ("x", "y")]
    assert [o.last_step_globals for o in play("stateless", "x = 1", "y = 2")] == [("x",), ("y",)]


@pytest.mark.parametrize(
    "shadow",
    ["print = 5", "NameError = BaseException = 5", "__names = [1]", "step = 5", "locals = 5", "repr = str = 5"],
)
def test_rebound_builtins_do_not_disturb_the_runtime(play, shadow):
    _, second, third = play("persistent", "x = 1", shadow, "x")
    assert second.error is None and third.output == "1\n" and "x" in third.active_globals


def test_rebound_name_is_the_code_s_own(play):
    _, value, call = play("persistent", "step = 5\n__names = [7]", "print(step, __names)", "step()")
    assert value.output == "5 [7]\n" and call.error_type == "TypeError" and call.tool_calls == ()
    assert play("stateless", "step = 5", "print(step())")[1].output == "1\n"  # the tool is there again


def test_lying_locals_prints_nothing_and_invents_no_name(play, capfd):
    lie = "def locals():\n    print('from the probe')\n    return ['invented']"
    names = play("persistent", "x = 1", lie)[1].active_globals
    assert "x" in names and "invented" not in names
    assert "probe" not in capfd.readouterr().out


def test_two_runtimes_of_a_pool_do_not_see_each_other(pool):
    with Runtime("persistent", {}, pool=pool) as first, Runtime("persistent", {}, pool=pool) as second:
        first.run("secret = 1")
        assert second.run("print(secret)").error == "NameError: name 'secret' is not defined"
        assert first.run("print(secret)").output == "1\n"
    with Runtime("persistent", {}, pool=pool) as third:
        assert third.run("print(secret)").name_error


# The tool-call cap and errors


@pytest.mark.parametrize("kind", KINDS)
def test_cap_stops_the_call_after_the_last_allowed_one(play, kind):
    full, over = play(kind, "for i in range(25):\n    step()", "for i in range(26):\n    print(step())")
    assert (full.cap_hit, full.error, len(full.tool_calls)) == (False, None, 25)
    assert (over.cap_hit, over.error_source, len(over.tool_calls)) == (True, "cap", 25)
    assert over.error == "RuntimeError: tool call limit exceeded: at most 25 tool calls per turn"
    assert over.output.splitlines() == [str(n) for n in range(26, 51)]  # what was printed before it is kept


def test_caught_cap_error_allows_no_further_call(play):
    counter = Counter()
    code = "for i in range(90):\n    try:\n        step()\n    except RuntimeError:\n        pass\nprint('on')"
    (observation,) = play("persistent", code, tools=counter.tools)
    assert (counter.count, observation.cap_hit, observation.error, observation.output) == (25, True, None, "on\n")


def test_cap_counts_every_turn_anew_and_refusals_too(play):
    code = "for i in range(3):\n    try:\n        refuse()\n    except PermissionError:\n        pass"
    first, second = play("persistent", code, code, max_tool_calls=3)
    assert not first.cap_hit and not second.cap_hit and first.tool_calls == ("refuse",) * 3


def test_error_source_tells_tool_from_code(play):
    tool, code, wrapped = play("stateless", "refuse('no')", "{}['k']", "try:\n    refuse()\nfinally:\n    1 / 0")
    assert (tool.error, tool.error_source) == ("PermissionError: no", "tool")
    assert (code.error_type, code.error_source) == ("KeyError", "code")
    assert (wrapped.error_type, wrapped.error_source) == ("ZeroDivisionError", "code")


@pytest.mark.parametrize("kind", KINDS)
def test_output_before_an_error_is_kept(play, kind):
    (observation,) = play(kind, "print('found 3')\nraise ValueError('then this')")
    assert (observation.output, observation.error) == ("found 3\n", "ValueError: then this")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = (", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt('now')", "KeyboardInterrupt: now"),
        ("raise TimeoutError('mine')", "TimeoutError: mine"),
        ("def f():\n    return f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_error_ends_the_block_and_nothing_else(play, code, error):
    _, broken, after = play("persistent", "x = 1", code, "print(x)")
    assert broken.error.startswith(error) and after.output == "1\n"


def test_last_expression_is_shown_like_in_an_interactive_session(play):
    assert [o.output for o in play("persistent", "x = [1, 'a']\nx", "None", "x = 2")] == ["[1, 'a']\n", "", ""]


# Limits


@pytest.mark.parametrize("kind", KINDS)
def test_time_limit_stops_the_block_and_says_so(play, kind):
    start = time.monotonic()
    _, endless, after, unknown = play(
        kind, "x = 1", "print('started')\nwhile True:\n    pass", "print(x)", "print(y)", time_limit=0.3
    )
    assert time.monotonic() - start < 10
    assert endless.output == "started\n" and endless.error.startswith("TimeoutError: more than 0.3 s")
    assert endless.active_globals == () and after.missing_binding and not unknown.missing_binding


def test_endless_caught_refusals_are_stopped(play):
    """Time at the host is not the block's time: without a bound of its own this loop would run for minutes."""
    start = time.monotonic()
    (observation,) = play("persistent", "while True:\n    try:\n        step()\n    except RuntimeError:\n        pass")
    assert observation.error.startswith("TimeoutError: more than 1,025 tool calls tried")
    assert len(observation.tool_calls) == 25 and observation.cap_hit
    assert time.monotonic() - start < 60


def test_long_output_is_cut_and_says_so(play):
    long, after = play("persistent", "for i in range(50_000):\n    print('x' * 99)\nx = 1", "print(x)")
    assert len(long.output) < 21_000 and long.output.endswith("[output cut at 20000 characters]\n")
    assert long.error is None and after.output == "1\n"  # the block itself goes on
    exact, error = play("persistent", "print('x' * 9)", "raise ValueError('x' * 1_000_000)", output_limit=10)
    assert exact.output == "x" * 9 + "\n"
    assert error.error_type == "ValueError" and len(error.error) < 100


@pytest.mark.parametrize("item", ["'a' * 1000", "[0] * 99"])
def test_memory_limit_is_an_error_of_the_block(play, item):
    full, after = play("persistent", f"x = []\nwhile True:\n    x.append({item})", "print(1)")
    assert full.error_type in ("MemoryError", "TimeoutError") and full.error_source == "code"
    assert after.output == "1\n"


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_network_process_or_environment_is_reachable(play, kind):
    codes = ["open('/etc/passwd')", "import os\nos.environ['PATH']", "import os\nos.fork()"]
    codes += ["import socket\nsocket.socket()", "import subprocess\nsubprocess.run('ls')"]
    assert [bool(o.error) for o in play(kind, *codes)] == [True] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_same_blocks_do_the_same_again(play, kind):
    """Random numbers and the order of sets as well: a recorded episode can be replayed."""
    code = "import random\nprint(random.random(), {'b', 'a', 'c'}, hash('a'))"
    once, again = play(kind, code, code), play(kind, code, code)
    assert once == again
    assert once[0].output != once[1].output  # turns differ from each other nevertheless


def test_clock_of_the_default_engine_stands_still():
    code = "import time\nstart = time.time()\ntime.sleep(9)\nprint(time.time() - start)"
    with Runtime("persistent", {}) as runtime:
        assert runtime.run(code).output == "0.0\n"


# Hostile blocks: see also test_hostile.py


STATEMENTS = ["step(", "x", "x = y + 1", "def f(x):\n    return x + y\nprint(f(1))", "refuse('so')", "print(1 // 0)"]


@given(code=st.text(st.characters(), max_size=30) | st.lists(st.sampled_from(STATEMENTS), max_size=3).map("\n".join))
@settings(max_examples=60, deadline=None)
def test_any_text_is_observed(pool, code):
    with Runtime("persistent", Counter().tools, pool=pool) as runtime:
        assert isinstance(runtime.run(code).output, str)
        assert runtime.run("print('fine')").output == "fine\n"


# Set-up


def test_unknown_kind_and_cap_below_one_are_refused():
    with pytest.raises(ValueError, match=r"'forgetful'.*'persistent', 'stateless'"):
        Runtime("forgetful", {})
    with pytest.raises(ValueError, match="max_tool_calls = 0: needs at least 1"):
        Runtime("stateless", {}, max_tool_calls=0)


def test_more_open_episodes_than_workers_fail_soon_with_the_remedy():
    with interpreter_pool(1, checkout_timeout=0.3) as single:
        with Runtime("persistent", {}, pool=single) as first, Runtime("persistent", {}, pool=single) as second:
            first.run("x = 1")
            start = time.monotonic()
            with pytest.raises(InterpreterError, match="at most as many episodes as the pool has workers"):
                second.run("x = 1")
            assert time.monotonic() - start < 10
            assert first.run("print(x)").output == "1\n"
        with Runtime("persistent", {}, pool=single) as third:  # the worker is free again
            assert third.run("print(1)").output == "1\n"


def test_stateless_episodes_share_one_worker():
    with interpreter_pool(1, checkout_timeout=0.3) as single:
        with Runtime("stateless", {}, pool=single) as first, Runtime("stateless", {}, pool=single) as second:
            assert [r.run("print(1)").output for r in (first, second, first)] == ["1\n"] * 3


def test_runtime_of_its_own_plays_with_the_environment():
    task = sample_task(7, preset("easy"))
    environment = KnapsackEnvironment(task)
    with Runtime("stateless", environment.tools, max_tool_calls=25) as runtime:
        assert runtime.run("import json\nprint(len(json.loads(list_items())))").output == f"{len(task.items)}\n"
        refused = runtime.run("take_item('item_nowhere')")
        assert refused.error == "ValueError: unknown item id: item_nowhere" and refused.error_source == "tool"
        runtime.run("finish()")
    assert environment.finished

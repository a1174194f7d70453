"""The engines behind the runtime: where they start, what they refuse, how they end."""

import os
import signal
import threading
import time

import psutil
import pytest

from knapsack.runtime import Runtime
from knapsack.sandbox import ENGINES, InterpreterError, interpreter_pool
from knapsack.sandbox.cpython import in_container

CPYTHON = "cpython-outside-container"
LOCAL = ("monty", CPYTHON)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}


def test_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine 'pypy': needs one of"):
        Runtime("stateless", {}, engine="pypy")
    assert len(ENGINES) == 3


@pytest.mark.parametrize(
    ("file", "text", "inside"),
    [(mark, "", True) for mark in (".dockerenv", "run/.containerenv", "run/systemd/container")]
    + [("proc/1/cgroup", "0::/kubepods/besteffort/pod1\n", True), ("proc/1/cgroup", "0::/user.slice/session\n", False)],
)
def test_container_is_recognised_by_its_marks_and_its_control_group(tmp_path, file, text, inside):
    assert not in_container(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert in_container(tmp_path) is inside


def test_cpython_starts_outside_a_container_only_when_told_so(monkeypatch):
    monkeypatch.setattr("knapsack.sandbox.cpython.in_container", lambda: False)
    with pytest.raises(RuntimeError, match=r"no container around it.*cpython-outside-container"):
        interpreter_pool(engine="cpython")
    interpreter_pool(engine=CPYTHON)
    monkeypatch.setattr("knapsack.sandbox.cpython.in_container", lambda: True)
    interpreter_pool(engine="cpython")


@pytest.mark.parametrize("engine", LOCAL)
def test_no_process_outlives_its_runtime(engine):
    before = children()
    with Runtime("persistent", {}, engine=engine, time_limit=0.3) as runtime:
        runtime.run("x = 1")
        assert len(children() - before) == 1
        runtime.run("while True:\n    pass")
    assert children() - before == set()


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize(("delay", "code"), [(0.3, "while True:\n    pass"), (0, "print(x)")], ids=["in", "between"])
def test_kill_from_outside_is_not_the_model_s_doing(engine, delay, code):
    """Within a turn and between two."""
    before = children()
    with Runtime("persistent", {}, engine=engine) as runtime:
        runtime.run("x = 1")
        (victim,) = children() - before
        timer = threading.Timer(delay, os.kill, (victim, signal.SIGKILL))
        timer.start()
        time.sleep(0.2 - min(delay, 0.2))
        with pytest.raises(InterpreterError, match="killed from outside"):
            runtime.run(code)
        timer.join()


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import signal\nsignal.alarm(1)\nwhile True:\n    pass",
        "import os\nos.closerange(3, 4096)",
    ],
)
def test_cpython_block_that_ends_its_own_process_is_observed(code):
    with Runtime("persistent", {}, engine=CPYTHON) as runtime:
        runtime.run("x = 1")
        ended = runtime.run(code)
        assert ended.error.startswith("RuntimeError: the block ended its interpreter") and ended.error_source == "code"
        assert runtime.run("print(x)").missing_binding


def test_cpython_child_holds_no_environment_and_no_rights(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    code = "import os, resource\nprint(sorted(os.environ), os.getuid(), resource.getrlimit(resource.RLIMIT_NPROC))"
    with Runtime("persistent", {}, engine=CPYTHON) as runtime:
        shown = runtime.run(code).output
        assert "SECRET_KEY" not in shown and shown.endswith(" (0, 0)\n") and "] 0 " not in shown
        whole = runtime.run("import sys\nprint(any('KnapsackEnvironment' in str(m) for m in sys.modules))").output
        assert whole == "False\n"


def test_cpython_has_the_whole_language():
    code = "import heapq, dataclasses\ndef f():\n    yield from heapq.nsmallest(2, [3, 1, 2])\nx = 1\ndel x\nlist(f())"
    with Runtime("persistent", {}, engine=CPYTHON) as runtime:
        assert runtime.run(code).output == "[1, 2]\n"


def test_cpython_value_that_no_message_carries_reaches_the_tool_as_none():
    seen = []
    with Runtime("persistent", {"note": lambda *a, **k: seen.append((a, k))}, engine=CPYTHON) as runtime:
        observation = runtime.run("note({1}, x=print)\nnote('a' * 2_000_000)\nnote((1, 'b'), y=2.5)")
    assert observation.error is None and observation.tool_calls == ("note",) * 3
    assert seen == [((None,), {"x": None}), ((None,), {}), (([1, "b"],), {"y": 2.5})]


def test_cpython_leaves_the_working_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Runtime("persistent", {}, engine=CPYTHON) as runtime:
        assert runtime.run("import os\nprint(os.getcwd())").output == "/\n"
    assert list(tmp_path.iterdir()) == []

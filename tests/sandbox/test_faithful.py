"""The default engine does what CPython does, but for the known differences; engine "cpython" does it throughout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import corpus
import pytest
from corpus import BLOCKS, DIFFERENT, Play
from known_differences import DIFFERENCES
from places import CHECKOUT

from knapsack import agent
from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import Runtime, interpreter_pool
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import preset, sample_task
from knapsack.teacher import RuleTeacher

CPYTHON = "cpython-outside-container"
# What plain CPython does and engine "cpython" does not: packages, files, exit and input; and modules that it cannot
# load where others may not read the library of Python.
SEALED = {"library: numpy", "language: conditional import", "language: opening a file", "language: input"}
SEALED |= {"errors: exit function", "language: async function", "library: paths", "library: base64"}

Outcome = tuple[str, str | None, str | None, int]  # output, type and text of the error, number of tool calls


def single(code: str) -> Play:
    return Play("", corpus.TASK, "persistent", (code,))


def plainly(plays: list[Play], folder: Path) -> list[list[Outcome]]:
    """What CPython does with the blocks of each play, in a child process that ends after it."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "0"}
    written = json.dumps([(play.task.to_json(), play.kind, play.blocks) for play in plays])
    command = [sys.executable, str(corpus.HERE / "plain_python.py")]
    child = subprocess.run(
        command, input=written, capture_output=True, text=True, check=True, cwd=folder, env=environment
    )
    return [[tuple(outcome) for outcome in outcomes] for outcomes in json.loads(child.stdout)]


def sandboxed(play: Play, pool: InterpreterPool) -> list[Outcome]:
    with Runtime(play.kind, KnapsackEnvironment(play.task).tools, pool=pool) as runtime:
        seen = [runtime.run(code) for code in play.blocks]
    return [(one.output, one.error_type, one.error_text or None, len(one.tool_calls)) for one in seen]


def but_for_the_text(outcomes: list[Outcome]) -> list[tuple]:
    return [(output, error_type, calls) for output, error_type, _, calls in outcomes]


def as_shown(outcome: Outcome) -> str:
    output, error_type, text, _ = outcome
    return output + (f"{error_type}: {text}" if text else error_type or "")


@pytest.fixture(scope="module")
def monty():
    with interpreter_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def cpython():
    with interpreter_pool(engine=CPYTHON) as pool:
        yield pool


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Name of a block of the corpus to what CPython does with it."""
    outcomes = plainly([single(code) for code in BLOCKS.values()], tmp_path_factory.mktemp("plain"))
    return {name: outcome for name, (outcome,) in zip(BLOCKS, outcomes, strict=True)}


@pytest.fixture(scope="module")
def sealed(monty):
    """Name of a block of the corpus to what the default engine does with it."""
    return {name: sandboxed(single(code), monty)[0] for name, code in BLOCKS.items()}


def test_corpus_is_large_enough_to_mean_something(plain):
    assert len(BLOCKS) >= 300 and len({outcome[1] for outcome in plain.values()}) >= 20
    assert sum(outcome[3] > 0 for outcome in plain.values()) >= 90  # that many use the tools


def test_blocks_differ_from_cpython_only_where_it_is_known(plain, sealed):
    """Same output, type of error and tool calls; a block that no longer differs must lose its mark."""
    differ = {name for name in BLOCKS if but_for_the_text([plain[name]]) != but_for_the_text([sealed[name]])}
    assert differ == DIFFERENT.keys()
    assert all(any(reason in construct for construct in DIFFERENCES) for reason in DIFFERENT.values())


def test_text_of_a_name_error_is_that_of_cpython(plain, sealed):
    undefined = [name for name in BLOCKS.keys() - DIFFERENT.keys() if plain[name][1] == "NameError"]
    assert len(undefined) >= 10
    assert {name: sealed[name][2] for name in undefined} == {name: plain[name][2] for name in undefined}


def test_known_differences_are_exactly_these(monty, tmp_path):
    shown = [one for blocks in DIFFERENCES.values() for one in blocks]
    plays = [single(block) for block, _, _ in shown]
    cpython = [as_shown(outcome) for (outcome,) in plainly(plays, tmp_path)]
    sandbox = [as_shown(sandboxed(play, monty)[0]) for play in plays]
    assert shown == list(zip((block for block, _, _ in shown), cpython, sandbox, strict=True))
    assert all(one != other for one, other in zip(cpython, sandbox, strict=True))


def test_plays_of_teacher_and_published_agent_do_the_same_in_every_turn(monty, cpython, tmp_path):
    plays = corpus.taught(monty) + corpus.published()
    assert sum(len(play.blocks) for play in plays) >= 30
    reference = plainly(plays, tmp_path)
    for play, expected in zip(plays, reference, strict=True):
        assert but_for_the_text(sandboxed(play, monty)) == but_for_the_text(expected), play.name
    for play, expected in zip(plays, reference, strict=True):
        if play.kind == "persistent":  # one process each; whole stateless episodes are compared below
            assert but_for_the_text(sandboxed(play, cpython)) == but_for_the_text(expected), play.name


def test_engine_cpython_is_cpython(plain, cpython):
    """With the texts of the errors. A sample, since each block starts a process."""
    names = sorted(set(BLOCKS) - SEALED)[::20]
    assert {name: sandboxed(single(BLOCKS[name]), cpython)[0] for name in names} == {n: plain[n] for n in names}


@pytest.mark.parametrize("kind", ["persistent", "stateless"])
def test_whole_episodes_are_equal_in_both_engines(monty, cpython, kind):
    for seed in range(5):
        task = sample_task(seed, preset("easy"))
        played = [
            agent.run_alone(agent.episode(task, kind, agent.EpisodeSettings(), pool), RuleTeacher(task, kind, seed))
            for pool in (monty, cpython)
        ]
        assert played[0] == played[1]
        assert played[0].score > 0 and len(played[0].turns) > 1


def test_page_on_the_interpreters_lists_these_differences():
    page = (CHECKOUT / "knapsack" / "sandbox" / "README.md").read_text(encoding="utf-8")
    rows = page.partition("| construct | in `monty` |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(DIFFERENCES)

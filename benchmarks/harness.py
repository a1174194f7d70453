"""How fast the harness is when the model costs nothing: episodes, turns, tool calls and fresh sessions per second.

    python benchmarks/harness.py [--episodes 200] [--processes 2]

An instant scripted model inspects what the budget and the cap allow, takes by value per weight, and finishes; in the
stateless runtime it writes its records into every block again. All is real but the model: prompts, sandbox, tools,
scores. The rows "plain exec" run the same blocks in the harness's own process, unprotected, as a measure of the
machine. Prints Markdown; see harness.md for runs.
"""

import argparse
import io
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from statistics import median

from knapsack.agent import EpisodeSettings, Reply, episode, run_alone
from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import KINDS, Kind, Runtime, interpreter_pool
from knapsack.sandbox import Outcome
from knapsack.tasks import KnapsackConfig, sample_split, sample_task

ENGINES = ("monty", "cpython-outside-container")
PLAIN = "plain exec"
ROUNDS = 5
LOOK = """for i in [i for i in json.loads(list_items()) if i not in seen][:min(24, {budget} - len(seen))]:
    record = json.loads(inspect(i))
    seen[i] = [record["value"], record["weight"]]
"""
TAKE = """left, tries = {capacity}, 20
for i in sorted(seen, key=lambda i: -seen[i][0] / seen[i][1]):
    if tries and seen[i][1] <= left:
        tries -= 1
        try:
            take_item(i)
            left -= seen[i][1]
        except PermissionError:
            pass
finish()
"""


class PlainPool:
    """Blocks of this program alone, run by ``exec`` right here: what the harness costs without any protection."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def open(self, tools, time_limit, seed):
        self.tools, self.names = tools, dict(tools)
        return self

    def run(self, code, show, max_calls):
        text = io.StringIO()
        with redirect_stdout(text):
            exec(code, self.names)
        show(text.getvalue())
        return Outcome(None, None, frozenset(self.names) - {"__builtins__"})

    def close(self):
        pass


def pool_of(engine: str):
    return PlainPool() if engine == PLAIN else interpreter_pool(1, engine=engine)


def player(task, kind: Kind):
    """A function from conversation to Reply: two turns of inspecting (easy tasks need no third), one of taking."""

    def reply(messages):
        turn = len(messages) // 2 - 1
        last = json.loads(messages[-1]["content"])["output"].strip() if turn else "{}"
        state = f"import json\nseen = {last}\n" if kind == "stateless" or turn == 0 else ""
        body = LOOK.format(budget=task.inspect_budget) if turn < 2 else TAKE.format(capacity=task.capacity)
        code = state + body + ("print(json.dumps(seen))\n" if turn < 2 else "")
        return Reply(f"```python\n{code}```", 0, 0)

    return reply


def play(engine: str, kind: Kind, first: int, count: int) -> tuple[float, int, int, float]:
    """Seconds, turns, tool calls and mean score of ``count`` easy episodes in this process."""
    tasks = list(sample_split("easy", first + count, 0, KnapsackConfig.easy()))[first:]
    turns = calls = 0
    score = 0.0
    with pool_of(engine) as pool:
        run_alone(episode(tasks[0], kind, EpisodeSettings(), pool), player(tasks[0], kind))  # starts the worker
        began = time.perf_counter()
        for task in tasks:
            done = run_alone(episode(task, kind, EpisodeSettings(), pool), player(task, kind))
            if done.finish_reason != "finish_tool":
                raise RuntimeError(f"the scripted model did not finish: {done.turns[-1].observation}")
            turns += len(done.turns)
            calls += sum(len(turn.observation.tool_calls) for turn in done.turns)
            score += done.score
        return time.perf_counter() - began, turns, calls, score / count


def together(engine: str, kind: Kind, episodes: int, processes: int) -> list[str]:
    """A row: all processes at once, each with its share of the episodes; median and range of ROUNDS rounds."""
    share, rates = max(1, episodes // processes), []
    with ProcessPoolExecutor(processes, get_context("spawn")) as executor:
        for _ in range(ROUNDS):
            jobs = [executor.submit(play, engine, kind, number * share, share) for number in range(processes)]
            parts = [job.result() for job in jobs]
            seconds = max(part[0] for part in parts)
            rates.append([n / seconds for n in (processes * share, *(sum(part[k] for part in parts) for k in (1, 2)))])
    middle = [f"{median(column):,.0f}" for column in zip(*rates, strict=True)]
    spread = f"{min(rates)[0]:,.0f}–{max(rates)[0]:,.0f}"
    score = sum(part[3] for part in parts) / processes
    return [engine, kind, str(processes), middle[0], spread, *middle[1:], f"{score:.2f}"]


def sessions(engine: str, count: int) -> list[str]:
    """Fresh sessions a second in one process, and turns a second within a live one."""
    rates = []
    with pool_of(engine) as pool:
        for kind in ("stateless", "persistent"):
            with Runtime(kind, {}, pool=pool) as runtime:
                runtime.run("x = 1")
                began = time.perf_counter()
                for _ in range(count):
                    runtime.run("x = 1")
                rates.append(f"{count / (time.perf_counter() - began):,.0f}")
    return [engine, *rates]


def tool_calls(engine: str, items: int, count: int) -> list[str]:
    """Microseconds a call of ``inspect`` (of one item) and of ``list_items`` on a task of ``items`` items."""
    config = KnapsackConfig((items, items), (5, 50), (10, 500), 26, 5, (0.4, 0.6))
    task = sample_task(1, config)
    costs = []
    with pool_of(engine) as pool:
        for call in (f"inspect({next(iter(task.items))!r})", "list_items()"):
            with Runtime("persistent", KnapsackEnvironment(task).tools, max_tool_calls=count, pool=pool) as runtime:
                spent = []
                runtime.run("pass")  # starts the interpreter
                for code in ("pass", call):
                    began = time.perf_counter()
                    observation = runtime.run(f"for _ in range({count}):\n    {code}")
                    spent.append(time.perf_counter() - began)
                if observation.error:
                    raise RuntimeError(observation.error)
            costs.append(f"{1e6 * (spent[1] - spent[0]) / count:,.0f}")
    return [engine, str(items), *costs]


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.split("|")
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200, help="a round; engine cpython plays a tenth of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.processes} processes.\n")
    rows = []
    for engine in (*ENGINES, PLAIN):
        episodes = options.episodes if engine != ENGINES[1] else max(options.processes, options.episodes // 10)
        for kind in KINDS:
            for processes in sorted({1, options.processes}):
                rows.append(together(engine, kind, episodes, processes))
    print(table("engine|runtime|processes|episodes/s|range|turns/s|tool calls/s|mean score", rows))
    rows = [sessions("monty", 500), sessions(ENGINES[1], 40)]
    print(table("engine|fresh sessions/s (stateless turns)|turns/s in a live session (persistent)", rows))
    rows = [tool_calls(engine, items, 1000) for engine in ENGINES for items in (30, 120, 480)]
    print(table("engine|items|inspect, µs a call|list_items, µs a call", rows))


if __name__ == "__main__":
    main()

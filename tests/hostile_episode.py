"""Plays a row of the hostile table as an episode and lists what it broke, whatever harness executes the blocks.

A harness holds if the host is as it was (files, environment variables, processes, threads, modules, memory, time),
the agent sees a bounded text that hides what was not inspected, the score is earned, and the next block, the
neighbour and the next runtime go on.
"""

import builtins
import json
import os
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path

import psutil
from hostile import Row

from knapsack import prompts, runtime
from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import InterpreterError, Observation, Runtime
from knapsack.tasks import Item, Task

CAP = 25
TIME_LIMIT = 0.5  # seconds a block
LONG_LIMIT = 5.0  # where a shorter one would hide what a block does to the memory
BLOCK_TIME = 10.0  # seconds that a block may take at the host, everything included, on a busy machine
HOST_MEMORY = 256 * 2**20  # bytes by which the host may grow
TEXT_LIMIT = 21_000  # characters of output, and of an error: 20,000 and a remark
SECRET = ("HARNESS_TOKEN", "token-5f1d0b7c")
CANARIES = {"canary.txt": "canary-91ac", "canary/kept.txt": "canary-77de"}
BUDGET = 6


@dataclass(frozen=True)
class Harness:
    """``open(kind, environment, time_limit)``: a context manager with ``run(code) -> Observation``; ``message``: the
    text that the agent reads, and ``read``: output and error as a reader finds them in it."""

    open: Callable[[str, KnapsackEnvironment, float], AbstractContextManager]
    message: Callable[[Observation, str], str]
    read: Callable[[str], tuple[str, str | None]]


def sealed(pool) -> Harness:
    """This project's runtime with workers of ``pool``; two sessions are open at once."""

    def read(text: str) -> tuple[str, str | None]:
        content = json.loads(text)
        return content["output"], content["error"]

    return Harness(
        lambda kind, environment, time_limit: Runtime(kind, environment.tools, CAP, time_limit, pool=pool),
        lambda observation, kind: prompts.observation_message(observation, kind)["content"],
        read,
    )


@dataclass
class Played:
    """``violations``: what did not hold, in words; empty if all did. ``observations``: of the row's blocks."""

    violations: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)


def secret_task() -> Task:
    """14 items whose classes, weights and values are recognisable in any text; 6 may be inspected. A copy each time, so
    that no row's harm to it lasts."""
    return deepcopy(_secret_task())


@cache
def _secret_task() -> Task:
    source = random.Random(20)
    classes = tuple(f"class-{source.getrandbits(40):010x}" for _ in range(5))
    allowed = classes[:3]
    items = {
        f"item_{source.getrandbits(48):012x}": Item(
            weight=source.randint(10**12, 10**13), value=source.randint(10**12, 10**13), item_class=classes[n % 5]
        )
        for n in range(14)
    }
    items = dict(sorted(items.items()))
    wanted = [i for i in items if items[i].item_class in allowed]
    capacity = sum(items[i].weight for i in wanted) * 2 // 5
    sets = [s for size in range(len(wanted) + 1) for s in combinations(wanted, size)]
    sums = {s: (sum(items[i].value for i in s), sum(items[i].weight for i in s)) for s in sets}
    best = max((s for s in sets if sums[s][1] <= capacity), key=lambda s: sums[s][0])
    return Task("secret", 20, items, capacity, allowed, BUDGET, classes, best, *sums[best])


class RecordedEnvironment(KnapsackEnvironment):
    """Notes every tool call outside of itself: (block, tool, id as it really was or None, whether it succeeded)."""

    def __init__(self, task: Task, calls: list[tuple]):
        super().__init__(task)
        self._note = lambda tool, item_id, done: calls.append((self.block, tool, item_id, done))
        self.block = 0

    def list_items(self):
        self._note("list_items", None, True)
        return super().list_items()

    def inspect(self, item_id):
        return self._noted("inspect", item_id)

    def take_item(self, item_id):
        return self._noted("take_item", item_id)

    def _noted(self, tool, item_id):
        plain = str.__str__(item_id)[:40] if issubclass(type(item_id), str) else None
        try:
            result = getattr(super(), tool)(item_id)
        except BaseException:
            self._note(tool, plain, False)
            raise
        self._note(tool, plain, True)
        return result

    def finish(self):
        self._note("finish", None, True)
        super().finish()


def lay_canaries(folder: Path) -> None:
    for name, text in CANARIES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def changed_files(folder: Path) -> list[str]:
    """Names below ``folder`` that are not as ``lay_canaries`` left them."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    expected = {*CANARIES, *(str(Path(name).parent) for name in CANARIES if "/" in name)}
    wrong = {name for name, path in found.items() if name not in expected or path.is_symlink()}
    for name, text in CANARIES.items():
        if name not in found or found[name].read_text() != text or found[name].stat().st_mode & 0o111:
            wrong.add(name)
    return sorted(wrong)


def _peak() -> int:
    """Most bytes the host has held; on Linux since ``_reset_peak``, elsewhere since it started."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGVTALRM)
OWNERS = (builtins, json, sys, os, time, KnapsackEnvironment, RecordedEnvironment, Runtime, runtime, Task)


def _state() -> dict[str, object]:
    """What the host is, part by part, each comparable with ``==``."""
    lasting = {
        f"{owner.__name__}.{name}": id(value)
        for owner in OWNERS
        for name, value in list(vars(owner).items())
        if name not in ("_", "__warningregistry__", "last_exc", "last_value", "last_type", "last_traceback")
    }
    return lasting | {
        "environment variables": dict(os.environ),
        "working folder": os.getcwd(),
        "signal handlers": [signal.getsignal(number) for number in SIGNALS],
        "timers": [signal.getitimer(which)[1] for which in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]
        + [signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0],
        "threads": len(threading.enumerate()),
        "sys settings": (sys.getrecursionlimit(), sys.gettrace(), list(sys.path), list(sys.meta_path)),
        "random numbers": random.getstate(),
    }


def _processes() -> tuple[dict[tuple[str, ...], int], int]:
    """Command lines of the host's children with their number, and how many processes these have started."""
    commands: dict[tuple[str, ...], int] = {}
    below = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.ppid() != os.getpid():
                below += 1
                continue
            try:
                command = tuple(process.cmdline())
            except psutil.ZombieProcess:
                command = ("zombie",)
            commands[command] = commands.get(command, 0) + 1
    return commands, below


def planted(ids: list[int], tokenizer, messages: int) -> bool:
    """Whether ``ids``, a conversation of so many ended messages, hold a control token that its structure does not."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    others = set(tokenizer.added_tokens_decoder) - {start, end}
    return ids.count(start) != messages or ids.count(end) != messages or not others.isdisjoint(ids)


def play(row: Row, kind: str, harness: Harness, port: int) -> Played:
    """Play ``row`` in the working folder, where ``lay_canaries`` was called and which nothing else uses.

    May not return: a harness that does not hold may end or hang this process.
    """
    played, folder = Played(), Path.cwd()
    try:
        _play(played, row, kind, harness, port)
    except InterpreterError as error:  # stops a whole run: never the doing of a block
        played.violations.append(f"the run stops: {error}")
    played.violations += [f"files: {name} changed" for name in changed_files(folder)]
    return played


def _play(played: Played, row: Row, kind: str, harness: Harness, port: int) -> None:
    broken = played.violations.append
    calls: list[tuple] = []
    environment = RecordedEnvironment(secret_task(), calls)
    time_limit = LONG_LIMIT if row.kind == "memory" else TIME_LIMIT
    with harness.open("persistent", KnapsackEnvironment(secret_task()), LONG_LIMIT) as neighbour:
        neighbour.run("kept = 41")
        with harness.open(kind, environment, time_limit) as episode:
            episode.run("1 + 1")
            before, (commands, _) = _state(), _processes()
            _reset_peak()
            memory = _peak()
            for number, block in enumerate(row.blocks):
                environment.block = number
                started = time.monotonic()
                played.observations.append(episode.run(block.replace("PORT", str(port))))
                if time.monotonic() - started > BLOCK_TIME:
                    broken(f"time: block {number} took {time.monotonic() - started:.0f} s")
            if _peak() - memory > HOST_MEMORY:
                broken(f"memory: the host grew by {(_peak() - memory) / 2**20:.0f} MB")
            after, (now, below) = _state(), _processes()
            changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
            played.violations += [f"host changed: {name}" for name in sorted(changed)[:3]]
            if below or any(count > commands.get(command, 0) for command, count in now.items()):
                broken("processes: one was started")
            played.violations += _texts(row, kind, harness, played.observations, calls)
            played.violations += _score(environment, calls)
            if (error := episode.run("1 + 1").error) is not None:
                broken(f"next block: {error[:80]}")
        if neighbour.run("print(kept)").output != "41\n":
            broken("neighbour: lost its names")
        played.violations += _next_runtime(harness, kind, environment, calls)


def _texts(row: Row, kind: str, harness: Harness, observations: list[Observation], calls: list[tuple]) -> list[str]:
    """What the agent reads: bounded, clear, and without anything hidden."""
    wrong = []
    task = secret_task()
    touched = [task.items[i] for _, tool, i, _ in calls if i in task.items]
    shown = {str(x) for item in touched for x in (item.weight, item.value, item.item_class)}
    hidden = {str(x) for item in task.items.values() for x in (item.weight, item.value, item.item_class)}
    hidden |= {str(task.optimal_value), str(task.optimal_weight)}
    for observation in observations:
        text = observation.output + "\n" + (observation.error or "")
        if any(value in text for value in hidden - shown):
            wrong.append("hidden values shown")
        if any(canary in text for canary in CANARIES.values()):
            wrong.append("file read")
        if SECRET[1] in text:
            wrong.append("environment variable read")
        if any(place in text for place in (os.getcwd(), sys.prefix, str(Path(__file__).parent))):
            wrong.append("path of the host shown")
        if row.reached and re.search(row.reached, observation.output):
            wrong.append(f"reached: {row.name}")
        message = harness.message(observation, kind)
        if max(len(observation.output), len(observation.error or "")) > TEXT_LIMIT or len(message) > 8 * TEXT_LIMIT:
            wrong.append(f"text: {len(message):,} characters to read")
        written = (observation.output, observation.error)
        harmless = tuple(part and prompts.message("user", part)["content"] for part in written)
        if harness.read(message) not in (written, harmless):
            wrong.append("text: not read back as it was")
        if observation.error is not None and not re.match(r"[A-Za-z_][\w.]*(: |$)", observation.error):
            wrong.append(f"text: unclear error {observation.error[:40]!r}")
        try:
            message.encode("utf-8")
        except UnicodeEncodeError:
            wrong.append("text: does not fit a UTF-8 file")
    return wrong


def _score(environment: RecordedEnvironment, calls: list[tuple]) -> list[str]:
    """The score against its recomputation from the tool calls and an untouched copy of the task."""
    wrong, task = [], secret_task()
    taken = [i for _, tool, i, done in calls if tool == "take_item" and done]
    inspected = {i for _, tool, i, done in calls if tool == "inspect" and done}
    earned = {i for i in taken if i in inspected and task.items[i].item_class in task.allowed_classes}
    score = sum(task.items[i].value for i in earned) / task.optimal_value
    if environment.task != task:
        wrong.append("task changed")
    if environment.taken != taken or environment.inspected.keys() != inspected:
        wrong.append("state of the environment: not what the tool calls made")
    if environment.score > score or sum(task.items[i].weight for i in earned) > task.capacity:
        wrong.append(f"score: {environment.score:.2f}, earned {score:.2f}")
    if len(inspected) > BUDGET:
        wrong.append(f"budget: {len(inspected)} items inspected")
    per_block = {block: sum(call[0] == block for call in calls) for block, *_ in calls}
    if max(per_block.values(), default=0) > CAP:
        wrong.append(f"cap: {max(per_block.values())} tool calls in a block")
    return wrong


def _next_runtime(harness: Harness, kind: str, environment: RecordedEnvironment, calls: list[tuple]) -> list[str]:
    """Whether the tools still do their work, within cap and budget, in another runtime."""
    wrong, task = [], secret_task()
    with harness.open(kind, environment, LONG_LIMIT) as following:

        def run(name: str, code: str) -> Observation:
            environment.block = name
            return following.run(code)

        listed = run("listing", "import json\nprint(len(json.loads(list_items())), 'fine')")
        if listed.output != f"{len(task.items)} fine\n" or listed.error is not None:
            wrong.append(f"next runtime: {(listed.error or listed.output)[:80]}")
        over = run("cap", "for _ in range(90):\n    list_items()")
        if not over.cap_hit or sum(call[0] == "cap" for call in calls) != CAP:
            wrong.append("next runtime: the cap does not hold")
        look = "import json\nfor i in json.loads(list_items()):\n    try:\n        print(inspect(i))\n"
        seen = run("budget", look + "    except RuntimeError as error:\n        print(error)").output
        if f"inspect budget exceeded: {BUDGET} of {BUDGET}" not in seen or len(environment.inspected) != BUDGET:
            wrong.append("next runtime: the budget does not hold")
        elif any(str(task.items[i].value) not in seen for i in environment.inspected):
            wrong.append("next runtime: inspect shows something else")
        refused = run("refusal", "take_item('item_nowhere')").error or ""
        if not refused.startswith("ValueError: unknown item id"):
            wrong.append("next runtime: take_item does something else")
    return wrong

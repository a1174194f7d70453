"""The engine for code that needs the whole language: a CPython child process per session, limited but not sealed.

``child`` is its program and sets its limits; README.md says what they protect against and what not, and why a container
belongs around it. A block past its time limit is killed here, with its process group. The clock is real, so that a
block which reads it cannot be replayed exactly.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from knapsack.sandbox import InterpreterError, InterpreterPool, Outcome, child, no_interpreter

COMMAND = [sys.executable, *"-P -s -S -B -W ignore".split(), child.__file__]
START_TIMEOUT = 30.0  # seconds until a new child must be ready
MESSAGE_LIMIT = 2_000_000  # bytes the host accepts in one message
CONTAINER_MARKS = (".dockerenv", "run/.containerenv", "run/systemd/container", "var/run/secrets/kubernetes.io")


def in_container(root: str | Path = "/") -> bool:
    """Whether this system says of itself that it is a container (Docker, Podman, systemd-nspawn, Kubernetes, LXC)."""
    if any((Path(root) / mark).exists() for mark in CONTAINER_MARKS):
        return True
    try:
        groups = (Path(root) / "proc/1/cgroup").read_text()
    except OSError:
        return False
    return re.search(r"docker|kubepods|containerd|lxc|libpod", groups) is not None


class CPythonPool(InterpreterPool):
    """At most ``workers`` children at once; each serves one session and is not used again."""

    def __init__(self, workers: int, checkout_timeout: float, anywhere: bool):
        if not (anywhere or in_container()):
            raise RuntimeError(
                "engine 'cpython' runs model-written code in a process that is limited, not sealed, and there is no "
                "container around it here: start one, use engine 'monty', or say that you want it with engine "
                "'cpython-outside-container'"
            )
        self._free, self._timeout = threading.BoundedSemaphore(workers), checkout_timeout

    def open(self, tools: dict[str, Callable], time_limit: float, seed: int) -> "CPythonSession":
        if not self._free.acquire(timeout=self._timeout):
            raise no_interpreter(f"none of the pool became free within {self._timeout:g} s")
        try:
            session = CPythonSession(tools, time_limit, seed)
        except BaseException:
            self._free.release()
            raise
        session.closed.callback(self._free.release)
        return session


class CPythonSession:
    def __init__(self, tools: dict[str, Callable], time_limit: float, seed: int):
        self._tools, self._time_limit, self._blocks = tools, time_limit, 0
        self._socket, theirs = socket.socketpair()
        self._channel = child.Channel(self._socket, MESSAGE_LIMIT)
        self.closed = ExitStack()  # what is to be done once this session has ended
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno()), str(seed)],
                    env={"PYTHONHASHSEED": "0"},  # the order of a set is the same in every run
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL),
                )
        except OSError as error:
            self._socket.close()
            raise no_interpreter(error) from error
        try:
            deadline = time.monotonic() + START_TIMEOUT
            self._channel.receive(deadline)  # that it is ready
            self._channel.send({"tools": list(tools)}, deadline)
        except (OSError, ValueError) as error:
            self.close()
            raise no_interpreter(error) from error

    def close(self) -> None:
        self._socket.close()
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()
        self._process.wait()
        self.closed.close()

    def run(self, code: str, show: Callable[[str], None], max_calls: int) -> Outcome:
        self._blocks += 1
        calls, deadline = 0, time.monotonic() + self._time_limit
        try:
            self._channel.send({"block": self._blocks, "code": code}, deadline)
            while True:
                message = self._channel.receive(deadline)
                if message.get("block") != self._blocks:
                    continue  # left over from an earlier block
                if "show" in message:
                    show(_text(message["show"]))
                elif "call" in message:
                    calls += 1
                    if calls > max_calls:
                        return self._lost("TimeoutError", f"more than {max_calls:,} tool calls tried")
                    began = time.monotonic()
                    answer = self._call(*message["call"])
                    deadline += time.monotonic() - began  # the host's time is not the block's
                    self._channel.send(answer, deadline)
                else:
                    kind, text, names = message["done"]
                    kind, text = (None, None) if kind is None else (_text(kind)[:200], _text(text))
                    return Outcome(kind, text, frozenset(map(_text, names)))
        except TimeoutError:
            return self._lost("TimeoutError", f"more than {self._time_limit:g} s")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # The connection is gone, or what came is not what child.py sends: the block has ended its interpreter,
            # unless somebody else did, an operator or the kernel short of memory.
            self._socket.close()
            try:
                ended = self._process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                ended = None
            if ended == -signal.SIGKILL:
                self.close()
                raise InterpreterError("the interpreter was killed from outside (SIGKILL)") from None
            if ended == child.NO_MEMORY:
                return self._lost("MemoryError", "no memory left")
            return self._lost("RuntimeError", "the block ended its interpreter")

    def _lost(self, kind: str, text: str) -> Outcome:
        self.close()
        return Outcome(kind, text, None)

    def _call(self, name: str, arguments: list, keywords: dict) -> dict:
        try:
            return {"result": self._tools[name](*arguments, **keywords)}
        except Exception as error:
            built_in = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
            return {"error": [built_in.__name__, str(error)]}


def _text(value: object) -> str:
    """A string of the child's as one that fits every file: half a surrogate pair becomes a question mark."""
    if not isinstance(value, str):
        raise TypeError(f"a text is expected, not {type(value).__name__}")
    return value.encode("utf-8", "replace").decode("utf-8")

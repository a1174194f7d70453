"""For ``runtime``, which lets others execute a block: the engines, each a pool of sessions with one namespace each.

README.md compares them: "monty" (default), a sealed interpreter; "cpython", the whole language, limited and only within
a container, or with "cpython-outside-container" anywhere. Both call the tools in the host, one at a time.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Self

Engine = Literal["monty", "cpython", "cpython-outside-container"]
ENGINES: tuple[Engine, ...] = ("monty", "cpython", "cpython-outside-container")

UNSHOWN = "[the last value is too large or too strange to show; print what you need]"


class InterpreterError(RuntimeError):
    """No interpreter could be had, or it was killed from outside: not the model's doing, never scored."""


@dataclass(frozen=True)
class Outcome:
    """What a block did, as the engine saw it. ``names``: bound when it ended, None if the session is lost."""

    error_type: str | None
    error_text: str | None
    names: frozenset[str] | None


class Session(Protocol):
    """One namespace. ``close`` may be called twice."""

    def run(self, code: str, show: Callable[[str], None], max_calls: int) -> Outcome:
        """Run a block: printed text goes to ``show`` as it comes; more than ``max_calls`` tool calls end it.

        Never raises for what the code did; InterpreterError if the interpreter failed.
        """

    def close(self) -> None: ...


class InterpreterPool:
    """Use as a context manager; ``open`` raises InterpreterError if no interpreter can be had."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None: ...

    def open(self, tools: dict[str, Callable], time_limit: float, seed: int) -> Session:
        """A session with an empty namespace: ``time_limit`` in seconds a block, ``seed`` for its random numbers."""
        raise NotImplementedError


def interpreter_pool(workers: int = 1, checkout_timeout: float = 60.0, engine: Engine = "monty") -> InterpreterPool:
    """Interpreters to share between runtimes; use as a context manager.

    ``workers`` sessions can be open at once, which is as many persistent episodes; one more waits
    ``checkout_timeout`` seconds for a free one and then fails with InterpreterError. Raises ValueError for an unknown
    engine and RuntimeError for "cpython" outside a container.
    """
    if engine == "monty":
        from knapsack.sandbox.monty import MontyPool

        return MontyPool(workers, checkout_timeout)
    if engine in ENGINES:
        if not sys.platform.startswith("linux"):
            raise RuntimeError("engine 'cpython' relies on the limits that Linux sets; use engine 'monty'")
        from knapsack.sandbox.cpython import CPythonPool

        return CPythonPool(workers, checkout_timeout, anywhere=engine == "cpython-outside-container")
    raise ValueError(f"engine {engine!r}: needs one of {ENGINES}")


def no_interpreter(error: BaseException | str) -> InterpreterError:
    return InterpreterError(
        f"no interpreter could be started ({error}); open at most as many episodes as the pool has workers"
    )

"""The default engine: pydantic-monty, a Python interpreter in worker processes, without any access to the host.

Its clock stands still and its random numbers are seeded: what a block does depends on the code, the names bound
before and the tools, so that a recorded episode can be replayed.
"""

import ast
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Self

import pydantic_monty

from knapsack.sandbox import UNSHOWN, InterpreterError, InterpreterPool, Outcome, no_interpreter

# Bytes a session may take. A text that reaches the host can take five times as much here, if it has one wide character.
MEMORY_LIMIT = 48 * 1024 * 1024
RECURSION_LIMIT = 500
REQUEST_TIMEOUT = 20.0  # seconds after which a worker that does not even answer is killed
CLOCK = datetime(2026, 1, 1, tzinfo=UTC)

# Deaths that a block can cause; any other signal came from outside (an operator, the kernel short of memory).
_OUTSIDE_KILL = re.compile(r"\(signal: \d++(?! \((SIGSEGV|SIGABRT|SIGBUS|SIGILL|SIGFPE|SIGTRAP)\)\))")
_HINT = re.compile(r"(?<=is not defined)\. Did you .*", re.DOTALL)  # only the sandbox gives it: a cue for lost imports


class MontyPool(InterpreterPool):
    """Up to ``workers`` worker processes, each with one live session at a time."""

    def __init__(self, workers: int, checkout_timeout: float):
        if find_spec("opentelemetry") is None:  # else it is looked for on the disk in every turn, a fifth of the time
            sys.modules.setdefault("opentelemetry", None)
        waits = {"checkout_timeout": checkout_timeout, "request_timeout": REQUEST_TIMEOUT}
        self._monty = pydantic_monty.Monty(min_processes=1, max_processes=workers, **waits)

    def __enter__(self) -> Self:
        self._monty.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._monty.__exit__(*exception)

    def open(self, tools: dict[str, Callable], time_limit: float, seed: int) -> "MontySession":
        limits = {
            "max_feed_duration_secs": time_limit,
            "max_memory": MEMORY_LIMIT,
            "max_recursion_depth": RECURSION_LIMIT,
            "max_suspensions": 1_000_000,  # a session; refused calls must stay catchable
        }
        try:
            policy = {"datetime": CLOCK, "sleep": "zero", "random_start": {"seed": seed}}
            session = self._monty.checkout(limits=limits, os_policy=policy)
            session.__enter__()
        except (TimeoutError, RuntimeError, OSError, pydantic_monty.MontyError) as error:
            raise no_interpreter(error) from error
        return MontySession(session, tools, time_limit)


class MontySession:
    def __init__(self, session, tools: dict[str, Callable], time_limit: float):
        self._session, self._tools, self._time_limit = session, tools, time_limit
        self._names: frozenset[str] = frozenset()

    def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    def run(self, code: str, show: Callable[[str], None], max_calls: int) -> Outcome:
        error_type = error_text = None
        too_long = f"more than {self._time_limit:g} s"
        lost = False  # a session stopped half-way gives no guarantees about its heap
        try:
            step = self._session.feed_start(
                _echoing(code), external_lookup=self._tools, print_callback=lambda stream, text: show(text)
            )
            calls = 0
            while not isinstance(step, pydantic_monty.MontyComplete) and calls < max_calls:
                step = self._answered(step)
                calls += 1
            if not isinstance(step, pydantic_monty.MontyComplete):
                lost, error_type, error_text = True, "TimeoutError", f"more than {calls:,} tool calls tried"
            elif step.output is not None:
                show((step.output if isinstance(step.output, str) else UNSHOWN) + "\n")
        except pydantic_monty.MontyCrashedError as error:
            _refuse_outside_kill(error)
            lost, error_type = True, "TimeoutError" if error.timed_out else "MemoryError"
            error_text = too_long if error.timed_out else "the interpreter died"
        except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
            error_type, _, error_text = error.display("type-msg").partition(": ")
            error_type = error_type.rpartition(".")[2]  # json.JSONDecodeError: a type's own name, as everywhere
            error_text = _HINT.sub("", error_text)
            if error_type == "KeyError" and error_text:
                error_text = repr(error_text)  # as CPython shows a key; here every key has become a text
            if error_text.startswith("feed time limit"):
                lost, error_type, error_text = True, "TimeoutError", too_long
        except pydantic_monty.MontyError as error:
            error_type, error_text = type(error).__name__, str(error)
        except (TypeError, ValueError):  # a value that has no counterpart on this side
            show(UNSHOWN + "\n")
        except (TimeoutError, RuntimeError, OSError) as error:
            raise InterpreterError(f"the sandbox failed: {error!r}") from error
        names = None if lost else self._bound_names()
        if names is None and not lost:
            error_type, error_text = error_type or "MemoryError", error_text or "no memory left"
        self._names = names or frozenset()
        return Outcome(error_type, error_text, names)

    def _answered(self, step):
        """Answer a suspension. Tools are called here: ``resume_auto`` would do it too, in twice the time."""
        plain = isinstance(step, pydantic_monty.FunctionSnapshot) and not step.is_os_function
        if not plain or step.function_name not in self._tools:
            return step.resume_auto()
        try:
            answer = {"return_value": self._tools[step.function_name](*step.args, **step.kwargs)}
        except Exception as error:
            answer = {"exception": error}
        return step.resume(answer)

    def _bound_names(self) -> frozenset[str] | None:
        """Names bound at top level; None if the heap has no room to tell.

        A block that rebinds ``locals`` itself hides its names: then those known from the block before are given.
        """
        try:
            function, names = self._session.feed_run("(locals, [*locals()])", print_callback=lambda stream, text: None)
        except pydantic_monty.MontyRuntimeError as error:
            return None if isinstance(error.exception(), MemoryError | TimeoutError) else self._names
        except pydantic_monty.MontyCrashedError as error:
            _refuse_outside_kill(error)
            return None
        except (pydantic_monty.MontyError, RuntimeError):
            return None
        except (TypeError, ValueError):
            return self._names
        return frozenset(names) if isinstance(function, pydantic_monty.MontyStdTypeProxy) else self._names


def _refuse_outside_kill(error: pydantic_monty.MontyCrashedError) -> None:
    if _OUTSIDE_KILL.search(str(error)):
        raise InterpreterError(f"the interpreter was killed from outside: {error}") from error


def _echoing(code: str) -> str:
    """The block with its last expression replaced by the text that shows its value, made where the value lives."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    if not body or not isinstance(body[-1], ast.Expr):
        return code
    last, lines = body[-1], code.encode().splitlines(keepends=True)
    before = b"".join(lines[: last.lineno - 1]) + lines[last.lineno - 1][: last.col_offset]
    value = ast.get_source_segment(code, last)  # behind it are only blanks, a comment, a semicolon
    return f'{before.decode()}(lambda value: None if value is None else f"{{value!r}}")((\n{value}\n))'

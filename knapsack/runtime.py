"""The two interpreters under comparison, and the only place where model-written code runs.

Code runs in pydantic-monty, a Python interpreter in a separate worker process that has no files, network,
environment or processes of the host. Its clock stands still and its random numbers are seeded: what a block does
depends on the code, the names bound before and the tools, so that a recorded episode can be replayed.

A *persistent* runtime keeps one session for the episode; a *stateless* one starts a fresh session for every
turn, so that only the tools' own state survives (paper, section 3).
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

import pydantic_monty

Kind = Literal["persistent", "stateless"]
KINDS: tuple[Kind, ...] = ("persistent", "stateless")

MAX_TOOL_CALLS = 25  # per turn (paper, section 3)
TIME_LIMIT = 5.0  # seconds of sandboxed execution a turn
MEMORY_LIMIT = 256 * 1024 * 1024  # bytes a session
OUTPUT_LIMIT = 20_000  # characters of printed output shown; longer output is cut and says so
RECURSION_LIMIT = 500
MAX_REFUSED = 1_000  # further calls a turn may try: ends loops that catch the cap's error, whose time is the host's
CLOCK = datetime(2026, 1, 1, tzinfo=UTC)

_UNSHOWN = "[the last value is too large or too strange to show; print what you need]"
_UNDEFINED = re.compile(r"name '(\w+)' is not defined")


class ToolCallLimitError(RuntimeError):
    """A turn made more tool calls than the cap allows."""


class InterpreterError(RuntimeError):
    """No interpreter could be had (no free worker, no program to start): not the model's doing, never scored."""


@dataclass(frozen=True)
class Observation:
    """What one block of code did.

    ``error_source``: "tool" (a tool refused), "cap" (the tool-call cap), "code" (anything else the block
    did), None without an error. ``missing_binding``: the NameError's name had been bound in an earlier
    turn of this episode, as opposed to a name never bound.
    """

    output: str
    error_type: str | None = None
    error_text: str | None = None
    error_source: Literal["tool", "cap", "code"] | None = None
    tool_calls: tuple[str, ...] = ()
    cap_hit: bool = False
    missing_binding: bool = False
    last_step_globals: tuple[str, ...] = ()  # names bound when this block ended
    active_globals: tuple[str, ...] = ()  # names the next block will find bound

    @property
    def error(self) -> str | None:
        """One line for the agent, as Python would end a traceback."""
        if self.error_type is None:
            return None
        return f"{self.error_type}: {self.error_text}" if self.error_text else self.error_type

    @property
    def name_error(self) -> bool:
        return self.error_type == "NameError"


def interpreter_pool(workers: int = 1, checkout_timeout: float = 60.0) -> pydantic_monty.Monty:
    """Worker processes to share between runtimes; use as a context manager.

    A worker serves one live session at a time, so this many persistent episodes can be open at once; one more
    waits ``checkout_timeout`` seconds for a free worker and then fails with InterpreterError.
    """
    return pydantic_monty.Monty(
        min_processes=1, max_processes=workers, checkout_timeout=checkout_timeout, request_timeout=4 * TIME_LIMIT
    )


@dataclass
class _Turn:
    """Counts of the running turn, written by the tools."""

    calls: list[str] = field(default_factory=list)
    cap_hit: bool = False
    tool_errors: list[str] = field(default_factory=list)


class _Printed:
    """Collects printed text up to ``limit`` characters and drops the rest, however much a block prints."""

    def __init__(self, limit: int):
        self.limit = limit
        self.parts: list[str] = []
        self.size = 0

    def __call__(self, stream: str, text: str) -> None:
        if self.size <= self.limit:
            self.parts.append(text[: self.limit + 1 - self.size])
            self.size += len(self.parts[-1])

    @property
    def text(self) -> str:
        return _cut("".join(self.parts), self.limit)


class Runtime:
    """Runs the blocks of one episode; use as a context manager.

    ``kind`` is "persistent" or "stateless", ``tools`` maps names to callables that the code may call, and
    ``pool`` (from ``interpreter_pool``) saves starting a worker for every episode. Raises ValueError for
    another kind or a cap below 1.
    """

    def __init__(
        self,
        kind: Kind,
        tools: dict[str, Callable],
        max_tool_calls: int = MAX_TOOL_CALLS,
        time_limit: float = TIME_LIMIT,
        output_limit: int = OUTPUT_LIMIT,
        pool: pydantic_monty.Monty | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"runtime kind {kind!r}: needs one of {KINDS}")
        if max_tool_calls < 1:
            raise ValueError(f"max_tool_calls = {max_tool_calls}: needs at least 1")
        self.kind = kind
        self.max_tool_calls = max_tool_calls
        self.output_limit = output_limit
        self._limits = {
            "max_feed_duration_secs": time_limit,
            "max_memory": MEMORY_LIMIT,
            "max_recursion_depth": RECURSION_LIMIT,
            "max_suspensions": 1_000_000,  # a session; refused calls must stay catchable
        }
        self._tools = {name: self._counted(name, tool) for name, tool in tools.items()}
        self._own_pool = pool is None
        self._pool = interpreter_pool() if pool is None else pool
        self._session = None
        self._turn = _Turn()
        self._turns = 0
        self._ever_bound: set[str] = set()
        self._active: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        if self._own_pool:
            self._pool.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._close_session()
        if self._own_pool:
            self._pool.__exit__(*exception)

    def run(self, code: str) -> Observation:
        """Run one block and report what happened. Never raises for what the code did.

        Raises InterpreterError if the sandbox itself failed.
        """
        self._turn = _Turn()
        session = self._open_session()
        self._turns += 1
        printed = _Printed(self.output_limit)
        error_type = error_text = None
        too_long = f"more than {self._limits['max_feed_duration_secs']:g} s"
        lost = False  # a session stopped half-way gives no guarantees about its heap
        try:
            step = session.feed_start(code, external_lookup=self._tools, print_callback=printed)
            calls = 0
            while not isinstance(step, pydantic_monty.MontyComplete) and calls < self.max_tool_calls + MAX_REFUSED:
                step = step.resume_auto()
                calls += 1
            if not isinstance(step, pydantic_monty.MontyComplete):
                lost, error_type, error_text = True, "TimeoutError", f"more than {calls:,} tool calls tried"
            elif step.output is not None:
                printed("stdout", _shown(step.output, self.output_limit) + "\n")
        except pydantic_monty.MontyCrashedError as error:
            lost, error_type = True, "TimeoutError" if error.timed_out else "MemoryError"
            error_text = too_long if error.timed_out else "the interpreter died"
        except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
            error_type, _, error_text = error.display("type-msg").partition(": ")
            if error_text.startswith("feed time limit"):
                lost, error_type, error_text = True, "TimeoutError", too_long
        except pydantic_monty.MontyError as error:
            error_type, error_text = type(error).__name__, str(error)
        except (TypeError, ValueError):  # a last value that has no counterpart on this side
            printed("stdout", _UNSHOWN + "\n")
        except (TimeoutError, RuntimeError, OSError) as error:
            raise InterpreterError(f"the sandbox failed: {error!r}") from error
        names = None if lost else self._bound_names(session)
        if names is None:
            lost, error_type = True, error_type or "MemoryError"
            error_text = f"{error_text or 'no memory left'}; the interpreter was restarted, its names are gone"
        bound = names or ()
        if lost or self.kind == "stateless":
            self._close_session()
        undefined = _UNDEFINED.search(error_text or "") if error_type == "NameError" else None
        missing = undefined is not None and undefined.group(1) in self._ever_bound
        self._ever_bound.update(_stored_names(code) if lost else bound)
        self._active = bound if self.kind == "persistent" else ()
        return Observation(
            output=printed.text,
            error_type=error_type,
            error_text=_cut(error_text, self.output_limit) if error_text else error_text,
            error_source=self._source(error_text) if error_type else None,
            tool_calls=tuple(self._turn.calls),
            cap_hit=self._turn.cap_hit,
            missing_binding=missing,
            last_step_globals=bound,
            active_globals=self._active,
        )

    def _source(self, error_text: str | None) -> str:
        if self._turn.cap_hit and error_text == self._cap_text:
            return "cap"
        return "tool" if error_text in self._turn.tool_errors else "code"

    @property
    def _cap_text(self) -> str:
        return f"tool call limit exceeded: at most {self.max_tool_calls} tool calls per turn"

    def _counted(self, name: str, tool: Callable) -> Callable:
        def call(*arguments, **keywords):
            if len(self._turn.calls) >= self.max_tool_calls:
                self._turn.cap_hit = True
                raise ToolCallLimitError(self._cap_text)
            self._turn.calls.append(name)
            try:
                return tool(*arguments, **keywords)
            except Exception as error:
                self._turn.tool_errors.append(str(error))
                raise

        return call

    def _open_session(self):
        if self._session is None:
            try:
                policy = {"datetime": CLOCK, "sleep": "zero", "random_start": {"seed": self._turns}}
                self._session = self._pool.checkout(limits=self._limits, os_policy=policy)
                self._session.__enter__()
            except (TimeoutError, RuntimeError, OSError, pydantic_monty.MontyError) as error:
                self._session = None
                raise InterpreterError(
                    f"no interpreter could be started ({error}); open at most as many episodes as the pool has workers"
                ) from error
        return self._session

    def _close_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    def _bound_names(self, session) -> tuple[str, ...] | None:
        """Names bound at top level but for the tools', in sorted order; None if the heap has no room to tell.

        A block that rebinds ``locals`` itself hides its names: then those known from the turn before are given.
        """
        try:
            function, names = session.feed_run("(locals, [*locals()])", print_callback=lambda stream, text: None)
        except pydantic_monty.MontyRuntimeError as error:
            return None if isinstance(error.exception(), MemoryError | TimeoutError) else self._active
        except (pydantic_monty.MontyError, RuntimeError):
            return None
        except (TypeError, ValueError):
            return self._active
        if not isinstance(function, pydantic_monty.MontyStdTypeProxy):
            return self._active
        return tuple(sorted(name for name in names if name not in self._tools))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + f"\n[output cut at {limit} characters]\n"


def _shown(value: object, limit: int) -> str:
    """``repr`` of the value of a block's last expression, unless it is longer than about ``limit`` characters.

    The size is estimated first: a list of lists that share their items can be small there and endless here.
    """
    pending, size = [value], 0
    while pending:
        node = pending.pop()
        parts = [*node, *node.values()] if isinstance(node, dict) else node
        parts = [node.attributes] if isinstance(node, pydantic_monty.MontyClassProxy) else parts
        if isinstance(parts, str | bytes | list | tuple | set | frozenset):
            size += len(parts)
        if isinstance(parts, list | tuple | set | frozenset) and size <= limit:
            pending.extend(parts)
        size += 1
        if size > limit:
            return _UNSHOWN
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, deep nesting
        return _UNSHOWN


def _stored_names(code: str) -> set[str]:
    """Names that running ``code`` may bind at top level, by its syntax alone; none if it cannot be parsed."""
    names: set[str] = set()
    closed = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

    def visit(node: ast.AST, top: bool, loop: bool) -> None:
        """``loop``: inside a comprehension, where only ``:=`` binds a name outside."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Global):
                names.update(child.names)
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names.update({child.id} if top and (not loop or isinstance(node, ast.NamedExpr)) else ())
            elif isinstance(child, ast.alias):
                names.update({(child.asname or child.name).partition(".")[0]} if top else ())
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
                names.update({child.name} if top and child.name else ())
            elif isinstance(child, ast.MatchAs | ast.MatchStar | ast.MatchMapping) and top:
                names.add(getattr(child, "name", None) or getattr(child, "rest", None) or "")
            visit(child, top and not isinstance(child, closed), loop or isinstance(child, comprehension))

    try:
        visit(ast.parse(code), True, False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {name for name in names if name.isidentifier()}

"""The two interpreters under comparison, and the only place where model-written code runs.

Code runs in pydantic-monty, a Python interpreter in a separate worker process that has no files, network,
environment or processes of the host. A *persistent* runtime keeps one session for the episode; a *stateless*
one starts a fresh session for every turn, so that only the tools' own state survives (paper, section 3).
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import pydantic_monty

Kind = Literal["persistent", "stateless"]
KINDS: tuple[Kind, ...] = ("persistent", "stateless")

MAX_TOOL_CALLS = 25  # per turn (paper, section 3)
TIME_LIMIT = 5.0  # seconds of sandboxed execution a turn
MEMORY_LIMIT = 256 * 1024 * 1024  # bytes a session
OUTPUT_LIMIT = 20_000  # characters of printed output shown; longer output is cut and says so
RECURSION_LIMIT = 500

_UNDEFINED = re.compile(r"name '(\w+)' is not defined")


class ToolCallLimitError(RuntimeError):
    """A turn made more tool calls than the cap allows."""


class InterpreterError(RuntimeError):
    """The interpreter itself failed (a dead worker, no free worker): not the model's doing, never scored."""


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
    last_step_globals: tuple[str, ...] = ()  # names this block left bound
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


def interpreter_pool(workers: int = 1) -> pydantic_monty.Monty:
    """Worker processes to share between runtimes; use as a context manager.

    A worker serves one live session at a time, so this many persistent episodes can be open at once.
    """
    return pydantic_monty.Monty(
        min_processes=1, max_processes=workers, checkout_timeout=60.0, request_timeout=4 * TIME_LIMIT
    )


@dataclass
class _Turn:
    """Counts of the running turn, written by the tools."""

    calls: list[str] = field(default_factory=list)
    cap_hit: bool = False
    tool_errors: list[str] = field(default_factory=list)


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
            "max_suspensions": 1_000_000,  # the cap above is the limit; a refused call must stay catchable
            "max_total_sleep_secs": 0.0,
        }
        self._tools = {name: self._counted(name, tool) for name, tool in tools.items()}
        self._own_pool = pool is None
        self._pool = interpreter_pool() if pool is None else pool
        self._session = None
        self._turn = _Turn()
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
        printed = pydantic_monty.CollectString(max_bytes=4 * self.output_limit + 4096)
        error_type = error_text = None
        lost = False
        try:
            value = session.feed_run(code, external_lookup=self._tools, print_callback=printed)
            output = printed.output
            if value is not None:
                output += f"{value!r}\n"
        except pydantic_monty.MontyCrashedError as error:
            output, lost = printed.output, True
            error_type = "TimeoutError" if error.timed_out else "MemoryError"
            error_text = "the interpreter was stopped; its names are gone"
        except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
            output = printed.output
            error_type, _, error_text = error.display("type-msg").partition(": ")
            lost = error_type == "TimeoutError"  # a stopped session gives no guarantees about its heap
            if lost:
                error_text = f"more than {self._limits['max_feed_duration_secs']:g} s"
        except pydantic_monty.MontyError as error:
            output, error_type, error_text = printed.output, type(error).__name__, str(error)
        except (TimeoutError, RuntimeError, OSError) as error:
            raise InterpreterError(f"the sandbox failed: {error!r}") from error
        if len(output) > self.output_limit:
            output = output[: self.output_limit] + f"\n[output cut at {self.output_limit} characters]\n"
        bound = () if lost else self._bound_names(session, code)
        if lost or self.kind == "stateless":
            self._close_session()
        undefined = _UNDEFINED.search(error_text or "") if error_type == "NameError" else None
        missing = undefined is not None and undefined.group(1) in self._ever_bound
        self._ever_bound.update(bound)
        self._active = bound if self.kind == "persistent" else ()
        return Observation(
            output=output,
            error_type=error_type,
            error_text=error_text,
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
                self._session = self._pool.checkout(limits=self._limits)
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

    def _bound_names(self, session, code: str) -> tuple[str, ...]:
        """Which of the names that the code could have bound at top level are bound now, in sorted order.

        The interpreter has no ``globals()``: candidates come from the syntax tree, and a probe asks for each.
        """
        candidates = sorted(_stored_names(code) | set(self._active))
        if not candidates:
            return ()
        tries = "".join(
            f"try:\n    {name}\n    __names.append({name!r})\nexcept BaseException:\n    pass\n" for name in candidates
        )
        try:
            names = session.feed_run(f"__names = []\n{tries}__names")
        except pydantic_monty.MontyError:
            return ()  # the heap is full: nothing can be said about it, and the next turn will tell
        return tuple(name for name in names if name not in self._tools)


def _stored_names(code: str) -> set[str]:
    """Names that running ``code`` may bind at module level."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if top:
                    names.add(child.name)
                visit(child, False)
            elif isinstance(child, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                visit(child, False)
            else:
                if isinstance(child, ast.Global):
                    names.update(child.names)
                elif top and isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    names.add(child.id)
                elif top and isinstance(child, ast.alias):
                    names.add((child.asname or child.name).partition(".")[0])
                elif top and isinstance(child, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and child.name:
                    names.add(child.name)
                visit(child, top)

    try:
        visit(tree, True)
    except RecursionError:
        return set()
    return {name for name in names if name.isidentifier() and not name.startswith("__")}

"""The interpreters under comparison: what a block of code finds bound, and what the agent is told of it.

A *persistent* runtime keeps one namespace for the episode; a *stateless* one starts every turn with an empty one, so
that only the tools' own state survives (paper, section 3). *Carry-over* (paper v3) is stateless, but the namespace
that the tool-call cap cut short is there for one more turn; silently, or announced in the observation.

What an interpreter does and what the agent is told of it are two things (the paper's fourth limitation: the cue occurs
together with persistence). *Untold*, prompt and observations name no runtime, so that both read the very same text;
*false*, they name the other one.

Model-written code runs in ``sandbox`` alone, and this module is the only one that hands it over.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Self, get_args

from knapsack.names import bound_names
from knapsack.sandbox import ENGINES, Engine, InterpreterError, InterpreterPool, interpreter_pool

__all__ = ["ENGINES", "KINDS", "RUNTIME_KINDS", "InterpreterError", "Observation", "Runtime", "interpreter_pool"]

Kind = Literal[
    "persistent", "stateless", "carry-over", "carry-over-announced",
    "persistent-untold", "stateless-untold", "persistent-false", "stateless-false",
]  # fmt: skip
KINDS: tuple[Kind, ...] = ("persistent", "stateless")  # the two that models are trained for
RUNTIME_KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_TOOL_CALLS = 25  # per turn (paper, section 3)
TIME_LIMIT = 5.0  # seconds of execution a turn
OUTPUT_LIMIT = 20_000  # characters of printed output shown; longer output is cut and says so
MAX_REFUSED = 1_000  # further calls a turn may try: ends loops that catch the cap's error, whose time is the host's

_UNDEFINED = re.compile(r"name '(\w+)' is not defined")


def acts_as(kind: Kind) -> Kind:
    """Which of KINDS an interpreter is, whatever it says; carry-over is stateless but for the turns that were cut."""
    return "persistent" if kind.startswith("persistent") else "stateless"


def told(kind: Kind) -> Kind | None:
    """Which of KINDS the agent is told that it acts in, None for none."""
    own = acts_as(kind)
    false = "stateless" if own == "persistent" else "persistent"
    return None if kind.endswith("-untold") else false if kind.endswith("-false") else own


class ToolCallLimitError(RuntimeError):
    """A turn made more tool calls than the cap allows."""


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

    @property
    def missing_name(self) -> str | None:
        """The name that a NameError is about and that an earlier turn had bound."""
        return undefined_name(self.error_text) if self.missing_binding else None


def undefined_name(error_text: str | None) -> str | None:
    """The name that a NameError's text says is not defined."""
    found = _UNDEFINED.search(error_text or "")
    return found and found[1]


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

    def __call__(self, text: str) -> None:
        if self.size <= self.limit:
            self.parts.append(text[: self.limit + 1 - self.size])
            self.size += len(self.parts[-1])

    @property
    def text(self) -> str:
        return _cut("".join(self.parts), self.limit)


class Runtime:
    """Runs the blocks of one episode; use as a context manager.

    ``kind`` is one of RUNTIME_KINDS, ``tools`` maps names to callables that the code may call, ``time_limit`` is in
    seconds a block and ``output_limit`` in characters. ``pool`` (from ``interpreter_pool``) saves starting an
    interpreter for every episode and brings its engine; without it, ``engine`` names one of ENGINES. Raises
    ValueError for another kind or engine or a cap below 1.
    """

    def __init__(
        self,
        kind: Kind,
        tools: dict[str, Callable],
        max_tool_calls: int = MAX_TOOL_CALLS,
        time_limit: float = TIME_LIMIT,
        output_limit: int = OUTPUT_LIMIT,
        pool: InterpreterPool | None = None,
        engine: Engine = "monty",
    ):
        if kind not in RUNTIME_KINDS:
            raise ValueError(f"runtime kind {kind!r}: needs one of {RUNTIME_KINDS}")
        if max_tool_calls < 1:
            raise ValueError(f"max_tool_calls = {max_tool_calls}: needs at least 1")
        self._persistent, self._carries = acts_as(kind) == "persistent", kind.startswith("carry-over")
        self.max_tool_calls = max_tool_calls
        self.time_limit = time_limit
        self.output_limit = output_limit
        self._tools = {name: self._counted(name, tool) for name, tool in tools.items()}
        self._own_pool = pool is None
        self._pool = interpreter_pool(engine=engine) if pool is None else pool
        self._session = None
        self._turn = _Turn()
        self._turns = 0
        self._ever_bound: set[str] = set()
        self._carried: frozenset[str] = frozenset()  # names that a cut turn left for the next one

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

        Raises InterpreterError if the interpreter failed or could not be started.
        """
        self._turn = _Turn()
        self._turns += 1
        if self._session is None:
            self._session = self._pool.open(self._tools, self.time_limit, seed=self._turns)
        printed = _Printed(self.output_limit)
        outcome = self._session.run(code, printed, self.max_tool_calls + MAX_REFUSED)
        error_type, error_text, lost = outcome.error_type, outcome.error_text, outcome.names is None
        if lost:
            error_text = f"{error_text}; the interpreter was restarted, its names are gone"
        bound = tuple(sorted((outcome.names or frozenset()) - self._tools.keys()))
        keeps = self._persistent or (self._carries and self._turn.cap_hit)
        if lost or not keeps:
            self._close_session()
        elif self._carries:  # a second cut in a row: what this turn did not bind has had its turn
            bound = self._without(self._carried - bound_names(code), bound)
        self._carried = frozenset(bound if keeps else ())
        undefined = undefined_name(error_text) if error_type == "NameError" else None
        missing = undefined in self._ever_bound
        self._ever_bound.update(bound_names(code) if lost else bound)
        return Observation(
            output=printed.text,
            error_type=error_type,
            error_text=_cut(error_text, self.output_limit) if error_text else error_text,
            error_source=self._source(error_text) if error_type else None,
            tool_calls=tuple(self._turn.calls),
            cap_hit=self._turn.cap_hit,
            missing_binding=missing,
            last_step_globals=_listed(bound, self.output_limit),
            active_globals=_listed(bound, self.output_limit) if keeps else (),
        )

    def skip_turn(self) -> None:
        """A turn without a code block: it too is the one turn for which carry-over keeps what the cap cut short."""
        if not self._persistent:
            self._close_session()

    def _without(self, stale: set[str], bound: tuple[str, ...]) -> tuple[str, ...]:
        """Unbind ``stale`` names; ``del`` is not in every engine, but an exception's handler unbinds its name too."""
        if stale:
            code = "\n".join(f"try:\n    1 / 0\nexcept BaseException as {name}:\n    pass" for name in sorted(stale))
            self._session.run(code, lambda text: None, 0)
        return tuple(name for name in bound if name not in stale)

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
                if isinstance(error, TypeError):  # wrong arguments: without the name of a class of ours
                    error = TypeError(str(error).replace(getattr(tool, "__qualname__", name), name))
                self._turn.tool_errors.append(str(error))
                raise error from None

        return call

    def _close_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.close()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + f"\n[output cut at {limit} characters]\n"


def _listed(names: tuple[str, ...], limit: int) -> tuple[str, ...]:
    """As many of ``names`` as have ``limit`` characters together, and how many more there are."""
    room = list(accumulate(len(name) for name in names))
    shown = bisect_right(room, limit)
    return names if shown == len(names) else (*names[:shown], f"[{len(names) - shown} more]")

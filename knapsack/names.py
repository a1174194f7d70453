"""Which names a block of code binds, and which it needs from earlier turns: as CPython's own compiler sees it.

The question is whether the block leans on an interpreter that kept what earlier turns bound, so a name that the block
reads before it binds it itself is *free*. The block is not run: its instructions count in the order in which they
stand, those of all branches and loops once, and those of a function once the block has ended, called or not.
"""

import dis
import inspect
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

SOURCE = "<block>"
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # before Python 3.12 code of their own
warnings.filterwarnings("ignore", category=SyntaxWarning, module=SOURCE)  # `x is 1`: the agent's business, not ours


@dataclass(frozen=True)
class BlockNames:
    """``bound``: module-level names that running the block leaves bound; ``free``: those read before being bound.

    Free names include builtins and tools. A name that an ``except`` clause or ``del`` unbinds again is not bound.
    """

    bound: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()


@lru_cache(maxsize=1024)  # short blocks such as finish() come again and again
def block_names(code: str) -> BlockNames | None:
    """The names of a block; None if Python cannot compile it."""
    try:
        module = compile(code, SOURCE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    met: set[str] = set()
    bound: set[str] = set()
    free, later = _follow(module, met, bound)
    return BlockNames(frozenset(bound), frozenset(free | (later - met)))


def bound_names(code: str) -> frozenset[str]:
    """Module-level names that running the block leaves bound; none if Python cannot compile it."""
    return (block_names(code) or BlockNames()).bound


def _follow(code: CodeType, met: set[str], bound: set[str]) -> tuple[set[str], set[str]]:
    """Module-level names that ``code`` reads before it has ``met`` them (bound or unbound them), at once and later.

    What it meets and leaves bound is added to ``met`` and ``bound``.
    """
    free, later, own = set(), set(), set()  # own: a class body keeps its names to itself
    for step in dis.get_instructions(code):
        action, _, scope = step.opname.partition("_")
        if isinstance(inner := step.argval, CodeType):
            if inner.co_name in COMPREHENSIONS or not inner.co_flags & inspect.CO_OPTIMIZED:  # or a class: run at once
                now, then = _follow(inner, met, bound)
                free |= now
                later |= then
            else:
                made: set[str] = set()
                needs = set().union(*_follow(inner, set(), made))
                later |= needs
                met |= made - needs  # declared global there, and set before it is read
                bound |= made - needs
        elif scope in ("NAME", "GLOBAL") and action in ("LOAD", "STORE", "DELETE"):
            if action != "STORE":
                free |= {step.argval} - own - met
            if scope == "NAME" and code.co_name != "<module>":
                own |= {step.argval} if action == "STORE" else set()
            elif action != "LOAD":
                met.add(step.argval)
                bound.discard(step.argval) if action == "DELETE" else bound.add(step.argval)
    return free, later

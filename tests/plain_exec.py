"""A harness as many are: ``exec`` in the host's own process, tools as bound methods in a dict of globals, a timer.

It is here to be broken, for comparison with the sealed runtime, and never used for anything else. It is not a straw
man: it catches every exception, SystemExit too, limits time by a signal, cuts output and counts tool calls.
"""

import contextlib
import io
import signal

from knapsack.runtime import Observation

OUTPUT_LIMIT = 20_000


class CountedTools:
    def __init__(self, environment, cap: int):
        self.environment = environment
        self.cap = cap
        self.calls = 0

    def _call(self, name: str, *arguments, **keywords):
        if self.calls >= self.cap:
            raise RuntimeError(f"tool call limit exceeded: at most {self.cap} tool calls per turn")
        self.calls += 1
        return getattr(self.environment, name)(*arguments, **keywords)

    def list_items(self):
        return self._call("list_items")

    def inspect(self, item_id):
        return self._call("inspect", item_id)

    def take_item(self, item_id):
        return self._call("take_item", item_id)

    def finish(self):
        return self._call("finish")


class PlainExec:
    """Use as a context manager, like Runtime."""

    def __init__(self, kind: str, environment, cap: int, time_limit: float):
        self.kind = kind
        self.time_limit = time_limit
        self.tools = CountedTools(environment, cap)
        self.names = self._fresh()

    def _fresh(self) -> dict:
        tools = self.tools
        return {
            "list_items": tools.list_items,
            "inspect": tools.inspect,
            "take_item": tools.take_item,
            "finish": tools.finish,
        }

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass

    def run(self, code: str) -> Observation:
        if self.kind == "stateless":
            self.names = self._fresh()
        self.tools.calls = 0
        printed = io.StringIO()
        error = None
        handler = signal.signal(signal.SIGALRM, self._expired)
        signal.setitimer(signal.ITIMER_REAL, self.time_limit)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                exec(code, self.names)
        except BaseException as caught:
            error = caught
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        return Observation(
            output=printed.getvalue()[:OUTPUT_LIMIT],
            error_type=type(error).__name__ if error is not None else None,
            error_text=str(error)[:OUTPUT_LIMIT] if error is not None else None,
            cap_hit=str(error).startswith("tool call limit exceeded"),
        )

    def _expired(self, number, frame):
        raise TimeoutError(f"more than {self.time_limit:g} s")


def message(observation: Observation, kind: str) -> str:
    """The usual text: output, then the error if there was one."""
    return observation.output + (f"\nError: {observation.error}" if observation.error else "")


def read(text: str) -> tuple[str, str | None]:
    output, mark, error = text.rpartition("\nError: ")
    return (output, error) if mark else (text, None)

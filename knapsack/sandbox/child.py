"""The process in which engine "cpython" runs a session's blocks. A program of its own: standard library only.

Started as ``python child.py <socket> <seed>``. It limits itself, then
serves the blocks that come over the socket. Messages are JSON behind four bytes of length.

* host → child: {"tools": [names]} first; {"block": n, "code": text}; {"result": value} or {"error": [type, text]} of a
  tool call
* child → host: {"ready": true}; of block n: {"block": n, "show": text}, {"block": n, "call": [name, arguments,
  keywords]}, {"block": n, "done": [error type, error text, names]}
"""

import ast
import builtins
import io
import os
import random
import resource
import signal
import socket
import sys
import time
from json import dumps, loads  # by name: a block may rebind those of the module

ADDRESS_SPACE = 384 * 1024 * 1024  # bytes, of which CPython itself takes some 100 million
PROCESSOR_TIME = 600  # seconds of the whole session: ends a child whose host is gone
MESSAGE_LIMIT = 1_000_000  # bytes of a tool's arguments
SHOWN_LIMIT = 100_000  # characters sent of what a block prints or raises; the host shows fewer
LIBRARY = os.path.dirname(os.path.realpath(os.__file__))
NOBODY = 65534
ROOM = 8_000_000  # bytes that a block must leave free for the next one to start at all
NO_MEMORY = 77  # exit status of a child too full to say what its block did
# For a root without rights to its own library afterwards: what agents commonly import, loaded before they are given up.
COMMON = (
    "abc bisect collections contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq "
    "inspect io itertools json math numbers operator pprint queue random re statistics string textwrap time traceback "
    "types typing uuid"
).split()
DENIED = (
    "os.", "socket.", "subprocess.", "ctypes.", "shutil.", "tempfile.", "signal.", "pty.", "fcntl.", "mmap.",
    "resource.", "syslog.", "sqlite3.", "urllib.", "http.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "telnetlib.",
    "nntplib.", "webbrowser.", "_thread.", "glob.", "pathlib.",
)  # fmt: skip


class Channel:
    """One end of the socket. ``limit``: bytes of a message that it accepts. After a ``deadline``, in seconds of
    ``time.monotonic``, both methods raise TimeoutError, and OSError or ValueError for what is no message."""

    def __init__(self, connection: socket.socket, limit: int = 2**32):
        self.connection, self.limit = connection, limit

    def send(self, message: dict, deadline: float | None = None) -> None:
        data = dumps(message).encode()
        self._wait_until(deadline)
        self.connection.sendall(len(data).to_bytes(4, "big") + data)

    def receive(self, deadline: float | None = None) -> dict:
        size = int.from_bytes(self._exactly(4, deadline), "big")
        if size > self.limit:
            raise ValueError(f"a message of {size} bytes")
        return loads(self._exactly(size, deadline))

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait_until(deadline)
            part = self.connection.recv(size - len(data))
            if not part:
                raise InterruptedError("the connection has ended")
            data += part
        return bytes(data)

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is not None:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))


def told(channel: Channel) -> dict:
    """What the host says; ends the process if the host has closed the session, or is gone."""
    try:
        return channel.receive()
    except OSError:
        os._exit(0)


class Printed(io.TextIOBase):
    """Stands for both standard output and standard error: sends whole lines, drops what exceeds the limit."""

    encoding = "utf-8"

    def __init__(self, channel: Channel, block: int):
        self.channel, self.block, self.left, self.pending = channel, block, SHOWN_LIMIT, ""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        kept = text[: self.left]
        self.left -= len(kept)
        self.pending += kept
        if "\n" in kept:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.pending:
            pending, self.pending = self.pending, ""
            self.channel.send({"block": self.block, "show": pending})


def limit() -> None:
    """Give up rights and set limits, for good."""
    for name, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CPU, PROCESSOR_TIME),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))
    if os.geteuid() == 0:  # the limit on processes does not hold for root
        if not _readable_by_others(LIBRARY):
            for name in COMMON:
                __import__(name)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of the write instead


def _readable_by_others(folder: str) -> bool:
    above = (folder[:end] for end in range(1, len(folder) + 1) if folder[end : end + 1] in ("", os.sep))
    return all(os.stat(path).st_mode & 0o001 for path in above)


def guard(event: str, arguments: tuple) -> None:
    """Audit hook: refuses what reaches beyond this process, except for reading the standard library."""
    if event == "open":
        path, _, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if isinstance(flags, int) and not flags & writes and _in_library(path):
            return
    elif event in ("os.listdir", "os.scandir"):
        if _in_library(arguments[0]):
            return
    elif not event.startswith(DENIED):
        return
    raise PermissionError(f"{event} is not possible here")


def _in_library(path: object) -> bool:
    return isinstance(path, str) and (os.path.realpath(path) + os.sep).startswith(LIBRARY + os.sep)


def tool(name: str, channel: Channel, current: list[Printed]):
    """The function that stands for a tool of the host."""

    def call(*arguments, **keywords):
        printed = current[0]
        printed.flush()
        try:
            if len(dumps([arguments, keywords])) > MESSAGE_LIMIT:
                raise ValueError
        except (TypeError, ValueError, RecursionError):  # what JSON cannot carry arrives as None: the tool judges
            arguments, keywords = [None] * len(arguments), dict.fromkeys(keywords)
        channel.send({"block": printed.block, "call": [name, arguments, keywords]})
        answer = told(channel)
        if "error" not in answer:
            return answer["result"]
        kind, text = answer["error"]
        found = getattr(builtins, kind, None)
        known = isinstance(found, type) and issubclass(found, Exception)
        raise (found if known else RuntimeError)(text)

    call.__name__ = call.__qualname__ = name
    return call


def run(code: str, names: dict, printed: Printed) -> tuple[str | None, str | None]:
    """Execute a block; the value of a last expression is shown, as in an interactive session."""
    sys.stdout = sys.stderr = printed
    try:
        tree = ast.parse(code, "<block>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        body = compile(tree, "<block>", "exec")
        value = compile(ast.Expression(last.value), "<block>", "eval") if last is not None else None
        exec(body, names)
        if value is not None:
            value = eval(value, names)
            if value is not None:
                printed.write(f"{value!r}\n")
        return None, None
    except BaseException as error:
        kind = type(error).__name__
        try:
            text = error.msg if isinstance(error, SyntaxError) else str(error)
            text = str.__str__(text)[:SHOWN_LIMIT]
        except BaseException:
            text = "[the error's text cannot be shown]"
        return kind, text
    finally:
        try:
            printed.flush()
        except Exception:
            pass


def main() -> None:
    descriptor, seed = map(int, sys.argv[1:])
    channel = Channel(socket.socket(fileno=descriptor))
    limit()
    random.seed(seed)
    current = [Printed(channel, 0)]
    channel.send({"ready": True})
    tools = told(channel)["tools"]
    names = {"__name__": "__main__", "__builtins__": builtins}
    hidden = {*names, "__annotations__", *tools}
    names |= {name: tool(name, channel, current) for name in tools}
    sys.argv, sys.stdin, sys.orig_argv, sys.executable = [""], None, [], ""
    own = dict(vars(builtins))
    signal.raise_signal = None  # has no audit event, and a SIGKILL counts as one from outside
    sys.addaudithook(guard)
    while True:
        message = told(channel)
        current[0] = Printed(channel, message["block"])
        vars(builtins).update(own)  # print and the like are there in each block, whatever the one before did to them
        try:
            error = run(message["code"], names, current[0])
            bytearray(ROOM)
            bound = sorted(name for name in list(names) if isinstance(name, str) and name not in hidden)
            channel.send({"block": message["block"], "done": [*error, bound]})
        except MemoryError:
            os._exit(NO_MEMORY)


if __name__ == "__main__":
    main()

"""Plays one hostile row in a disposable process, whatever it does to that process.

``play_disposable`` starts a shell in a process group, folder and environment of its own, the shell starts the host
(this file as a program), the host plays the row under limits and writes a report; then the group is ended.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from json import dumps  # by name, because rows replace json.dumps
from pathlib import Path

from hostile import ROWS, Row

HARD_LIMIT = 15.0  # seconds that a row may take before its host is ended
GUARD = 2 * 2**30  # bytes of address space of the host: protects this machine, no part of any harness
ENDED = {signal.SIGKILL: "was killed", signal.SIGSEGV: "crashed", signal.SIGABRT: "aborted"}


@dataclass(frozen=True)
class Fate:
    """``violations`` as of ``hostile_episode.Played``; ``observations``: (output, error) of each block, as far as the
    host could tell; ``messages``: the texts that the agent would read."""

    violations: tuple[str, ...]
    observations: tuple[tuple[str, str | None], ...]
    messages: tuple[str, ...]


def play_disposable(row: Row, harness: str, kind: str = "persistent") -> Fate:
    """``harness``: "plain", or an engine of ``knapsack.runtime``."""
    from hostile_episode import SECRET, changed_files, lay_canaries

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as outer,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        folder, report, printed = Path(outer) / "host", Path(outer) / "report.json", Path(outer) / "printed"
        lay_canaries(folder)
        port = listener.getsockname()[1]
        host = [sys.executable, __file__, harness, kind, row.kind, row.name, str(port), str(report)]
        root = Path(__file__).parent.parent
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), SECRET[0]: SECRET[1]}
        with open(printed, "wb") as stream:
            shell = subprocess.Popen(  # the shell is the host's parent, so that a row which kills its parent can
                ["/bin/sh", "-c", '"$@"; exit $?', "sh", *host],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = shell.wait(HARD_LIMIT)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
        found = json.loads(report.read_text()) if report.exists() else None
        violations = list(found["violations"]) if found else []
        if code is None:
            violations.append("the host hung")
        elif code < 0:
            violations.append("the host's parent was killed")
        elif found is None:
            number = code - 128
            violations.append(f"the host {ENDED.get(number, f'ended with code {code}')}")
        elif code != 0:
            violations.append(f"the host ended with code {code}")
        if printed.read_bytes():
            violations.append("printed past the harness")
        listener.settimeout(0)
        with suppress(BlockingIOError):
            listener.accept()
            violations.append("network: a connection came")
        late = [f"files: {name} changed" for name in changed_files(folder)] if folder.is_dir() else ["files: all gone"]
        violations += [text for text in late if text not in violations]
        observations = tuple((o[0], o[1]) for o in found["observations"]) if found else ()
        return Fate(tuple(violations), observations, tuple(found["messages"]) if found else ())


def _parsed(block: str) -> bool:
    """Whether the code is none that CPython's parser refuses; it says MemoryError where its stack is full."""
    try:
        compile(block, "block", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def main(harness_name: str, kind: str, row_kind: str, name: str, port: str, report: str) -> None:
    import hostile_episode
    from plain_exec import PlainExec, message, read

    from knapsack.runtime import interpreter_pool

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
    (row,) = [row for row in ROWS if (row.kind, row.name) == (row_kind, name)]
    process = os.getpid()
    if harness_name == "plain":
        resource.setrlimit(resource.RLIMIT_AS, (GUARD, GUARD))
        harness = hostile_episode.Harness(
            lambda kind, environment, time_limit: PlainExec(kind, environment, hostile_episode.CAP, time_limit),
            message,
            read,
        )
        played = hostile_episode.play(row, kind, harness, int(port))
        if any(o.error_type == "MemoryError" for o in played.observations) and all(map(_parsed, row.blocks)):
            played.violations.append("memory: only this test's guard stopped it")
    else:
        with interpreter_pool(2, engine=harness_name) as pool:
            harness = hostile_episode.sealed(pool)
            played = hostile_episode.play(row, kind, harness, int(port))
    if os.getpid() != process:  # a fork of the host that goes on: the row's doing
        time.sleep(1)
        return
    content = asdict(played) | {
        "observations": [[o.output, o.error] for o in played.observations],
        "messages": [harness.message(o, kind) for o in played.observations],
    }
    Path(report + ".part").write_text(dumps(content))
    os.replace(report + ".part", report)  # whole or absent, whatever ends this process


if __name__ == "__main__":
    main(*sys.argv[1:])

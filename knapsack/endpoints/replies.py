"""Replies that are paid for, in one SQLite file: a resumed run pays nothing twice, and a run knows what it spent."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Self

from knapsack.agent import Reply
from knapsack.runs import CorruptFileError, unwritable

REMEDY = "delete it and run again: finished episodes are kept, other replies and the count of tokens are lost"
PATIENCE = 60.0  # seconds to wait for another process that writes
OPEN = """
PRAGMA journal_mode = WAL;  -- a log beside the file: readers and a writer do not wait for each other
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    stopped INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS bills (tokens INTEGER NOT NULL) STRICT;  -- one per answer, also of those without a reply
"""


class Replies:
    """Replies by the digest of all that determines them, and the tokens that they cost; use as a context manager.

    Any number of threads and of processes on one machine may use the file at once. What ``store`` and ``charge``
    have returned from survives a crash. Every method, the constructor included, raises CorruptFileError if SQLite
    finds the file damaged and OSError if it cannot be written or read, both with the path and the remedy.
    """

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise unwritable(self.path, error) from error
        with self._using() as file:
            file.executescript(OPEN)
            problem = file.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise CorruptFileError(f"{self.path} is damaged ({problem}); {REMEDY}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._file.close()

    def find(self, key: str) -> Reply | None:
        """The stored reply, None if there is none."""
        with self._using() as file:
            row = file.execute("SELECT * FROM replies WHERE key = ?", (key,)).fetchone()
        return row and Reply(*row[1:-1], stopped=bool(row[-1]))

    def store(self, key: str, reply: Reply) -> Reply:
        """Count the reply's tokens as spent and store it, unless one was stored for ``key`` before: that one remains.

        Returns the reply that remains, so that whoever asked twice at once goes on with the same one.
        """
        with self._using() as file:
            file.execute("INSERT INTO bills VALUES (?)", (reply.prompt_tokens + reply.completion_tokens,))
            file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", (key, *astuple(reply)))
        return self.find(key)

    def charge(self, tokens: int) -> None:
        """Count ``tokens`` as spent on an answer that is no reply."""
        with self._using() as file:
            file.execute("INSERT INTO bills VALUES (?)", (tokens,))

    def spent(self) -> int:
        """Tokens spent so far, by all users of the file."""
        with self._using() as file:
            return file.execute("SELECT coalesce(sum(tokens), 0) FROM bills").fetchone()[0]

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """One thread at a time, what is written in here all or nothing, and errors that name the file."""
        try:
            with self._lock, self._file:
                yield self._file
        except sqlite3.Error as error:
            # Operational: of the disk, the file's rights or other processes; but for a column that is not there.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                raise unwritable(self.path, error) from error
            raise CorruptFileError(f"{self.path} is damaged ({error}); {REMEDY}") from error

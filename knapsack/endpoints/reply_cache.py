"""Replies that are paid for, in one SQLite file: a resumed run pays nothing twice, and a run knows what it spent."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

from knapsack.agent import Reply
from knapsack.runs import CorruptFileError, digest, unwritable

REMEDY = "delete it and run again: finished episodes are kept, other replies and the count of tokens are lost"
PATIENCE = 60.0  # seconds to wait for another process that writes
SPENT = "spent"  # the key of the count; all others are digests
DISK = {  # what SQLite says of the disk, the file's permissions or other processes, and not of the content
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_PROTOCOL,
}


class ReplyCache:
    """Replies by the digest of all that determines them, and the tokens that they cost; use as a context manager.

    Any number of threads and of processes on one machine may use the file at once. What ``store`` and ``charge``
    have returned from survives a crash. Every method, the constructor included, raises CorruptFileError if the file
    is damaged and OSError if it cannot be written or read, both with the path and the remedy.
    """

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        with self._explained():
            options = {"timeout": PATIENCE, "isolation_level": None, "check_same_thread": False}
            self._connection = sqlite3.connect(self.path, **options)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")  # a log beside the file: readers and a writer do not wait for each other
        execute("PRAGMA synchronous = FULL")
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise CorruptFileError(f"{self.path} is damaged ({problem}); {REMEDY}")
        execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT, seal TEXT) WITHOUT ROWID")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self._connection.close()

    def find(self, key: str) -> Reply | None:
        """The stored reply, None if there is none."""
        with self._lock, self._explained():
            return self._reply(key)

    def store(self, key: str, reply: Reply) -> Reply:
        """Count the reply's tokens as spent and store it, unless one was stored for ``key`` before: that one remains.

        Returns the reply that remains, so that whoever asked twice at once goes on with the same one.
        """
        with self._writing():
            self._add(reply.prompt_tokens + reply.completion_tokens)
            before = self._reply(key)
            if before is None:
                self._set(key, asdict(reply))
            return before or reply

    def charge(self, tokens: int) -> None:
        """Count ``tokens`` as spent on an answer that is no reply."""
        with self._writing():
            self._add(tokens)

    def spent(self) -> int:
        """Tokens spent so far, by all users of the file."""
        with self._lock, self._explained():
            return self._spent()

    def _spent(self) -> int:
        return (self._get(SPENT) or {"tokens": 0})["tokens"]

    def _add(self, tokens: int) -> None:
        self._set(SPENT, {"tokens": self._spent() + tokens})

    def _reply(self, key: str) -> Reply | None:
        value = self._get(key)
        return None if value is None else Reply(**value)

    def _get(self, key: str) -> dict | None:
        row = self._connection.execute("SELECT value, seal FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[1] != digest(f"{key} {row[0]}"):  # SQLite does not notice every changed bit
            raise CorruptFileError(f"{self.path} is not as it was written; {REMEDY}")
        return json.loads(row[0])

    def _set(self, key: str, value: dict) -> None:
        text = json.dumps(value)  # ASCII: also half a surrogate pair, which SQLite does not take
        row = (key, text, digest(f"{key} {text}"))
        self._connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", row)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All or nothing, and no other writer in between."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK:  # the low byte: the rest says it more exactly
                raise unwritable(self.path, error) from error
            raise CorruptFileError(f"{self.path} is damaged ({error}); {REMEDY}") from error

"""Replies that are paid for are kept through crashes and shared by processes; a damaged file is named."""

import sqlite3
import subprocess
import sys

import pytest
from damage import damage

from knapsack.agent import Reply
from knapsack.endpoints.replies import Replies
from knapsack.runs import CorruptFileError

WRITER = """
import resource, sys
from knapsack.agent import Reply
from knapsack.endpoints.replies import Replies
path, count, name, size = sys.argv[1:]
with Replies(path) as replies:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
    for number in range(int(count)):
        try:
            replies.store(f"{name}{number}", Reply("x" * int(size), 3, 4))
            print(number, flush=True)
        except OSError as error:
            print(error, flush=True)
"""


def writer(path, count: int, name: str, size: int = 2500) -> subprocess.Popen:
    """A process that stores ``count`` replies of 7 tokens and tells of each; its files may have 5 MB."""
    command = [sys.executable, "-c", WRITER, str(path), str(count), name, str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_first_reply_remains_and_both_are_spent(tmp_path):
    with Replies(tmp_path / "new" / "replies") as replies:
        assert replies.find("key") is None and replies.spent() == 0
        assert replies.store("key", Reply("a", 3, 4, False)) == replies.store("key", Reply("b", 5, 6))
        replies.charge(100)
    with Replies(tmp_path / "new" / "replies") as replies:
        assert replies.find("key") == Reply("a", 3, 4, stopped=False) and replies.spent() == 118
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["replies"]


def test_what_a_killed_process_has_stored_is_there(tmp_path):
    told = 0
    for number in range(3):
        with writer(tmp_path / "replies", 10_000, f"{number}-") as process:
            stored = [next(process.stdout) for _ in range(20)]
            process.kill()
            stored += [line for line in process.stdout if line.endswith("\n")]
        told += len(stored)
        with Replies(tmp_path / "replies") as replies:
            assert all(replies.find(f"{number}-{int(line)}") for line in stored)
            assert told <= replies.spent() / 7 <= told + number + 1  # killed between storing and telling


def test_processes_write_to_one_file_at_once(tmp_path):
    with Replies(tmp_path / "replies") as replies:
        processes = [writer(tmp_path / "replies", 30, name) for name in ("a", "b")]
        for number in range(30):
            replies.store(f"c{number}", Reply("text", 3, 4))
        assert ["29\n" in process.communicate(timeout=60)[0] for process in processes] == [True, True]
        assert replies.spent() == 90 * 7 and all(replies.find(f"{name}{n}") for name in "abc" for n in range(30))


def test_a_full_disk_is_named_and_keeps_what_is_stored(tmp_path):
    path = tmp_path / "replies"
    told = writer(path, 2, "key", size=3_000_000).communicate()[0]
    assert told.startswith(f"0\ncannot write to {path} ") and "free or unlock the disk" in told
    with Replies(path) as replies:
        assert replies.find("key0") and replies.find("key1") is None and replies.spent() == 7


@pytest.mark.parametrize("how", ["truncated", "no database", "another database"])
def test_a_damaged_or_other_file_is_named_with_the_remedy(how, tmp_path):
    path = tmp_path / "replies"
    if how == "truncated":
        with Replies(path) as replies:
            for number in range(100):
                replies.store(f"key{number}", Reply("x" * 40 * number, number + 1, 2))
        damage(path, how)
    elif how == "no database":
        path.write_bytes(b"no database" * 100)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE replies (other TEXT)")
        connection.close()
    with pytest.raises(CorruptFileError, match=f"{path} is damaged .*; delete it and run again"):
        with Replies(path) as replies:
            replies.find("key0")


@pytest.mark.parametrize("name", ["", "file/replies"])
def test_a_place_where_no_file_can_be_is_named(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=f"cannot write.*{tmp_path}|{tmp_path}.*cannot write"):
        Replies(tmp_path / name)

"""Replies that are paid for are kept through crashes, shared by processes, and never come back changed."""

import signal
import sqlite3
import subprocess
import sys

import pytest
from damage import damage

from knapsack.agent import Reply
from knapsack.endpoints.reply_cache import ReplyCache
from knapsack.runs import CorruptFileError

REPLIES = {f"key{number}": Reply("x" * 40 * number, number + 1, 2) for number in range(100)}
WRITER = """
import itertools, sys
from knapsack.agent import Reply
from knapsack.endpoints.reply_cache import ReplyCache
with ReplyCache(sys.argv[1]) as cache:
    for number in itertools.islice(itertools.count(), int(sys.argv[2])):
        cache.store(f"{sys.argv[3]}{number}", Reply("text " * 500, 3, 4))
        print(number, flush=True)
"""


def writer(path, count: int, name: str) -> subprocess.Popen:
    """A process that stores ``count`` replies of 7 tokens and tells each that it has stored."""
    command = [sys.executable, "-c", WRITER, str(path), str(count), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_first_reply_remains_and_both_are_spent(tmp_path):
    with ReplyCache(tmp_path / "new" / "replies") as cache:
        assert cache.find("key") is None and cache.spent() == 0
        assert cache.store("key", Reply("a", 3, 4)) == cache.store("key", Reply("b", 5, 6)) == Reply("a", 3, 4)
        cache.charge(100)
    with ReplyCache(tmp_path / "new" / "replies") as cache:
        assert cache.find("key") == Reply("a", 3, 4) and cache.spent() == 118
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["replies"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_what_a_killed_process_has_stored_is_there(tmp_path):
    path, told = tmp_path / "replies", 0
    for number in range(3):
        with writer(path, 10_000, f"{number}-") as process:
            stored = [next(process.stdout) for _ in range(20)]
            process.kill()
            stored += [line for line in process.stdout if line.endswith("\n")]
        told += len(stored)
        with ReplyCache(path) as cache:
            assert all(cache.find(f"{number}-{int(line)}") for line in stored)
            assert told <= cache.spent() / 7 <= told + number + 1  # killed between storing and telling


def test_processes_write_to_one_cache_at_once(tmp_path):
    with ReplyCache(tmp_path / "replies") as cache:
        processes = [writer(tmp_path / "replies", 30, name) for name in ("a", "b")]
        for number in range(30):
            cache.store(f"c{number}", Reply("text", 3, 4))
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
        assert cache.spent() == 90 * 7 and all(cache.find(f"{name}{n}") for name in "abc" for n in range(30))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "replies"
    with ReplyCache(path) as cache:
        for key, reply in REPLIES.items():
            cache.store(key, reply)
    return path.read_bytes()


@pytest.mark.parametrize(("how", "often"), [("truncated", 30), ("bit flipped", 15)])  # not all bits are in use
def test_a_damaged_cache_is_named_with_the_remedy_and_gives_no_changed_reply(how, often, whole, tmp_path):
    named = 0
    for seed in range(30):
        path = tmp_path / f"replies{seed}"
        path.write_bytes(whole)
        damage(path, how, seed)
        try:
            with ReplyCache(path) as cache:
                for key, reply in REPLIES.items():
                    assert cache.find(key) in (reply, None)
                assert cache.spent() in (sum(reply.prompt_tokens + 2 for reply in REPLIES.values()), 0)
        except CorruptFileError as error:
            assert str(path) in str(error) and "delete it and run again" in str(error)
            named += 1
    assert named >= often


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_another_file_is_no_cache(tmp_path, content):
    path = tmp_path / "replies"
    if content:
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE entries (other TEXT)")
        connection.close()
    with pytest.raises(CorruptFileError, match=f"{path} is damaged .*; delete it and run again"):
        with ReplyCache(path) as cache:
            cache.find("key")


def test_a_full_disk_is_named_and_keeps_what_is_stored(tmp_path):
    program = (
        "import resource, sys\n"
        "from knapsack.agent import Reply\n"
        "from knapsack.endpoints.reply_cache import ReplyCache\n"
        "with ReplyCache(sys.argv[1]) as cache:\n"
        "    cache.store('kept', Reply('x', 3, 4))\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    try:\n"
        "        cache.store('large', Reply('x' * 1_000_000, 3, 4))\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    path = tmp_path / "replies"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert f"cannot write to {path}" in done.stdout and "free or unlock the disk" in done.stdout, done.stderr
    with ReplyCache(path) as cache:
        assert cache.find("kept") == Reply("x", 3, 4) and cache.find("large") is None and cache.spent() == 7


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "replies"):
        with pytest.raises(OSError, match=f"cannot write.*{path}|{path}.*cannot write") as caught:
            ReplyCache(path)
        assert not isinstance(caught.value, CorruptFileError)

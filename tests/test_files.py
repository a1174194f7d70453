"""Files are whole or absent, and reading says what is wrong with a damaged one."""

import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO

import pytest
from damage import HOW, damage
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CHECKOUT

from knapsack.runs import (
    SUMS,
    CorruptFileError,
    FolderInUseError,
    as_json,
    check,
    digest,
    keep,
    keep_together,
    kept,
    read_json,
    write_text,
    writing,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "value.json"


@given(value=st.dictionaries(TEXT, VALUES, max_size=5))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read(file, value):
    write_text(file, as_json(value))
    assert read_json(file) == value


def test_equal_values_give_equal_bytes(tmp_path):
    write_text(tmp_path / "a", as_json({"x": 1, "y": {"p": "ü", "q": None}}))
    write_text(tmp_path / "b", as_json({"y": {"q": None, "p": "ü"}, "x": 1}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": [1, 2', b"\xff\xfe\x00", b"no", b"[1, 2]", b"3", b"[" * 100_000, b'{"a": ' + b"1" * 5_000 + b"}"],
    ids=["empty", "truncated", "not UTF-8", "not JSON", "list", "number", "deep", "endless number"],
)
def test_damaged_file_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"damaged\.json.*run again"):
        read_json(path)


def test_full_disk_keeps_the_old_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    program = (  # a limit on file sizes stands for the full disk: it holds for root too
        "import resource, sys\n"
        "from knapsack.runs import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_text(sys.argv[1], 'x' * 100_000)\n"
        "except OSError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, path]
    run = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert "result.json" in run.stdout and "free or unlock the disk" in run.stdout
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_or_locked_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write.*file/below/a\.json"):
        write_text(tmp_path / "file" / "below" / "a.json", as_json({}))
    with pytest.raises(OSError, match=r"cannot write.*free or unlock the disk.*file"):
        with writing(tmp_path / "file"):
            pytest.fail("no folder to write to")


def test_text_that_cannot_be_encoded_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of a pair: \ud83d")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@given(how=st.sampled_from([*HOW, "missing"]), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_damage_to_a_kept_file_is_named_and_the_next_writer_makes_it_again(file, how, seed):
    folder = file.parent / "kept"
    keep(folder / "a.json", as_json({"a": [1.5, None, "é"]}))
    keep(folder / "b.json", "{}\n")
    check(folder, "do it")
    damage(folder / "a.json", how, seed)
    for path in (folder, folder / "a.json"):
        with pytest.raises(CorruptFileError, match=r"a\.json is (missing|not as it was written); do it"):
            check(path, "do it")
    check(folder / "b.json", "do it")
    with redirect_stderr(StringIO()) as told, writing(folder):
        assert not (folder / "a.json").exists() and (folder / "b.json").exists()
        keep(folder / "a.json", "{}\n")
    assert told.getvalue().startswith(f"damaged: {folder / 'a.json'} is ") and told.getvalue().count("\n") == 1
    check(folder, "do it")


@pytest.mark.long
def test_every_single_bit_of_a_kept_file_counts(file):
    keep(file, as_json({"a": [1.5, 1e-7, True, None, "\t\x1b é"], "b": {"c": -2}}))
    whole = file.read_bytes()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(CorruptFileError, match="do it"):
            check(file, "do it")


def test_files_that_belong_together_go_together(tmp_path, capsys):
    for name in ("config.json", "below/weights"):
        write_text(tmp_path / "adapter" / name, name)
    keep_together(tmp_path / "adapter")
    keep(tmp_path / "training.json", "{}")
    (tmp_path / "adapter" / "below" / "weights").write_text("other")
    with writing(tmp_path):
        assert not (tmp_path / "adapter").exists() and (tmp_path / "training.json").exists()
    assert "weights is not as it was written" in capsys.readouterr().err


def test_a_note_that_a_crash_cut_short_does_not_count_and_spoils_no_later_one(tmp_path):
    keep(tmp_path / "a", "1")
    with open(tmp_path / SUMS, "a") as notes:
        notes.write(f"{digest('2')[:40]}")
    check(tmp_path, "do it")
    keep(tmp_path / "a", "3")
    check(tmp_path, "do it")
    assert kept(tmp_path) == {"a": digest("3")}


def test_files_from_elsewhere_are_not_asked(tmp_path):
    write_text(tmp_path / "downloaded" / "a.json", "{}")
    keep(tmp_path / "downloaded" / "b.json", "{}")
    (tmp_path / "downloaded" / "a.json").write_text("other")
    check(tmp_path, "do it")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_notes_are_what_sha256sum_reads(tmp_path):
    keep(tmp_path / "a", "ä")
    write_text(tmp_path / "together" / "b", "1")
    keep_together(tmp_path / "together")
    for folder in (tmp_path, tmp_path / "together"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)


def test_a_second_writer_is_refused_and_a_later_one_is_not(tmp_path):
    with writing(tmp_path / "run"):
        with pytest.raises(FolderInUseError, match=r"another process is writing to .*run: wait for it, or choose"):
            with writing(tmp_path / "run", patience=0.05):
                pytest.fail("two writers at once")
        with writing(tmp_path / "other", patience=0):
            pass
    with pytest.raises(KeyError), writing(tmp_path / "run", patience=0):
        raise KeyError
    with writing(tmp_path / "run", patience=0):
        pass


def test_a_killed_writer_is_waited_for_and_its_temporary_files_go(tmp_path):
    program = (
        "import os, pathlib, sys, time\nfrom knapsack.runs import writing\n"
        "with writing(sys.argv[1]):\n"
        "    pathlib.Path(sys.argv[1], 'cell').mkdir()\n"
        "    pathlib.Path(sys.argv[1], 'cell', '.a.json.1.tmp').write_text('half')\n"
        "    pathlib.Path(sys.argv[1], 'cell', 'a.json').write_text('{}')\n"
        "    print('holds it', flush=True)\n    time.sleep(1)\n    os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, cwd=CHECKOUT) as process:
        assert process.stdout.readline() == b"holds it\n"
        with writing(tmp_path, patience=30):
            assert [path.name for path in (tmp_path / "cell").iterdir()] == ["a.json"]
    assert process.returncode == -9

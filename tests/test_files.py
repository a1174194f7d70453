"""Files are whole or absent, and reading says what is wrong with a damaged one."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack.files import CorruptFileError, read_json, write_json, write_text

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
    write_json(file, value)
    assert read_json(file) == value


def test_equal_values_give_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": {"p": "ü", "q": None}})
    write_json(tmp_path / "b", {"y": {"q": None, "p": "ü"}, "x": 1})
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
        "from knapsack.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_text(sys.argv[1], 'x' * 100_000)\n"
        "except OSError as error:\n    print(error)\n"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, cwd=root, check=True)
    assert "result.json" in run.stdout and "free or unlock the disk" in run.stdout
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write.*file/below/a\.json"):
        write_json(tmp_path / "file" / "below" / "a.json", {})


def test_text_that_cannot_be_encoded_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of a pair: \ud83d")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

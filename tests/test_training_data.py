"""Pairs and rows for training: every filter, and rows that read back or say what is wrong."""

import pytest
import scripted
from damage import HOW, damage
from tiny import tiny_tokenizer

from knapsack import prompts, training_data
from knapsack.runs import SUMS, CorruptFileError


def good(kind="persistent"):
    return scripted.play(scripted.small_task(), kind, scripted.persistent_texts())


def test_every_filter_rejects_for_its_own_reason():
    task, tokenizer = scripted.small_task(), tiny_tokenizer()
    take = scripted.block("import json\nseen = {}\n" + scripted.LOOK.format(batch=6) + scripted.TAKE.format(skip=0))
    end = scripted.block("finish()")
    assert training_data.rejection(good()) is None
    assert training_data.rejection(good("stateless")) == "errors"  # two NameErrors in four turns
    assert training_data.rejection(scripted.play(task, "persistent", [end])) == "score"
    assert training_data.rejection(scripted.play(task, "persistent", [take, "Hm."], 3)) == "finish"
    same = [scripted.block("print('waiting for one more look at these')")] * 3
    again = scripted.block("print('waiting for one more look at these')\nfinish()")
    assert training_data.rejection(scripted.play(task, "persistent", [take, *same, again])) == "loop"
    assert training_data.rejection(scripted.play(task, "persistent", [take, *same, end])) is None
    tools = [take, *[scripted.block("take_item('nothing')", f"Try {n}.") for n in range(3)], end]
    assert training_data.rejection(scripted.play(task, "persistent", tools)) is None  # a tool's error is not counted
    length = len(prompts.render(training_data.training_row(good())["messages"], tokenizer).input_ids)
    assert training_data.rejection(good(), tokenizer, max_tokens=length + 100) is None
    assert training_data.rejection(good(), tokenizer, max_tokens=length + 99) == "length"


def test_a_pair_is_kept_only_if_both_pass():
    both = scripted.play(scripted.small_task(), "stateless", scripted.stateless_texts(scripted.small_task()))
    kept, reasons = training_data.keep_pairs([good(), good()], [both, good("stateless")])
    assert len(kept) == 1 and kept[0][1] is both
    assert reasons == {"persistent": {}, "stateless": {"errors": 1}}
    other = scripted.play(scripted.small_task(4), "stateless", ["Nothing."], 2)
    with pytest.raises(ValueError, match="same tasks"):
        training_data.keep_pairs([good()], [other])


def test_training_rows_end_with_the_assistant_and_read_back(tmp_path):
    row = training_data.training_row(scripted.play(scripted.small_task(), "persistent", ["I think.", "So."], 2))
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    rows, path = [row, training_data.training_row(good())], tmp_path / "training" / "traces.jsonl"
    training_data.write_rows(path, rows)
    assert training_data.read_rows(path) == rows


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[:-30], "within line 2"),
        (lambda text: b"", "empty"),
        (lambda text: text.replace(b"a", b"\xe1", 1), "UnicodeDecodeError"),
        (lambda text: text.replace(b'"messages"', b'"message"', 1), "line 1"),
        (lambda text: text.replace(b'"role": "system"', b'"role": "user"'), "line 1"),
    ],
)
def test_damaged_rows_name_file_and_line(tmp_path, damage, complaint):
    path = tmp_path / "traces.jsonl"
    training_data.write_rows(path, [training_data.training_row(good())] * 2)
    (tmp_path / SUMS).unlink()  # rows from elsewhere have none
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFileError, match=f"traces.jsonl.*{complaint}.*; run notebook 02 again"):
        training_data.read_rows(path)


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_damaged_rows_are_named_and_written_again(tmp_path, capsys, how):
    rows, path = [training_data.training_row(good())] * 2, tmp_path / "traces.jsonl"
    training_data.write_rows(path, rows)
    before = path.read_bytes()
    damage(path, how)
    with pytest.raises(CorruptFileError, match=r"traces\.jsonl .*; run notebook 02 again"):
        training_data.read_rows(path)
    training_data.write_rows(path, rows)
    assert "traces.jsonl " in capsys.readouterr().err
    training_data.write_rows(path, rows)
    assert not capsys.readouterr().err and path.read_bytes() == before  # whole again
    training_data.write_rows(path, rows[:1])  # other rows instead are no damage
    assert not capsys.readouterr().err and training_data.read_rows(path) == rows[:1]


def test_an_adapter_learns_from_its_own_traces_from_both_kinds_or_as_long_as_another():
    read = training_data.read_adapters({"persistent": {}, "both": {"traces": ["persistent", "stateless"]}})
    assert [entry.traces for entry in read.values()] == [("persistent",), ("persistent", "stateless")]
    sides = [[f"p{n}" for n in range(5)], [f"s{n}" for n in range(5)]]
    assert training_data.mixed(sides) == ["p0", "s1", "p2", "s3", "p4"] and training_data.mixed(sides[:1]) == sides[0]
    refused = {
        "traces.0 = 'mine'": {"mine": {}},
        "is not another one": {"persistent": {"match": "persistent"}},
        "match = 'who'": {"persistent": {"match": "who"}},
        "no other model's": {"base": {"traces": ["persistent"]}},
        "extra": {"persistent": {"rows": 3}},
    }
    for said, adapters in refused.items():
        with pytest.raises(ValueError, match=said):
            training_data.read_adapters(adapters)

import json
import shutil
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import scripted
from damage import HOW, damage
from hypothesis import given, settings
from hypothesis import strategies as st
from replay import differences

from knapsack import traces
from knapsack.runs import CorruptFileError, as_json, check, keep, read_json, writing
from knapsack.runtime import RUNTIME_KINDS

LOST = [
    "I think first.",  # no code block
    scripted.block("import json\nseen = {}\nprint(1 / 0)"),
    scripted.block("print(seen)\nlist_items(); take_item('item_none')"),
    scripted.block("for i in range(30):\n    list_items()"),
    scripted.block("finish()"),
]


@pytest.fixture(params=["persistent", "stateless"])
def lost(request):
    return scripted.play(scripted.small_task(), request.param, LOST)


def test_an_episode_reads_back_as_it_was(tmp_path, lost):
    cell = tmp_path / f"base_{lost.kind}_easy"
    traces.write_episode(cell, lost, "base", 2.5)
    back = traces.read_trace(traces.trace_path(cell, lost.task.task_id))
    assert back.turns == lost.turns and back.messages == lost.messages
    for name in ("score", "solved", "finish_reason", "error", "metrics", "taken", "kind"):
        assert getattr(back, name) == getattr(lost, name)
    assert (back.model, back.seconds, back.inspect_budget) == ("base", 2.5, lost.task.inspect_budget)


def test_equal_episodes_give_equal_bytes(tmp_path):
    paths = []
    for name in ("a", "b"):
        traces.write_episode(tmp_path / name, scripted.play(scripted.small_task(), "persistent", LOST), "base")
        paths.append(traces.trace_path(tmp_path / name, scripted.small_task().task_id))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_differences_names_what_changed(lost):
    other = scripted.play(lost.task, lost.kind, ["nothing"], 2)
    text = " ".join(differences(lost, other))
    assert "number of turns: 5 recorded, 2 now" in text and "turn 1" in text and "finish_reason" in text
    assert differences(lost, lost) == []


def test_an_episode_is_done_once_its_details_are_there(tmp_path, lost, capsys):
    name = lost.task.task_id
    assert not traces.episode_done(tmp_path, name)
    traces.write_episode(tmp_path, lost, "base", made_with="these settings")
    assert traces.episode_done(tmp_path, name) and traces.episode_done(tmp_path, name, "these settings")
    assert not traces.episode_done(tmp_path, name, "other settings")
    traces.discard_episodes(tmp_path, [name])  # as if stopped before they were written
    assert not traces.episode_done(tmp_path, name)
    traces.write_episode(tmp_path, lost, "base", made_with="these settings")
    assert traces.episode_done(tmp_path, name, "these settings")
    assert not capsys.readouterr().err


def episode_files(folder, task_id: str) -> list[Path]:
    path = traces.trace_path(folder, task_id)
    return [path, traces.result_path(path), traces.details_path(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one episode."""
    folder = tmp_path_factory.mktemp("whole")
    traces.write_episode(folder, scripted.play(scripted.small_task(), "stateless", LOST), "base", 1.25, "settings")
    return folder


@given(number=st.integers(0, 2), how=st.sampled_from([*HOW, "missing"]), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_damage_to_an_episode_is_named_and_it_counts_as_not_done(whole, number, how, seed):
    name = scripted.small_task().task_id
    damaged = episode_files(whole, name)[number]
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(whole, Path(place) / "copy")
        path = copy / damaged.relative_to(whole)
        damage(path, how, seed)
        with pytest.raises(CorruptFileError, match="run notebook 04 again"):
            check(copy, traces.REMEDY)
        with redirect_stderr(StringIO()) as told, writing(copy):
            assert not traces.episode_done(copy, name, "settings")
        assert told.getvalue().startswith(f"damaged: {path} ") and told.getvalue().count("\n") == 1


@given(
    st.from_regex(r"[a-z0-9_.-]{1,9}", fullmatch=True),
    st.sampled_from(RUNTIME_KINDS),
    st.from_regex(r"[a-z]{1,8}(-[a-z]{1,3})?", fullmatch=True),
    st.sampled_from([1, 24, 25, 26, 80]),
)
def test_a_cell_is_told_by_the_name_of_its_folder(model, kind, split, cap):
    cell = traces.Cell(model, kind, split, cap)
    assert traces.Cell.of(cell.name) == cell
    assert (cell.name == f"{model}_{kind}_{split}") == (cap == 25)  # as published, under the paper's cap
    assert traces.Cell.of(f"{model}_{kind}_{split}-cap25") is traces.Cell.of(f"{model}_reset_{split}") is None


def test_details_of_another_version_are_not_done_and_say_so(whole, tmp_path):
    name = scripted.small_task().task_id
    shutil.copytree(whole, tmp_path / "copy")
    trace, _, details = episode_files(tmp_path / "copy", name)
    keep(details, as_json(read_json(details) | {"schema": 9}))
    assert not traces.episode_done(tmp_path / "copy", name)
    with pytest.raises(CorruptFileError, match="schema 9"):
        traces.read_trace(trace)


@pytest.mark.parametrize(
    ("number", "before", "after", "complaint"),
    [
        (0, '"StepEvent"', "", "is not valid JSON"),
        (0, '"num_steps"', '"steps"', "lacks the field 'num_steps'"),
        (0, '"num_steps": 5', '"num_steps": 4', "5 steps follow"),
        (0, '"events": [', '"events": [3, ', "is not of the published format"),
        (1, '"completed"', "", "is not valid JSON"),
        (1, '"score"', '"points"', "lacks the field 'score'"),
        (1, '"score": 0.0', '"score": []', "is not of the published format"),
    ],
)
def test_damage_to_a_published_trace_names_file_field_and_remedy(whole, tmp_path, number, before, after, complaint):
    shutil.copytree(whole / "knapsack", tmp_path / "knapsack")  # without details it is as another program's
    path, *others = episode_files(tmp_path, scripted.small_task().task_id)
    file = [path, *others][number]
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(CorruptFileError, match=complaint) as error:
        traces.read_trace(path)
    assert str(file) in str(error.value) and "download both files of the episode anew" in str(error.value)


def test_a_published_name_error_is_told_from_a_missing_binding(tmp_path, lost):
    traces.write_episode(tmp_path / "base_stateless_easy", lost, "base")
    path = traces.trace_path(tmp_path / "base_stateless_easy", lost.task.task_id)
    traces.discard_episodes(tmp_path / "base_stateless_easy", [lost.task.task_id])  # as another program's
    trace = read_json(path)
    trace["events"] = [event for event in trace["events"] if event["type"] != "UserObservationEvent"]
    steps = [event["data"] for event in trace["events"] if event["type"] == "StepEvent"]
    steps[2]["interpreter_result"]["error"] = "Traceback:\nNameError: name 'seen' is not defined"
    steps[4]["interpreter_result"]["error"] = "NameError: name 'items' is not defined"
    path.write_text(json.dumps(trace))
    seen = [turn.observation for turn in traces.read_trace(path).turns]
    assert seen[0] is None
    assert [o.missing_binding for o in seen[1:]] == [False, True, False, False]
    assert [o.name_error for o in seen[1:]] == [False, True, False, True]
    assert seen[3].error_source == "cap" and seen[3].cap_hit

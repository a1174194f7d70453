"""Evaluation with a tiny random model: real cells in real worker processes, resumed, refused, and stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from damage import HOW, damage
from replay import differences, replay
from tiny import tiny_model

from knapsack import traces
from knapsack.evaluate import EvaluationError, Settings, evaluate
from knapsack.runs import (
    CorruptFileError,
    FolderInUseError,
    content_digest,
    keep_together,
    open_run,
    read_json,
    write_text,
    writing,
)
from knapsack.tasks import KnapsackConfig, read_tasks, sample_split, write_tasks
from knapsack.traces import Cell

CONFIG = KnapsackConfig((8, 10), (5, 20), (10, 100), 4, 2, (0.35, 0.5))
CELLS = [Cell("base", "persistent", "easy", 25), Cell("base", "stateless", "easy", 25)]
CELLS += [Cell("teacher", "stateless", "easy", 25), Cell("teacher", "stateless", "easy", 80)]
COUNTS = {"easy": 3}


def prepare(folder: Path):
    run = open_run(folder / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", 3, 0, CONFIG))
    base = tiny_model(folder)
    limits = {"max_new_tokens": 30, "context_length": 768, "max_turns": 8, "slots": 2}
    return run, Settings(base=str(base), seed=0, temperature=1.0, **limits)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    run, settings = prepare(tmp_path_factory.mktemp("evaluate"))
    evaluate(run, CELLS, COUNTS, settings, device="cpu", progress=False)
    return run, settings


def contents(run) -> dict[str, dict]:
    """All files of cells and episodes, without the seconds, which differ between runs, and their digests."""
    found = {}
    for path in sorted((run.folder / "evaluations").glob("*/**/*.json")):
        data = read_json(path)
        found[str(path.relative_to(run.folder))] = data
        if "result" in data:
            data.pop("finished_at")
        if "result_sha256" in data:
            data.pop("result_sha256"), data.pop("sha256")
    return found


def test_every_cell_holds_every_episode(evaluated):
    run, settings = evaluated
    ids = [task.task_id for task in read_tasks(run.tasks("easy"))]
    for cell in CELLS:
        folder = cell.folder(run)
        assert all(traces.episode_done(folder, task_id) for task_id in ids)
        record = read_json(folder / "settings.json")
        assert record["task_ids"] == ids and record["temperature"] == settings.temperature
        assert record["max_tool_calls"] == cell.cap and record["base_digest"] == content_digest(settings.base)
    for task in read_tasks(run.tasks("easy")):
        trace = traces.read_trace(traces.trace_path(run.evaluations / "teacher_stateless_easy", task.task_id))
        assert trace.finish_reason == "finish_tool" and trace.score > 0.5
        assert trace.turns[0].prompt_tokens > 50 and trace.turns[0].completion_tokens > 20
        assert differences(trace, replay(task, trace)) == []
        slack = traces.read_trace(traces.trace_path(run.evaluations / "teacher_stateless_easy-cap80", task.task_id))
        for cap, played in ((25, trace), (80, slack)):
            assert f"At most {cap} calls per turn" in played.messages[0]["content"]
        assert slack.score == trace.score  # the same ceiling
        trace = traces.read_trace(traces.trace_path(run.evaluations / "base_stateless_easy", task.task_id))
        assert (trace.model, trace.kind) == ("base", "stateless") and trace.finish_reason in ("max_turns", "error")
        assert trace.turns and all(turn.completion_tokens <= 30 for turn in trace.turns) and trace.seconds > 0


def test_training_tasks_go_round_the_caps_and_both_runtimes_of_a_task_take_the_same(evaluated, tmp_path):
    run = open_run(tmp_path / "run")
    write_tasks(run.tasks("train"), sample_split("train", 3, 0, CONFIG))
    cells = [Cell("teacher", kind, "train", cap) for cap in (25, 80) for kind in ("persistent", "stateless")]
    evaluate(run, cells, {"train": 3}, evaluated[1], processes=1, device="cpu", progress=False)
    ids = [task.task_id for task in read_tasks(run.tasks("train"))]
    for kind in ("persistent", "stateless"):
        for folder, cap, own in ((kind, 25, ids[::2]), (f"{kind}-cap80", 80, ids[1::2])):
            assert sorted(map(traces.task_id_of, run.traces(folder).glob("knapsack/*.trace.json"))) == own
            for task_id in own:
                trace = traces.read_trace(traces.trace_path(run.traces(folder), task_id))
                assert trace.kind == kind and f"At most {cap} calls per turn" in trace.messages[0]["content"]


def test_resumed_run_ends_like_an_uninterrupted_one(evaluated):
    run, settings = evaluated
    before = contents(run)
    folder = run.evaluations / "base_persistent_easy"
    lost = traces.trace_path(folder, "knapsack-0000000001")
    kept = traces.trace_path(folder, "knapsack-0000000000")
    stamp = kept.stat().st_mtime_ns
    traces.discard_episodes(folder, ["knapsack-0000000001"])  # as after a stop before its last file
    traces.result_path(lost).write_text("{")
    evaluate(run, CELLS, COUNTS, settings, processes=1, device="cpu", progress=False)
    assert contents(run) == before
    assert kept.stat().st_mtime_ns == stamp


def test_workers_that_share_a_model_play_each_episode_once_and_as_one_alone(evaluated, tmp_path):
    whole, settings = evaluated  # by two
    run = open_run(tmp_path / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", 3, 0, CONFIG))
    evaluate(run, CELLS, COUNTS, settings, processes=1, device="cpu", progress=False)
    assert contents(run) == contents(whole)


@pytest.mark.parametrize(
    ("name", "value", "need"),
    [
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", float("nan"), "a finite number"),
        ("slots", 0, "greater than or equal to 1"),
        ("max_turns", True, "a valid integer"),
        ("max_new_tokens", 1.0, "a valid integer"),
        ("context_length", 1, "greater than or equal to 2"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("prompt_detail", "long", "'full' or 'compact'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(name, value, need):
    with pytest.raises(ValueError, match=f"^Settings.{name} = {value!r}: input should be {need}$"):
        replace(Settings(), **{name: value})


def test_settings_are_recorded_as_they_are_played():
    recorded = {"base": "nano", "seed": 3, "temperature": 1.0, "max_new_tokens": 1024, "context_length": 4096}
    recorded |= {"max_turns": 40, "max_malformed": 0, "prompt_detail": "compact", "slots": 32, "engine": "monty"}
    assert json.dumps(asdict(Settings(seed=3, temperature=1))) == json.dumps(recorded)
    assert asdict(Settings(temperature=None))["temperature"] is None


def test_other_settings_are_refused(evaluated, tmp_path):
    run, settings = evaluated
    for name, value in {"temperature": 0.5, "seed": 1, "max_turns": 9, "slots": 3, "prompt_detail": "full"}.items():
        with pytest.raises(ValueError, match=f"base_persistent_easy was begun with {name} = .*--fresh"):
            evaluate(run, CELLS, COUNTS, replace(settings, **{name: value}))
    other = tiny_model(tmp_path, seed=1)
    other = other.rename(tmp_path / Path(settings.base).name)
    with pytest.raises(ValueError, match="begun with base = "):
        evaluate(run, CELLS, COUNTS, replace(settings, base=str(other)))
    assert content_digest(other) != content_digest(settings.base)


def test_other_tasks_and_unexplained_episodes_are_refused(tmp_path):
    run, settings = prepare(tmp_path)
    folder = run.evaluations / "base_persistent_easy"
    evaluate(run, [], {}, settings)  # nothing to do is no error
    (folder / "knapsack").mkdir(parents=True)
    (folder / "knapsack" / "knapsack-x.trace.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no settings\.json"):
        evaluate(run, CELLS, COUNTS, settings)
    (folder / "knapsack" / "knapsack-x.trace.json").unlink()
    blocked = run.evaluations / "base_stateless_easy"
    blocked.mkdir(parents=True)
    (blocked / "knapsack").write_text("a file where the episodes' folder should be")
    # An infrastructure error in a worker is raised here, with its own message, and says where it was.
    with pytest.raises(EvaluationError, match=r"base_stateless_easy.*knapsack"):
        evaluate(run, CELLS[1:2], COUNTS, settings, device="cpu", progress=False)
    shutil.rmtree(run.tasks("easy"))
    write_tasks(run.tasks("easy"), sample_split("easy", 3, 1, CONFIG))
    with pytest.raises(ValueError, match="another task or prompt for knapsack-0000000000"):
        evaluate(run, CELLS[1:2], COUNTS, settings)


def test_damaged_files_are_named_and_made_again(evaluated, tmp_path, capsys):
    """All kinds of files, each harmed in every way, in one run: three episodes and the settings of three cells."""
    whole, settings = evaluated
    run = open_run(shutil.copytree(whole.folder, tmp_path / "run"))
    before, harmed = contents(run), []
    for cell, how in zip(CELLS, HOW, strict=False):
        folder = cell.folder(run)
        trace = [traces.trace_path(folder, f"knapsack-{number:010d}") for number in range(3)]
        paths = [trace[0], traces.result_path(trace[1]), traces.details_path(trace[2]), folder / "settings.json"]
        for number, path in enumerate(paths):
            damage(path, how, number)
        harmed += paths
    evaluate(run, CELLS, COUNTS, settings, device="cpu", progress=False)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("damaged: ")]
    assert sorted(line.split()[1] for line in told) == sorted(map(str, harmed))
    assert contents(run) == before
    evaluate(run, CELLS, COUNTS, settings, device="cpu", progress=False)
    assert "damaged" not in capsys.readouterr().err


def test_lost_settings_do_not_mix_episodes_of_two_kinds(evaluated, tmp_path, capsys, monkeypatch):
    whole, settings = evaluated
    run, cells, opened = open_run(shutil.copytree(whole.folder, tmp_path / "run")), CELLS[2:3], []
    monkeypatch.setattr("knapsack.evaluate._play_all", lambda jobs, *_: opened.extend(jobs[0].episodes))
    (cells[0].folder(run) / "settings.json").unlink()
    evaluate(run, cells, COUNTS, settings)
    assert not opened and "settings.json is missing; it is made again" in capsys.readouterr().err
    (cells[0].folder(run) / "settings.json").unlink()
    evaluate(run, cells, COUNTS, replace(settings, temperature=0.5))
    assert [episode.task for episode in opened] == read_tasks(run.tasks("easy"))


def test_a_damaged_adapter_is_not_played(evaluated, tmp_path):
    whole, settings = evaluated
    run = open_run(shutil.copytree(whole.folder, tmp_path / "run"))
    adapter = run.adapter("persistent")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        write_text(adapter / name, "a file of an adapter")
    keep_together(adapter)
    for path in sorted(adapter.glob("adapter_*")):
        content = path.read_bytes()
        damage(path, "bit flipped")
        with pytest.raises(CorruptFileError, match=f"{path.name} .*; run notebook 03 again"):
            evaluate(run, [Cell("persistent", "persistent", "easy", 25)], COUNTS, settings)
        path.write_bytes(content)


def test_two_evaluations_of_one_run_at_once(evaluated, monkeypatch):
    run, settings = evaluated
    monkeypatch.setattr("knapsack.evaluate.writing", partial(writing, patience=0))
    with writing(run.folder / "evaluations"):
        with pytest.raises(FolderInUseError, match=r"another process is writing to .*evaluations"):
            evaluate(run, CELLS, COUNTS, settings)


def test_what_is_missing_is_named_before_anything_runs(tmp_path):
    run, settings = prepare(tmp_path)
    with pytest.raises(FileNotFoundError, match="notebook 03"):
        evaluate(run, [Cell("persistent", "persistent", "easy", 25)], COUNTS, settings)
    with pytest.raises(FileNotFoundError, match="notebook 01"):
        evaluate(run, [Cell("base", "persistent", "hard", 25)], {"hard": 1}, settings)
    with pytest.raises(FileNotFoundError, match="holds 3 tasks, 4 needed"):
        evaluate(run, CELLS, {"easy": 4}, settings)
    with pytest.raises(ValueError, match="processes"):
        evaluate(run, CELLS, COUNTS, settings, processes=0)
    assert not (run.folder / "evaluations").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_interruption_stops_the_workers(tmp_path, how):
    run, settings = prepare(tmp_path)
    long = replace(settings, context_length=2048, max_new_tokens=2000)
    script = tmp_path / "script.py"
    script.write_text(
        "from knapsack.evaluate import *\nfrom knapsack.runs import open_run\nif __name__ == '__main__':\n"
        f"    cells = [Cell('base', kind, 'easy', 25) for kind in ('persistent', 'stateless')]\n"
        f"    evaluate(open_run({str(run.folder)!r}), cells, {{'easy': 3}}, {long!r}, device='cpu')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored here
    )
    try:
        deadline = time.monotonic() + 240
        while len(workers := psutil.Process(process.pid).children(recursive=True)) < 5:  # with interpreters, a tracker
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(how)
        process.wait(timeout=60)
        assert psutil.wait_procs(workers, timeout=60)[1] == []
        assert process.returncode != 0
        assert len(list((run.folder / "evaluations").glob("*/knapsack/*.trace.json"))) < 6
    finally:
        process.kill()

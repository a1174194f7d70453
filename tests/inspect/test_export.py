"""A run's episodes as logs for Inspect View, read back with inspect_ai's own reader: `make test-inspect`."""

import json
import shutil
import statistics
import subprocess
import sys

import pytest
import scripted
from damage import HOW, damage
from places import CHECKOUT

from knapsack import traces
from knapsack.analysis import export, metrics
from knapsack.runs import CorruptFileError, Run, write_text

CELLS = [("base", "persistent"), ("persistent", "stateless"), ("teacher", "stateless")]
CELL = "persistent_stateless_easy"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return scripted.write_run(tmp_path_factory.mktemp("run"), 3, ["easy"], CELLS, caps=(25, 80))


@pytest.fixture
def run(played, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(played / "evaluations", run.evaluations)
    run.record("04_evaluate", {"seed": 0})
    return run


@pytest.fixture
def read(run, tmp_path):
    """Exports the run, and reads the log of a cell."""
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed: make test-inspect")

    def read(cell=CELL):
        assert export.write_inspect_logs(run, tmp_path / "logs")
        return log.read_eval_log(str(tmp_path / "logs" / f"{cell}.eval"))

    return read


def traces_of(run, cell=CELL):
    return [traces.read_trace(path) for path in sorted((run.evaluations / cell / "knapsack").glob("*.trace.json"))]


def test_every_cell_is_a_log(run, read, tmp_path):
    found = read("teacher_stateless_easy-cap80")
    names = {f"{model}_{kind}_easy{end}.eval" for model, kind in CELLS for end in ("", "-cap80")}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == names
    assert (found.eval.task, found.eval.model, found.status) == ("opaque_knapsack_easy", "teacher", "success")
    assert found.eval.task_args == {"runtime": "stateless", "cap": 80, "split": "easy"}
    assert found.eval.metadata["max_tool_calls"] == 80 and "task_ids" not in found.eval.metadata
    assert found.eval.metadata["manifest"] == run.read_manifest()["04_evaluate"]
    assert found.eval.dataset.sample_ids == [sample.id for sample in found.samples] and len(found.samples) == 3


@pytest.mark.parametrize("cell", [CELL, "base_persistent_easy"])  # base: malformed replies too
def test_a_sample_is_an_episode(run, read, cell):
    found = read(cell)
    for sample, trace in zip(found.samples, traces_of(run, cell), strict=True):
        told = [{"role": message.role, "content": message.content} for message in sample.messages]
        assert told == trace.messages and [message.role for message in sample.input] == ["system", "user"]
        replies = [message for message in sample.messages if message.role == "assistant"]
        spent = [(turn.prompt_tokens, turn.completion_tokens) for turn in trace.turns]
        assert [tuple(reply.metadata.values()) for reply in replies] == spent
        assert {reply.model for reply in replies} == {trace.model} and sample.output.message == replies[-1]
        (score,), (usage,) = sample.scores.values(), sample.model_usage.values()
        assert (score.value, score.explanation) == (trace.score, trace.finish_reason) and sample.error is None
        assert (score.answer, sample.target) == tuple(str(trace.metrics[f"{w}_value"]) for w in ("agent", "optimal"))
        assert [usage.input_tokens, usage.output_tokens] == [sum(kind) for kind in zip(*spent, strict=True)]
        assert sample.metadata.items() >= (metrics.episode_row(trace) | trace.metrics).items()
        assert (sample.metadata["taken"], sample.total_time) == (trace.taken, trace.seconds)
    total = sum(sample.model_usage[found.eval.model].total_tokens for sample in found.samples)
    assert found.stats.model_usage[found.eval.model].total_tokens == total > 0


def test_a_cells_numbers_are_over_its_scored_episodes(run, read):
    found = read()
    (score,), values = found.results.scores, [sample.scores[export.SCORE].value for sample in found.samples]
    assert score.metrics["mean"].value == pytest.approx(statistics.mean(values))
    assert score.metrics["stderr"].value == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert (found.results.total_samples, found.results.completed_samples, score.scored_samples) == (3, 3, 3)


def test_a_cell_with_missing_episodes_is_cancelled(run, read):
    first, second, third = (trace.task_id for trace in traces_of(run))
    traces.discard_episodes(run.evaluations / CELL, [second, third])
    found = read()
    assert found.status == "cancelled" and [sample.id for sample in found.samples] == [first]
    assert found.eval.dataset.sample_ids == [first, second, third]
    assert (found.results.total_samples, found.results.completed_samples) == (3, 1)
    assert list(found.results.scores[0].metrics) == ["mean"]  # of one there is no error
    assert read("teacher_stateless_easy").status == "success"


def test_an_unscored_episode_has_an_error_and_no_score(run, read):
    cell = run.evaluations / CELL
    shutil.rmtree(cell / "details")  # as if downloaded
    (cell / "settings.json").unlink()
    (cell / "knapsack" / "SHA256SUMS").unlink()
    for path, end in zip(sorted((cell / "knapsack").glob("*.trace.json")), ("timeout", "error"), strict=False):
        failed = json.loads(traces.result_path(path).read_text()) | {"status": end, "result": None}
        traces.result_path(path).write_text(json.dumps(failed))
    path.unlink()  # others leave no trace of some
    found = read()
    (late, scored), messages = found.samples, traces_of(run)[0].messages
    assert late.error.message == "timeout, not scored: finish_tool" and not late.scores
    assert [message.content for message in late.messages] == [message["content"] for message in messages]
    assert scored.error is None and (found.results.total_samples, found.results.completed_samples) == (3, 1)


def test_a_run_gives_the_same_bytes_and_other_files_stay(run, read, tmp_path):
    read()
    logs, first = tmp_path / "logs", {path.name: path.read_bytes() for path in (tmp_path / "logs").iterdir()}
    write_text(logs / "mine.eval", "mine")
    write_text(logs / f"{CELL}.eval", "of an earlier export")
    read()
    assert {path.name: path.read_bytes() for path in logs.iterdir()} == first | {"mine.eval": b"mine"}


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_a_damaged_trace_is_named_and_nothing_is_written(run, read, tmp_path, how):
    path = next((run.evaluations / CELL / "knapsack").glob("*.trace.json"))
    damage(path, how)
    with pytest.raises(CorruptFileError, match=f"{path} is .*; run notebook 04 again"):
        read()
    assert not (tmp_path / "logs").exists()


def export_command(*arguments, without=False):
    hidden = "import sys; sys.modules['inspect_ai'] = None; " if without else "import sys; "
    program = f"{hidden}import runpy; runpy.run_module('knapsack.analysis.export', run_name='__main__')"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)


def test_without_inspect_ai_one_line_says_what_to_install(run, tmp_path):
    ended = export_command(run.folder, "--inspect", tmp_path / "logs", without=True)
    assert ended.returncode == 1 and not (tmp_path / "logs").exists()
    assert ended.stderr.endswith("for Inspect's logs: pip install -e '.[inspect]'\n") and ended.stderr.count("\n") == 1


def test_the_command_says_what_it_wrote_or_why_not(run, read, tmp_path):
    ended = export_command(run.folder, "--inspect", tmp_path / "logs")
    assert ended.stdout == f"6 logs; to look at them: inspect view --log-dir {tmp_path / 'logs'}\n", ended.stderr
    ended = export_command(tmp_path / "none", "--inspect", tmp_path / "logs")
    assert ended.returncode == 1 and "run notebook 04 first" in ended.stderr and "Traceback" not in ended.stderr
    assert export_command(run.folder).stderr.startswith("usage: ") and not (tmp_path / "none").exists()

"""The episodes of a run for another program: for Inspect View, an ``.eval`` log of each cell.

    python -m knapsack.analysis.export runs/nano --inspect logs

A sample is an episode, with every message and the tokens of every reply; Inspect's own events are not made up. One run
gives the same bytes from the same versions of inspect_ai and zstandard: ids are digests, and the first second of 1970
stands for every time of day. How long an episode took is kept, so a run played anew gives other logs.
"""

import io
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pandas as pd

from knapsack.agent import Turn
from knapsack.analysis.metrics import CELL, REMEDY, completed, episode_row, read_cells
from knapsack.runs import Run, digest, project_folder, read_json, write_bytes
from knapsack.traces import NO_TIME, Cell, Trace, read_trace, trace_path

SCORE = "normalized_optimality"
TIME = f"{NO_TIME}+00:00"


def packages():
    """inspect_ai's modules log, model and scorer. Raises ImportError, with the remedy, without the extra for them."""
    try:
        from inspect_ai import log, model, scorer
    except ImportError as error:
        raise ImportError(f"{error}; for Inspect's logs: pip install -e '.[inspect]'") from error
    return log, model, scorer


def write_inspect_logs(run: Run, folder: str | Path) -> list[Path]:
    """Write ``<cell>.eval`` for every cell that was evaluated, and return the paths; what else ``folder`` has stays.

    Raises what ``packages`` and ``metrics.read_cells`` raise, before anything is written; OSError if that fails.
    """
    packages()
    episodes, _ = read_cells(run.evaluations)
    run_id, manifest, paths = _id(episodes.to_csv()), run.read_manifest().get("04_evaluate"), []
    for (*names, cap), rows in episodes.groupby(CELL, sort=False):
        cell = Cell(*names, int(cap))
        paths.append(Path(folder) / f"{cell.name}.eval")
        write_bytes(paths[-1], _packed(_cell_log(cell, rows, run.evaluations / cell.name, run_id, manifest)))
    return paths


def _id(*what: object) -> str:
    """As long as Inspect's own random ones."""
    return digest("|".join(map(str, what)))[:22]


def _packed(cell_log) -> bytes:
    """The log as inspect_ai writes it, but for the times of day inside the file."""
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as place:
        packages()[0].write_eval_log(cell_log, f"{place}/cell.eval")
        with ZipFile(f"{place}/cell.eval") as written, ZipFile(content, "w") as packed:
            for entry in written.infolist():
                packed.writestr(ZipInfo(entry.filename), written.read(entry), entry.compress_type)
    return content.getvalue()


def _cell_log(cell: Cell, rows: pd.DataFrame, folder: Path, run_id: str, manifest: dict | None):
    """The EvalLog of a cell, "cancelled" if episodes of it are missing."""
    log, model, _ = packages()
    own, tasks = _id(run_id, cell.name), rows["task_id"].tolist()
    settings = read_json(folder / "settings.json", REMEDY) if (folder / "settings.json").exists() else {}
    played = [trace_path(folder, task) for task in rows.loc[rows["status"] != "missing", "task_id"]]
    traces = [read_trace(path) for path in played if path.exists()]  # a downloaded timeout may have none
    usage = {cell.model: _usage([turn for trace in traces for turn in trace.turns])}
    scores = completed(rows)["score"]
    numbers = {"mean": scores.mean(), "stderr": scores.sem()}  # NaN if too few are scored
    metrics = {name: log.EvalMetric(name=name, value=float(value)) for name, value in numbers.items() if value == value}
    score = log.EvalScore(name=SCORE, scorer=SCORE, scored_samples=len(scores), metrics=metrics)
    spec = {"run_id": run_id, "eval_id": own, "task_id": own, "created": TIME, "model": cell.model}
    spec |= {"task": f"opaque_knapsack_{cell.split}", "config": log.EvalConfig(epochs=1, fail_on_error=False)}
    spec |= {"task_args": {"runtime": cell.runtime, "cap": cell.cap, "split": cell.split}}
    spec |= {"dataset": log.EvalDataset(name=cell.split, samples=len(tasks), sample_ids=tasks)}
    made = {name: value for name, value in settings.items() if name not in ("task_ids", "tasks")}
    return log.EvalLog(
        status="cancelled" if "missing" in set(rows["status"]) else "success",
        eval=log.EvalSpec(**spec, metadata=made | {"manifest": manifest}),
        plan=log.EvalPlan(config=model.GenerateConfig(temperature=made.get("temperature"), seed=made.get("seed"))),
        results=log.EvalResults(total_samples=len(tasks), completed_samples=len(scores), scores=[score]),
        stats=log.EvalStats(started_at=TIME, completed_at=TIME, model_usage=usage),
        samples=[_sample(trace, cell.model, _id(own, trace.task_id)) for trace in traces],
    )


def _usage(turns: list[Turn]):
    prompt, completion = (sum(getattr(t, f"{kind}_tokens") for t in turns) for kind in ("prompt", "completion"))
    tokens = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    return packages()[1].ModelUsage(**tokens)


def _sample(trace: Trace, name: str, own: str):
    """The EvalSample of an episode: with a score, or with an error if it was not completed."""
    log, model, scorer = packages()
    kinds = {"system": model.ChatMessageSystem, "user": model.ChatMessageUser, "assistant": model.ChatMessageAssistant}
    messages = [kinds[m["role"]](content=m["content"], id=_id(own, i)) for i, m in enumerate(trace.messages)]
    for reply, turn in zip(replies := messages[2::2], trace.turns, strict=True):
        tokens = {"prompt_tokens": turn.prompt_tokens, "completion_tokens": turn.completion_tokens}
        reply.model, reply.metadata = name, tokens
    last = [model.ChatCompletionChoice(message=reply) for reply in replies[-1:]]
    facts = {name: value for name, value in episode_row(trace).items() if value == value}  # without NaN
    facts |= {"taken": trace.taken, "inspect_budget": trace.inspect_budget} | trace.metrics
    answer, target = (str(facts.get(which, "")) for which in ("agent_value", "optimal_value"))
    reason, ended = ": ".join(filter(None, (trace.finish_reason, trace.error))), {}
    if trace.status == "completed":
        ended["scores"] = {SCORE: scorer.Score(value=trace.score, answer=answer, explanation=reason)}
    else:
        message = f"{trace.status}, not scored: {reason}"
        ended["error"] = log.EvalError(message=message, traceback="", traceback_ansi="")
    told = {"input": messages[:2], "messages": messages, "output": model.ModelOutput(model=name, choices=last)}
    spent = {"model_usage": {name: _usage(trace.turns)}, "total_time": trace.seconds}
    spent |= {"turn_count": len(trace.turns), "metadata": facts}
    return log.EvalSample(id=trace.task_id, epoch=1, uuid=own, target=target, **told, **spent, **ended)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] != "--inspect":
        sys.exit("usage: python -m knapsack.analysis.export RUN_FOLDER --inspect FOLDER")
    try:
        written = write_inspect_logs(Run(project_folder() / Path(sys.argv[1]).expanduser()), sys.argv[3])
    except (ImportError, OSError, ValueError) as problem:
        sys.exit(str(problem))
    print(f"{len(written)} logs; to look at them: inspect view --log-dir {sys.argv[3]}")

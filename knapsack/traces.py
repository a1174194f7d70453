"""Episodes as files in the published formats, written and read back.

An episode is ``<folder>/knapsack/knapsack-<task_id>.trace.json`` and the result ``….json`` beside it, both in the
published format and nothing more. What that cannot carry lies in ``<folder>/details/knapsack-<task_id>.json``. It is
written last: an episode counts once its details are there. Published traces of other programs, which have no details,
can be read as well.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from knapsack import prompts, runs, runtime
from knapsack.agent import Episode, Turn
from knapsack.names import bound_names
from knapsack.prompts import Message
from knapsack.runs import CorruptFileError, Run, parsing, read_json
from knapsack.runtime import Observation

SCHEMA = 1  # of the details
NO_TIME = "1970-01-01T00:00:00"  # stands for every time of day, so that equal episodes give equal bytes
REMEDY = "run notebook 04 again (02 for training traces): it plays the episode again"
DOWNLOAD = "download both files of the episode anew"
# Fields of an observation that the published format has no place for.
KEPT = ("cap_hit", "error_type", "error_source", "missing_binding", "tool_calls", "last_step_globals", "active_globals")
CELL_NAME = re.compile(r"(?P<model>.+)_(?P<runtime>[^_]+)_(?P<split>[^_]+?)(?:-cap(?P<cap>\d+))?")
TOO_LONG = re.compile(r"context|\btokens\b|too long", re.IGNORECASE)  # said of a conversation, not of a server


@dataclass(frozen=True)
class Trace:
    """An episode read from its two files. ``None`` stands for what a published trace does not tell.

    ``status``: "completed", "timeout", "error" or "unanswered" (only completed ones are scored); ``seconds``:
    wall-clock. The released harness goes on when a model call fails and calls the episode completed, so that a dead
    server looks like a score of 0. Such an episode is "unanswered" here: its last model calls failed and no reply
    came after them. A conversation too long for the model, or a reply cut at its limit, is the model's doing: scored.
    """

    task_id: str
    model: str | None
    kind: runtime.Kind | None
    status: str
    messages: list[Message]
    turns: list[Turn]
    finish_reason: str
    error: str | None
    score: float
    solved: bool
    metrics: dict = field(default_factory=dict)
    taken: list[str] | None = None
    inspect_budget: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Cell:
    """A model ("base", "teacher", the name of an adapter or of an endpoint) in a runtime on a split, under a cap on the
    tool calls of a turn."""

    model: str
    runtime: runtime.Kind
    split: str
    cap: int

    @property
    def name(self) -> str:
        """The name of its folder: ``<model>_<runtime>_<split>`` as published, where the cap is the paper's, and
        ``<model>_<runtime>_<split>-cap<cap>`` for any other."""
        return f"{self.model}_{self.runtime}_{self.split}{self._end}"

    @property
    def _end(self) -> str:
        return "" if self.cap == runtime.MAX_TOOL_CALLS else f"-cap{self.cap}"

    @classmethod
    def of(cls, name: str) -> Self | None:
        """The cell whose folder has this name; None if it is no cell's."""
        if not (found := CELL_NAME.fullmatch(name)):
            return None
        cell = cls(**found.groupdict() | {"cap": int(found["cap"] or runtime.MAX_TOOL_CALLS)})
        return cell if cell.runtime in runtime.RUNTIME_KINDS and cell.name == name else None

    def folder(self, run: Run) -> Path:
        """Where the episodes lie; what the teacher does on training tasks are the traces to learn from."""
        if (self.model, self.split) == ("teacher", "train"):
            return run.traces(f"{self.runtime}{self._end}")
        return run.evaluations / self.name


def share_out(cells: Sequence[Cell], tasks: dict[str, Sequence]) -> dict[Cell, Sequence]:
    """What each cell plays of ``tasks[split]``: all; but training tasks go round the caps, one to each in turn."""
    caps = list(dict.fromkeys(cell.cap for cell in cells if cell.split == "train"))
    parts = {cell: slice(caps.index(cell.cap), None, len(caps)) for cell in cells if cell.split == "train"}
    return {cell: tasks[cell.split][parts.get(cell, slice(None))] for cell in cells}


def cells_of(models: Iterable[str], runtimes: Sequence[str], splits: Iterable[str], caps: Sequence[int]) -> list[Cell]:
    """Every cell of a study, then those of the teacher in its own two runtimes.

    The base plays under the slackest cap only: it does not act without training, so a cap asks it nothing, and its
    long replies would cost as much time as all others."""
    settings = [(split, cap) for split in splits for cap in caps]
    cells = [Cell(model, where, *one) for one in settings for model in models for where in runtimes]
    own = [Cell("teacher", where, *one) for one in settings for where in runtime.KINDS if where in runtimes]
    return [cell for cell in cells if cell.model != "base" or cell.cap == max(caps)] + own


def task_id_of(path: str | Path) -> str:
    """The task of a trace, result or details file."""
    return Path(path).name.removesuffix(".json").removesuffix(".trace").removeprefix("knapsack-")


def trace_path(folder: str | Path, task_id: str) -> Path:
    return Path(folder) / "knapsack" / f"knapsack-{task_id}.trace.json"


def result_path(path: str | Path) -> Path:
    """The result file that belongs to the trace file ``path``."""
    return Path(path).with_name(f"knapsack-{task_id_of(path)}.json")


def details_path(path: str | Path) -> Path:
    """The details that belong to the trace file ``path``, if the episode is ours."""
    return Path(path).parent.parent / "details" / result_path(path).name


def episode_done(folder: str | Path, task_id: str, made_with: str | None = None) -> bool:
    """Whether the episode is there, of this version, and (unless None) with the ``made_with`` it was written with."""
    path = trace_path(folder, task_id)
    if not all(file.exists() for file in (path, result_path(path), details_path(path))):
        return False
    own = read_json(details_path(path), REMEDY)
    return own.get("schema") == SCHEMA and made_with in (None, own.get("made_with"))


def take_over(source: Path, folder: Path, task_id: str, made_with: str) -> bool:
    """Whether ``source``, a folder of another run, has the episode, whole and ``made_with`` just this: then it is put
    into ``folder`` too. A damaged one is named on stderr."""
    paths = [which(trace_path(source, task_id)) for which in (Path, result_path, details_path)]
    try:
        for path in filter(Path.exists, paths):
            runs.check(path, "the episode is played anew")
        if not episode_done(source, task_id, made_with):
            return False
    except CorruptFileError as problem:
        runs.tell(problem)
        return False
    for path in paths:
        runs.copy(path, folder / path.relative_to(source))
    return True


def discard_episodes(folder: str | Path, task_ids: Collection[str]) -> None:
    """Make episodes count as not done."""
    paths = [details_path(trace_path(folder, task_id)) for task_id in task_ids]
    if there := [path.name for path in paths if path.exists()]:
        runs.discard(paths[0].parent, there)


def write_episode(
    folder: str | Path, episode: Episode, model: str, seconds: float = 0.0, made_with: str | None = None
) -> None:
    """Write the trace, the result, and last the details, each atomically.

    ``seconds`` is the episode's wall-clock time, ``made_with`` a digest of all that determines the episode.
    """
    scored = {"is_solved": episode.solved, "score": episode.score, "metrics": episode.metrics}
    ended = {"status": "completed", "error": None, "started_at": 0.0, "finished_at": float(seconds), "result": scored}
    own = {"schema": SCHEMA, "model": model, "runtime": episode.kind, "inspect_budget": episode.task.inspect_budget}
    own |= {"taken": episode.taken, "made_with": made_with}
    own["turns"] = [
        {name: getattr(turn.observation, name, None) for name in KEPT} | {"protocol_error": turn.protocol_error}
        for turn in episode.turns
    ]
    path = trace_path(folder, episode.task_id)
    contents = {path: _published_form(episode), result_path(path): ended, details_path(path): own}
    for file, content in contents.items():
        runs.keep(file, runs.as_json(content))


def _published_form(episode: Episode) -> dict:
    system, task_text, *later = (message["content"] for message in episode.messages)
    events = [_event("StartEvent", task=task_text), _event("SystemPromptEvent", prompts=[system])]
    at = {"timestamp": f"{NO_TIME}+00:00"}
    for index, (turn, shown) in enumerate(zip(episode.turns, later[1::2], strict=True)):
        usage, seen = _usage(turn), turn.observation
        spent = {name: usage[name] for name in ("completion_tokens", "total_tokens")}
        outcome = {"error": turn.protocol_error}
        if seen is not None:
            outcome = {"success": seen.error is None, "result": None, "output": seen.output, "error": seen.error}
        step = {"turn": index, "assistant_text": turn.text, "code": turn.code, "interpreter_result": outcome}
        events += [
            _event("ModelCallEvent", **at, prompt_tokens=turn.prompt_tokens),
            _event("ModelResponseEvent", **at, **spent),
            _event("StepEvent", **step, token_usage=usage),
            _event("UserObservationEvent", turn=index, content=shown),
        ]
    errors = [] if episode.error is None else [episode.error]
    events += [_event("ErrorEvent", error=error) for error in errors]
    events.append(_event("FinishEvent", reason=episode.finish_reason, token_usage=_usage(episode)))
    summary = {"task": task_text, "system_prompts": [system], "num_steps": len(episode.turns), "errors": errors}
    summary |= {"finish_reason": episode.finish_reason, "token_usage": _usage(episode)}
    return {"started_at": NO_TIME, "finished_at": NO_TIME, "summary": summary, "events": events}


def _usage(spent: Turn | Episode) -> dict:
    prompt, completion = spent.prompt_tokens, spent.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(kind: str, **data) -> dict:
    return {"type": kind, "data": data, "timestamp": NO_TIME}


def read_trace(path: str | Path) -> Trace:
    """Read a trace, the result beside it, and the details if there are any.

    Raises CorruptFileError naming the file, what is wrong (in a published trace: the field) and the remedy.
    """
    path, own, remedy = Path(path), None, DOWNLOAD
    if details_path(path).exists():
        own, remedy = read_json(details_path(path), REMEDY), REMEDY
        if own.get("schema") != SCHEMA:
            raise CorruptFileError(f"{details_path(path)} has the schema {own.get('schema')}, not {SCHEMA}; {remedy}")
    trace = read_json(path, remedy)
    result = read_json(result_path(path), remedy)
    cell = Cell.of(path.parent.parent.name)  # published folders say model, runtime and difficulty
    facts = own or (vars(cell) if cell else {})
    with parsing(path, "of the published format", remedy):
        played = _played(trace, own, facts.get("runtime"))
        silent = own is None and _unanswered(trace["events"])
    with parsing(result_path(path), "of the published format", remedy):
        ended = _ended(result, silent)
    known = {name: facts.get(name) for name in ("model", "taken", "inspect_budget")}
    return Trace(task_id=task_id_of(path), kind=facts.get("runtime"), **known, **played, **ended)


def _played(trace: dict, own: dict | None, kind: runtime.Kind | None) -> dict:
    """What the trace file tells: the fields ``messages``, ``turns``, ``finish_reason`` and ``error`` of a Trace."""
    summary = trace["summary"]
    steps = [event["data"] for event in trace["events"] if event["type"] == "StepEvent"]
    shown = [event["data"] for event in trace["events"] if event["type"] == "UserObservationEvent"]
    contents = {event["turn"]: event["content"] for event in shown}
    if summary["num_steps"] != len(steps):
        raise ValueError(f"summary.num_steps is {summary['num_steps']}, but {len(steps)} steps follow")
    system = prompts.message("system", "\n\n".join(summary["system_prompts"]))
    messages, turns = [system, prompts.message("user", summary["task"])], []
    for index, step in enumerate(steps):
        earlier, text, usage = [turn.code for turn in turns], step["assistant_text"], step["token_usage"]
        seen, problem = _outcome(step, own["turns"][index]) if own else _published_outcome(step, earlier)
        shown = kind or "stateless"
        told = prompts.observation_message(seen, shown) if seen else prompts.protocol_error_message(problem, shown, ())
        content = contents.get(step["turn"], told["content"])  # version 1 of the format has no observations
        messages += [prompts.message("assistant", text), prompts.message("user", content)]
        turns.append(Turn(text, step["code"], seen, problem, usage["prompt_tokens"], usage["completion_tokens"]))
    reason, errors = summary["finish_reason"], summary["errors"]
    error = errors[-1] if reason == "error" and errors else None
    return {"messages": messages, "turns": turns, "finish_reason": reason, "error": error}


def _ended(result: dict, silent: bool) -> dict:
    """What the result file tells: the fields ``status``, ``score``, ``solved``, ``metrics`` and ``seconds``."""
    status, scored = result["status"], result["result"]
    if status == "completed" and scored is None:
        raise ValueError("a completed episode needs a result")
    scored = scored or {"score": 0.0, "is_solved": False, "metrics": {}}
    times = (result["started_at"], result["finished_at"])
    return {
        "status": "unanswered" if silent and status == "completed" else status,
        "score": float(scored["score"]),
        "solved": bool(scored["is_solved"]),
        "metrics": dict(scored["metrics"]),
        "seconds": None if None in times else times[1] - times[0],
    }


def _unanswered(events: list[dict]) -> bool:
    """Whether an episode ended in model calls that failed for another reason than the conversation's length."""
    failure, replied = "", False
    for event in events:
        if event["type"] in ("ModelResponseEvent", "StepEvent"):
            failure, replied = "", True
        elif event["type"] == "ErrorEvent":  # the released harness also notes errors of the code like this
            text = str(event["data"]["error"])
            if text.startswith("LLM ended unexpectedly"):  # a reply cut at its limit
                failure, replied = "", True
            elif text.startswith("LLM Call Failed") or not replied:
                failure = text or "unknown"
    return bool(failure) and not TOO_LONG.search(failure)


def _outcome(step: dict, extra: dict) -> tuple[Observation | None, str | None]:
    """What a turn's code did, or what was wrong with the reply."""
    outcome = step["interpreter_result"]
    if extra["protocol_error"] is not None:
        return None, extra["protocol_error"]
    known = {name: tuple(extra[name]) if isinstance(extra[name], list) else extra[name] for name in KEPT}
    error = outcome["error"]
    text = None if error is None else error[len(known["error_type"]) :].removeprefix(": ")
    return Observation(output=outcome["output"], error_text=text, **known), None


def _published_outcome(step: dict, earlier: list[str | None]) -> tuple[Observation | None, str | None]:
    """The same without details: kinds of errors and missing bindings are told from texts and earlier code."""
    outcome = step["interpreter_result"] or {}
    error = (outcome.get("error") or "").strip()
    if step["code"] is None:
        return None, error or prompts.NO_CODE
    last = error.splitlines()[-1] if error else ""
    undefined = runtime.undefined_name(last)
    kind, _, text = last.partition(": ")
    cap = re.search(r"tool.?calls?.*(limit|exceed)|too many tool", last, re.I) is not None
    source = "cap" if cap else "tool" if re.search(r"Tool(Runtime|Invocation)Exception", error) else "code"
    observation = Observation(
        output=outcome.get("output") or "",
        error_type=("NameError" if undefined else kind) if last else None,
        error_text=text if last else None,
        error_source=source if last else None,
        cap_hit=cap,
        missing_binding=undefined is not None and any(undefined in bound_names(code or "") for code in earlier),
    )
    return observation, None

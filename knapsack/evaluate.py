"""Cells × tasks: every model plays the same tasks in every runtime. What is finished is kept.

What loads torch, and what asks an endpoint, is imported where it is used: a worker starts without the other.
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tqdm import tqdm

from knapsack import agent, prompts, runs, traces
from knapsack.prompts import Detail
from knapsack.runs import Run, bounded, content_digest, find_adapter, find_base, writing
from knapsack.runtime import MAX_TOOL_CALLS, Engine, Kind, interpreter_pool
from knapsack.tasks import Task, read_tasks
from knapsack.teacher import RuleTeacher
from knapsack.traces import Cell

if TYPE_CHECKING:
    from knapsack.endpoints.endpoint import Endpoint

REMEDY = "start anew with --fresh, or choose another run_folder"


class EvaluationError(RuntimeError):
    """Something other than a model failed; the message says where. Finished episodes are kept."""


@bounded
class Settings:
    """What all cells share and what is recorded beside their episodes. Raises ValueError for a value out of bounds.

    ``slots`` conversations are answered at once; through the shape of matrix products it acts on rounding.
    ``engine`` runs the code (``sandbox.ENGINES``). ``temperature`` None leaves it to an endpoint's provider.
    """

    base: str = "nano"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    temperature: Annotated[float, Field(ge=0)] | None = 0.2
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    context_length: Annotated[int, Field(ge=2)] = 4096
    max_turns: Annotated[int, Field(ge=1)] = agent.MAX_TURNS
    prompt_detail: Detail = "compact"
    slots: Annotated[int, Field(ge=1)] = 32
    engine: Engine = "monty"


@dataclass(frozen=True)
class Job:
    """What a worker process needs to play the open tasks of a cell."""

    cell: Cell
    folder: Path
    tasks: list[Task]
    made_with: dict[str, str]  # per task id: digest of all that determines the episode
    settings: Settings
    device: str
    max_total_tokens: int
    adapter: Path | None
    endpoint: "Endpoint | None"
    key: str | None = field(repr=False)

    @property
    def sampling(self) -> dict:
        """Settings that a local model and the client of an endpoint share."""
        names = ("context_length", "max_new_tokens", "temperature", "seed")
        return {name: getattr(self.settings, name) for name in names}

    @property
    def size(self) -> int:
        """How long this may take, to start the longest first: a model away from home takes more turns."""
        weight = 0 if self.cell.model == "teacher" else 1 if self.cell.model == self.cell.runtime else 3
        return weight * sum(len(task.items) for task in self.tasks)

    def finished(self) -> int:
        paths = [traces.details_path(traces.trace_path(self.folder, task.task_id)) for task in self.tasks]
        return sum(path.exists() for path in paths)


def evaluate(
    run: Run,
    cells: Sequence[Cell],
    counts: dict[str, int],
    settings: Settings,
    *,
    endpoints: "dict[str, Endpoint] | None" = None,
    max_total_tokens: int = 0,
    processes: int = 2,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Play the first ``counts[split]`` tasks of each cell's split and write each episode as it ends.

    Finished episodes are skipped, and none depends on which others are played beside it, so an interrupted run
    ends as an uninterrupted one. A damaged file of an episode or a cell is named on stderr and made again. Cells run
    in ``processes`` worker processes of one thread each; a model named in ``endpoints`` (also "teacher") is asked
    there, by ``settings.slots`` episodes of a cell at once, until ``max_total_tokens`` (0: no cap) are spent on
    endpoints in this and earlier calls. Each reply that was paid for is kept and not asked for again.

    Raises, before anything is played, FileNotFoundError (tasks, base or adapter missing), CorruptFileError (one of
    them damaged), FolderInUseError (another process evaluates into this run), ImportError (endpoints without the
    ``api`` extra), ValueError (a cell was begun with other settings, an endpoint's key is not set) and EndpointError
    (an endpoint that cannot be asked); later EvaluationError: the first infrastructure error, the cap on spending
    among them, stops all workers.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: needs at least 1")
    tasks = {split: read_tasks(run.tasks(split), counts[split]) for split in {cell.split for cell in cells}}
    players = {cell.model for cell in cells}
    asked = {name: endpoint for name, endpoint in (endpoints or {}).items() if name in players}
    if asked:
        from knapsack.endpoints import playing

        asked = playing.with_keys(run, asked)
    adapters = {model: run.adapter(model) for model in sorted(players - {"base", "teacher", *asked})}
    for folder in adapters.values():
        runs.check(find_adapter(folder), "run notebook 03 again")
    base_digest = content_digest(find_base(settings.base)) if players - asked.keys() else None
    digests = {model: content_digest(folder) for model, folder in adapters.items()}
    with ExitStack() as held:
        for folder in sorted({cell.folder(run).parent for cell in cells}):
            held.enter_context(writing(folder))
        jobs, records = [], {}
        for cell in cells:
            folder = cell.folder(run)
            parameters = asdict(settings) | {"max_tool_calls": cell.cap}
            parameters |= {"base_digest": base_digest, "adapter_digest": digests.get(cell.model)}
            adapter, (endpoint, key) = adapters.get(cell.model), asked.get(cell.model, (None, None))
            if endpoint:  # whose replies depend on no weights and no batch of ours
                place = {"endpoint": endpoint.identity}
                parameters = place | parameters | {"base": None, "base_digest": None, "slots": None}
            record = records[folder] = _record(folder, cell.runtime, parameters, tasks[cell.split])
            facts, made_with, waiting = [cell.model, cell.runtime, parameters], {}, []
            for task in tasks[cell.split]:
                text = json.dumps([*facts, record["tasks"][task.task_id]], sort_keys=True)
                made_with[task.task_id] = runs.digest(text)
                if not traces.episode_done(folder, task.task_id, made_with[task.task_id]):
                    waiting.append(task)
            if waiting:
                shared = (settings, device, max_total_tokens)
                jobs.append(Job(cell, folder, waiting, made_with, *shared, adapter, endpoint, key))
        if paid := [job for job in jobs if job.endpoint]:
            playing.ask_first(paid)
        for folder, record in records.items():  # only now that nothing was refused
            runs.keep(folder / "settings.json", runs.as_json(record))
        for job in jobs:
            traces.discard_episodes(job.folder, [task.task_id for task in job.tasks])
        total = sum(len(tasks[cell.split]) for cell in cells)
        done = total - sum(len(job.tasks) for job in jobs)
        options = {"unit": "episode", "desc": "evaluation", "mininterval": 1, "disable": not progress}
        with tqdm(total=total, initial=done, **options) as bar:
            if jobs:
                _play_all(sorted(jobs, key=lambda job: -job.size), processes, bar)


def _record(folder: Path, kind: Kind, parameters: dict, tasks: list[Task]) -> dict:
    """The content of a cell's ``settings.json``. Raises ValueError naming what differs from the one that is there.

    A lost one is forgotten: each episode says itself with what it was made.
    """
    limits = parameters["max_tool_calls"], parameters["prompt_detail"]
    digests, before, path = {}, {}, folder / "settings.json"
    for task in tasks:  # with its prompt, so that episodes under an older wording are not mixed with new ones
        text = json.dumps([task.to_json(), prompts.opening(task, kind, *limits)], sort_keys=True)
        digests[task.task_id] = runs.digest(text)[:16]
    if path.exists():
        before = runs.read_json(path, REMEDY)
    elif any(folder.glob("knapsack/*.json")) and not any(folder.glob("details/*.json")):
        raise ValueError(f"{folder} holds episodes but no settings.json that says how they were made: {REMEDY}")
    for name, value in parameters.items() if before else ():
        if before.get(name) != value:
            raise ValueError(f"{folder} was begun with {name} = {before.get(name)!r}, now {value!r}: {REMEDY}")
    for task_id, now in digests.items():
        if before.get("tasks", {}).get(task_id, now) != now:
            raise ValueError(f"{folder} was begun with another task or prompt for {task_id}: {REMEDY}")
    digests = dict(sorted((before.get("tasks", {}) | digests).items()))
    return parameters | {"tasks": digests, "task_ids": list(digests)}


def _play_all(jobs: list[Job], processes: int, bar: tqdm) -> None:
    """Run the jobs in worker processes and keep the bar; the first error, or Ctrl-C, ends them all."""
    context = multiprocessing.get_context("spawn")  # a process that forks while interpreters are open hangs
    before = bar.n
    with tempfile.TemporaryDirectory() as temporary:
        stop = Path(temporary) / "stop"
        executor = ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, (os.getpid(),))
        try:
            pending = {executor.submit(_play, job, stop) for job in jobs}
            while pending:
                ended, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(before + sum(job.finished() for job in jobs) - bar.n)
                for future in ended:
                    future.result()
        except BrokenProcessPool as error:
            raise EvaluationError("a worker process died, for want of memory? Run again with fewer slots") from error
        finally:
            stop.touch()
            executor.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    """Start of a worker. It has a session of its own, so that Ctrl-C in a terminal reaches the parent alone and no
    interpreter dies in the middle of an episode; and it ends when the parent is gone."""
    if hasattr(os, "setsid"):
        os.setsid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _play(job: Job, stop: Path) -> None:
    """A worker's part: play the open tasks of a cell, until ``stop`` is there: a file that says why."""

    def check() -> None:
        if stop.exists():
            raise EvaluationError(stop.read_text() or f"{job.cell.name} was stopped")

    @contextmanager
    def at(place: str) -> Iterator[None]:
        """Any error in here says where it was and stops all workers."""
        try:
            yield
        except EvaluationError:
            raise
        except Exception as error:
            problem = f"{place}: {type(error).__name__}: {error}"
            runs.write_text(stop, problem)
            raise EvaluationError(problem) from error

    def episode(task: Task, key: str) -> Generator:
        """The episode, which is written as it ends."""
        began = time.monotonic()
        with at(key):
            check()
            done = yield from agent.episode(task, job.cell.runtime, limits, pool)
            seconds = time.monotonic() - began
            traces.write_episode(job.folder, done, job.cell.model, seconds, job.made_with[task.task_id])
            return done

    settings = job.settings
    limits = agent.EpisodeSettings(settings.max_turns, job.cell.cap, settings.prompt_detail)
    player = _play_teacher if job.cell.model == "teacher" else _play_model
    if job.endpoint:
        from knapsack.endpoints.playing import play as player
    keys = [f"{job.cell.name}/{task.task_id}" for task in job.tasks]  # on which the draws of a local model depend
    with at(job.cell.name), interpreter_pool(settings.slots, engine=settings.engine) as pool:
        player(job, ((key, episode(task, key)) for key, task in zip(keys, job.tasks, strict=True)), check)


def _play_teacher(job: Job, plays: Iterator[tuple[str, Generator]], check: Callable[[], None]) -> None:
    from knapsack import models

    settings, tokenizer = job.settings, models.load_tokenizer(job.settings.base)
    planned = min(job.cell.cap, MAX_TOOL_CALLS)  # the same decisions, and so the same ceiling, under every slack cap
    for task, (_, play) in zip(job.tasks, plays, strict=True):
        seed = settings.seed + task.seed
        agent.run_alone(play, RuleTeacher(task, job.cell.runtime, seed, tokenizer, planned))


def _play_model(job: Job, plays: Iterator[tuple[str, Generator]], check: Callable[[], None]) -> None:
    import torch
    import transformers

    from knapsack import models

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    options = {"device": job.device, "slots": job.settings.slots}
    model = models.load_model(job.settings.base, job.adapter, **options, **job.sampling)
    agent.run_batched(plays, model, lambda *_: None, check)

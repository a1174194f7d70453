"""Cells × tasks: every model plays the same tasks in every runtime. What is finished is kept.

What loads torch, and what asks an endpoint, is imported where it is used: a worker starts without the other.
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import defaultdict
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
from knapsack.runtime import Engine, Kind, interpreter_pool
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
    max_malformed: Annotated[int, Field(ge=0)] = 0
    prompt_detail: Detail = "compact"
    slots: Annotated[int, Field(ge=1)] = 32
    engine: Engine = "monty"


@dataclass(frozen=True)
class OpenEpisode:
    """An episode that is to be played; ``made_with`` is a digest of all that determines it."""

    cell: Cell
    folder: Path
    task: Task
    made_with: str

    @property
    def key(self) -> str:
        """On which the draws of a local model depend."""
        return f"{self.cell.name}/{self.task.task_id}"

    @property
    def size(self) -> int:
        """How long it may take, to start the longest first: a model away from home takes more turns."""
        weight = 0 if self.cell.model == "teacher" else 1 if self.cell.model == self.cell.runtime else 3
        return weight * len(self.task.items)

    def finished(self) -> bool:
        return traces.details_path(traces.trace_path(self.folder, self.task.task_id)).exists()


@dataclass(frozen=True)
class Job:
    """What a worker process needs to play the open episodes of a model, of which it shares out one by one with others.

    One queue for all cells: few episodes are left to decode nearly alone at its end.
    """

    model: str
    episodes: list[OpenEpisode]
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
        return sum(episode.size for episode in self.episodes)


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
    """Play the first ``counts[split]`` tasks of each cell's split, shared out if they are for training (see
    ``traces.share_out``), and write each episode as it ends.

    Finished episodes are skipped, those that ``run.other`` has are taken over, and none depends on which others are
    played beside it, so an interrupted run ends as an uninterrupted one. A damaged file of an episode or a cell is
    named on stderr and made again. Models play in ``processes`` worker processes of one thread each; one named in
    ``endpoints`` (also "teacher") is asked there, by ``settings.slots`` episodes of each process at once, until
    ``max_total_tokens`` (0: no cap) are spent on endpoints in this and earlier calls. Each reply that was paid for is
    kept and not asked for again.

    Raises, before anything is played, FileNotFoundError (tasks, base or adapter missing), CorruptFileError (one of
    them damaged), FolderInUseError (another process evaluates into this run), ImportError (endpoints without the
    ``api`` extra), ValueError (a cell was begun with other settings, an endpoint's key is not set) and EndpointError
    (an endpoint that cannot be asked); later EvaluationError: the first infrastructure error, the cap on spending
    among them, stops all workers.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: needs at least 1")
    drawn = {split: read_tasks(run.tasks(split), counts[split]) for split in {cell.split for cell in cells}}
    tasks = traces.share_out(cells, drawn)
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
        waiting, records = defaultdict(list), {}
        for cell in cells:
            folder = cell.folder(run)
            parameters = asdict(settings) | {"max_tool_calls": cell.cap}
            parameters |= {"base_digest": base_digest, "adapter_digest": digests.get(cell.model)}
            endpoint, _ = asked.get(cell.model, (None, None))
            if endpoint:  # whose replies depend on no weights and no batch of ours
                place = {"endpoint": endpoint.identity}
                parameters = place | parameters | {"base": None, "base_digest": None, "slots": None}
            record = records[folder] = _record(run, folder, cell.runtime, parameters, tasks[cell])
            facts = [cell.model, cell.runtime, parameters]
            for task in tasks[cell]:
                text = json.dumps([*facts, record["tasks"][task.task_id]], sort_keys=True)
                episode = OpenEpisode(cell, folder, task, runs.digest(text))
                if traces.episode_done(folder, task.task_id, episode.made_with):
                    continue
                source = run.other and cell.folder(run.other)
                if not (source and traces.take_over(source, folder, task.task_id, episode.made_with)):
                    waiting[cell.model, folder.parent].append(episode)
        shared, jobs = (settings, device, max_total_tokens), []
        for (model, _), episodes in waiting.items():
            if model not in asked:  # an endpoint finishes cell after cell
                episodes.sort(key=lambda episode: -episode.size)
            jobs.append(Job(model, episodes, *shared, adapters.get(model), *asked.get(model, (None, None))))
        if paid := [job for job in jobs if job.endpoint]:
            playing.ask_first(paid)
        for folder, record in records.items():  # only now that nothing was refused
            runs.keep(folder / "settings.json", runs.as_json(record))
        opened = [episode for job in jobs for episode in job.episodes]
        for episode in opened:
            traces.discard_episodes(episode.folder, [episode.task.task_id])
        total = sum(len(tasks[cell]) for cell in cells)
        options = {"unit": "episode", "desc": "evaluation", "mininterval": 1, "disable": not progress}
        with tqdm(total=total, initial=total - len(opened), **options) as bar:
            if jobs:
                _play_all(sorted(jobs, key=lambda job: -job.size), processes, bar)


def _record(run: Run, folder: Path, kind: Kind, parameters: dict, tasks: list[Task]) -> dict:
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
            change = f"{folder} was begun with {name} = {before.get(name)!r}, now {value!r}"
            raise ValueError(runs.elsewhere(run.folder, change))
    for task_id, now in digests.items():
        if before.get("tasks", {}).get(task_id, now) != now:
            change = f"{folder} was begun with another task or prompt for {task_id}"
            raise ValueError(runs.elsewhere(run.folder, change))
    digests = dict(sorted((before.get("tasks", {}) | digests).items()))
    return parameters | {"tasks": digests, "task_ids": list(digests)}


def _play_all(jobs: list[Job], processes: int, bar: tqdm) -> None:
    """Run the jobs in worker processes and keep the bar; the first error, or Ctrl-C, ends them all.

    Each job is begun by as many workers as it can occupy, but every job by one before any by two.
    """
    context = multiprocessing.get_context("spawn")  # a process that forks while interpreters are open hangs
    begun = [job for worker in range(processes) for job in jobs if worker < len(job.episodes)]
    episodes, before = [episode for job in jobs for episode in job.episodes], bar.n
    with tempfile.TemporaryDirectory() as temporary:
        stop = Path(temporary) / "stop"
        executor = ProcessPoolExecutor(min(processes, len(begun)), context, _begin, (os.getpid(),))
        try:
            pending = {executor.submit(_play, job, stop) for job in begun}
            while pending:
                ended, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(before + sum(episode.finished() for episode in episodes) - bar.n)
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
    """A worker's part: play those episodes of a job that no other has begun, until ``stop`` is there: a file that says
    why. Beside it lies a file for each episode that was begun."""

    def mark(each: OpenEpisode) -> Path:
        return stop.parent / each.key.replace("/", "_")

    def check() -> None:
        if stop.exists():
            raise EvaluationError(stop.read_text() or f"{job.model} was stopped")

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

    def episode(each: OpenEpisode) -> Generator:
        """The episode, which is written as it ends; nothing, if another worker has begun it."""
        began = time.monotonic()
        with at(each.key):
            check()
            try:
                mark(each).touch(exist_ok=False)
            except FileExistsError:
                return
            turns, malformed = settings.max_turns, settings.max_malformed
            limits = agent.EpisodeSettings(turns, each.cell.cap, settings.prompt_detail, malformed)
            done = yield from agent.episode(each.task, each.cell.runtime, limits, pool)
            seconds = time.monotonic() - began
            traces.write_episode(each.folder, done, job.model, seconds, each.made_with)

    settings = job.settings
    player = _play_teacher if job.model == "teacher" else _play_model
    if job.endpoint:
        from knapsack.endpoints.playing import play as player
    if all(mark(each).exists() for each in job.episodes):
        return
    with at(job.model), interpreter_pool(settings.slots, engine=settings.engine) as pool:
        player(job, ((each.key, episode(each)) for each in job.episodes), check)


def _play_teacher(job: Job, plays: Iterator[tuple[str, Generator]], check: Callable[[], None]) -> None:
    from knapsack import models

    settings, tokenizer = job.settings, models.load_tokenizer(job.settings.base)
    for each, (_, play) in zip(job.episodes, plays, strict=True):
        agent.run_alone(play, RuleTeacher(each.task, each.cell.runtime, settings.seed, tokenizer, each.cell.cap))


def _play_model(job: Job, plays: Iterator[tuple[str, Generator]], check: Callable[[], None]) -> None:
    import torch
    import transformers

    from knapsack import models

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    options = {"device": job.device, "slots": job.settings.slots}
    model = models.load_model(job.settings.base, job.adapter, **options, **job.sampling)
    agent.run_batched(plays, model, lambda *_: None, check)

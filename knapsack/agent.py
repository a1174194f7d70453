"""One episode of a CodeAct agent, written as a generator, and the two ways of running many.

``episode`` yields a conversation and is sent a ``Reply``; it never knows who replies. So the same code runs
under a local model that answers many conversations in one batch, under concurrent requests to an endpoint,
and under a rule-based teacher.
"""

import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from knapsack import prompts
from knapsack.environment import KnapsackEnvironment
from knapsack.prompts import Detail, Message
from knapsack.runtime import MAX_TOOL_CALLS, Kind, Observation, Runtime, acts_as
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import Task

MAX_TURNS = 40  # paper, section 3
# Any language, so that a closing fence opens nothing; fences stand at the start of a line, so that ``` within code
# closes nothing.
FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
LANGUAGES = ("", "python", "python3", "py")


@dataclass(frozen=True)
class Reply:
    """What a model answered. ``stopped`` is False if it ran into its token limit or the context's end."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    stopped: bool = True


class ContextFull(Exception):
    """Thrown into an episode whose conversation no longer fits the model's context: the episode ends, scored."""


@dataclass
class Turn:
    """One reply and what came of it. ``observation`` is None if the reply held no single code block."""

    text: str
    code: str | None
    observation: Observation | None
    protocol_error: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Episode:
    """A finished episode. ``finish_reason``: "finish_tool", "max_turns" or "error" (context full, or too
    many malformed replies in a row)."""

    task: Task
    kind: Kind
    messages: list[Message]
    turns: list[Turn] = field(default_factory=list)
    finish_reason: str = "max_turns"
    error: str | None = None
    score: float = 0.0
    solved: bool = False
    metrics: dict = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)

    @property
    def task_id(self) -> str:
        return self.task.task_id

    @property
    def prompt_tokens(self) -> int:
        """Summed over all calls, as an endpoint would bill them."""
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def completion_tokens(self) -> int:
        return sum(turn.completion_tokens for turn in self.turns)


@dataclass(frozen=True)
class EpisodeSettings:
    """What is held fixed between the cells of a comparison."""

    max_turns: int = MAX_TURNS
    max_tool_calls: int = MAX_TOOL_CALLS
    detail: Detail = "full"
    max_malformed: int = 0  # replies in a row without a single block of Python that end an episode; 0: any number


def code_block(text: str) -> tuple[str | None, str | None]:
    """The single code block of a reply and None, or None and what is wrong with the reply."""
    blocks = [code for language, code in FENCE.findall(text) if language.strip().lower() in LANGUAGES]
    if len(blocks) == 1:
        return blocks[0], None
    return None, prompts.MANY_CODE.format(count=len(blocks)) if blocks else prompts.NO_CODE


def episode(
    task: Task,
    kind: Kind,
    settings: EpisodeSettings,
    pool: InterpreterPool | None = None,
) -> Generator[list[Message], Reply, Episode]:
    """Play one episode: yields the conversation so far, is sent the next Reply, returns the Episode.

    The conversation is what a model reads (see ``prompts.message``); a Turn keeps the reply as it was written.
    """
    environment = KnapsackEnvironment(task)
    messages = prompts.opening(task, kind, settings.max_tool_calls, settings.detail)
    result = Episode(task, kind, messages)
    with Runtime(kind, environment.tools, settings.max_tool_calls, pool=pool) as runtime:
        active: tuple[str, ...] = ()
        malformed = 0
        for _ in range(settings.max_turns):
            try:
                reply = yield list(messages)
            except ContextFull as full:
                result.finish_reason, result.error = "error", str(full)
                break
            text = reply.text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair fits no file
            messages.append(prompts.message("assistant", text))
            code, problem = code_block(text)
            observation = None
            if code is None:
                runtime.skip_turn()
                active = active if acts_as(kind) == "persistent" else ()
                messages.append(prompts.protocol_error_message(problem, kind, active))
            else:
                observation = runtime.run(code)
                active = observation.active_globals
                messages.append(prompts.observation_message(observation, kind))
            result.turns.append(Turn(text, code, observation, problem, reply.prompt_tokens, reply.completion_tokens))
            is_python = observation is not None and observation.error_type != "SyntaxError"
            malformed = 0 if is_python else malformed + 1
            if environment.finished:
                result.finish_reason = "finish_tool"
                break
            if malformed == settings.max_malformed > 0:
                result.finish_reason, result.error = "error", f"{malformed} replies in a row, all tokens but no Python"
                break
    result.score, result.solved = environment.score, environment.solved
    result.metrics, result.taken = environment.metrics(), list(environment.taken)
    return result


def run_alone(play: Generator[list[Message], Reply, Episode], reply: Callable[[list[Message]], Reply]) -> Episode:
    """Drive one episode with a function from conversation to Reply; what that raises is raised in the episode, which
    ContextFull ends, scored, and anything else ends unscored."""
    try:
        messages = next(play)
        while True:
            try:
                answer = reply(messages)
            except Exception as error:
                messages = play.throw(error)
            else:
                messages = play.send(answer)
    except StopIteration as stop:
        return stop.value
    finally:
        play.close()


def run_concurrently(
    plays: Iterable[tuple[str, Generator[list[Message], Reply, Episode]]],
    reply: Callable[[list[Message]], Reply],
    workers: int,
    on_done: Callable[[str, Episode], None],
) -> None:
    """Drive episodes in ``workers`` threads (for endpoints); ``on_done`` gets each (key, Episode) as it ends.

    The first infrastructure error stops the run: no reply is asked for after it, and it is raised again here.
    """
    failures: list[BaseException] = []

    def ask(messages: list[Message]) -> Reply:
        if failures:
            raise failures[0]
        return reply(messages)

    def drive(play: Generator[list[Message], Reply, Episode]) -> Episode:
        try:
            return run_alone(play, ask)
        except BaseException as error:
            failures.append(error)
            raise

    with ThreadPoolExecutor(workers) as executor:
        futures = {executor.submit(drive, play): key for key, play in plays}
        try:
            for future in as_completed(futures):
                on_done(futures[future], future.result())
        except BaseException as error:
            failures.append(error)
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def run_batched(
    plays: Iterable[tuple[str, Generator[list[Message], Reply, Episode]]],
    model,
    on_done: Callable[[str, Episode], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Drive episodes on a local model with a fixed number of slots (``models.LocalModel``).

    A slot that falls free takes the next episode at once. ``model.submit(slot, key, messages)`` queues a
    conversation (raising ContextFull if it does not fit), ``model.step()`` returns finished (slot, Reply); what
    ``check``, called before each step, raises ends all of them.
    """
    waiting = iter(plays)
    playing: dict[int, tuple[str, Generator]] = {}

    def advance(slot: int, move: Callable[[], list[Message]]) -> bool:
        """One move of the slot's episode, then its next conversation to the model; False when it has ended."""
        key, play = playing[slot]
        try:
            messages = move()
            while True:
                try:
                    model.submit(slot, key, messages)
                    return True
                except ContextFull as full:
                    messages = play.throw(full)
        except StopIteration as stop:
            del playing[slot]
            model.release(slot)
            on_done(key, stop.value)
            return False

    def fill(slot: int) -> None:
        for key, play in waiting:
            playing[slot] = (key, play)
            if advance(slot, play.__next__):
                return

    try:
        for slot in range(model.slots):
            fill(slot)
        while playing:
            check()
            for slot, reply in model.step():
                if not advance(slot, lambda slot=slot, reply=reply: playing[slot][1].send(reply)):
                    fill(slot)
    finally:
        for _, play in playing.values():
            play.close()

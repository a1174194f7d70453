"""What a run will send, read and write, estimated before it: the rule-based teacher plays a few of the tasks.

Whoever else plays them is assumed to take as many turns and tokens as the teacher in that runtime; beside it stands
what the settings allow at most. Nothing here loads a model or torch, and nothing is written.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import pandas as pd

from knapsack import agent
from knapsack.agent import Episode, EpisodeSettings
from knapsack.evaluate import Settings
from knapsack.preflight.checks import local_folder
from knapsack.runtime import Kind, acts_as, interpreter_pool
from knapsack.tasks import Task
from knapsack.teacher import RuleTeacher
from knapsack.traces import Cell, share_out

SAMPLED = 10  # tasks that the teacher plays for an estimate
# What most tokenizers of language models cut a text into before they look up pieces: words with the sign before them,
# single digits, runs of signs, spaces. With the public vocabulary of Qwen (151,643 entries), 120 episodes of the
# teacher with full prompts have 1.02 to 1.09 tokens a piece, but 1.6 to 3.5 characters a token: ids are dense.
PIECES = re.compile(r"(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+")
TOKENS_PER_PIECE = 1.06


def token_counter(base: str) -> tuple[Callable[[str], float], str]:
    """A function that counts the tokens of a text, and how it does: with the tokenizer of ``base`` if that is on this
    machine, else by ``PIECES``."""
    folder = local_folder(base)
    if folder is None or not (folder / "tokenizer.json").exists():
        said = f"{TOKENS_PER_PIECE} a word, sign or digit, for the tokenizer of {base} is not here"
        return lambda text: TOKENS_PER_PIECE * len(PIECES.findall(text)), said
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), f"by the tokenizer of {base}"


def play(tasks: Iterable[Task], kind: Kind, cap: int, settings: Settings) -> list[Episode]:
    """The teacher's episodes on ``tasks``, those that ``evaluate`` would write, in the style of ``acts_as``."""
    limits = EpisodeSettings(settings.max_turns, cap, settings.prompt_detail)
    style, played = acts_as(kind), []
    with interpreter_pool() as pool:
        for task in tasks:
            teacher = RuleTeacher(task, style, settings.seed, max_tool_calls=cap)
            played.append(agent.run_alone(agent.episode(task, kind, limits, pool), teacher))
    return played


def call_tokens(episode: Episode, count: Callable[[str], float]) -> tuple[list[float], list[float]]:
    """Per turn of an episode the tokens of prompt and reply, in the ChatML form of ``prompts.render``."""
    newline = count("\n")
    header = {role: 1 + count(role) + newline for role in ("system", "user", "assistant")}
    prompts, replies, before = [], [], 0.0
    for message in episode.messages:
        length = count(message["content"]) + 1  # with the token that ends it
        if message["role"] == "assistant":
            prompts.append(before + header["assistant"])
            replies.append(length)
        before += header[message["role"]] + length + newline
    return prompts, replies


def mean_tokens(tasks: Iterable[Task], kind: Kind, cap: int, settings: Settings) -> dict[str, float]:
    """Means over the teacher's episodes on ``tasks``: ``requests``, ``prompt_tokens`` and ``completion_tokens`` summed
    over an episode's turns, as an endpoint bills them, and ``row_tokens`` of its training row."""
    count, _ = token_counter(settings.base)
    calls = [call_tokens(episode, count) for episode in play(tasks, kind, cap, settings)]
    rows = [(len(replies), sum(prompts), sum(replies), prompts[-1] + replies[-1]) for prompts, replies in calls]
    means = [sum(column) / len(calls) for column in zip(*rows, strict=True)]
    means[-1] += count("\n")
    return dict(zip(("requests", "prompt_tokens", "completion_tokens", "row_tokens"), means, strict=True))


def estimate_requests(
    cells: Sequence[Cell],
    counts: dict[str, int],
    settings: Settings,
    tasks: dict[str, Sequence[Task]],
    sampled: int = SAMPLED,
) -> pd.DataFrame:
    """What episodes of each cell on its share of ``counts[split]`` tasks (see ``traces.share_out``) will ask of its
    model, by the first ``sampled`` of ``tasks[split]``.

    A row per cell: its fields; episodes; requests, prompt_tokens and completion_tokens if every episode is as long as
    the teacher's; and the same three with ``_at_most``: every episode of ``max_turns`` turns, each prompt a full
    context, and replies of ``max_new_tokens`` until they fill the context.
    """
    turns, context, reply = settings.max_turns, settings.context_length, settings.max_new_tokens
    most = {"requests": turns, "prompt_tokens": turns * context}
    most["completion_tokens"] = min(turns * reply, context + reply)
    played = dict.fromkeys((cell.split, cell.runtime, cell.cap) for cell in cells)
    means = {key: mean_tokens(tasks[key[0]][:sampled], *key[1:], settings) for key in played}
    rows, shares = [], share_out(cells, {split: range(count) for split, count in counts.items()})
    for cell in cells:
        episodes, mean = len(shares[cell]), means[cell.split, cell.runtime, cell.cap]
        likely = {name: round(episodes * mean[name]) for name in most}
        bounds = {f"{name}_at_most": episodes * bound for name, bound in most.items()}
        rows.append(asdict(cell) | {"episodes": episodes} | likely | bounds)
    return pd.DataFrame(rows)


def spending_sentence(table: pd.DataFrame, max_total_tokens: int = 0) -> str:
    """What the requests of ``table`` (from ``estimate_requests``) cost in tokens, and where spending stops."""
    total = table.select_dtypes("number").sum()
    likely = total["prompt_tokens"] + total["completion_tokens"]
    most = total["prompt_tokens_at_most"] + total["completion_tokens_at_most"]
    said = (
        f"{total['requests']:,.0f} requests with {total['prompt_tokens']:,.0f} prompt and "
        f"{total['completion_tokens']:,.0f} completion tokens if every episode is as long as the rule-based teacher's; "
        f"at most {total['requests_at_most']:,.0f} requests and {most:,.0f} tokens, "
    )
    if not max_total_tokens:
        return said + "with no cap (`max_total_tokens` = 0)."
    falls = ", which is less than the first figure" if max_total_tokens < likely else ""
    return said + f"but the run stops at {max_total_tokens:,.0f} tokens (`max_total_tokens`){falls}."

"""Recorded episodes executed again: what a trace says must be what its code does."""

from knapsack import agent
from knapsack.agent import Episode
from knapsack.prompts import Message
from knapsack.runtime import MAX_TOOL_CALLS
from knapsack.tasks import Task
from knapsack.traces import Trace


def replay(task: Task, trace: Trace, max_tool_calls: int = MAX_TOOL_CALLS) -> Episode:
    """Execute the recorded replies in a new environment and runtime; the score comes from what they do now.

    ``max_tool_calls`` must be the recorded episode's.
    """
    recorded = iter(trace.turns)

    def reply(_: list[Message]) -> agent.Reply:
        for turn in recorded:
            return agent.Reply(turn.text, turn.prompt_tokens, turn.completion_tokens)
        raise agent.ContextFull(trace.error or "the recorded replies end here")

    turns = len(trace.turns) + (trace.finish_reason != "max_turns")
    return agent.run_alone(agent.episode(task, trace.kind, agent.EpisodeSettings(turns, max_tool_calls)), reply)


def differences(recorded: Trace | Episode, again: Episode) -> list[str]:
    """What a replay did otherwise than recorded; empty if score, ending, items taken and every turn are equal."""
    pairs = {name: (getattr(recorded, name), getattr(again, name)) for name in ("score", "finish_reason", "taken")}
    pairs["number of turns"] = (len(recorded.turns), len(again.turns))
    for index, turns in enumerate(zip(recorded.turns, again.turns, strict=False)):
        pairs[f"turn {index}"] = tuple((turn.protocol_error, turn.observation) for turn in turns)
    return [f"{name}: {before} recorded, {after} now" for name, (before, after) in pairs.items() if before != after]

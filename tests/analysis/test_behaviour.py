import dataclasses
import functools
import math
import random
import re

import pytest
import scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from places import EXAMPLES
from transformers import AutoTokenizer

from knapsack import agent, traces
from knapsack.agent import Episode, EpisodeSettings, Turn
from knapsack.analysis import behaviour
from knapsack.runs import find_base, read_json
from knapsack.runtime import Observation
from knapsack.sandbox import interpreter_pool
from knapsack.tasks import Task
from knapsack.teacher import RuleTeacher

RECORDS = "{'item_a': (7, 94, 'C'), 'item_b': (15, 43, 'O')}"


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(find_base("nano"))


def told(*turns: tuple[str, str], task: Task | None = None) -> Episode:
    """An episode as a record only: (reply, what it printed)."""
    found = []
    for text, printed in turns:
        code, problem = agent.code_block(text)
        found.append(Turn(text, code, None if code is None else Observation(printed), problem, 0, 0))
    return Episode(task, "stateless", [], found)


def parts_of(*codes: str) -> dict[str, int]:
    """The parts of the last of these blocks, which print nothing."""
    return behaviour.reply_parts(told(*((scripted.block(code), "") for code in codes)))[-1]


def test_the_parts_of_a_reply_by_hand():
    look = "for i in more: look(i)\n"
    fresh = "take_item(max(seen, key=seen.get))\n"
    texts = [scripted.block(f"budget = 9\ndenied = ['A', 'B']\n{look}".rstrip()), "no code"]
    lines = ['seen = {"item_a": [7, 94, "C"],\n  "item_b": [15, 43, "O"]}\n', "denied = ['A', 'B']\n", look, fresh]
    text = f"I restore.\n```python\n{'budget = 9'}\n{lines[1]}{lines[2]}{lines[0]}{lines[3]}```"
    rows = behaviour.reply_parts(told((texts[0], f"seen = {RECORDS}"), (texts[1], ""), (text, "")))
    assert rows[0] == dict.fromkeys(behaviour.PARTS, 0) | {
        "reasoning": len("I go on.\n```python\n```"),
        "new": len(texts[0]) - len("I go on.\n```python\n```"),
    }
    assert rows[1] == dict.fromkeys(behaviour.PARTS, 0) | {"malformed": 7}
    assert rows[2] == {
        "reasoning": len("I restore.\n```python\n```"),
        "restated": len(f"budget = 9\n{lines[1]}{lines[0]}"),
        "repeated": len(look),
        "new": len(fresh),
        "malformed": 0,
    }
    assert behaviour.redundancy(rows[2]) == 1 - len(fresh) / sum(len(line) for line in ["budget = 9\n", *lines])


words = st.sampled_from(["seen", "=", "{", "'item_a'", ":", "(7, 94)", "é", "\n", "  ", "print(", ")", "again", "```"])
replies = st.lists(words, max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(replies, replies.map(scripted.block)), replies), max_size=6))
def test_the_parts_add_up_to_the_reply(turns):
    episode = told(*turns)
    lengths = [len(turn.text) for turn in episode.turns]
    counts = [len(tokenizer()(turn.text, add_special_tokens=False)["input_ids"]) for turn in episode.turns]
    assert [sum(parts.values()) for parts in behaviour.reply_parts(episode)] == lengths
    assert [sum(parts.values()) for parts in behaviour.reply_parts(episode, tokenizer())] == counts


codes = st.lists(st.sampled_from("seen look take count left item_a 7 94 + ( ) = ,".split()), min_size=9, max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(codes.map(" ".join).filter(lambda code: sum(map(str.isalnum, code.split())) >= 4), min_size=1))
def test_a_copied_block_is_wholly_redundant(blocks):
    assert behaviour.redundancy(parts_of(*blocks, random.Random(0).choice(blocks))) == 1


def test_fresh_code_is_not_redundant():
    source = random.Random(0)
    fresh = [" ".join(f"name_{source.randrange(2000)}" for _ in range(300)) for _ in range(8)]
    assert behaviour.redundancy(parts_of(*fresh)) < 0.01


def test_calling_a_helper_again_restates_nothing():
    assert behaviour.redundancy(parts_of("look(ids, 12)", "look(ids, 12)")) == 0


def test_repetition_within_a_turn_is_not_redundant():
    assert behaviour.redundancy(parts_of("x = 1", "a = b + c + d\na = b + c + d\na = b + c + d")) == 0


def test_a_turn_without_code_has_no_redundancy():
    assert behaviour.redundancy(behaviour.reply_parts(told(("I think.", "")))[0]) is math.nan


def test_four_words_are_a_restatement_and_three_are_not():
    printed, record = (scripted.block("look()"), "item_a 7 94 C"), "{'item_a': (7, 94, 'C')}"
    row = behaviour.reply_parts(told(printed, (scripted.block(f"seen = {record}"), "")))[1]
    assert (row["restated"], row["new"]) == (len(record) - len("{'") + len("\n"), len("seen = {'"))
    row = behaviour.reply_parts(told(printed, (scripted.block("seen = {'item_a': (7, 94)}"), "")))[1]
    assert row["restated"] == 0


def test_a_token_counts_where_it_ends():
    def spaced(text, **_):  # tokens that begin with the space before them, as those of most models do
        return {"offset_mapping": [found.span() for found in re.finditer(r" *\S+|\n", text)]}

    texts = [scripted.block("a = b + c + d"), scripted.block("new = 1; a = b + c + d")]
    row = behaviour.reply_parts(told(*((text, "") for text in texts)), spaced)[1]
    assert row == {"reasoning": 7, "restated": 0, "repeated": 8, "new": 3, "malformed": 0}


def test_tokens_and_characters_tell_the_same():
    code = "for i in sorted(seen, key=lambda i: seen[i][1] / seen[i][0], reverse=True):\n    print(i)\n"
    episode = told((scripted.block(code), ""), (scripted.block(code), ""))
    first, second = behaviour.reply_parts(episode, tokenizer())
    assert first["new"] == second["repeated"] > 20 and second["new"] == second["restated"] == 0
    assert first["reasoning"] == second["reasoning"]


def test_the_stateless_teacher_restates_what_the_persistent_one_keeps():
    share = {}
    for kind in ("persistent", "stateless"):
        task = scripted.sample_task(1, scripted.KnapsackConfig.easy())
        play = agent.episode(task, kind, EpisodeSettings(detail="compact"))
        rows = behaviour.reply_parts(agent.run_alone(play, RuleTeacher(task, kind, 1)))
        share[kind] = behaviour.redundancy({part: sum(row[part] for row in rows) for part in behaviour.PARTS})
    assert share["persistent"] < 0.02 and share["stateless"] > 0.6


def test_each_turn_has_one_error():
    task = scripted.small_task()
    refused = next(i for i, item in task.items.items() if item.item_class not in task.allowed_classes)
    many = "for i in range(30):\n    list_items()"
    caught = "try:\n    " + many.replace("\n", "\n    ") + "\nexcept Exception:\n    pass"
    cases = [
        ("print(1)\nkept = 1", "none"),
        ("print(kept)", "missing binding"),
        ("print(never)", "other NameError"),
        (many, "cap hit"),
        (caught, "cap hit"),
        (f"take_item({refused!r})", "tool error"),
        ("1 / 0", "other code error"),
        ("if:", "other code error"),
    ]
    episode = scripted.play(task, "stateless", [scripted.block(code) for code, _ in cases] + ["no code"], 9)
    assert behaviour.turn_errors(episode) == [error for _, error in cases] + ["malformed reply"]
    assert set(behaviour.turn_errors(episode)) == set(behaviour.ERRORS)


def test_playing_again_tells_what_each_turn_gained():
    task = scripted.small_task()
    good, more = [i for i, item in task.items.items() if item.item_class in task.allowed_classes][:2]
    bad = next(i for i, item in task.items.items() if item.item_class not in task.allowed_classes)
    texts = [
        scripted.block(f"inspect({good!r})\ninspect({bad!r})"),
        "no code",
        scripted.block(f"inspect({good!r})\ntake_item({good!r})\ntake_item({bad!r})\ntake_item({more!r})"),
        scripted.block("finish()"),
    ]
    episode = scripted.play(task, "stateless", texts)
    assert behaviour.play_again(task, episode) == [
        behaviour.Step(inspected=(good, bad)),
        behaviour.Step(),
        behaviour.Step(taken=(good,), refused=(("take_item", "PermissionError"),)),
        behaviour.Step(),
    ]
    assert [step.tries for step in behaviour.play_again(task, episode)] == [0, 0, 2, 0]


def test_playing_again_carries_over_what_the_episode_carried_over():
    task = scripted.small_task()
    cut = f"kept = {list(task.items)!r}\nfor i in range(9):\n    list_items()"
    texts = [scripted.block(cut), "no code", scripted.block("inspect(kept[0])"), scripted.block(cut)]
    texts += [scripted.block("inspect(kept[1])"), scripted.block("finish()")]
    episode = scripted.play(task, "carry-over", texts, max_tool_calls=5)
    gained = [step.inspected for step in behaviour.play_again(task, episode, 5)]
    assert gained == [(), (), (), (), (list(task.items)[1],), ()]


def test_a_replay_that_ends_elsewhere_tells_nothing(tmp_path):
    task = scripted.small_task()
    episode = scripted.play(task, "persistent", scripted.persistent_texts())
    traces.write_episode(tmp_path, episode, "base")
    trace = traces.read_trace(traces.trace_path(tmp_path, task.task_id))
    assert behaviour.play_again(task, trace) == behaviour.play_again(task, episode) is not None
    assert behaviour.play_again(scripted.small_task(4), trace) is None
    assert behaviour.play_again(task, trace, max_tool_calls=2) is None
    assert behaviour.play_again(task, dataclasses.replace(trace, taken=trace.taken[::-1])) is None
    unknown = dataclasses.replace(trace, taken=None)
    assert behaviour.play_again(task, unknown) is not None and behaviour.play_again(task, unknown, 2) is None
    unnamed = Episode(task, None, [], episode.turns, metrics=episode.metrics, taken=episode.taken)
    assert behaviour.play_again(task, unnamed) is None


def test_recovery_ends_with_the_next_new_item():
    task = scripted.small_task()
    one, two, three = list(task.items)[:3]
    texts = [
        scripted.block(f"ids = [{one!r}]\ninspect(ids[0])"),
        scripted.block("inspect(ids[0])"),  # missing binding
        scripted.block("inspect(ids[0])"),  # again
        scripted.block(f"inspect({one!r})"),  # nothing new
        scripted.block(f"inspect({two!r})"),
        scripted.block(f"inspect({three!r})\nprint(ids)"),  # never got over: the item came before the error
        scripted.block("print(1)"),
        scripted.block("finish()"),
    ]
    episode = scripted.play(task, "stateless", texts)
    spent = [turn.prompt_tokens + turn.completion_tokens for turn in episode.turns]
    assert behaviour.recoveries(episode, behaviour.play_again(task, episode)) == [
        behaviour.Recovery(1, 3, sum(spent[2:5]), True),
        behaviour.Recovery(2, 2, sum(spent[3:5]), True),
        behaviour.Recovery(5, 2, sum(spent[6:]), False),
    ]


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the published examples are not on this machine")
def test_published_traces_are_understood():
    share = {}
    with interpreter_pool() as pool:
        for path in sorted(EXAMPLES.glob("*/knapsack/*.trace.json")):
            trace = traces.read_trace(path)
            task = Task.from_json(read_json(EXAMPLES / "easy" / "tasks" / "knapsack" / f"{trace.task_id}.json"))
            steps = behaviour.play_again(task, trace, pool=pool)
            assert sum(len(step.inspected) for step in steps) == trace.metrics["inspected_count"]
            assert behaviour.turn_errors(trace) == ["none"] * 4 and behaviour.recoveries(trace, steps) == []
            rows = behaviour.reply_parts(trace)
            assert [sum(row.values()) for row in rows] == [len(turn.text) for turn in trace.turns]
            share[trace.kind] = behaviour.redundancy({part: sum(row[part] for row in rows) for part in behaviour.PARTS})
    assert share["persistent"] < 0.1 and share["stateless"] > 0.7  # "except Exception as e" stands twice

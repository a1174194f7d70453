import dataclasses
import functools
import math
import random
import re
from dataclasses import replace

import pandas as pd
import pytest
import scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from places import EXAMPLES
from transformers import AutoTokenizer

from knapsack import agent, traces
from knapsack.agent import Episode, EpisodeSettings, Turn
from knapsack.analysis import conduct, metrics
from knapsack.analysis.causes import CAUSES
from knapsack.runs import find_base, open_run, read_json
from knapsack.runtime import Observation
from knapsack.tasks import Task, preset, sample_split, write_tasks
from knapsack.teacher import RuleTeacher


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(find_base("nano"))


def told(*turns: tuple[str, str]) -> Episode:
    """An episode as a record only: (reply, what it printed)."""
    found = []
    for text, printed in turns:
        code, problem = agent.code_block(text)
        found.append(Turn(text, code, None if code is None else Observation(printed), problem, 0, 0))
    return Episode(None, "stateless", [], found)


def parts_of(*codes: str) -> dict[str, int]:
    """The parts of the last of these blocks, which print nothing."""
    return conduct.reply_parts(told(*((scripted.block(code), "") for code in codes)))[-1]


def share_of(trace) -> float:
    """The redundancy of a whole episode."""
    rows = conduct.reply_parts(trace)
    return conduct.redundancy({part: sum(row[part] for row in rows) for part in conduct.PARTS})


def test_the_parts_of_a_reply_by_hand():
    look = "for i in more: look(i)\n"
    fresh = "take_item(max(seen, key=seen.get))\n"
    texts = [scripted.block(f"budget = 9\ndenied = ['A', 'B']\n{look}".rstrip()), "no code"]
    lines = ['seen = {"item_a": [7, 94, "C"],\n  "item_b": [15, 43, "O"]}\n', "denied = ['A', 'B']\n", look, fresh]
    text = f"I restore.\n```python\n{'budget = 9'}\n{lines[1]}{lines[2]}{lines[0]}{lines[3]}```"
    printed = "seen = {'item_a': (7, 94, 'C'), 'item_b': (15, 43, 'O')}"
    rows = conduct.reply_parts(told((texts[0], printed), (texts[1], ""), (text, "")))
    around, none = len("I go on.\n```python\n```"), dict.fromkeys(conduct.PARTS, 0)
    assert rows[0] == none | {"reasoning": around, "new": len(texts[0]) - around}
    assert rows[1] == none | {"malformed": 7}
    told_again = {"restated": len(f"budget = 9\n{lines[1]}{lines[0]}"), "repeated": len(look)}
    assert rows[2] == none | told_again | {"reasoning": len("I restore.\n```python\n```"), "new": len(fresh)}
    assert conduct.redundancy(rows[2]) == 1 - len(fresh) / sum(len(line) for line in ["budget = 9\n", *lines])


words = st.sampled_from(["seen", "=", "{", "'item_a'", ":", "(7, 94)", "é", "\n", "  ", "print(", ")", "again", "```"])
replies = st.lists(words, max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(replies, replies.map(scripted.block)), replies), max_size=6))
def test_the_parts_add_up_to_the_reply(turns):
    episode = told(*turns)
    lengths = [len(turn.text) for turn in episode.turns]
    counts = [len(tokenizer()(turn.text, add_special_tokens=False)["input_ids"]) for turn in episode.turns]
    assert [sum(parts.values()) for parts in conduct.reply_parts(episode)] == lengths
    assert [sum(parts.values()) for parts in conduct.reply_parts(episode, tokenizer())] == counts


codes = st.lists(st.sampled_from("seen look take count left item_a 7 94 + ( ) = ,".split()), min_size=9, max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(codes.map(" ".join).filter(lambda code: sum(map(str.isalnum, code.split())) >= 4), min_size=1))
def test_a_copied_block_is_wholly_redundant(blocks):
    assert conduct.redundancy(parts_of(*blocks, random.Random(0).choice(blocks))) == 1


def test_fresh_code_is_not_redundant():
    source = random.Random(0)
    fresh = [" ".join(f"name_{source.randrange(2000)}" for _ in range(300)) for _ in range(8)]
    assert conduct.redundancy(parts_of(*fresh)) < 0.01


def test_what_restates_nothing():
    assert conduct.redundancy(parts_of("look(ids, 12)", "look(ids, 12)")) == 0  # a helper called again
    assert conduct.redundancy(parts_of("x = 1", "a = b + c + d\n" * 3)) == 0  # repetition within a turn
    assert conduct.redundancy(conduct.reply_parts(told(("I think.", "")))[0]) is math.nan  # no code


def test_four_words_are_a_restatement_and_three_are_not():
    printed, record = (scripted.block("look()"), "item_a 7 94 C"), "{'item_a': (7, 94, 'C')}"
    row = conduct.reply_parts(told(printed, (scripted.block(f"seen = {record}"), "")))[1]
    assert (row["restated"], row["new"]) == (len(record) - len("{'") + len("\n"), len("seen = {'"))
    shorter = (scripted.block("seen = {'item_a': (7, 94)}"), "")
    assert conduct.reply_parts(told(printed, shorter))[1]["restated"] == 0


def test_a_token_counts_where_it_ends():
    def spaced(text, **_):  # tokens that begin with the space before them, as those of most models do
        return {"offset_mapping": [found.span() for found in re.finditer(r" *\S+|\n", text)]}

    texts = [scripted.block("a = b + c + d"), scripted.block("new = 1; a = b + c + d")]
    row = conduct.reply_parts(told(*((text, "") for text in texts)), spaced)[1]
    assert row == {"reasoning": 7, "restated": 0, "repeated": 8, "new": 3, "malformed": 0}


def test_the_stateless_teacher_restates_what_the_persistent_one_keeps():
    share = {}
    for kind in ("persistent", "stateless"):
        task = scripted.sample_task(1, preset("easy"))
        play, teacher = agent.episode(task, kind, EpisodeSettings(detail="compact")), RuleTeacher(task, kind, 1)

        def without_comments(messages, teacher=teacher):  # in which the persistent style names the call before
            reply = teacher(messages)
            return replace(reply, text=re.sub("^#.*\n", "", reply.text, flags=re.MULTILINE))

        share[kind] = share_of(agent.run_alone(play, without_comments))
    assert share["persistent"] < 0.02 and share["stateless"] > 0.6


def test_each_turn_has_one_error():
    task = scripted.small_task()
    refused = next(i for i, item in task.items.items() if item.item_class not in task.allowed_classes)
    many = "for i in range(30):\n    list_items()"
    caught = "try:\n    " + many.replace("\n", "\n    ") + "\nexcept Exception:\n    pass"
    cases = [("print(1)\nkept = 1", "none"), ("print(kept)", "missing binding"), ("print(never)", "other NameError")]
    cases += [(many, "cap hit"), (caught, "cap hit"), (f"take_item({refused!r})", "tool error")]
    cases += [("1 / 0", "other code error"), ("if:", "other code error")]
    episode = scripted.play(task, "stateless", [scripted.block(code) for code, _ in cases] + ["no code"], 9)
    assert [conduct.turn_error(turn) for turn in episode.turns] == [error for _, error in cases] + ["malformed reply"]
    assert {error for _, error in cases} | {"malformed reply"} == set(conduct.ERRORS)


def test_playing_again_tells_what_each_turn_gained():
    task = scripted.small_task()
    good, more = [i for i, item in task.items.items() if item.item_class in task.allowed_classes][:2]
    bad = next(i for i, item in task.items.items() if item.item_class not in task.allowed_classes)
    codes = [f"inspect({good!r})\ninspect({bad!r})", "no code"]
    codes += [f"inspect({good!r})\ntake_item({good!r})\ntake_item({bad!r})\ntake_item({more!r})", "finish()"]
    episode = scripted.play(task, "stateless", [c if c == "no code" else scripted.block(c) for c in codes])
    called = [("inspect", "inspect"), (), ("inspect", "take_item", "take_item"), ("finish",)]
    third = conduct.Step(taken=(good,), refused=(("take_item", "PermissionError"),), called=called[2], first_tries=2)
    steps = [conduct.Step(inspected=(good, bad), called=called[0], first_tries=2), conduct.Step(), third]
    steps.append(conduct.Step(called=called[3]))
    assert conduct.play_again(task, episode) == steps and [step.tries for step in steps] == [0, 0, 2, 0]


def test_a_turn_that_lists_again_is_a_restart_and_only_first_looks_find_items():
    task = scripted.small_task()
    one, other = list(task.items)[:2]
    codes = ["1 / 0", f"list_items()\ninspect({one!r})", f"inspect({one!r})\ninspect({other!r})"]
    codes += [f"inspect({one!r})\nlist_items()\nlist_items()", "list_items()\nfinish()"]
    episode = scripted.play(task, "stateless", [scripted.block(code) for code in codes])
    assert pd.DataFrame(conduct.work(conduct.play_again(task, episode))).to_dict("list") == {
        "inspect_calls": [0, 1, 2, 1, 0],
        "new_items": [0, 1, 1, 0, 0],
        "restart": [0, 0, 0, 1, 1],
    }


def test_playing_again_carries_over_what_the_episode_carried_over():
    task = scripted.small_task()
    cut = scripted.block(f"kept = {list(task.items)!r}\nfor i in range(9):\n    list_items()")
    texts = [cut, "no code", scripted.block("inspect(kept[0])"), cut]
    texts += [scripted.block("inspect(kept[1])"), scripted.block("finish()")]
    episode = scripted.play(task, "carry-over", texts, max_tool_calls=5)
    gained = [step.inspected for step in conduct.play_again(task, episode, 5)]
    assert gained == [(), (), (), (), (list(task.items)[1],), ()]


def test_a_replay_that_ends_elsewhere_tells_nothing(tmp_path):
    task = scripted.small_task()
    episode = scripted.play(task, "persistent", scripted.persistent_texts())
    traces.write_episode(tmp_path, episode, "base")
    trace = traces.read_trace(traces.trace_path(tmp_path, task.task_id))
    assert conduct.play_again(task, trace) == conduct.play_again(task, episode) is not None
    assert conduct.play_again(scripted.small_task(4), trace) is None
    assert conduct.play_again(task, trace, max_tool_calls=2) is None
    assert conduct.play_again(task, dataclasses.replace(trace, taken=trace.taken[::-1])) is None
    unknown = dataclasses.replace(trace, taken=None)
    assert conduct.play_again(task, unknown) is not None and conduct.play_again(task, unknown, 2) is None
    unnamed = Episode(task, None, [], episode.turns, metrics=episode.metrics, taken=episode.taken)
    assert conduct.play_again(task, unnamed) is None


def test_recovery_ends_with_the_next_first_try_of_an_item():
    task = scripted.small_task()
    one, two, three = list(task.items)[:3]
    codes = [f"ids = [{one!r}]\ninspect(ids[0])", "inspect(ids[0])", "inspect(ids[0])"]  # missing, and again
    codes += [f"inspect({one!r})", f"inspect({two!r})"]  # nothing new, then something
    codes += [f"inspect({three!r})\nprint(ids)", "print(1)", "finish()"]  # not got over: the item came before the error
    texts = [scripted.block(code) for code in codes]
    episode = scripted.play(task, "stateless", texts)
    spent = [turn.prompt_tokens + turn.completion_tokens for turn in episode.turns]
    assert conduct.recoveries(episode, conduct.play_again(task, episode)) == [
        {"turn": 1, "turns": 3, "tokens": sum(spent[2:5]), "recovered": True},
        {"turn": 2, "turns": 2, "tokens": sum(spent[3:5]), "recovered": True},
        {"turn": 5, "turns": 2, "tokens": sum(spent[6:]), "recovered": False},
    ]


def test_who_tries_the_rest_and_is_refused_has_found_the_way_back():
    task = scripted.small_task()
    bad = next(i for i, item in task.items.items() if item.item_class not in task.allowed_classes)
    take = f"try:\n    take_item({bad!r})\nexcept Exception:\n    pass"
    codes = [f"ids = [{bad!r}]\ninspect(ids[0])", "print(ids)", f"inspect({bad!r})\n{take}", "print(ids)", take]
    episode = scripted.play(task, "stateless", [scripted.block(code) for code in [*codes, "finish()"]])
    found = conduct.recoveries(episode, conduct.play_again(task, episode))
    assert [(row["turn"], row["turns"], row["recovered"]) for row in found] == [(1, 1, True), (3, 2, False)]


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the published examples are not on this machine")
def test_published_traces_are_understood():
    for path in sorted(EXAMPLES.glob("*/knapsack/*.trace.json")):
        trace = traces.read_trace(path)
        task = Task.from_json(read_json(EXAMPLES / "easy" / "tasks" / "knapsack" / f"{trace.task_id}.json"))
        steps = conduct.play_again(task, trace)
        assert sum(len(step.inspected) for step in steps) == trace.metrics["inspected_count"]
        assert [conduct.turn_error(turn) for turn in trace.turns] == ["none"] * 4
        assert share_of(trace) < 0.1 if trace.kind == "persistent" else share_of(trace) > 0.7


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A small scripted run: its folder of cells, tables and conduct."""
    run = open_run(scripted.write_run(tmp_path_factory.mktemp("run"), n=3, splits=("easy",)))
    write_tasks(run.tasks("easy"), sample_split("easy", 3, 0, scripted.CONFIG))
    episodes, turns = metrics.read_cells(run.evaluations)
    return run.evaluations, episodes, turns, conduct.read_conduct(run.evaluations, episodes)


def test_every_turn_has_a_row_whose_parts_are_its_reply(looked_at):
    folder, _, turns, found = looked_at
    key = [*conduct.KEY, "turn"]
    assert found.turns[key].values.tolist() == turns[key].values.tolist()
    assert set(found.turns["error"]) <= set(conduct.ERRORS) and found.unit == "characters"
    for row in found.turns.to_dict("records")[::7]:
        cell = folder / f"{row['model']}_{row['runtime']}_{row['split']}"
        trace = traces.read_trace(traces.trace_path(cell, row["task_id"]))
        assert sum(row[part] for part in conduct.PARTS) == len(trace.turns[row["turn"]].text)


def test_exactly_the_episodes_below_their_teacher_have_a_cause(looked_at):
    _, episodes, _, found = looked_at
    best = episodes[episodes["model"] == "teacher"].set_index(["runtime", "split", "task_id"])["score"]
    below = episodes.apply(lambda row: row["score"] < best[row["runtime"], row["split"], row["task_id"]], axis=1)
    expected = episodes.loc[below, conduct.KEY].values.tolist()
    assert sorted(found.failures[conduct.KEY].values.tolist()) == sorted(expected) and expected
    assert set(found.failures["cause"]) <= set(CAUSES) - {"unknown"} and len(found.recoveries)


def test_without_a_teacher_or_tasks_nothing_is_claimed(looked_at, tmp_path):
    folder, episodes, *_ = looked_at
    alone = conduct.read_conduct(folder, episodes[episodes["model"] == "base"])
    assert alone.failures.empty and len(alone.turns)
    elsewhere = tmp_path / "evaluations"
    elsewhere.symlink_to(folder)  # no tasks/ beside it
    assert set(conduct.read_conduct(elsewhere, episodes).failures["cause"]) == {"unknown"}


def test_written_tables_read_back(looked_at, tmp_path):
    run = open_run(tmp_path)
    conduct.write_conduct(run, looked_at[-1])
    columns = {"contents": conduct.TURN_COLUMNS, "failures": conduct.FAILURE_COLUMNS}
    for name, expected in (columns | {"recoveries": conduct.RECOVERY_COLUMNS}).items():
        assert list(pd.read_csv(run.results / f"{name}.csv")) == expected

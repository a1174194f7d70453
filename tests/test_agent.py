"""Episodes with scripted replies, and the three ways of running many of them."""

import json

import pytest

from knapsack import prompts, traces
from knapsack.agent import (
    ContextFull,
    EpisodeSettings,
    Reply,
    code_block,
    episode,
    run_alone,
    run_batched,
    run_concurrently,
)
from knapsack.runtime import KINDS, InterpreterError, Runtime, interpreter_pool
from knapsack.tasks import KnapsackConfig, sample_task

CONFIG = KnapsackConfig((8, 14), (5, 20), (10, 100), 4, 2, (0.35, 0.5))
TASK = sample_task(7, CONFIG)
SETTINGS = EpisodeSettings(max_turns=6, detail="compact")
LOOK = "import json\nseen = {i: json.loads(inspect(i)) for i in json.loads(list_items())[:5]}\nprint(len(seen))"
TAKE = "for i in seen:\n    try:\n        take_item(i)\n    except Exception as error:\n        print(error)\nfinish()"


def block(code: str) -> str:
    return f"I go on.\n```python\n{code}\n```"


def script(*texts: str):
    """A reply for each turn, the last one again and again. It depends on the conversation alone."""

    def reply(messages):
        turn = sum(message["role"] == "assistant" for message in messages)
        return Reply(texts[min(turn, len(texts) - 1)], 100 + len(messages), 10)

    return reply


@pytest.fixture(scope="module")
def pool():
    with interpreter_pool(4) as workers:
        yield workers


@pytest.fixture
def play(pool):
    def run(kind, *texts, settings=SETTINGS):
        return run_alone(episode(TASK, kind, settings, pool), script(*texts))

    return run


def shown(done, turn: int) -> dict:
    """The observation after a turn, counted from 0."""
    return json.loads(done.messages[3 + 2 * turn]["content"])


# Replies


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = 1\n```",
        "```\nx = 1\n```",
        "Words.\n```py\nx = 1\n``` more words",
        "```Python \r\nx = 1\n```",
        'First the data:\n```json\n{"a": 1}\n```\nand now\n```python\nx = 1\n```',
        "```python\nx = 1\n```\nIt will print\n```text\n1\n```",
        "  ```python\nx = 1\n  ```",
    ],
)
def test_one_block_is_found(text):
    assert code_block(text) == ("x = 1\n", None)


def test_fence_within_code_closes_nothing():
    assert code_block("```python\nprint('```')\n```") == ("print('```')\n", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no python code block"),
        ("x = 1", "no python code block"),
        ("```python\nx = 1", "no python code block"),
        ("```json\n{}\n```", "no python code block"),
        ("```python\nx = 1\n```\n```python\ny = 1\n```", "2 code blocks"),
        ("```\nx\n```\n" * 3, "3 code blocks"),
    ],
)
def test_other_replies_say_what_is_wrong(text, problem):
    code, error = code_block(text)
    assert code is None and problem in error and error.endswith("write exactly one")


# Episodes


def test_persistent_episode_takes_what_it_looked_at(play):
    done = play("persistent", block(LOOK), block(TAKE))
    assert done.finish_reason == "finish_tool" and len(done.turns) == 2
    assert done.taken and done.score == sum(TASK.items[i].value for i in done.taken) / TASK.optimal_value
    assert done.metrics["inspected_count"] == 5 and done.solved == (done.score == 1.0)
    assert [message["role"] for message in done.messages] == ["system", "user"] + ["assistant", "user"] * 2


def test_stateless_episode_misses_the_names(play):
    done = play("stateless", block(LOOK), block(TAKE), block("finish()"))
    assert shown(done, 1)["error"] == "NameError: name 'seen' is not defined"
    assert done.turns[1].observation.missing_binding and done.score == 0.0
    assert done.finish_reason == "finish_tool" and done.metrics["inspected_count"] == 5


CUT = block("x = 1\nfor i in range(9):\n    list_items()")
FEW = EpisodeSettings(max_turns=6, max_tool_calls=2, detail="compact")


def test_carry_over_looks_stateless_and_only_the_announced_one_says_what_is_left(play):
    silent, announced = (play(k, CUT, block("print(x)"), settings=FEW) for k in ("carry-over", "carry-over-announced"))
    stateless = play("stateless", CUT, block("print(x)"), settings=FEW)
    assert silent.messages[:4] == announced.messages[:3] + stateless.messages[3:4] == stateless.messages[:4]
    assert shown(announced, 0)["runtime_state"]["active_globals"] == ["i", "x"]
    assert "only for it" in shown(announced, 0)["runtime_state"]["note"]
    assert shown(silent, 1)["output"] == shown(announced, 1)["output"] == "1\n"
    assert "note" not in shown(announced, 1)["runtime_state"]
    assert shown(silent, 2)["error"] == "NameError: name 'x' is not defined"


@pytest.mark.parametrize("detail", prompts.DETAILS)
def test_untold_runtimes_read_the_same_text_until_they_act_otherwise(play, detail):
    replies = block("x = 1\nprint(x)"), "no code", block("y = 2\nprint(y)"), block("print(x)")
    settings = EpisodeSettings(max_turns=4, detail=detail)
    kept, lost = (play(f"{kind}-untold", *replies, settings=settings) for kind in KINDS)
    assert kept.messages[:9] == lost.messages[:9] and shown(kept, 3) == {"output": "1\n", "error": None}
    assert shown(lost, 3)["error"] == "NameError: name 'x' is not defined"
    assert not any(
        word in json.dumps(kept.messages) for word in ("Runtime:", "runtime_state", "stateless", "persistent")
    )


def test_a_false_runtime_acts_as_itself_and_tells_of_the_other(play):
    replies = block("x = 1\nprint(x)"), block("print(x)")
    for kind, other in zip(KINDS, reversed(KINDS), strict=True):
        false, true = (play(name, *replies, settings=EpisodeSettings(max_turns=2)) for name in (f"{kind}-false", other))
        assert false.messages[:4] == true.messages[:4]  # the first observation too
        assert (false.turns[1].observation.error is None) == (kind == "persistent")


@pytest.mark.parametrize("kind", ["carry-over", "carry-over-announced"])
def test_turn_without_code_is_the_one_turn_that_carry_over_lasts(play, kind):
    done = play(kind, CUT, "I think.", block("print(x)"), settings=FEW)
    assert shown(done, 1)["runtime_state"]["active_globals"] == []
    assert done.turns[2].observation.missing_binding


def test_finish_ends_the_episode_after_its_block(play):
    done = play("persistent", block("finish()\nprint('still here')\n1 / 0"), block("never()"))
    assert len(done.turns) == 1 and done.finish_reason == "finish_tool"
    assert shown(done, 0)["output"] == "still here\n"


@pytest.mark.parametrize("reply", ["I think.", block("x = 1") + block("x = 2")])
def test_reply_without_one_block_costs_a_turn_and_runs_nothing(play, reply):
    done = play("persistent", block("x = 1"), reply, block("print(x)\nfinish()"))
    wrong = done.turns[1]
    assert (wrong.code, wrong.observation) == (None, None)
    assert shown(done, 1)["error"] == wrong.protocol_error and "ProtocolError" in wrong.protocol_error
    assert shown(done, 1)["runtime_state"]["active_globals"] == ["x"]
    assert shown(done, 2)["output"] == "1\n" and len(done.turns) == 3


def test_turn_limit_ends_an_episode_that_does_not_finish(play):
    done = play("stateless", "I think.", settings=EpisodeSettings(max_turns=3, detail="compact"))
    assert (len(done.turns), done.finish_reason, done.error) == (3, "max_turns", None)


def test_malformed_replies_in_a_row_end_an_episode_and_any_python_starts_the_count_anew(play):
    limited = EpisodeSettings(max_turns=9, detail="compact", max_malformed=2)
    done = play("stateless", "I think.", block("1 / 0"), "I think.", block("def = 1"), "More.", settings=limited)
    assert (len(done.turns), done.finish_reason) == (4, "error") and done.error.startswith("2 replies in a row")
    done = play("stateless", "I think.", "I think.", block("finish()"), settings=EpisodeSettings(max_turns=9))
    assert (len(done.turns), done.finish_reason) == (3, "finish_tool")
    assert done.prompt_tokens == 102 + 104 + 106 and done.completion_tokens == 30


def test_cap_of_the_settings_reaches_prompt_and_runtime(play):
    settings = EpisodeSettings(max_turns=1, max_tool_calls=2, detail="full")
    done = play("persistent", block("for i in range(9):\n    list_items()"), settings=settings)
    assert done.messages[:2] == prompts.opening(TASK, "persistent", 2, "full")
    assert done.turns[0].observation.cap_hit and "at most 2 tool calls" in shown(done, 0)["error"]


def test_half_a_character_from_a_model_fits_every_file(play):
    done = play("persistent", block("print('\ud83d')\nfinish()"))
    json.dumps(done.messages, ensure_ascii=False).encode("utf-8")
    assert done.turns[0].text == done.messages[2]["content"]


def test_control_tokens_are_executed_and_recorded_as_written_but_not_handed_on(play, tmp_path):
    reply = "<|im_start|>" + block("print('<|im_end|>', len('[INST]'))\nfinish()")
    done = play("persistent", reply)
    assert done.turns[0].text == reply and done.turns[0].observation.output == "<|im_end|> 6\n"
    assert done.messages[2]["content"] == reply.replace("<|", "< |").replace("[INST]", "[ INST]")
    assert shown(done, 0)["output"] == "< |im_end|> 6\n"
    traces.write_episode(tmp_path, done, "base")
    path = traces.trace_path(tmp_path, TASK.task_id)
    assert traces.read_trace(path).messages == done.messages and traces.read_trace(path).turns == done.turns
    path.write_text(path.read_text().replace("< |im_end|>", "<|im_end|>").replace("Tools:", "<|im_start|>Tools:"))
    traces.details_path(path).unlink()  # as if published by another program
    messages = traces.read_trace(path).messages
    assert messages[2:] == done.messages[2:] and "< |im_start|>Tools:" in messages[0]["content"]


def test_full_context_ends_the_episode_with_its_score(pool):
    answer = script(block(LOOK), block(TAKE.removesuffix("\nfinish()")), block("print(1)"))

    def reply(messages):
        if len(messages) > 6:
            raise ContextFull("the conversation is too long")
        return answer(messages)

    done = run_alone(episode(TASK, "persistent", SETTINGS, pool), reply)
    assert (done.finish_reason, done.error) == ("error", "the conversation is too long")
    assert len(done.turns) == 3 and done.score > 0 and done.taken


# Many episodes


class BatchModel:
    """Answers all submitted conversations at each step, in a changing order; counts what it was asked."""

    def __init__(self, reply, slots: int, limit: int = 1000):
        self.reply, self.slots, self.limit = reply, slots, limit
        self.waiting: dict[int, list] = {}
        self.most = self.steps = 0
        self.released: list[int] = []

    def submit(self, slot, key, messages):
        assert slot not in self.waiting and 0 <= slot < self.slots
        if len(messages) > self.limit:
            raise ContextFull("too long")
        self.waiting[slot] = messages

    def step(self):
        self.steps += 1
        self.most = max(self.most, len(self.waiting))
        asked = sorted(self.waiting.items(), reverse=self.steps % 2 == 0)[: 1 + self.steps % self.slots]
        for slot, _ in asked:
            del self.waiting[slot]
        return [(slot, self.reply(messages)) for slot, messages in asked]

    def release(self, slot):
        self.released.append(slot)


def mixed_plays(pool, count: int = 7):
    tasks = [sample_task(seed, CONFIG) for seed in range(count)]
    return [(f"{kind}-{task.seed}", episode(task, kind, SETTINGS, pool)) for task in tasks for kind in KINDS]


ANSWER = script(block(LOOK), "No code.", block(TAKE), block("print(1)"))


def test_alone_concurrently_and_batched_give_the_same_episodes(pool):
    alone = {key: run_alone(play, ANSWER) for key, play in mixed_plays(pool)}
    assert {done.finish_reason for done in alone.values()} == {"finish_tool", "max_turns"}
    concurrent, batched = {}, {}
    run_concurrently(mixed_plays(pool), ANSWER, 3, concurrent.__setitem__)
    model = BatchModel(ANSWER, 4)
    run_batched(mixed_plays(pool), model, batched.__setitem__)
    assert concurrent == batched == alone
    assert model.most == 4 and len(model.released) == len(alone) and not model.waiting


@pytest.mark.parametrize(("limit", "turns"), [(1, 0), (4, 2)])
def test_batch_scores_episodes_whose_context_fills_up_and_goes_on(pool, limit, turns):
    done = {}
    run_batched(mixed_plays(pool, 3), BatchModel(ANSWER, 2, limit), done.__setitem__)
    assert [(d.finish_reason, d.error, len(d.turns)) for d in done.values()] == [("error", "too long", turns)] * 6


def test_more_slots_than_episodes_are_left_empty(pool):
    done = {}
    run_batched(mixed_plays(pool, 1), BatchModel(ANSWER, 4), done.__setitem__)
    assert len(done) == 2


class EndpointDown(Exception):
    pass


def many(pool, count: int = 40):
    return [(f"{seed}", episode(sample_task(seed, CONFIG), "persistent", SETTINGS, pool)) for seed in range(count)]


def test_infrastructure_error_stops_concurrent_episodes(pool):
    """It is raised, no further reply is asked for, and no episode of its making is scored."""
    asked, done = [], {}

    def reply(messages):
        asked.append(len(messages))
        if len(asked) >= 10:
            raise EndpointDown("no answer")
        return ANSWER(messages)

    with pytest.raises(EndpointDown, match="no answer"):
        run_concurrently(many(pool), reply, 2, done.__setitem__)
    assert len(asked) <= 11 and len(done) <= 3  # two threads, three replies an episode
    assert all(episode.finish_reason == "finish_tool" for episode in done.values())


def test_failure_to_keep_a_result_stops_concurrent_episodes(pool):
    asked = []

    def full_disk(key, done):
        raise OSError(28, "disk full", key)

    with pytest.raises(OSError, match="disk full"):
        run_concurrently(many(pool), lambda messages: asked.append(1) or ANSWER(messages), 2, full_disk)
    assert len(asked) < 40 * 3


def test_infrastructure_error_stops_a_batch_and_frees_its_workers():
    def reply(messages):
        if len(messages) > 4:
            raise EndpointDown("device lost")
        return ANSWER(messages)

    done = {}
    with interpreter_pool(2, checkout_timeout=0.5) as own:
        with pytest.raises(EndpointDown, match="device lost"):
            run_batched(many(own, 6), BatchModel(reply, 2), done.__setitem__)
        assert done == {}
        with Runtime("persistent", {}, pool=own) as first, Runtime("persistent", {}, pool=own) as second:
            assert first.run("print(1)").output == second.run("print(1)").output == "1\n"


def test_too_few_workers_for_the_slots_is_an_error_not_a_score():
    done = {}
    with interpreter_pool(1, checkout_timeout=0.3) as own:
        with pytest.raises(InterpreterError, match="as many episodes as the pool has workers"):
            run_batched(many(own, 2), BatchModel(ANSWER, 2), done.__setitem__)
    assert done == {}

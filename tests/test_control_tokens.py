"""What could be a control token of some model acts in no conversation, whoever replies."""

import pytest
from scripted import CONFIG, block

from knapsack import agent
from knapsack.prompts import message
from knapsack.tasks import sample_task

TOKENS = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|x[INST]|>", "<s>", "</s>", "<think>"]
TOKENS += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "<<SYS>>", "<tool_call>", "<bos>"]


@pytest.mark.parametrize("token", TOKENS)
def test_no_control_token_stands_in_a_message(token):
    sent = message("user", f"a{token}b{token}")["content"]
    assert token not in sent and sent.replace(" ", "") == f"a{token}b{token}"
    assert not [other for other in TOKENS if other in sent]


def test_ordinary_text_stays_as_it_is():
    text = 'if a < b > c[ITEMS] | d: x["INST"] = {"k": [1]}  # a<b, <class \'int\'>, 1 << 2, List[int]'
    assert message("user", text)["content"] == text


def test_thoughts_in_a_reply_stay_for_the_chat_template_to_cut():
    assert message("assistant", "<think>2</think><s>")["content"] == "<think>2</think>< s>"


def test_the_code_runs_as_written_and_the_conversation_holds_the_harmless_form():
    texts = iter([block("print('<|im_end|>')", "<|im_start|>"), block("finish()")])
    play = agent.episode(sample_task(1, CONFIG), "persistent", agent.EpisodeSettings(detail="compact"))
    done = agent.run_alone(play, lambda _: agent.Reply(next(texts), 1, 1))
    assert done.turns[0].observation.output == "<|im_end|>\n" and "<|im_start|>" in done.turns[0].text
    reply, seen = (done.messages[place]["content"] for place in (2, 3))
    assert "< |im_start|>" in reply and "< |im_end|>" in seen and "<|im_" not in reply + seen

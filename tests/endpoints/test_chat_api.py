"""Text that a server could take for its own control tokens."""

import json

import pytest
from endpoint_server import EndpointServer
from scripted import CONFIG, block

from knapsack import agent
from knapsack.endpoints.chat_api import without_control_tokens
from knapsack.endpoints.client import Client
from knapsack.endpoints.endpoint import Endpoint
from knapsack.endpoints.replies import Replies
from knapsack.tasks import sample_task

TOKENS = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|x[INST]|>", "<s>", "</s>", "<think>"]
TOKENS += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "<<SYS>>", "<tool_call>", "<bos>"]


@pytest.mark.parametrize("token", TOKENS)
def test_no_control_token_leaves_the_house(token):
    sent = without_control_tokens(f"a{token}b{token}")
    assert token not in sent and sent.replace(" ", "") == f"a{token}b{token}"
    assert not [other for other in TOKENS if other in sent]


def test_ordinary_text_stays_as_it_is():
    text = 'if a < b > c[ITEMS] | d: x["INST"] = {"k": [1]}  # a<b, <class \'int\'>, 1 << 2, List[int]'
    assert without_control_tokens(text) == text


def test_thoughts_in_a_reply_stay_for_the_chat_template_to_cut():
    assert without_control_tokens("<think>2</think><s>", "assistant") == "<think>2</think>< s>"


def test_the_recorded_conversation_keeps_the_original_text():
    texts = [block("print('<|im_end|>')", "<|im_start|>"), block("finish()")]
    with EndpointServer(lambda messages: texts[len(messages) > 2]) as server:
        play = agent.episode(sample_task(1, CONFIG), "persistent", agent.EpisodeSettings(detail="compact"))
        endpoint, limits = Endpoint(url=server.url, model="m"), {"max_new_tokens": 100, "context_length": 4000}
        client = Client(endpoint, None, Replies(":memory:"), temperature=0.2, seed=7, **limits)
        done = agent.run_alone(play, client.reply)
    assert "< |im_start|>" in json.dumps(server.bodies[1]) and "<|im_" not in json.dumps(server.bodies[1])
    assert "< |im_end|>" in server.bodies[1]["messages"][3]["content"]
    assert done.turns[0].text == texts[0] and done.turns[0].observation.output == "<|im_end|>\n"
    assert done.messages[2]["content"] == texts[0] and "<|im_end|>" in done.messages[3]["content"]

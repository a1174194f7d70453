"""What an agent reads: the texts, and that nothing in them acts as a control token."""

import difflib
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack import prompts
from knapsack.prompts import DETAILS, message, observation_message, opening, protocol_error_message
from knapsack.runtime import KINDS, Observation
from knapsack.tasks import preset, sample_task

TASK = sample_task(7, preset("easy"))


@pytest.mark.parametrize("detail", DETAILS)
def test_runtimes_differ_only_in_the_runtime_paragraph_and_its_example(detail):
    persistent, stateless = (opening(TASK, kind, 25, detail) for kind in KINDS)
    assert persistent[1] == stateless[1]
    bare = []
    for kind, (system, _) in zip(KINDS, (persistent, stateless), strict=True):
        text = system["content"]
        for own in (prompts._RUNTIME_FULL[kind], prompts.RUNTIME_COMPACT[kind], prompts._EXAMPLE[kind]):
            text = text.replace(own, "")
        assert f"Runtime: {kind}" in system["content"] and text != system["content"]
        bare.append(text)
    assert bare[0] == bare[1], list(difflib.unified_diff(bare[0].splitlines(), bare[1].splitlines()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detail", DETAILS)
def test_opening_states_the_facts_and_hides_the_allowed_classes(kind, detail):
    messages = opening(TASK, kind, 13, detail)
    assert [one["role"] for one in messages] == ["system", "user"]
    assert "13 " in messages[0]["content"]
    facts = set(re.findall(r"\d+", messages[1]["content"]))
    assert {str(TASK.capacity), str(TASK.inspect_budget)} <= facts
    assert opening(replace(TASK, allowed_classes=("B", "C", "D")), kind, 13, detail) == messages


def test_unknown_detail_is_refused():
    with pytest.raises(ValueError, match=r"'brief'.*'full', 'compact'"):
        opening(TASK, "stateless", 25, "brief")


@given(*[st.text(st.characters(codec="utf-8", exclude_characters="<["))] * 2, st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_observation_is_json_with_output_error_and_state(output, text, kind):
    observation = Observation(output, "ValueError", text, "code", last_step_globals=("b",), active_globals=("a", "b"))
    shown = observation_message(observation, kind)
    assert shown["role"] == "user"
    assert json.loads(shown["content"]) == {
        "output": output,
        "error": f"ValueError: {text}" if text else "ValueError",
        "runtime_state": {"runtime": kind, "active_globals": ["a", "b"], "last_step_globals": ["b"]},
    }


def test_protocol_error_looks_like_an_observation():
    content = json.loads(protocol_error_message("two blocks", "persistent", ("x",))["content"])
    state = {"runtime": "persistent", "active_globals": ["x"], "last_step_globals": []}
    assert content == {"output": "", "error": "two blocks", "runtime_state": state}


# Text that a model could take for its own control tokens

TOKENS = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|x[INST]|>", "<s>", "</s>", "<think>"]
TOKENS += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "<<SYS>>", "<tool_call>", "<bos>"]


@pytest.mark.parametrize("token", TOKENS)
def test_no_control_token_stands_in_a_message(token):
    shown = observation_message(Observation(f"a{token}b{token}"), "stateless")["content"]
    content = message("system", f"a{token}b{token}")["content"]
    assert content in shown and content.replace(" ", "") == f"a{token}b{token}"
    assert not [other for other in TOKENS if other in content]
    assert message("user", content)["content"] == content


def test_thoughts_in_a_reply_stay_for_chat_templates_to_cut():
    said = "<think>2</think><s>"
    assert message("assistant", said) == {"role": "assistant", "content": "<think>2</think>< s>"}
    assert message("user", said)["content"] == "< think>2< /think>< s>"


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_stays_as_it_is(kind):
    text = 'if a < b > c[ITEMS] | d: x["INST"] = {"k": [1]}  # a<b, <class \'int\'>, 1 << 2, List[int]'
    assert message("assistant", text)["content"] == text
    assert opening(TASK, kind, 25)[0]["content"].count("< ") == 0

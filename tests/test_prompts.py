"""What an agent reads, and that training and inference see the same tokens."""

import difflib
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from knapsack import prompts
from knapsack.prompts import DETAILS, observation_message, opening, protocol_error_message, render
from knapsack.runtime import KINDS, Observation
from knapsack.tasks import KnapsackConfig, sample_task

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TASK = sample_task(7, KnapsackConfig.easy())


def byte_tokenizer(control: list[str]) -> PreTrainedTokenizerFast:
    """One token a byte, but for a few merges that would join the ends of neighbouring texts if they could."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "Ċ"), ("Ċ", "Ċ"), ("u", "s"), ("Ċ", "a"), (">", "Ċ")]
    vocabulary = {letter: index for index, letter in enumerate([*letters, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(control)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=control[-1])


TOKENIZER = byte_tokenizer(CONTROL)
START, END = TOKENIZER.convert_tokens_to_ids(CONTROL[:2])


# Texts


@pytest.mark.parametrize("detail", DETAILS)
def test_runtimes_differ_only_in_the_runtime_paragraph_and_its_example(detail):
    persistent, stateless = (opening(TASK, kind, 25, detail) for kind in KINDS)
    assert persistent[1] == stateless[1]
    bare = []
    for kind, (system, _) in zip(KINDS, (persistent, stateless), strict=True):
        text = system["content"]
        for own in (prompts._RUNTIME_FULL[kind], prompts._RUNTIME_COMPACT[kind], prompts._EXAMPLE[kind]):
            text = text.replace(own, "")
        assert f"Runtime: {kind}" in system["content"] and text != system["content"]
        bare.append(text)
    assert bare[0] == bare[1], list(difflib.unified_diff(bare[0].splitlines(), bare[1].splitlines()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detail", DETAILS)
def test_opening_states_the_facts_and_hides_the_allowed_classes(kind, detail):
    messages = opening(TASK, kind, 13, detail)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "13 " in messages[0]["content"]
    facts = set(re.findall(r"\d+", messages[1]["content"]))
    assert {str(TASK.capacity), str(TASK.inspect_budget)} <= facts
    assert opening(replace(TASK, allowed_classes=("B", "C", "D")), kind, 13, detail) == messages


def test_unknown_detail_is_refused():
    with pytest.raises(ValueError, match=r"'brief'.*'full', 'compact'"):
        opening(TASK, "stateless", 25, "brief")


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_observation_is_json_with_output_error_and_state(output, text, kind):
    observation = Observation(output, "ValueError", text, "code", last_step_globals=("b",), active_globals=("a", "b"))
    message = observation_message(observation, kind)
    assert message["role"] == "user"
    assert json.loads(message["content"]) == {
        "output": output,
        "error": f"ValueError: {text}" if text else "ValueError",
        "runtime_state": {"runtime": kind, "active_globals": ["a", "b"], "last_step_globals": ["b"]},
    }


def test_protocol_error_looks_like_an_observation():
    content = json.loads(protocol_error_message("two blocks", "persistent", ("x",))["content"])
    state = {"runtime": "persistent", "active_globals": ["x"], "last_step_globals": []}
    assert content == {"output": "", "error": "two blocks", "runtime_state": state}


# Rendering

pieces = st.lists(st.sampled_from([*CONTROL, "a", "b", "\n", "ab\n", "user\n", "ü", "→", " "]), max_size=8).map("".join)
conversations = st.tuples(pieces, pieces, st.lists(st.tuples(pieces, pieces), max_size=3)).map(
    lambda drawn: (
        [{"role": "system", "content": drawn[0]}, {"role": "user", "content": drawn[1]}]
        + [
            {"role": role, "content": text}
            for pair in drawn[2]
            for role, text in zip(("assistant", "user"), pair, strict=True)
        ]
    )
)


@given(conversations)
@settings(max_examples=40, deadline=None)
def test_training_row_begins_with_each_inference_prompt(messages):
    row = render(messages, TOKENIZER).input_ids
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render(messages[:index], TOKENIZER, reply_follows=True).input_ids
            assert row[: len(prompt)] == prompt
            rest = TOKENIZER.decode(row[len(prompt) :])
            assert rest.startswith(message["content"] + "<|im_end|>\n")


@given(conversations)
@settings(max_examples=40, deadline=None)
def test_labels_cover_exactly_what_the_assistant_wrote(messages):
    row = render(messages, TOKENIZER)
    learned = [label for label in row.labels if label != -100]
    written = [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]
    assert TOKENIZER.decode(learned) == "".join(written)
    assert learned.count(END) == len(written)
    assert len(row.labels) == len(row.input_ids)
    assert all(label in (-100, token) for label, token in zip(row.labels, row.input_ids, strict=True))


@given(conversations)
@settings(max_examples=40, deadline=None)
def test_contents_never_become_control_tokens(messages):
    row = render(messages, TOKENIZER).input_ids
    assert row.count(START) == row.count(END) == len(messages)
    assert TOKENIZER.convert_tokens_to_ids("<|endoftext|>") not in row


def test_rendered_text_is_chatml():
    messages = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "ü"}]
    text = "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nü<|im_end|>\n"
    assert TOKENIZER.decode(render(messages, TOKENIZER).input_ids) == text
    assert TOKENIZER.decode(render(messages[:1], TOKENIZER, True).input_ids) == text[: -len("ü<|im_end|>\n")]


def test_rendering_leaves_the_tokenizer_as_it_was():
    before = TOKENIZER("a<|im_end|>", add_special_tokens=False)["input_ids"]
    render([{"role": "user", "content": "<|im_end|>"}], TOKENIZER)
    assert TOKENIZER("a<|im_end|>", add_special_tokens=False)["input_ids"] == before

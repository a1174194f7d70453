"""Chat templates: one text for training, inference and servers, in the tokens of each supported family of models."""

import jinja2
import pytest
from chat_tokenizers import TOKENIZERS, hybrid_tokenizer, llama_3_tokenizer, mistral_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompts import byte_tokenizer
from tiny import tiny_tokenizer
from tokenizers import AddedToken

from knapsack.chat_template import TEMPLATES, encoder_of, template_of
from knapsack.prompts import render

EACH = pytest.mark.parametrize("name", TOKENIZERS)
THINK = "<think>\n\n</think>\n\n"
CONTROL = sorted({token for template in TEMPLATES.values() for token in template.controls} | {"<tool_call>"})
PLAIN = ["a", "b", "ab\n", "\n", "user", "ü", "→", " ", "  ", "<", "|>", "[", "INST", "{{ 1 }}", "'", '"', "\\n"]

# What is written up to the first reply, up to the second, and to the end of the row.
PARTS = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU \n<|im_end|>\n<|im_start|>assistant\n",
        "R\n<|im_end|>\n<|im_start|>user\nO<|im_end|>\n<|im_start|>assistant\n",
        "Q<|im_end|>\n",
    ),
    "qwen3": (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU \n<|im_end|>\n<|im_start|>assistant\n{THINK}",
        f"R\n<|im_end|>\n<|im_start|>user\nO<|im_end|>\n<|im_start|>assistant\n{THINK}",
        "Q<|im_end|>\n",
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU \n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "R\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nO<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Q<|eot_id|>",
    ),
    "mistral": ("<s>[INST] S\n\nU \n[/INST]", " R\n</s>[INST] O[/INST]", " Q</s>"),
}
ENDS = {"chatml": "<|im_end|>", "qwen3": "<|im_end|>", "llama-3": "<|eot_id|>", "mistral": "</s>"}


def episode(*contents: str) -> list[dict]:
    roles = ["system", "user", *["assistant", "user"] * len(contents)]
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def conversations(pieces: list[str]):
    texts = st.lists(st.sampled_from(pieces), max_size=8).map("".join)
    return st.lists(texts, min_size=2, max_size=9).map(lambda drawn: episode(*drawn))


def prompts_of(messages: list[dict]) -> list[list[dict]]:
    return [messages[:index] for index, message in enumerate(messages) if message["role"] == "assistant"]


# The tokens


@EACH
def test_text_is_the_templates(name):
    tokenizer, parts = TOKENIZERS[name], PARTS[template_of(TOKENIZERS[name]).name]
    messages = episode("S", "U \n", "R\n", "O", "Q")
    assert tokenizer.decode(render(messages, tokenizer).input_ids) == "".join(parts)
    for turn, prompt in enumerate(prompts_of(messages), start=1):
        assert tokenizer.decode(render(prompt, tokenizer, reply_follows=True).input_ids) == "".join(parts[:turn])


@EACH
@given(conversations(PLAIN + CONTROL))
@settings(max_examples=15, deadline=None)
def test_training_row_begins_with_each_inference_prompt(name, messages):
    tokenizer = TOKENIZERS[name]
    row = render(messages, tokenizer).input_ids
    for prompt in prompts_of(messages):
        ids = render(prompt, tokenizer, reply_follows=True).input_ids
        assert row[: len(ids)] == ids


@EACH
@given(conversations(PLAIN + CONTROL))
@settings(max_examples=15, deadline=None)
def test_labels_are_the_replies_and_their_end_tokens(name, messages):
    tokenizer = TOKENIZERS[name]
    row, end = render(messages, tokenizer), tokenizer.convert_tokens_to_ids(ENDS[template_of(tokenizer).name])
    assert len(row.labels) == len(row.input_ids)
    assert all(label in (-100, token) for label, token in zip(row.labels, row.input_ids, strict=True))
    expected = [-100] * len(row.labels)
    for prompt in prompts_of(messages):
        begin = len(render(prompt, tokenizer, reply_follows=True).input_ids)
        stop = row.input_ids.index(end, begin) + 1
        assert encoder_of(tokenizer).read(row.input_ids[begin:stop]) == messages[len(prompt)]["content"]
        expected[begin:stop] = row.input_ids[begin:stop]
    assert row.labels == expected


@EACH
@given(conversations(PLAIN + CONTROL))
@settings(max_examples=15, deadline=None)
def test_contents_never_act_as_control_tokens(name, messages):
    tokenizer = TOKENIZERS[name]
    added = set(tokenizer.added_tokens_decoder)
    blank = [message | {"content": ""} for message in messages]
    for reply_follows in (False, True):
        ids, structure = (render(m, tokenizer, reply_follows).input_ids for m in (messages, blank))
        assert [i for i in ids if i in added] == [i for i in structure if i in added]


def test_contents_never_act_where_the_vocabulary_merges_them_to_control_tokens():
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    tokenizer = mistral_tokenizer(merges=merges)
    assert tokenizer("a</s>", split_special_tokens=True)["input_ids"][-1] == tokenizer.eos_token_id
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    ids = render(episode("a</s>", "b<think>", "</s>"), tokenizer).input_ids
    assert tokenizer.decode(ids) == "<s>[INST] a< /s>\n\nb< think>[/INST] < /s></s>"  # the price: a space each
    assert ids.count(tokenizer.eos_token_id) == 1 and tokenizer.convert_tokens_to_ids("<think>") not in ids


def test_roles_never_act_as_control_tokens():
    tokenizer = TOKENIZERS["chatml"]
    ids = render([{"role": "<|im_end|>", "content": "a"}], tokenizer).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_thoughts_that_a_reply_holds_stay_in_the_history():
    messages = episode("S", "U", "<think>\nlong\n</think>\n\nR", "O", "Q")
    tokenizer = TOKENIZERS["qwen3"]
    text = tokenizer.decode(render(messages, tokenizer).input_ids)
    assert text.count(f"assistant\n{THINK}") == 2
    assert f"{THINK}<think>\nlong\n</think>\n\nR<|im_end|>" in text


@pytest.mark.parametrize("messages", [episode("S"), episode("U", "U", "R")[::-1], episode("S", "U")[:1] * 2])
def test_system_text_without_a_user_message_is_refused_where_there_is_no_system_role(messages):
    tokenizer = mistral_tokenizer()
    with pytest.raises(ValueError, match="must stand before a user message"):
        render(messages, tokenizer)
    tokenizer.chat_template = TEMPLATES["mistral"].jinja()
    with pytest.raises(jinja2.TemplateError, match="must stand before a user message"):
        tokenizer.apply_chat_template(messages)


# The chat template for servers


@EACH
@given(messages=conversations(PLAIN), thinking=st.sampled_from([{}, {"enable_thinking": True}]))
@settings(max_examples=20, deadline=None)
def test_jinja_gives_the_same_tokens(name, messages, thinking):
    tokenizer = TOKENIZERS[name]
    template = template_of(tokenizer)
    if not template.lead:  # else a tokenizer may join the line break before a content with those that begin it
        messages = [message | {"content": message["content"].lstrip()} for message in messages]
    options = {"chat_template": template.jinja(), "return_dict": False, **thinking}
    for conversation in [messages, *prompts_of(messages)]:
        for reply_follows in (False, True):
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=reply_follows, **options)
            assert ids == render(conversation, tokenizer, reply_follows).input_ids


# Which template


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [(tiny_tokenizer(), "chatml"), (llama_3_tokenizer(), "llama-3"), (mistral_tokenizer(), "mistral")],
)
def test_template_is_told_from_the_tokens_of_a_base_model(tokenizer, name):
    assert tokenizer.chat_template is None
    assert template_of(tokenizer) is TEMPLATES[name]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
INSTRUCT = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HYBRID = INSTRUCT + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
THINKING = INSTRUCT + "{% if add_generation_prompt %}<think>\n{% endif %}"


@pytest.mark.parametrize(("chat_template", "name"), [(INSTRUCT, "chatml"), (HYBRID, "qwen3"), (None, "chatml")])
def test_template_is_told_from_the_chat_template(chat_template, name):
    tokenizer = hybrid_tokenizer()
    tokenizer.chat_template = chat_template
    assert template_of(tokenizer) is TEMPLATES[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_told_from_our_own_chat_template(name):
    tokenizer = hybrid_tokenizer()
    tokenizer.add_tokens(CONTROL, special_tokens=True)
    tokenizer.chat_template = TEMPLATES[name].jinja()
    assert template_of(tokenizer) is TEMPLATES[name]


@pytest.mark.parametrize("chat_template", [THINKING, "{{ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_other_chat_templates_are_refused(chat_template):
    tokenizer = hybrid_tokenizer()
    tokenizer.chat_template = chat_template
    with pytest.raises(ValueError, match="Supported: chatml"):
        template_of(tokenizer)


def test_other_control_tokens_are_refused_with_the_supported_ones():
    with pytest.raises(ValueError, match=r"Supported: chatml .*; qwen3 .*; llama-3 .*; mistral "):
        render(episode("S", "U"), byte_tokenizer(["[INST]"]))


def test_chatml_in_sentencepiece_is_refused():
    tokenizer = mistral_tokenizer()
    tokenizer.add_tokens(list(TEMPLATES["chatml"].controls), special_tokens=True)
    with pytest.raises(ValueError, match="space before every text"):
        template_of(tokenizer)


def test_a_changed_tokenizer_is_looked_at_again():
    tokenizer = tiny_tokenizer()
    assert template_of(tokenizer).name == "chatml"
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = HYBRID
    assert template_of(tokenizer).name == "qwen3"
    tokenizer.add_tokens([AddedToken("<new>", special=False)])
    new = tokenizer.convert_tokens_to_ids("<new>")
    assert new not in render(episode("a<new>b"), tokenizer).input_ids

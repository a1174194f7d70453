"""Rendering: one text for training, inference and servers, in the tokens of each supported family of models."""

import re

import jinja2
import pytest
from chat_tokenizers import TOKENIZERS, hybrid_tokenizer, llama_3_tokenizer, mistral_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import AddedToken

from knapsack.chat_template import TEMPLATES, as_text, template_of
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
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU \n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "R\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nO<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Q<|eot_id|>",
    ),
    "mistral": ("<s>[INST] S\n\nU \n[/INST]", " R\n</s>[INST] O[/INST]", " Q</s>"),
}
PARTS["qwen3"] = tuple(re.sub(r"(?<=assistant\n)$", THINK, part) for part in PARTS["chatml"])


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
@settings(max_examples=20, deadline=None)
def test_training_row_is_its_inference_prompts_each_followed_by_the_labelled_reply(name, messages):
    tokenizer = TOKENIZERS[name]
    row, end = render(messages, tokenizer), tokenizer.convert_tokens_to_ids(template_of(tokenizer).end)
    expected = [-100] * len(row.input_ids)
    for prompt in prompts_of(messages):
        ids = render(prompt, tokenizer, reply_follows=True).input_ids
        assert row.input_ids[: len(ids)] == ids
        reply = slice(len(ids), row.input_ids.index(end, len(ids)) + 1)
        written = as_text(messages[len(prompt)]["content"], tokenizer)
        assert tokenizer.decode(row.input_ids[reply], skip_special_tokens=True) == written
        expected[reply] = row.input_ids[reply]
    assert row.labels == expected


@EACH
@given(conversations(PLAIN + CONTROL))
@settings(max_examples=20, deadline=None)
def test_contents_and_roles_never_act_as_control_tokens(name, messages):
    tokenizer = TOKENIZERS[name]
    added = set(tokenizer.added_tokens_decoder)
    messages = [*messages, {"role": "<|im_end|>", "content": "a"}]
    blank = [message | {"content": "", "role": message["role"].strip("<|>")} for message in messages]
    for reply_follows in (False, True):
        ids, structure = (render(m, tokenizer, reply_follows).input_ids for m in (messages, blank))
        assert [i for i in ids if i in added] == [i for i in structure if i in added]


def test_contents_never_act_where_the_vocabulary_merges_them_to_control_tokens():
    tokenizer = mistral_tokenizer(merges=[("<", "/"), ("s", ">"), ("</", "s>")])
    assert tokenizer("a</s>", split_special_tokens=True)["input_ids"][-1] == tokenizer.eos_token_id
    ids = render(episode("a</s>", "b<think>", "</s>"), tokenizer).input_ids
    assert tokenizer.decode(ids) == "<s>[INST] a< /s>\n\nb<think>[/INST] < /s></s>"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_only_what_the_vocabulary_holds_is_changed():
    text = "<think>a</think> <|im_end|> [INST] <lambda>"
    assert as_text(text, TOKENIZERS["chatml"]) == text.replace("<|", "< |")
    assert as_text(text, TOKENIZERS["qwen3"]) == "< think>a< /think> < |im_end|> [INST] <lambda>"
    assert as_text(as_text(text, TOKENIZERS["mistral"]), TOKENIZERS["mistral"]) == text.replace("[", "[ ")


@pytest.mark.parametrize("messages", [episode("S"), episode("U", "U", "R")[::-1], episode("S", "U")[:1] * 2])
def test_system_text_without_a_user_message_is_refused_where_there_is_no_system_role(messages):
    with pytest.raises(jinja2.TemplateError, match="must stand before a user message"):
        render(messages, mistral_tokenizer())


# The same text at a server, which splits it into tokens as a whole


@EACH
@given(messages=conversations(PLAIN), thinking=st.sampled_from([{}, {"enable_thinking": True}]))
@settings(max_examples=20, deadline=None)
def test_a_server_with_the_chat_template_reads_the_same_tokens(name, messages, thinking):
    tokenizer = TOKENIZERS[name]
    if not template_of(tokenizer).lead:  # a line break may be joined to one, or here to any text, that begins a reply
        first = "x" if name == "chatml, joining" else ""
        messages = [message | {"content": first + message["content"].lstrip()} for message in messages]
    options = {"chat_template": template_of(tokenizer).jinja, "return_dict": False, **thinking}
    for conversation in [messages, *prompts_of(messages)]:
        for reply_follows in (False, True):
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=reply_follows, **options)
            assert ids == render(conversation, tokenizer, reply_follows).input_ids


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("trim", [True, False])
def test_the_text_does_not_depend_on_how_jinja_treats_white_space(name, trim):
    """Nor on its knowing the tag "generation", which some servers only skip."""
    plain = re.sub(r"{% (end)?generation %}", "{# #}", TEMPLATES[name].jinja)
    template = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim).from_string(plain)
    assert template.render(messages=episode("S", "U \n", "R\n", "O", "Q")) == "".join(PARTS[name])


# Which template

INSTRUCT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HYBRID = INSTRUCT + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
THINKING = INSTRUCT + "{% if add_generation_prompt %}<think>\n{% endif %}"


def with_template(chat_template, tokens=(), tokenizer=None):
    tokenizer = tokenizer or hybrid_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (tiny_tokenizer(), "chatml"),
        (llama_3_tokenizer(), "llama-3"),
        (mistral_tokenizer(), "mistral"),
        (with_template(None), "chatml"),
        (with_template(INSTRUCT), "chatml"),
        (with_template(HYBRID), "qwen3"),
        *((with_template(template.jinja, CONTROL), name) for name, template in TEMPLATES.items()),
    ],
)
def test_template_is_told_from_the_tokens_and_the_chat_template(tokenizer, name):
    assert template_of(tokenizer) is TEMPLATES[name]


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (with_template(THINKING), "for the user message 'a', the tokenizer's own writes '.*<think>"),
        (with_template("{{ messages[0].content }}"), "the tokenizer's own writes 'a'"),
        (with_template("{{ raise_exception('no') }}"), r"the tokenizer's own fails on one user message \(no\)"),
        (llama_3_tokenizer(["[INST]", "[/INST]"]), "the tokenizer has the control tokens of none"),
        (with_template(None, TEMPLATES["chatml"].controls, mistral_tokenizer()), "puts a space before every text"),
    ],
)
def test_others_are_refused_with_the_supported_ones(tokenizer, problem):
    with pytest.raises(ValueError, match=rf"{problem}.*Supported: chatml .*; qwen3 .*; llama-3 .*; mistral "):
        render(episode("S", "U"), tokenizer)


def test_a_changed_tokenizer_is_looked_at_again():
    tokenizer = tiny_tokenizer()
    assert template_of(tokenizer).name == "chatml"
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = HYBRID
    assert template_of(tokenizer).name == "qwen3"
    tokenizer.add_tokens([AddedToken("<new>", special=False)])
    new = tokenizer.convert_tokens_to_ids("<new>")
    assert new not in render(episode("a<new>b"), tokenizer).input_ids

"""Our text against the chat templates that Unsloth ships, read from its source without importing it."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest
from chat_tokenizers import hybrid_tokenizer, llama_3_tokenizer, mistral_tokenizer
from tiny import tiny_tokenizer

from knapsack.chat_template import TEMPLATES, template_of
from knapsack.prompts import render

PACKAGE = importlib.util.find_spec("unsloth")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="Unsloth is not installed: make test-unsloth")

THINK = "<think>\n\n</think>\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\n"
CONTENTS = ["Solve it.\n\nTools: f(x)", 'Task: "a" & <b>', "I look.\n```python\nprint(1)\n```", '{"output": "1\\n"}']
MESSAGES = [
    {"role": role, "content": content}
    for role, content in zip(
        ["system", "user", *["assistant", "user"] * 3, "assistant"], [*CONTENTS, *CONTENTS[2:] * 2, "Ü"], strict=True
    )
]
# Every conversation of an episode, as (messages, reply_follows): its prompts and the rows that end with each reply.
CONVERSATIONS = [
    (MESSAGES[: index + ended], not ended)
    for index, message in enumerate(MESSAGES)
    if message["role"] == "assistant"
    for ended in (False, True)
]


@cache
def shipped(name: str) -> str:
    source = (Path(PACKAGE.origin).parent / "chat_templates.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == name:
            return ast.literal_eval(statement.value)
    raise AssertionError(f"Unsloth's chat_templates.py has no {name}")


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("chatml_template", tiny_tokenizer()),
        ("qwen25_template", tiny_tokenizer()),
        ("qwen3_instruct_template", tiny_tokenizer()),
        ("llama3_template", llama_3_tokenizer()),
    ],
)
def test_tokens_are_those_of_the_shipped_template(name, tokenizer):
    tokenizer.chat_template = shipped(name)
    for messages, reply_follows in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=reply_follows, return_dict=False)
        assert render(messages, tokenizer, reply_follows).input_ids == ids


def texts(name: str, tokenizer) -> list[tuple[str, str]]:
    """Of every conversation: our text, the shipped template's."""
    options = {"tokenize": False, "enable_thinking": False, "chat_template": shipped(name)}
    return [
        (
            tokenizer.decode(render(messages, tokenizer, reply_follows).input_ids),
            tokenizer.apply_chat_template(messages, add_generation_prompt=reply_follows, **options),
        )
        for messages, reply_follows in CONVERSATIONS
    ]


def test_hybrid_qwen3_differs_by_the_think_blocks_before_the_last():
    for number, (ours, theirs) in enumerate(texts("qwen3_template", hybrid_tokenizer())):
        replies = number // 2 + 1
        assert ours.count(THINK) == replies and theirs.count(THINK) == 1
        assert ours.replace(THINK, "", replies - 1) == theirs


def test_llama_31_differs_by_the_dates():
    for ours, theirs in texts("llama31_template", llama_3_tokenizer()):
        assert theirs.count(DATES) == 1 and theirs.replace(DATES, "") == ours


def test_mistral_differs_by_white_space():
    """What is shipped is the text of the first version of Mistral's tokenizer, ours that of the third."""
    for ours, theirs in texts("mistral_template", mistral_tokenizer()):
        older = ours.replace("{}\n\n{}".format(*CONTENTS[:2]), "{} {}".format(*CONTENTS[:2]))
        assert older.replace("[/INST] ", "[/INST]").replace("[/INST]", " [/INST]") == theirs


@pytest.mark.parametrize(
    ("name", "template", "tokenizer"),
    [
        ("qwen25_template", "chatml", hybrid_tokenizer()),
        ("qwen3_instruct_template", "chatml", hybrid_tokenizer()),
        ("qwen3_template", "qwen3", hybrid_tokenizer()),
        ("llama3_template", "llama-3", llama_3_tokenizer()),
        ("llama31_template", "llama-3", llama_3_tokenizer()),
    ],
)
def test_template_is_told_from_the_shipped_one(name, template, tokenizer):
    tokenizer.chat_template = shipped(name)
    assert template_of(tokenizer) is TEMPLATES[template]


@pytest.mark.parametrize("name", ["qwen3_thinking_template", "mistral_template", "gemma3_template"])
def test_shipped_templates_of_other_models_are_refused(name):
    tokenizer = mistral_tokenizer() if name == "mistral_template" else hybrid_tokenizer()
    tokenizer.chat_template = shipped(name)
    with pytest.raises(ValueError, match="no supported chat template fits"):
        template_of(tokenizer)

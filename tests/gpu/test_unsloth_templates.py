"""Our text against the chat templates that Unsloth ships, read from its source without importing it."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest
from chat_tokenizers import hybrid_tokenizer, llama_3_tokenizer, mistral_tokenizer

from knapsack.chat_template import template_of
from knapsack.prompts import render

PACKAGE = importlib.util.find_spec("unsloth")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="Unsloth is not installed: make test-unsloth")

THINK = "<think>\n\n</think>\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\n"
TEXTS = ["Solve it.\n\nTools: f(x)", 'Task: "a" & <b>', "I look.\n```python\nprint(1)\n```", '{"output": "1\\n"}']
ROLES = ["system", "user", *["assistant", "user"] * 3, "assistant"]
MESSAGES = [{"role": role, "content": text} for role, text in zip(ROLES, [*TEXTS, *TEXTS[2:] * 2, "Ü"], strict=True)]
# Every conversation of an episode, as (messages, reply_follows): its prompts and the rows that end with each reply.
REPLIES = [index for index, role in enumerate(ROLES) if role == "assistant"]
CONVERSATIONS = [(MESSAGES[: index + ended], not ended) for index in REPLIES for ended in (False, True)]


@cache
def shipped(name: str) -> str:
    source = (Path(PACKAGE.origin).parent / "chat_templates.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == name:
            return ast.literal_eval(statement.value)
    raise AssertionError(f"Unsloth's chat_templates.py has no {name}")


def with_shipped(name: str):
    make = {"lla": llama_3_tokenizer, "mis": mistral_tokenizer}.get(name[:3], hybrid_tokenizer)
    tokenizer = make()
    tokenizer.chat_template = shipped(name)
    return tokenizer


def without_dates(ours: str, theirs: str) -> tuple[str, str]:
    assert theirs.count(DATES) == 1
    return ours, theirs.replace(DATES, "")


def last_think_block_only(ours: str, theirs: str) -> tuple[str, str]:
    assert ours.count(THINK) == ours.count("<|im_start|>assistant") and theirs.count(THINK) == 1
    return ours.replace(THINK, "", ours.count(THINK) - 1), theirs


@pytest.mark.parametrize(
    ("name", "template", "known"),
    [
        ("chatml_template", "chatml", None),
        ("qwen25_template", "chatml", None),
        ("qwen3_instruct_template", "chatml", None),
        ("qwen3_template", "qwen3", last_think_block_only),
        ("llama3_template", "llama-3", None),
        ("llama31_template", "llama-3", without_dates),
    ],
)
def test_the_shipped_template_is_recognised_and_its_text_is_ours_but_for_what_is_known(name, template, known):
    tokenizer = with_shipped(name)
    assert template_of(tokenizer).name == template
    for messages, reply_follows in CONVERSATIONS:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=reply_follows, enable_thinking=False
        )
        ids = render(messages, tokenizer, reply_follows).input_ids
        if known is None:
            assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        ours, theirs = (known or (lambda *both: both))(tokenizer.decode(ids), text)
        assert ours == theirs


def test_mistral_differs_by_white_space():
    """What is shipped is the text of the first version of Mistral's tokenizer, ours that of the third."""
    for messages, reply_follows in CONVERSATIONS:
        tokenizer = mistral_tokenizer()
        ours = tokenizer.decode(render(messages, tokenizer, reply_follows).input_ids)
        theirs = with_shipped("mistral_template").apply_chat_template(messages, tokenize=False)
        older = ours.replace("{}\n\n{}".format(*TEXTS[:2]), "{} {}".format(*TEXTS[:2]))
        assert older.replace("[/INST] ", "[/INST]").replace("[/INST]", " [/INST]") == theirs


@pytest.mark.parametrize("name", ["qwen3_thinking_template", "mistral_template", "gemma3_template"])
def test_shipped_templates_of_other_models_are_refused(name):
    with pytest.raises(ValueError, match="no supported chat template fits"):
        template_of(with_shipped(name))

"""The sealed runtime against the table of hostile blocks, the plain harness against some of it, and control tokens."""

import re
import socket
import sys

import pytest
from hostile import ROWS
from hostile_child import play_disposable
from hostile_episode import SECRET, lay_canaries, planted, play, sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import AddedToken

from knapsack import prompts
from knapsack.models import load_tokenizer
from knapsack.runtime import KINDS, Observation, Runtime, interpreter_pool

SLOW = ("endless loops and recursion", "memory", "output floods", "huge integers and strings", "deep nesting")
PLAYED = [(row, kind) for row in ROWS for kind in KINDS if kind == "persistent" or row.kind not in SLOW]
PLAYED = [(row, kind) for row, kind in PLAYED if kind == "persistent" or "TimeoutError" not in row.error]
FIRST = {row.kind: row for row in reversed(ROWS)}  # of each kind, for the tests of a newcomer


@pytest.fixture(scope="module")
def pool():
    with interpreter_pool(2) as workers:
        yield workers


def qwen_like_tokenizer():
    """The tiny one with tokens that Qwen3 keeps beside its special ones: written as text they are found as well."""
    tokenizer = tiny_tokenizer()
    names = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    return tokenizer


TOKENIZERS = {"nano": load_tokenizer("nano"), "tiny": tiny_tokenizer(), "like Qwen3": qwen_like_tokenizer()}


def test_table_is_as_wide_as_it_says():
    names = [(row.kind, row.name) for row in ROWS]
    assert len(ROWS) >= 80 and len(set(names)) == len(names)
    assert len({row.kind for row in ROWS}) >= 17


def long_unless(short: bool) -> list:
    return [] if short else [pytest.mark.long]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        pytest.param(row, kind, id=f"{row.kind}: {row.name}, {kind}", marks=long_unless(row is FIRST[row.kind]))
        for row, kind in PLAYED
    ],
)
def test_row_changes_nothing_but_its_own_episode(pool, tmp_path, monkeypatch, capfd, row, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(*SECRET)
    lay_canaries(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        played = play(row, kind, sealed(pool), listener.getsockname()[1])
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()
    assert played.violations == []
    last = played.observations[-1]
    assert re.match(row.error, last.error or ""), (
        f"expected {row.error!r}, got {last.error!r} and {last.output[:200]!r}"
    )
    assert capfd.readouterr().out == ""
    messages = [prompts.observation_message(observation, kind) for observation in played.observations]
    assert not planted(prompts.render(messages, TOKENIZERS["nano"]).input_ids, TOKENIZERS["nano"], len(messages))


# The same properties against a harness that does not hold: the test can fail


BREAKS = {
    "ending the host: os._exit": "the host ended with code 0",
    "ending the host: raw memory": "the host crashed",
    "ending the host: signal to the parent": "the host's parent was killed",
    "processes and threads: fork bomb": "processes: one was started",
    "processes and threads: shell": "files: made.txt changed",
    "files: delete": "files: canary.txt changed",
    "files: past the printer": "printed past the harness",
    "environment variables: read": "environment variable read",
    "network: connect": "network: a connection came",
    "memory: long text in wide letters shown": "memory: the host grew",
    "walks to the hidden: __self__": "hidden values shown",
    "scores without work: optimum taken unseen": "score: 1.00, earned 0.00",
    "tools and builtins shadowed: print replaced for all": "host changed: builtins.print",
    "imitations in text: error of the harness printed": "text: not read back as it was",
}
GUARDED = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the limits that guard this machine")
SHORT = ("ending the host: os._exit", "files: delete", "scores without work: optimum taken unseen")
HOLDS = ("tool calls: past the cap", "ending the host: sys.exit", "scores without work: finish in a loop")
BY_NAME = {f"{row.kind}: {row.name}": row for row in ROWS}


@GUARDED
@pytest.mark.parametrize("name", [pytest.param(name, marks=long_unless(name in SHORT)) for name in BREAKS])
def test_plain_harness_breaks(name):
    violations = play_disposable(BY_NAME[name], "plain").violations
    assert any(text.startswith(BREAKS[name]) for text in violations), violations


@GUARDED
@pytest.mark.parametrize("name", HOLDS)
def test_plain_harness_is_no_straw_man(name):
    assert play_disposable(BY_NAME[name], "plain").violations == ()


# Control tokens


MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
MARKS += ["<tool_response>", "assistant", "system", "\n", "<|", "|>", "im_end", "<", "|", ">", "a", "ü", "\u202e", '"']
texts = st.lists(st.sampled_from(MARKS), max_size=8).map("".join) | st.text(st.characters(codec="utf-8"), max_size=20)


class Tools:
    def __init__(self, text: str):
        self.text = text

    def show(self):
        return self.text

    def refuse(self):
        raise PermissionError(self.text)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(reply=texts, output=texts, error=texts)
@settings(max_examples=60, deadline=None)
def test_text_never_becomes_a_control_token(name, reply, output, error):
    tokenizer = TOKENIZERS[name]
    observation = Observation(output, "ValueError", error, "tool")
    messages = [
        {"role": "system", "content": error},
        {"role": "user", "content": output},
        {"role": "assistant", "content": reply},
        prompts.observation_message(observation, "stateless"),
        {"role": "assistant", "content": reply},
    ]
    assert not planted(prompts.render(messages, tokenizer).input_ids, tokenizer, len(messages))
    prompt = prompts.render(messages[:4], tokenizer, reply_follows=True).input_ids
    header = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prompt[-len(header) - 1 :] == [start, *header]  # the one message that is not ended
    assert not planted(prompt[: -len(header) - 1], tokenizer, 4)


@given(text=texts)
@settings(max_examples=25, deadline=None)
def test_text_that_was_really_executed_plants_no_control_token(pool, text):
    tools = Tools(text)
    codes = ["print(show())", "refuse()", f"print({text!r})", f"raise ValueError({text!r})", text]
    with Runtime("persistent", {"show": tools.show, "refuse": tools.refuse}, pool=pool, time_limit=0.5) as runtime:
        messages = [prompts.observation_message(runtime.run(code), "persistent") for code in codes]
    for tokenizer in TOKENIZERS.values():
        assert not planted(prompts.render(messages, tokenizer).input_ids, tokenizer, len(messages))


def test_whole_text_rendering_does_plant_control_tokens():
    """What ``planted`` finds where a conversation is tokenised as one text, as is usual."""
    tokenizer = TOKENIZERS["nano"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a<|im_end|>"}], tokenize=False)
    assert planted(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer, 1)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not planted(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer, 1)


def test_pages_state_the_size_of_the_table(checkout):
    kinds = len({row.kind for row in ROWS})
    page = (checkout / "knapsack" / "sandbox" / "README.md").read_text(encoding="utf-8")
    assert f"{len(ROWS)} hostile blocks of {kinds} kinds" in page
    assert f"{len(ROWS)} blocks of `tests/hostile.py`" in (checkout / "benchmarks" / "sealed.md").read_text()

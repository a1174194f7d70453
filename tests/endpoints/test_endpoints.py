"""Models behind an endpoint: what is the model's doing, what is the server's, and that only the former is scored."""

import csv
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import psutil
import pytest
from endpoint_server import (
    CONTEXT_REFUSALS,
    GARBAGE,
    EndpointServer,
    answer,
    completion,
    context_full,
    cut,
    drip,
    error,
    hang,
    models,
    reset,
)
from scripted import CONFIG, block, persistent_texts

from knapsack import agent, traces
from knapsack.agent import ContextFull, Reply
from knapsack.analysis import estimates, metrics
from knapsack.endpoints import chat_api
from knapsack.endpoints.chat_api import without_control_tokens
from knapsack.endpoints.client import PROBE, PROBE_TOKENS, Client, SpendingCapReached, ask_once
from knapsack.endpoints.endpoint import (
    Endpoint,
    EndpointError,
    check_server,
    read_endpoint,
    read_endpoints,
    read_key,
    read_served,
)
from knapsack.endpoints.reply_cache import ReplyCache
from knapsack.evaluate import EvaluationError, Settings, evaluate
from knapsack.runs import open_run, read_json
from knapsack.runtime import KINDS, RUNTIME_KINDS
from knapsack.tasks import sample_split, sample_task, write_tasks
from knapsack.traces import Cell

OPENING = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
LATER = [*OPENING, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Sure?"}]
WORDS = "I look.\n```python\nprint(1)\n```"
TRIES = 3
CELLS = [Cell("served", kind, "easy") for kind in KINDS]


def policy(messages: list[dict]) -> str:
    """The persistent style, whatever the runtime: three turns where names stay, four where they do not."""
    texts = persistent_texts(skip=len(messages[1]["content"]) % 3)
    return texts[min(sum(message["role"] == "assistant" for message in messages), len(texts) - 1)]


OPTIONS = {"temperature": 0.2, "max_new_tokens": 100, "context_length": 4000, "seed": 7}


def ask(server: EndpointServer | str, messages=OPENING, key: str | None = None, options: dict | None = None, **changes):
    """One reply through a client whose waits are tiny; ``options`` of the client, ``changes`` of the endpoint."""
    url = server if isinstance(server, str) else server.url
    endpoint = Endpoint(url, **{"model": "m", "timeout": 5.0, "tries": TRIES, "first_wait": 0.01} | changes)
    with Client(endpoint, key, **OPTIONS | (options or {})) as client:
        return client.reply(messages)


def hidden_thoughts(text: str | None, prompt: int, spent: int, total: int, reason: str = "stop") -> dict:
    """An answer whose total alone counts what the model thought."""
    sent = completion(text, prompt, spent, reason)
    sent["usage"]["total_tokens"] = total
    return sent


# Replies


def test_request_and_reply_hold_what_the_settings_and_the_server_say():
    with EndpointServer(lambda messages: WORDS) as server:
        assert ask(server, key="secret") == Reply(WORDS, 4, 7, stopped=True)
    (_, path, headers, body) = server.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer secret"
    assert body.pop("seed") > 0
    assert body == {"model": "m", "messages": OPENING, "temperature": 0.2, "max_tokens": 100}


def test_the_seed_depends_on_the_conversation_alone():
    with EndpointServer(lambda messages: WORDS, [None, error(500)]) as server:
        for messages in (OPENING, OPENING, LATER):
            ask(server, messages)
    first, failed, again, later = [body["seed"] for body in server.bodies]
    assert first == failed == again != later


def test_further_fields_arrive_and_no_temperature_is_sent_unless_somebody_chose_one():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    with EndpointServer(lambda messages: WORDS) as server:
        ask(server, options={"temperature": None}, extra=extra)
        ask(server, options={"temperature": None}, temperature=0.0)
        ask(server, temperature=1.5)
    first, *others = server.bodies
    assert first | extra == first and "temperature" not in first
    assert [body["temperature"] for body in others] == [0.0, 1.5]


def test_what_is_sent_does_not_depend_on_the_environment(monkeypatch):
    def sent(server):
        ask(server, key="secret")
        _, path, headers, body = server.requests[-1]
        return path, {name.lower(): value for name, value in headers.items()}, body

    with EndpointServer(lambda messages: WORDS) as server:
        before = sent(server)
        for name in ("BASE_URL", "API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
            monkeypatch.setenv(f"OPENAI_{name}", "http://elsewhere")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer other\nX-Team: other")
        assert sent(server) == before


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (completion("Half a se", 9, 100, "length"), Reply("Half a se", 9, 100, stopped=False)),
        (completion("", 9, 3), Reply("", 9, 3)),
        (completion(None, 9, 3, "tool_calls"), Reply("", 9, 3)),
        (hidden_thoughts("OK", 9, 3, 50), Reply("OK", 9, 41)),
        (hidden_thoughts(None, 9, 0, 109, "length"), Reply("", 9, 100, stopped=False)),
    ],
)
def test_what_the_model_does_is_its_reply(sent, reply):
    with EndpointServer(policy, [answer(sent)]) as server:
        assert ask(server) == reply
    assert len(server.requests) == 1


# Infrastructure

PASSING = {
    "reset": reset,
    "cut short": cut,
    "HTTP 408": error(408),
    "HTTP 409": error(409),
    "HTTP 429": error(429),
    "HTTP 500": error(500),
    "HTTP 503": error(503, "starting"),
    "not JSON": answer(GARBAGE),
    "half of a JSON": answer('{"choices": [{"mess'),
    "deep JSON": answer("[" * 100_000),
    "another object": answer({"object": "list", "data": []}),
    "an error in a whole answer": answer({"error": {"message": "upstream failed"}}),
    "no choices": answer(completion("x", 9, 1) | {"choices": []}),
    "empty reply": answer(completion("", 9, 0)),
    "content filter": answer(completion("I", 9, 1, "content_filter")),
    "unfinished": answer(completion("I", 9, 1, None)),
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_failure_is_survived_and_a_lasting_one_is_said(name):
    with EndpointServer(lambda messages: WORDS, [PASSING[name]] * (TRIES - 1)) as server:
        assert ask(server).text == WORDS
        assert len(server.requests) == TRIES
        server.faults = [PASSING[name]] * TRIES
        with pytest.raises(EndpointError, match=rf"turn 2, {server.url} \(model m\): .+; tried 3 times") as caught:
            ask(server, LATER)
    assert len(server.requests) == 2 * TRIES
    assert not name.startswith("HTTP") or name in str(caught.value)


@pytest.mark.parametrize("fault", [hang, drip])
def test_a_server_that_never_finishes_is_left_after_the_timeout(fault):
    with EndpointServer(lambda messages: WORDS, [fault] * 2) as server:
        with pytest.raises(EndpointError, match=r"no whole answer within 0.3 s .*tried 2 times"):
            ask(server, timeout=0.3, tries=2)
        assert 0.2 < server.gaps[0] < 2  # the server notes the first request a moment after it was sent


def test_a_caller_that_stops_waits_for_no_answer_and_no_next_try():
    def check() -> None:
        if problem := next(moments):
            raise problem

    for fault in (hang, error(429, Retry_After="30")):
        moments = iter([None, None, KeyError("stop")])
        with EndpointServer(policy, [fault] * 2) as server:
            start = time.monotonic()
            with pytest.raises(KeyError, match="stop"):
                ask(server, timeout=60.0, options={"check": check})
            assert time.monotonic() - start < 20 and len(server.requests) == 1


def test_a_refused_connection_is_tried_again():
    with EndpointServer(policy) as server:
        url = server.url
    with pytest.raises(EndpointError, match=rf"{url} .*the connection failed: .*connect.*; tried 3 times"):
        ask(url)


def test_waits_grow_and_retry_after_is_respected_up_to_a_limit(monkeypatch):
    with EndpointServer(lambda messages: WORDS, [error(500)] * 3) as server:
        ask(server, tries=4, first_wait=0.1)
        assert [gap >= wait for gap, wait in zip(server.gaps, (0.1, 0.2, 0.4), strict=True)] == [True] * 3
    monkeypatch.setattr(chat_api, "LONGEST_WAIT", 0.5)
    faults = [error(429, Retry_After="0.3"), error(503, Retry_After="3600"), error(429, Retry_After="soon")]
    with EndpointServer(lambda messages: WORDS, faults) as server:
        ask(server, tries=4)
        asked, capped, unreadable = server.gaps
    assert 0.3 <= asked < 0.5 <= capped < 1.5 and unreadable < 0.4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(401, "wrong key secret-key"), r'HTTP 401: wrong key \*\*\*; .*"key" names the environment variable'),
        (error(403), "HTTP 403: no; the key may not use this model"),
        (error(404, "no model m"), "HTTP 404: no model m; check the model's name"),
        (error(422, "seed is unknown"), "HTTP 422: seed is unknown; the server refuses such requests"),
        (error(429, "pay first", code="insufficient_quota"), "HTTP 429: pay first"),
        (answer({**completion("x", 9, 1), "usage": None}), r"does not count tokens \(usage: None\)"),
        (answer({**completion("x", 9, 1), "usage": {"prompt_tokens": "9"}}), "does not count tokens"),
        (answer(completion("x", 0, 1)), "miscounts tokens"),
        (answer(completion("x", 9, 0)), "miscounts tokens"),
    ],
)
def test_lasting_failure_stops_at_once_with_a_remedy_and_without_the_key(fault, said):
    with EndpointServer(policy, [fault] * TRIES) as server:
        with pytest.raises(EndpointError, match=said) as caught:
            ask(server, key="secret-key")
    assert len(server.requests) == 1
    assert server.url in str(caught.value) and "secret-key" not in str(caught.value)


def test_the_other_name_of_the_token_limit_is_learnt_once():
    refusal = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported")
    endpoint_options = {"temperature": 1.0, "max_new_tokens": 50, "context_length": 4000, "seed": 0}
    with EndpointServer(lambda messages: WORDS, [refusal]) as server:
        with Client(Endpoint(server.url, "m"), **endpoint_options) as client:
            assert client.reply(OPENING).text == client.reply(LATER).text == WORDS
    limits = [{name: body[name] for name in body if name.startswith("max")} for body in server.bodies]
    assert limits == [{"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_completion_tokens": 50}]


# The context


@pytest.mark.parametrize("name", CONTEXT_REFUSALS)
def test_a_full_context_ends_the_episode_and_no_try_is_wasted(name):
    with EndpointServer(policy, [context_full(name)] * 2) as server:
        with pytest.raises(ContextFull, match="context is full"):
            ask(server, LATER)
    assert [("max_tokens" in body) for body in server.bodies] == [True, False]  # would it fit with a shorter reply?


def test_a_reply_gets_what_room_the_prompt_leaves():
    with EndpointServer(lambda messages: WORDS, [context_full("vllm")]) as server:
        assert ask(server, LATER).text == WORDS


def test_the_context_length_of_the_settings_counts_too():
    with EndpointServer(policy, [answer(completion("x", 4000, 1))]) as server:
        with pytest.raises(ContextFull, match="the conversation has 4000 tokens, the context 4000"):
            ask(server, LATER)


def test_an_opening_prompt_that_does_not_fit_is_no_score():
    with EndpointServer(policy, [context_full("llama.cpp")] * 2) as server:
        with pytest.raises(EndpointError, match="not even the opening prompt fits"):
            ask(server)


# Replies that are paid for


@pytest.fixture
def replies(tmp_path):
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        yield cache


def test_a_known_reply_is_not_asked_for_again(replies):
    with EndpointServer(lambda messages: WORDS, [answer(completion("Half \ud800", 9, 100, "length"))]) as server:
        first = ask(server, options={"replies": replies})
        assert first == Reply("Half \ud800", 9, 100, stopped=False)
        assert ask(server, options={"replies": replies}, timeout=9.0, tries=1, key_variable="K") == first
    assert len(server.requests) == 1 and replies.spent() == 109


def test_whatever_may_change_the_reply_is_asked_again(replies):
    other_endpoint = [{"model": "n"}, {"extra": {"top_k": 1}}, {"extra": {"top_k": 2}}, {"temperature": 0.3}]
    other_settings = [{"seed": 8}, {"max_new_tokens": 99}, {"temperature": 0.4}, {"temperature": None}]
    with EndpointServer(lambda messages: WORDS) as server:
        for changes in [{}, *other_endpoint, *({"options": change} for change in other_settings)]:
            ask(server, **changes | {"options": changes.get("options", {}) | {"replies": replies}})
        ask(server, LATER, options={"replies": replies})
        needed = len(server.requests)
    with EndpointServer(lambda messages: WORDS) as elsewhere:
        ask(elsewhere, options={"replies": replies})
    assert (needed, len(elsewhere.requests)) == (10, 1)


@pytest.mark.parametrize(
    ("faults", "billed"),
    [
        ([error(500)] * TRIES, 0),
        ([answer(GARBAGE)] * TRIES, 0),
        ([answer(completion("I", 9, 5, "content_filter"))] * TRIES, 14 * TRIES),
        ([answer(hidden_thoughts("", 9, 0, 9))] * TRIES, 9 * TRIES),
        ([answer(completion("x", 0, 7))], 7),
        ([answer({**completion("x", 9, 1), "usage": None})], 0),
        ([error(401)], 0),
        ([context_full("llama.cpp")] * 2, 0),
    ],
)
def test_a_failure_is_never_stored_but_what_it_cost_counts(replies, faults, billed):
    with EndpointServer(lambda messages: WORDS, faults) as server:
        with pytest.raises(EndpointError):
            ask(server, options={"replies": replies})
        assert len(server.requests) == len(faults) and replies.spent() == billed
        assert ask(server, options={"replies": replies}) == Reply(WORDS, 4, 7)
    assert len(server.requests) == len(faults) + 1


def test_a_reply_that_leaves_the_context_full_is_paid_for_once(replies):
    with EndpointServer(policy, [answer(completion("x", 4000, 1))]) as server:
        for _ in range(2):
            with pytest.raises(ContextFull):
                ask(server, LATER, options={"replies": replies})
    assert len(server.requests) == 1


def test_the_cap_stops_and_a_higher_one_goes_on_without_paying_twice(replies):
    conversations = [[*OPENING, {"role": "user", "content": str(number)}] for number in range(6)]
    with EndpointServer(lambda messages: WORDS) as server:  # 11 tokens each
        cap = {"replies": replies, "max_total_tokens": 30}
        with pytest.raises(SpendingCapReached, match=r"33 tokens are spent, max_total_tokens = 30; .*nothing twice"):
            for messages in conversations:
                ask(server, messages, options=cap)
        assert len(server.requests) == 3
        assert ask(server, conversations[0], options=cap).text == WORDS  # it is paid for
        for messages in conversations:
            ask(server, messages, options=cap | {"max_total_tokens": 60})
    assert len(server.requests) == len(conversations) and replies.spent() == 66


def test_at_the_cap_a_request_under_way_ends_and_is_kept(replies):
    begun, proceed = threading.Event(), threading.Event()
    outcome = {}

    def slow(messages):
        begun.set()
        proceed.wait(20)
        return WORDS

    def run(client, messages):
        try:
            outcome[len(messages)] = client.reply(messages)
        except EndpointError as error:
            outcome[len(messages)] = error

    with EndpointServer(slow) as server:
        options = OPTIONS | {"replies": replies, "max_total_tokens": 5}
        with Client(Endpoint(server.url, "m", timeout=20.0), **options) as client:
            threads = [threading.Thread(target=run, args=(client, messages)) for messages in (OPENING, LATER)]
            threads[0].start()
            assert begun.wait(20)
            replies.charge(5)
            threads[1].start()
            time.sleep(0.3)
            assert not outcome
            proceed.set()
            for thread in threads:
                thread.join(20)
        assert outcome[2] == Reply(WORDS, 4, 7) and isinstance(outcome[4], SpendingCapReached)
        assert ask(server, options=options).text == WORDS
    assert len(server.requests) == 1


def test_a_cap_needs_something_that_counts():
    with pytest.raises(ValueError, match=r"max_total_tokens = 5: needs .* a reply cache"):
        Client(Endpoint("http://h/v1", "m"), **OPTIONS, max_total_tokens=5)


# Before any work


def test_a_server_serves_the_models_of_the_run_by_name_beside_others_with_their_own_place():
    models = {"base": {}, "persistent": {}, "mine": {"endpoint": "http://there/v1", "model": "m"}}
    assert set(read_served(models)) == {"mine"}
    served = read_served(models, "http://here/v1")
    assert {name: (place.url, place.model) for name, place in served.items()} == {
        "base": ("http://here/v1", "base"),
        "persistent": ("http://here/v1", "persistent"),
        "mine": ("http://there/v1", "m"),
    }
    with pytest.raises(ValueError, match="endpoint 'base': \"endpoint\" is no address"):
        read_served(models, "here")


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (models("a", "m"), None),
        (models("models/m"), None),
        (models("a", "b"), r"\(model m\) lists a, b: whether it knows 'm' shows at the first request"),
        (models(), "lists no model"),
        (error(404), "shows no list of models .*HTTP 404"),
        (error(403, "not for secret-key"), r"shows no list of models .*HTTP 403: not for \*\*\*"),
        (answer(GARBAGE), "shows no list of models"),
        (answer({"data": [None]}), "shows no list of models"),
    ],
)
def test_a_server_that_answers_is_well_or_leaves_a_question(listing, said):
    with EndpointServer(policy) as server:
        server.listing = listing
        told = check_server(Endpoint(server.url, "m"), "secret-key")
    assert re.search(said, told) if said else told is None
    assert not server.requests


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (error(401, "wrong key secret-key"), r'HTTP 401: wrong key \*\*\*; .*"key" names the environment variable'),
        (error(503, "loading"), "HTTP 503: loading; run again when it is ready"),
        (reset, "nobody answers .*: start the server, or check the address"),
        (hang, "nobody answers within 0.5 s"),
        (drip, "nobody answers within 0.5 s"),
    ],
)
def test_a_server_that_refuses_or_is_silent_is_an_error_with_a_remedy(listing, said, monkeypatch):
    if listing in (hang, drip):
        monkeypatch.setattr("knapsack.endpoints.endpoint.CHECK_SECONDS", 0.5)
    with EndpointServer(policy) as server:
        server.listing = listing
        with pytest.raises(EndpointError, match=said) as caught:
            check_server(Endpoint(server.url, "m"), "secret-key")
    assert server.url in str(caught.value) and "secret-key" not in str(caught.value)


def test_one_tiny_request_shows_what_the_server_refuses_and_is_paid_for_once(replies):
    refusals = [error(404, "no model m"), error(400, "top_k is unknown"), error(503, "loading"), error(503, "loading")]
    with EndpointServer(lambda messages: "OK", refusals) as server:
        endpoint = Endpoint(server.url, "m", extra={"top_k": 1}, first_wait=0.01)
        for said in ("no model m; check the model's name", "top_k is unknown", "loading; tried 2 times"):
            with pytest.raises(EndpointError, match=said):
                ask_once(endpoint, temperature=None, replies=replies)
        for _ in range(2):
            ask_once(endpoint, temperature=None, replies=replies)
        with pytest.raises(SpendingCapReached):
            ask_once(replace(endpoint, extra={}), temperature=None, replies=replies, max_total_tokens=replies.spent())
    body = server.bodies[-1]
    assert len(server.requests) == 5 and replies.spent() > 0
    assert body["max_tokens"] == PROBE_TOKENS and body["top_k"] == 1 and "temperature" not in body


# Text that a server could take for its own control tokens

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
        done = agent.run_alone(play, lambda messages: ask(server, messages))
    assert "< |im_start|>" in json.dumps(server.bodies[1]) and "<|im_" not in json.dumps(server.bodies[1])
    assert "< |im_end|>" in server.bodies[1]["messages"][3]["content"]
    assert done.turns[0].text == texts[0] and done.turns[0].observation.output == "<|im_end|>\n"
    assert done.messages[2]["content"] == texts[0] and "<|im_end|>" in done.messages[3]["content"]


# What a user configures


def test_entries_are_read_and_wrong_ones_are_named(monkeypatch):
    entries = {"a": {"endpoint": "http://h/v1", "model": "m"}}
    entries["b-1.5_x"] = {"endpoint": "https://h", "model": "m", "key": "K", "timeout": 5}
    entries["c"] = entries["a"] | {"temperature": 1, "extra": {"reasoning_effort": "low"}}
    good = Endpoint("http://h/v1", "m")
    assert read_endpoints(entries) == {
        "a": good,
        "b-1.5_x": Endpoint("https://h", "m", "K", timeout=5.0),
        "c": replace(good, temperature=1.0, extra={"reasoning_effort": "low"}),
    }
    assert read_endpoint("teacher", entries["a"]) == good
    good = entries["a"]
    for name, entry in {
        "teacher": good,
        "a/b": good,
        "": good,
        "a": "http://h",
        "b": {"endpoint": "http://h"},
        "c": good | {"api_key": "sk-secret"},
        "d": good | {"model": None},
        "e": good | {"endpoint": "h:8000"},
        "f": good | {"endpoint": "http://me:secret@h/v1"},
        "g": good | {"endpoint": "https://h/v1?key=secret"},
        "h": good | {"timeout": 0},
        "i": good | {"timeout": True},
        "j": good | {"endpoint": "http://[h"},
        "k": good | {"key": "sk-secret"},
        "l": good | {"temperature": -0.1},
        "m": good | {"temperature": float("nan")},
        "n": good | {"extra": None},
        "o": good | {"extra": {"top_p": float("nan")}},
        "p": good | {"endpoint": "me:secret@h/v1"},
    }.items():
        with pytest.raises(ValueError, match=f"endpoint {name!r}") as caught:
            read_endpoints({name: entry})
        assert "secret" not in str(caught.value).replace("no secret in it", "")


@pytest.mark.parametrize("name", ["model", "messages", "seed", "stream", "n", "temperature", "max_tokens"])
def test_further_fields_may_not_change_what_the_report_sets(name):
    with pytest.raises(ValueError, match=f"endpoint 'a': \"extra\" may not set '{name}'"):
        read_endpoint("a", {"endpoint": "http://h/v1", "model": "m", "extra": {"top_k": 1, name: 1}})


def test_a_key_with_a_line_break_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret\n")
    with pytest.raises(ValueError, match="SERVED_KEY holds what no key has, such as a line break") as caught:
        read_key(Endpoint("http://h/v1", "m", "SERVED_KEY"))
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_set_and_a_missing_package_stop_before_anything_runs(tmp_path, monkeypatch):
    run, settings = prepare(tmp_path, 1)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with EndpointServer(policy) as server:
        with pytest.raises(ValueError, match=rf"{server.url} \(model m\): the environment variable NO_SUCH_KEY"):
            play(run, server, CELLS, 1, settings, key_variable="NO_SUCH_KEY")
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r'pip install "knapsack-runtime-report\[api\]"'):
            play(run, server, CELLS, 1, settings)
    assert server.requests == [] and not list((run.folder / "evaluations").glob("*/settings.json"))


# A whole evaluation


def prepare(folder, tasks: int = 3):
    run = open_run(folder / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", tasks, 0, CONFIG))
    return run, Settings(base=str(folder / "no-model-here"), max_turns=6, max_new_tokens=400, slots=2)


def play(run, server, cells, tasks, settings, cap: int = 0, **changes):
    endpoint = Endpoint(server.url, "m", **{"tries": 2, "first_wait": 0.01, "timeout": 20.0} | changes)
    options = {"endpoints": {"served": endpoint}, "max_total_tokens": cap, "processes": 1, "progress": False}
    evaluate(run, cells, {"easy": tasks}, settings, **options)


def episodes(run) -> dict:
    """Every finished episode but for its time, and what the cells say of themselves."""
    found = {path: read_json(path) for path in sorted(run.folder.glob("evaluations/*/settings.json"))}
    for path in sorted(run.folder.glob("evaluations/*/knapsack/*.trace.json")):
        if traces.result_path(path).exists():
            found[path] = asdict(replace(traces.read_trace(path), seconds=None))
    return {str(path.relative_to(run.folder)): value for path, value in found.items()}


def test_a_server_that_dies_scores_nothing_and_the_resumed_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret")
    run, settings = prepare(tmp_path / "disturbed")
    whole, _ = prepare(tmp_path / "whole")
    with EndpointServer(policy) as server:
        play(whole, server, CELLS, 3, settings, key_variable="SERVED_KEY")
        needed = len(server.requests)
        expected = episodes(whole)
        assert len(expected) == 8 and needed == 1 + 3 * 3 + 3 * 4  # the first only tries the server

        server.requests.clear()
        server.fault_for = lambda number, body: reset if number > 15 else None
        where = rf"served_stateless_easy/knapsack-\d+: EndpointError: turn \d, {server.url} \(model m\): "
        with pytest.raises(EvaluationError, match=where + ".*tried 2 times"):
            play(run, server, CELLS, 3, settings, key_variable="SERVED_KEY")
        assert len(server.requests) <= 15 + 2 * 2  # two episodes at once, two tries each, and no more after that
        kept = episodes(run)
        finished = [name for name in kept if name.endswith(".trace.json")]
        assert 3 <= len(finished) < 6
        cells = estimates.cells_table(metrics.write_results(run)[0])
        assert list(cells["runtime"]) == list(KINDS) and list(cells["unscored"]) == [0, 6 - len(finished)]
        assert list(cells["n"]) == [3, len(finished) - 3]

        server.requests.clear()
        server.fault_for = None
        play(run, server, CELLS, 3, settings, key_variable="SERVED_KEY")
        assert episodes(run) == expected
        assert needed - 15 <= len(server.requests) <= needed - 15 + 1  # what was on its way when the run stopped
    record = read_json(run.evaluations / "served_stateless_easy" / "settings.json")
    assert record["endpoint"] == {"url": server.url, "model": "m"} and record["base_digest"] is None
    written = [path.read_text(errors="replace") for path in run.folder.rglob("*") if path.is_file()]
    assert len(written) > 12 and not [text for text in written if "sk-very-secret" in text]


def test_another_endpoint_is_another_model_and_another_engine_another_setting(tmp_path):
    run, settings = prepare(tmp_path, 1)
    settings = replace(settings, engine="cpython-outside-container")
    with EndpointServer(lambda messages: block("import heapq\nfinish()")) as server:  # which the default engine lacks
        play(run, server, CELLS[:1], 1, settings)
        play(run, server, CELLS[:1], 1, replace(settings, slots=9))  # how many at once is no matter
        with pytest.raises(ValueError, match="was begun with engine = 'cpython-outside-container', now 'monty'"):
            play(run, server, CELLS[:1], 1, replace(settings, engine="monty"))
        with pytest.raises(ValueError, match="was begun with endpoint = "):
            evaluate(run, CELLS[:1], {"easy": 1}, settings, endpoints={"served": Endpoint(server.url, "other")})
        with pytest.raises(ValueError, match="was begun with temperature = "):
            play(run, server, CELLS[:1], 1, replace(settings, temperature=1.0))
    assert len(server.requests) == 1 + 1


def test_a_cap_on_spending_stops_the_run_and_a_higher_one_ends_like_no_cap(tmp_path):
    run, settings = prepare(tmp_path / "capped")
    whole, _ = prepare(tmp_path / "whole")
    with EndpointServer(policy) as server:
        play(whole, server, CELLS, 3, settings)
        needed = len(server.requests)
        server.requests.clear()
        with ReplyCache(whole.folder / "evaluations" / "replies.sqlite") as replies:
            cap = replies.spent() // 2
        with pytest.raises(EvaluationError, match=r"served_\w+_easy/\S+: SpendingCapReached: .* tokens are spent"):
            play(run, server, CELLS, 3, settings, cap=cap)
        assert 0 < len(server.requests) < needed
        play(run, server, CELLS, 3, settings, cap=3 * cap)
        assert len(server.requests) == needed and episodes(run) == episodes(whole)


def test_a_server_that_refuses_is_an_error_before_anything_is_written(tmp_path):
    run, settings = prepare(tmp_path, 1)
    with EndpointServer(policy, [error(404, "no model m")]) as server:
        with pytest.raises(EndpointError, match="no model m; check the model's name"):
            play(run, server, CELLS[:1], 1, settings)
    assert not list(run.folder.glob("evaluations/served*")) and len(server.requests) == 1


def test_the_first_failure_stops_requests_that_hang(tmp_path):
    """Its neighbour's request would have taken a minute; the run ends within seconds of the failure."""
    run, settings = prepare(tmp_path, 2)
    hanging = threading.Event()

    def fail_later(handler, body):
        hanging.wait(30)
        error(401)(handler, body)

    def hang_now(handler, body):
        hanging.set()
        hang(handler, body)

    with EndpointServer(policy, [None, hang_now, fail_later]) as server:
        start = time.monotonic()
        with pytest.raises(EvaluationError, match="HTTP 401"):
            play(run, server, CELLS[:1], 2, settings, timeout=60.0)
    assert time.monotonic() - start < 40 and len(server.requests) == 1 + 2


def test_an_interpreter_killed_from_outside_stops_the_run_and_is_not_scored(tmp_path):
    run, settings = prepare(tmp_path, 1)
    texts = [block("x = 0\nwhile x < 1_000_000_000:\n    x += 1"), block("finish()")]
    asked = threading.Event()

    def slow(messages):
        if messages != PROBE:
            asked.set()
        return texts[len(messages) > 2]

    def kill() -> None:
        asked.wait(60)
        time.sleep(1.0)  # the block runs for five seconds
        for child in psutil.Process().children(recursive=True):
            if "monty" in child.name():
                child.kill()

    with EndpointServer(slow) as server:
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(EvaluationError, match=r"served_stateless_easy/\S+: InterpreterError: .*killed"):
            play(run, server, CELLS[1:], 1, settings)
        killer.join()
        assert not list(run.folder.glob("evaluations/*/knapsack/*.json"))
        (run.folder / "evaluations" / "replies.sqlite").unlink()
        texts[0] = block("print(1)")
        play(run, server, CELLS[1:], 1, settings)
    assert len(list(run.folder.glob("evaluations/*/knapsack/*.trace.json"))) == 1


def test_the_runner_says_what_failed_and_where_and_the_same_command_resumes(tmp_path, checkout):
    carried = RUNTIME_KINDS[2:]  # in which the teacher does not play, so that no model is loaded
    run, _ = prepare(tmp_path, 2)
    with EndpointServer(policy) as server:
        entry = {"served": {"endpoint": server.url, "model": "m", "key": "SERVED_KEY"}}
        command = [sys.executable, checkout / "run_notebooks.py", "--only", "4", "--out", run.folder]
        values = {"models": json.dumps(entry), "splits": "easy", "n_easy": 2}
        values |= {"runtimes": ",".join(carried), "max_turns": 6, "slots": 1, "processes": 1}
        for name, value in values.items():
            command += ["-p", f"{name}={value}"]
        options = {"capture_output": True, "text": True, "env": os.environ | {"SERVED_KEY": "sk-very-secret"}}
        server.fault_for = lambda number, body: error(401) if number > 1 + 4 else None
        failed = subprocess.run(command, **options)
        assert failed.returncode == 1 and "failed" in failed.stdout
        where = rf"served_[\w-]+_easy/knapsack-\d+: EndpointError: turn \d, {server.url} \(model m\): HTTP 401"
        assert re.search(f"04_evaluate failed .*{where}", failed.stderr), failed.stderr
        assert len(list(run.folder.glob("evaluations/served_*/details/*.json"))) == 1
        server.requests.clear()
        server.fault_for = None
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stderr
    assert len(server.requests) == 4  # of the other task; no cap was hit, so both kinds hold the same conversations
    with open(run.results / "cells.csv", newline="") as handle:
        cells = {(row["model"], row["runtime"]): (row["n"], row["unscored"]) for row in csv.DictReader(handle)}
    assert cells == {("served", kind): ("2", "0") for kind in carried}
    written = [path.read_text(errors="replace") for path in run.folder.rglob("*") if path.is_file()]
    assert not [text for text in [*written, failed.stderr, done.stdout] if "sk-very-secret" in text]

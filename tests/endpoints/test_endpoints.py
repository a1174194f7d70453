"""Models behind an endpoint: what is the model's doing, what is the server's, and that only the former is scored."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace

import psutil
import pytest
from endpoint_server import CONTEXT_REFUSALS, EndpointServer, answer, completion, cut, drip, error, hang, reset
from scripted import CONFIG, block, persistent_texts

from knapsack import traces
from knapsack.agent import ContextFull, Reply
from knapsack.analysis import estimates, metrics
from knapsack.endpoints.client import PROBE, PROBE_TOKENS, Client, SpendingCapReached, ask_once
from knapsack.endpoints.endpoint import Endpoint, EndpointError
from knapsack.endpoints.replies import Replies
from knapsack.evaluate import EvaluationError, Settings, evaluate
from knapsack.runs import open_run, read_json
from knapsack.runtime import KINDS, RUNTIME_KINDS
from knapsack.tasks import sample_split, write_tasks
from knapsack.traces import Cell

OPENING = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
LATER = [*OPENING, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Sure?"}]
WORDS = "I look.\n```python\nprint(1)\n```"
TRIES = 3
CELLS = [Cell("served", kind, "easy", 25) for kind in KINDS]
OPTIONS = {"temperature": 0.2, "max_new_tokens": 100, "context_length": 4000, "seed": 7}


def words(messages: list[dict]) -> str:
    return WORDS


def policy(messages: list[dict]) -> str:
    """The persistent style, whatever the runtime: three turns where names stay, four where they do not."""
    texts = persistent_texts(skip=len(messages[1]["content"]) % 3)
    return texts[min(sum(message["role"] == "assistant" for message in messages), len(texts) - 1)]


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("knapsack.endpoints.client.FIRST_WAIT", 0.01)


@pytest.fixture
def replies(tmp_path):
    with Replies(tmp_path / "replies.sqlite") as cache:
        yield cache


def ask(server: EndpointServer | str, messages=OPENING, key: str | None = None, replies=None, *, client=(), **changes):
    """One reply; ``changes`` of the endpoint, ``client`` of the client's options."""
    url = server if isinstance(server, str) else server.url
    endpoint = Endpoint(**{"url": url, "model": "m", "timeout": 5.0} | changes)
    options = OPTIONS | {"tries": TRIES} | dict(client)
    return Client(endpoint, key, replies or Replies(":memory:"), **options).reply(messages)


# Replies


def test_request_and_reply_hold_what_the_settings_and_the_server_say():
    with EndpointServer(words) as server:
        assert ask(server, key="secret") == Reply(WORDS, 4, 7, stopped=True)
    (_, path, headers, body) = server.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer secret"
    assert body.pop("seed") > 0
    assert body == {"model": "m", "messages": OPENING, "temperature": 0.2, "max_tokens": 100}


def test_the_seed_depends_on_the_conversation_alone():
    with EndpointServer(words, [None, error(500)]) as server:
        for messages in (OPENING, OPENING, LATER):
            ask(server, messages)
    first, failed, again, later = [body["seed"] for body in server.bodies]
    assert first == failed == again != later


def test_further_fields_arrive_and_no_temperature_is_sent_unless_somebody_chose_one():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    with EndpointServer(words) as server:
        ask(server, client={"temperature": None}, extra=extra)
        ask(server, client={"temperature": None}, temperature=0.0)
        ask(server, temperature=1.5)
    first, *others = server.bodies
    assert first | extra == first and "temperature" not in first
    assert [body["temperature"] for body in others] == [0.0, 1.5]


def test_what_is_sent_does_not_depend_on_the_environment(monkeypatch):
    def sent(server):
        ask(server, key="secret")
        _, path, headers, body = server.requests[-1]
        return path, {name.lower(): value for name, value in headers.items()}, body

    with EndpointServer(words) as server:
        before = sent(server)
        for name in ("BASE_URL", "API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
            monkeypatch.setenv(f"OPENAI_{name}", "http://elsewhere")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer other\nX-Team: other")
        assert sent(server) == before


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (completion("Half a se", 9, 100, "length"), Reply("Half a se", 9, 100, stopped=False)),
        (completion("Half \ud800", 9, 3), Reply("Half ?", 9, 3)),
        (completion("", 9, 3), Reply("", 9, 3)),
        (completion(None, 9, 3, "tool_calls"), Reply("", 9, 3)),
        (completion("OK", 9, 3, total=50), Reply("OK", 9, 41)),
        (completion(None, 9, 0, "length", total=109), Reply("", 9, 100, stopped=False)),
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
    "HTTP 429": error(429),
    "HTTP 503": error(503, "starting"),
    "not JSON": answer("<html>It works!</html>"),
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
    with EndpointServer(words, [PASSING[name]] * (TRIES - 1)) as server:
        assert ask(server).text == WORDS
        assert len(server.requests) == TRIES
        server.faults = [PASSING[name]] * TRIES
        with pytest.raises(EndpointError, match=rf"turn 2, {server.url} \(model m\): .+; tried 3 times") as caught:
            ask(server, LATER)
    assert len(server.requests) == 2 * TRIES
    assert not name.startswith("HTTP") or name in str(caught.value)


@pytest.mark.parametrize("fault", [hang, drip])
def test_a_server_that_never_finishes_is_left_after_the_timeout(fault):
    with EndpointServer(words, [fault] * 2) as server:
        with pytest.raises(EndpointError, match=r"no whole answer within 0.3 s .*tried 2 times"):
            ask(server, timeout=0.3, client={"tries": 2})
        assert 0.2 < server.gaps[0] < 2  # the server notes the first request a moment after it was sent


def test_retry_after_is_respected_up_to_two_minutes():
    with EndpointServer(words, [error(429, Retry_After="0.4"), error(503, Retry_After="soon")]) as server:
        ask(server)
        asked, unreadable = server.gaps
        server.faults = [error(503, Retry_After="3600")]
        with pytest.raises(EndpointError, match="HTTP 503"):
            ask(server)
    assert unreadable < 0.4 <= asked and len(server.requests) == TRIES + 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(401, "wrong key secret-key"), r'HTTP 401: wrong key \*\*\*; .*"key" names the environment variable'),
        (error(422, "seed is unknown"), "HTTP 422: seed is unknown; the server refuses such requests"),
        (answer({**completion("x", 9, 1), "usage": None}), r"does not count tokens \(usage: None\)"),
        (answer({**completion("x", 9, 1), "usage": {"prompt_tokens": "9"}}), "does not count tokens"),
        (answer(completion("x", 9, 0)), "does not count tokens"),
    ],
)
def test_lasting_failure_stops_at_once_with_a_remedy_and_without_the_key(fault, said):
    with EndpointServer(policy, [fault] * TRIES) as server:
        with pytest.raises(EndpointError, match=said) as caught:
            ask(server, key="secret-key")
    assert len(server.requests) == 1
    assert server.url in str(caught.value) and "secret-key" not in str(caught.value)


def test_the_other_name_of_the_token_limit_is_learnt_once(replies):
    refusal = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported")
    with EndpointServer(words, [refusal]) as server:
        client = Client(Endpoint(url=server.url, model="m"), None, replies, **OPTIONS)
        assert client.reply(OPENING).text == client.reply(LATER).text == WORDS
    limits = [{name: body[name] for name in body if name.startswith("max")} for body in server.bodies]
    assert limits == [{"max_tokens": 100}, {"max_completion_tokens": 100}, {"max_completion_tokens": 100}]


# The context


@pytest.mark.parametrize("name", CONTEXT_REFUSALS)
def test_a_full_context_ends_the_episode_unless_a_shorter_reply_has_room(name):
    with EndpointServer(words, [CONTEXT_REFUSALS[name]]) as server:
        assert ask(server, LATER).text == WORDS
        server.faults = [CONTEXT_REFUSALS[name]] * 2
        with pytest.raises(ContextFull, match="context is full"):
            ask(server, LATER)
        server.faults = [CONTEXT_REFUSALS[name]] * 2
        with pytest.raises(EndpointError, match="not even the opening prompt fits"):
            ask(server)
    assert [("max_tokens" in body) for body in server.bodies] == [True, False] * 3


def test_the_context_length_of_the_settings_counts_too_and_such_a_reply_is_paid_for_once(replies):
    with EndpointServer(policy, [answer(completion("x", 4000, 1))]) as server:
        for _ in range(2):
            with pytest.raises(ContextFull, match="the conversation has 4000 tokens, the context 4000"):
                ask(server, LATER, replies=replies)
    assert len(server.requests) == 1


# Replies that are paid for


def test_a_known_reply_is_not_asked_for_again_and_whatever_may_change_it_is(replies):
    other_endpoint = [{"model": "n"}, {"extra": {"top_k": 1}}, {"extra": {"top_k": 2}}, {"temperature": 0.3}]
    other_endpoint += [{"weights": "other"}]
    other_settings = [{"seed": 8}, {"max_new_tokens": 99}, {"temperature": 0.4}, {"temperature": None}]
    with EndpointServer(words, [answer(completion("Half", 9, 100, "length"))]) as server:
        first = ask(server, replies=replies)
        assert first == ask(server, replies=replies, timeout=9.0, key_variable="K", client={"tries": 1})
        assert first == Reply("Half", 9, 100, stopped=False) and replies.spent() == 109
        assert len(server.requests) == 1
        for changes in [*other_endpoint, *({"client": change} for change in other_settings)]:
            assert ask(server, replies=replies, **changes).text == WORDS
        assert ask(server, LATER, replies=replies).text == WORDS
    with EndpointServer(words) as elsewhere:
        assert ask(elsewhere, replies=replies).text == WORDS
    assert (len(server.requests), len(elsewhere.requests)) == (11, 1)


@pytest.mark.parametrize(
    ("faults", "billed"),
    [
        ([error(500)] * TRIES, 0),
        ([answer(completion("I", 9, 5, "content_filter"))] * TRIES, 14 * TRIES),
        ([answer(completion("", 9, 0))] * TRIES, 9 * TRIES),
        ([answer(completion("x", 0, 7))], 7),
        ([answer({**completion("x", 9, 1), "usage": None})], 0),
        ([CONTEXT_REFUSALS["llama.cpp"]] * 2, 0),
    ],
)
def test_a_failure_is_never_stored_but_what_it_cost_counts(replies, faults, billed):
    with EndpointServer(words, faults) as server:
        with pytest.raises(EndpointError):
            ask(server, replies=replies)
        assert len(server.requests) == len(faults) and replies.spent() == billed
        assert ask(server, replies=replies) == Reply(WORDS, 4, 7)
    assert len(server.requests) == len(faults) + 1


def test_at_the_cap_a_request_under_way_ends_and_is_kept(replies):
    begun, proceed = threading.Event(), threading.Event()

    def slow(messages):
        begun.set()
        proceed.wait(20)
        return WORDS

    with EndpointServer(slow) as server, ThreadPoolExecutor(2) as executor:
        client = Client(Endpoint(url=server.url, model="m"), None, replies, max_total_tokens=5, **OPTIONS)
        first = executor.submit(client.reply, OPENING)
        assert begun.wait(20)
        replies.charge(5)
        second = executor.submit(client.reply, LATER)
        assert wait([second], timeout=0.5).not_done
        proceed.set()
        assert first.result() == Reply(WORDS, 4, 7)
        with pytest.raises(SpendingCapReached):
            second.result()
    assert replies.spent() == 16 and len(server.requests) == 1


# Before any work


def test_one_tiny_request_shows_what_the_server_refuses_and_is_paid_for_once(replies):
    refusals = [error(404, "no model m"), error(400, "top_k is unknown"), error(503, "loading"), error(503, "loading")]
    with EndpointServer(lambda messages: "OK", refusals) as server:
        endpoint = Endpoint(url=server.url, model="m", extra={"top_k": 1})
        for said in ("no model m; check the model's name", "top_k is unknown", "loading; tried 2 times"):
            with pytest.raises(EndpointError, match=said):
                ask_once(endpoint, None, replies, temperature=None)
        for _ in range(2):
            ask_once(endpoint, None, replies, temperature=None)
        with pytest.raises(SpendingCapReached):
            other = Endpoint(url=server.url, model="m")
            ask_once(other, None, replies, temperature=None, max_total_tokens=replies.spent())
    body = server.bodies[-1]
    assert len(server.requests) == 5 and replies.spent() > 0
    assert body["max_tokens"] == PROBE_TOKENS and body["top_k"] == 1 and "temperature" not in body


# A whole evaluation


def prepare(folder, tasks: int = 3):
    run = open_run(folder / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", tasks, 0, CONFIG))
    return run, Settings(base=str(folder / "no-model-here"), max_turns=6, max_new_tokens=400, slots=2)


def play(run, server, cells, tasks, settings, cap: int = 0, **changes):
    endpoint = Endpoint(**{"url": server.url, "model": "m", "timeout": 20.0} | changes)
    options = {"endpoints": {"served": endpoint}, "max_total_tokens": cap, "processes": 1, "progress": False}
    evaluate(run, cells, {"easy": tasks}, settings, **options)


def episodes(run) -> dict:
    """Every finished episode but for its time, and what the cells say of themselves."""
    found = {path: read_json(path) for path in sorted(run.folder.glob("evaluations/*/settings.json"))}
    for path in sorted(run.folder.glob("evaluations/*/knapsack/*.trace.json")):
        if traces.result_path(path).exists():
            found[path] = asdict(replace(traces.read_trace(path), seconds=None))
    return {str(path.relative_to(run.folder)): value for path, value in found.items()}


def test_what_can_be_known_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    run, settings = prepare(tmp_path, 1)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with EndpointServer(policy, [error(404, "no model m")]) as server:
        with pytest.raises(ValueError, match=rf"{server.url} \(model m\): the environment variable NO_SUCH_KEY"):
            play(run, server, CELLS, 1, settings, key_variable="NO_SUCH_KEY")
        with pytest.raises(EndpointError, match="no model m; check the model's name"):
            play(run, server, CELLS[:1], 1, settings)
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r'pip install "knapsack-runtime-report\[api\]"'):
            play(run, server, CELLS, 1, settings)
    assert len(server.requests) == 1 and not list(run.folder.glob("evaluations/served*"))


def test_a_server_that_fails_scores_nothing_and_the_resumed_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret")
    run, settings = prepare(tmp_path / "disturbed")
    whole, _ = prepare(tmp_path / "whole")
    with EndpointServer(policy) as server:
        play(whole, server, CELLS, 3, settings, key_variable="SERVED_KEY")
        needed, expected = len(server.requests), episodes(whole)
        assert len(expected) == 8 and needed == 1 + 3 * 3 + 3 * 4  # the first only tries the server

        server.requests.clear()
        server.fault_for = lambda number, body: error(401) if number > 15 else None
        where = rf"^served_stateless_easy/knapsack-\d+: EndpointError: turn \d, {server.url} \(model m\): HTTP 401"
        with pytest.raises(EvaluationError, match=where):
            play(run, server, CELLS, 3, settings, key_variable="SERVED_KEY")
        assert len(server.requests) <= 15 + 2  # two episodes at once, and no more after that
        finished = [name for name in episodes(run) if name.endswith(".trace.json")]
        assert 3 <= len(finished) < 6
        played, _ = metrics.write_results(run)
        cells = estimates.cells_table(played, estimates.estimates_table(played))
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
            play(run, server, CELLS[:1], 1, settings, model="other")
    assert len(server.requests) == 1 + 1


def test_a_cap_on_spending_stops_the_run_and_a_higher_one_ends_like_no_cap(tmp_path):
    run, settings = prepare(tmp_path / "capped")
    whole, _ = prepare(tmp_path / "whole")
    with EndpointServer(policy) as server:
        play(whole, server, CELLS, 3, settings)
        needed = len(server.requests)
        server.requests.clear()
        with Replies(whole.folder / "evaluations" / "replies.sqlite") as replies:
            cap = replies.spent() // 2
        with pytest.raises(EvaluationError, match=r"served_\w+_easy/\S+: SpendingCapReached: .*pays nothing twice"):
            play(run, server, CELLS, 3, settings, cap=cap)
        assert 0 < len(server.requests) < needed
        play(run, server, CELLS, 3, settings, cap=3 * cap)
        assert len(server.requests) == needed and episodes(run) == episodes(whole)


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
        with pytest.raises(EvaluationError, match=r"^served_persistent_easy/\S+: EndpointError: .*HTTP 401"):
            play(run, server, CELLS[:1], 2, settings, timeout=60.0)
    assert time.monotonic() - start < 40 and len(server.requests) == 1 + 2


def test_ctrl_c_stops_requests_that_hang_and_keeps_what_is_paid(tmp_path):
    run, settings = prepare(tmp_path, 2)
    script, asked = tmp_path / "script.py", threading.Event()
    with EndpointServer(policy) as server:
        server.fault_for = lambda number, body: (asked.set(), hang)[1] if number > 4 else None
        script.write_text(
            "from knapsack.endpoints.endpoint import Endpoint\nfrom knapsack.evaluate import *\n"
            "from knapsack.runs import open_run\nif __name__ == '__main__':\n"
            f"    places = {{'served': Endpoint(url={server.url!r}, model='m', timeout=60.0)}}\n"
            f"    run, cells = open_run({str(run.folder)!r}), {CELLS[:1]!r}\n"
            f"    evaluate(run, cells, {{'easy': 2}}, {settings!r}, endpoints=places)\n"
        )
        process = subprocess.Popen(
            [sys.executable, script],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored here
            stderr=subprocess.DEVNULL,
        )
        try:
            assert asked.wait(120)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) != 0
        finally:
            process.kill()
        server.fault_for = None
        before = len(server.requests)
        play(run, server, CELLS[:1], 2, settings)
        assert len(server.requests) - before == 1 + 2 * 3 - 4  # the first only tries the server


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


@pytest.mark.long
def test_the_runner_says_what_failed_and_where_and_the_same_command_resumes(tmp_path, checkout):
    carried = RUNTIME_KINDS[2:]  # in which the teacher does not play, so that no model is loaded
    run, _ = prepare(tmp_path, 2)
    with EndpointServer(policy) as server:
        entry = {"served": {"endpoint": server.url, "model": "m", "key": "SERVED_KEY"}}
        command = [sys.executable, checkout / "run_notebooks.py", "--only", "4", "--out", run.folder]
        values = {"models": json.dumps(entry), "splits": "easy", "n_easy": 2}
        values |= {"runtimes": ",".join(carried), "caps": "25", "max_turns": 6, "slots": 1, "processes": 1}
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
    with open(run.results / "episodes.csv", newline="") as handle:
        played = Counter((row["model"], row["runtime"], row["status"]) for row in csv.DictReader(handle))
    assert played == {("served", kind, "completed"): 2 for kind in carried}
    written = [path.read_text(errors="replace") for path in run.folder.rglob("*") if path.is_file()]
    assert not [text for text in [*written, failed.stderr, done.stdout] if "sk-very-secret" in text]

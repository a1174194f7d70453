"""A subject behind an OpenAI-compatible chat endpoint: a hosted model, vLLM, llama.cpp, transformers serve.

What the *model* does is an observation: a reply that ran into its token limit, an empty reply that cost tokens, a
conversation that no longer fits the model's context. What happens on the *way* to it is infrastructure and never
scored: it is tried again with growing waits, and then stops the run with an ``EndpointError``.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import urlsplit

from knapsack.agent import ContextFull, Reply
from knapsack.prompts import Message

LONGEST_WAIT = 60.0  # seconds between two tries, and the longest Retry-After that is honoured
PASSING = (408, 409, 425, 429)  # statuses worth another try, beside all from 500 on
INTERRUPTED = (None, "content_filter", "abort", "error")  # finish reasons that say the reply is not what the model said
REMEDIES = {
    401: 'the key is refused or missing: "key" names the environment variable that holds it',
    403: "the key may not use this model",
    404: "check the model's name, and that the address is the API's root (it mostly ends in /v1)",
}
# OpenAI, vLLM, llama.cpp, SGLang, TGI and others; each says it in its own words.
CONTEXT_FULL = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|maximum context length|maximum model length|exceeds? (the |the model's )?(available |maximum )?context"
    r"|longer than the (model's|maximum) (context|model)|context length is only|prompt is too long"
    r"|input token count .* exceeds|`inputs` tokens \+ `max_new_tokens`|reduce the length of the (messages|prompt)",
    re.IGNORECASE,
)
# Behind "<": "|" (ChatML, Llama 3, Phi), its wide form (DeepSeek), a name up to ">" (<s>, </s>, <end_of_turn>). Behind
# "[": Mistral's and GLM's names. <think> may stay in replies: chat templates cut old thoughts out by it.
NAMES = "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+|ARGS|CALL_ID|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|THINK"
NAMES += "|PREFIX|MIDDLE|SUFFIX|BOS|EOS|PAD|UNK|CLS|SEP|g?MASK|sMASK"
CONTROL = re.compile(rf"(?<=<)(?=[|｜]|/?[\w.-]+>)|(?<=\[)(?=/?(?:{NAMES})\])")
CONTROL_IN_REPLY = re.compile(rf"(?!/?think>)(?:{CONTROL.pattern})")


class EndpointError(RuntimeError):
    """The endpoint failed: not the model's doing, never scored. The message names endpoint, turn, cause and tries."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. ``url`` is the API's root (``https://…/v1``), ``model`` its name there.

    ``key_variable`` is the NAME of the environment variable with the key (None: the server wants none); the key
    itself is stored nowhere. A request may take ``timeout`` seconds in all and is tried ``tries`` times; the wait
    between two tries starts at ``first_wait`` seconds and doubles.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 600.0
    tries: int = 8
    first_wait: float = 1.0

    @property
    def where(self) -> str:
        return f"{self.url} (model {self.model})"


def read_endpoints(entries: dict[str, dict]) -> dict[str, Endpoint]:
    """Endpoints by name from notebook 04's parameter. Raises ValueError naming the entry and what is wrong with it."""
    known = {"endpoint": "url", "model": "model", "key": "key_variable", "timeout": "timeout"}
    types = {field.name: field.type for field in fields(Endpoint)}
    found = {}
    for name, entry in entries.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name == "teacher":
            raise ValueError(f"endpoint {name!r}: a name has letters, digits, '_', '.', '-', and is not \"teacher\"")
        if not isinstance(entry, dict) or not {"endpoint", "model"} <= entry.keys() <= known.keys():
            raise ValueError(f'endpoint {name!r} is {entry!r}: needs "endpoint" and "model"; may have "key", "timeout"')
        values = {known[key]: float(value) if type(value) is int else value for key, value in entry.items()}
        if wrong := [key for key in entry if not isinstance(values[known[key]], types[known[key]])]:
            raise ValueError(f"endpoint {name!r}: {wrong[0]} = {entry[wrong[0]]!r} is of the wrong type")
        found[name] = Endpoint(**values)
        address = urlsplit(found[name].url)
        if address.scheme not in ("http", "https") or not address.hostname or found[name].timeout <= 0:
            raise ValueError(f"endpoint {name!r} is {entry!r}: needs an address http(s)://… and a timeout above 0 s")
        if address.username or address.password or address.query:
            raise ValueError(f'endpoint {name!r}: the address is recorded: no secret in it; "key" names a variable')
    return found


def read_key(endpoint: Endpoint) -> str | None:
    """The key of an endpoint, before it is asked; the one place of the library that reads a key.

    Raises ValueError if it is not set, and ImportError, with the remedy, without the ``api`` extra.
    """
    packages()
    if endpoint.key_variable is None:
        return None
    key = os.environ.get(endpoint.key_variable)
    if not key:
        raise ValueError(f"{endpoint.where}: the environment variable {endpoint.key_variable}, its key, is not set")
    return key


def without_control_tokens(text: str, role: str = "user") -> str:
    """``text`` with a space put into what a chat template or tokenizer could take for a control token.

    ``<|im_end|>`` becomes ``< |im_end|>``, ``[INST]`` becomes ``[ INST]``. A server renders the conversation itself,
    so unlike ``prompts.render`` we cannot set control tokens by id; the recorded conversation keeps the original text.
    """
    return (CONTROL_IN_REPLY if role == "assistant" else CONTROL).sub(" ", text)


def packages() -> tuple:
    """The modules anyio, openai and tenacity. Raises ImportError, with the remedy, without the ``api`` extra."""
    try:
        import anyio.from_thread
        import openai
        import tenacity
    except ImportError as error:
        raise ImportError(f'{error}; for endpoints: pip install "knapsack-runtime-report[api]"') from error
    return anyio, openai, tenacity


class _Passing(Exception):
    """A failure worth another try, not before ``retry_after`` seconds."""

    def __init__(self, what: str, retry_after: float = 0.0):
        super().__init__(what)
        self.retry_after = min(retry_after, LONGEST_WAIT)


class _Final(Exception):
    """A failure that another try would repeat."""


class Client:
    """Asks an endpoint, from any number of threads at once; use as a context manager.

    ``check`` is called several times a second while an answer is waited for; what it raises ends the wait and the
    request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None = None,
        *,
        temperature: float,
        max_new_tokens: int,
        context_length: int,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ):
        self._anyio, self._openai, tenacity = packages()
        self.endpoint, self._key = endpoint, key
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.context_length, self.check = context_length, check
        self._limit = "max_tokens"  # known everywhere; newer models of some providers want max_completion_tokens
        first = endpoint.first_wait
        backoff = tenacity.wait_exponential_jitter(multiplier=first, max=LONGEST_WAIT, jitter=first)
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            wait=backoff + tenacity.wait_exception(lambda error: error.retry_after),
            stop=tenacity.stop_after_attempt(endpoint.tries),
            reraise=True,
        )

    def __enter__(self) -> Self:
        timeout = self._openai.Timeout(self.endpoint.timeout, connect=min(10.0, self.endpoint.timeout))
        options = {"base_url": self.endpoint.url, "timeout": timeout, "max_retries": 0}
        self._service = self._openai.AsyncOpenAI(api_key=self._key or "none", **options)
        self._service.organization = self._service.project = None  # read from the environment: of another provider
        with ExitStack() as stack:
            self._portal = stack.enter_context(self._anyio.from_thread.start_blocking_portal())
            stack.callback(self._portal.call, self._service.close)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._open.__exit__(*exception)

    def reply(self, messages: list[Message]) -> Reply:
        """The model's reply with the server's count of tokens.

        Raises ContextFull if the conversation does not fit the server's context or ``context_length``, and
        EndpointError for whatever else keeps the reply from coming.
        """
        future = self._portal.start_task_soon(self._reply, messages)
        try:
            while not wait([future], timeout=0.2).done:
                self.check()
            return future.result()
        finally:
            future.cancel()

    async def _reply(self, messages: list[Message]) -> Reply:
        turn, tries = 1 + sum(message["role"] == "assistant" for message in messages), 0
        try:
            async for attempt in self._retrying.copy():
                with attempt:
                    tries += 1
                    return await self._try(messages)
        except ContextFull as full:
            if turn > 1:
                raise
            problem = f"{full}: not even the opening prompt fits; serve it, or run, with a longer context"
        except _Final as error:
            problem = str(error)
        except _Passing as error:
            problem = f"{error}; tried {tries} times: run again when the endpoint answers"
        raise EndpointError(f"turn {turn}, {self.endpoint.where}: {problem}")

    async def _try(self, messages: list[Message]) -> Reply:
        """One try: a request, repeated at once if the server wants its token limit in another way."""
        sent = [{"role": m["role"], "content": without_control_tokens(m["content"], m["role"])} for m in messages]
        digest = hashlib.sha256(f"{self.seed}|{json.dumps(sent)}".encode()).digest()
        limit = {self._limit: self.max_new_tokens}
        while True:
            try:
                text = await self._request(sent, int.from_bytes(digest[:4]) >> 1, limit)
                break
            except self._openai.APIStatusError as error:
                status, detail = error.status_code, _detail(error, self._key)
                problem = f"HTTP {status}: {detail}"
                if status < 500 and CONTEXT_FULL.search(f"{error.code} {error.type} {detail}"):
                    if not limit:
                        raise ContextFull(f"the server's context is full: {detail}") from error
                    limit = {}  # prompt and limit are too long together: may the reply have what the prompt leaves?
                elif status == 400 and "max_tokens" in limit and "max_completion_tokens" in detail:
                    self._limit = "max_completion_tokens"
                    limit = {self._limit: self.max_new_tokens}
                elif (status in PASSING or status >= 500) and error.code != "insufficient_quota":
                    raise _Passing(problem, _retry_after(error.response.headers)) from error
                else:
                    raise _Final(f"{problem}; {REMEDIES.get(status, 'the server refuses such requests')}") from error
        reply = _read(text, self._key)
        if reply.prompt_tokens >= self.context_length:
            raise ContextFull(f"the conversation has {reply.prompt_tokens} tokens, the context {self.context_length}")
        return reply

    async def _request(self, messages: list[Message], seed: int, limit: dict[str, int]) -> str:
        """The body of the answer."""
        create = self._service.chat.completions.with_raw_response.create
        options = {"model": self.endpoint.model, "temperature": self.temperature, "seed": seed, **limit}
        try:
            with self._anyio.fail_after(self.endpoint.timeout):  # in all: a server may send a byte now and then
                return (await create(messages=messages, **options)).text
        except (TimeoutError, self._openai.APITimeoutError) as error:
            raise _Passing(f'no whole answer within {self.endpoint.timeout:g} s ("timeout" allows more)') from error
        except self._openai.APIConnectionError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise _Passing(f"the connection failed: {str(cause) or repr(cause)}") from error


def _read(text: str, key: str | None) -> Reply:
    """The reply in the body of an answer; _Passing if there is none in it, _Final if its usage is missing or wrong."""
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        content, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        if not isinstance(content, str):
            raise TypeError("the content is no text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Passing(f"the answer is no chat completion: {_short(text, key)}") from error
    if reason in INTERRUPTED:
        raise _Passing(f"the reply was interrupted (finish_reason {reason})")
    usage = answer.get("usage")
    counts = [usage.get(f"{part}_tokens") for part in ("prompt", "completion")] if isinstance(usage, dict) else [None]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise _Final(f"the server does not count tokens (usage: {usage!r:.200}), which the report needs")
    prompt, completion = counts
    if completion == 0 and not content:
        raise _Passing("an empty reply")
    if 0 in counts:
        raise _Final(f"the server miscounts tokens (usage: {usage!r:.200}), which the report needs")
    return Reply(content, prompt, completion, stopped=reason != "length")


def _detail(error, key: str | None) -> str:
    """What the server says in an error's body, or the body itself."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return _short(said if isinstance(said, str) else error.response.text, key)


def _short(text: str, key: str | None, limit: int = 300) -> str:
    """The beginning of a server's text in one line, without the key, which some servers repeat."""
    text = " ".join((text.replace(key, "***") if key else text).split())
    return text if len(text) <= limit else text[:limit] + " …"


def _retry_after(headers) -> float:
    """Seconds that the server asks to wait, in the header's number or until its date; 0 without a usable header."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0

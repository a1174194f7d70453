"""Asking a model behind an endpoint for its replies.

What the *model* does is an observation: a reply that ran into its token limit, an empty reply that cost tokens, a
conversation that no longer fits the model's context. What happens on the *way* to it is infrastructure and never
scored: it is tried again with growing waits, and then stops the run with an ``EndpointError``.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from knapsack.agent import ContextFull, Reply
from knapsack.endpoints import chat_api
from knapsack.endpoints.chat_api import LastingError, PassingError, error_detail, root_cause
from knapsack.endpoints.endpoint import Endpoint, EndpointError, packages, service
from knapsack.endpoints.reply_cache import ReplyCache
from knapsack.prompts import Message
from knapsack.runs import digest

PROBE = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say OK."}]
PROBE_TOKENS = 64  # room for a short thought: some models refuse a limit that ends within one


class SpendingCapReached(EndpointError):
    """``max_total_tokens`` are spent."""


class Client:
    """Asks an endpoint, from any number of threads at once; use as a context manager.

    ``temperature`` None sends none: the provider's default. ``check`` is called several times a second while an
    answer is waited for; what it raises ends the wait and the request.

    A reply that is in ``replies`` is not asked for again, and a new one goes there: so equal conversations get equal
    replies, in whichever cell they occur. No request is sent once ``max_total_tokens`` (0: no cap) are spent according
    to ``replies``; requests that this client has under way then still end and their replies are kept. So the cap is
    exceeded by one prompt and reply per thread (of every process that asks) at most. Raises ValueError for a cap
    without ``replies``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None = None,
        *,
        temperature: float | None,
        max_new_tokens: int,
        context_length: int,
        seed: int,
        check: Callable[[], None] = lambda: None,
        replies: ReplyCache | None = None,
        max_total_tokens: int = 0,
    ):
        self._anyio, self._openai, tenacity = packages()
        if max_total_tokens < 0 or (max_total_tokens and replies is None):
            raise ValueError(f"max_total_tokens = {max_total_tokens}: needs a number from 0 on and a reply cache")
        self.endpoint, self._key = endpoint, key
        self.temperature = temperature if endpoint.temperature is None else endpoint.temperature
        self.max_new_tokens, self.context_length, self.seed = max_new_tokens, context_length, seed
        self.check, self.replies, self.max_total_tokens = check, replies, max_total_tokens
        self._under_way = 0  # requests; only the portal's thread counts them
        self._limit = "max_tokens"  # known everywhere; newer models of some providers want max_completion_tokens
        first = endpoint.first_wait
        backoff = tenacity.wait_exponential_jitter(multiplier=first, max=chat_api.LONGEST_WAIT, jitter=first)
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            wait=backoff + tenacity.wait_exception(lambda error: error.retry_after),
            stop=tenacity.stop_after_attempt(endpoint.tries),
            reraise=True,
        )

    def __enter__(self) -> Self:
        self._service = service(self._openai, self.endpoint, self._key, self.endpoint.timeout, 0)
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
        EndpointError (SpendingCapReached) for whatever else keeps the reply from coming.
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
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}|{json.dumps(messages)}".encode()).digest()[:4]) >> 1
        try:
            async for attempt in self._retrying.copy():
                with attempt:
                    tries += 1
                    reply = await self._remembered(messages, seed)
                    if reply.prompt_tokens >= self.context_length:
                        said = f"the conversation has {reply.prompt_tokens} tokens, the context {self.context_length}"
                        raise ContextFull(said)
                    return reply
        except ContextFull as full:
            if turn > 1:
                raise
            problem = f"{full}: not even the opening prompt fits; serve it, or run, with a longer context"
        except LastingError as error:
            problem = str(error)
        except PassingError as error:
            problem = f"{error}; tried {tries} times: run again when the endpoint answers"
        raise EndpointError(f"turn {turn}, {self.endpoint.where}: {problem}")

    async def _remembered(self, messages: list[Message], seed: int) -> Reply:
        """The stored reply, or one try to get it and to store it."""
        if self.replies is None:
            return chat_api.read_reply(await self._answer(messages, seed), self._key)
        sampling = {"temperature": self.temperature, "seed": seed, "max_new_tokens": self.max_new_tokens}
        key = digest(json.dumps([self.endpoint.identity | sampling, messages], sort_keys=True))
        if reply := self.replies.find(key):
            return reply
        body = await self._answer(messages, seed)
        try:
            return self.replies.store(key, chat_api.read_reply(body, self._key))
        except (PassingError, LastingError):
            self.replies.charge(chat_api.billed_tokens(body))
            raise

    async def _answer(self, messages: list[Message], seed: int) -> str:
        """The body of the answer; asks again at once if the server wants its token limit in another way."""
        limit = {self._limit: self.max_new_tokens}
        while True:
            await self._afford()
            self._under_way += 1
            try:
                return await self._request(messages, seed, limit)
            except self._openai.APIStatusError as error:
                status, detail = error.status_code, error_detail(error, self._key)
                problem = f"HTTP {status}: {detail}"
                if status < 500 and chat_api.CONTEXT_FULL.search(f"{error.code} {error.type} {detail}"):
                    if not limit:
                        raise ContextFull(f"the server's context is full: {detail}") from error
                    limit = {}  # prompt and limit are too long together: may the reply have what the prompt leaves?
                elif status == 400 and "max_tokens" in limit and "max_completion_tokens" in detail:
                    self._limit = "max_completion_tokens"
                    limit = {self._limit: self.max_new_tokens}
                elif (status in chat_api.PASSING or status >= 500) and error.code != "insufficient_quota":
                    raise PassingError(problem, chat_api.retry_after(error.response.headers)) from error
                else:
                    remedy = chat_api.REMEDIES.get(status, "the server refuses such requests")
                    raise LastingError(f"{problem}; {remedy}") from error
            finally:
                self._under_way -= 1

    async def _afford(self) -> None:
        """Return if there is something left to spend."""
        if not self.max_total_tokens or self.replies.spent() < self.max_total_tokens:
            return
        while self._under_way:  # what this raises ends the run: first let the others finish what is to be paid anyway
            await self._anyio.sleep(0.05)
        raise SpendingCapReached(
            f"{self.endpoint.where}: {self.replies.spent():,} tokens are spent, max_total_tokens = "
            f"{self.max_total_tokens:,}; the same command with a higher one goes on from here and pays nothing twice"
        )

    async def _request(self, messages: list[Message], seed: int, limit: dict[str, int]) -> str:
        """One request; the body of its answer."""
        create = self._service.chat.completions.with_raw_response.create
        options = {"model": self.endpoint.model, "seed": seed, **limit}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        try:
            with self._anyio.fail_after(self.endpoint.timeout):  # in all: a server may send a byte now and then
                return (await create(messages=messages, extra_body=self.endpoint.extra or None, **options)).text
        except (TimeoutError, self._openai.APITimeoutError) as error:
            raise PassingError(f'no whole answer within {self.endpoint.timeout:g} s ("timeout" allows more)') from error
        except self._openai.APIConnectionError as error:
            raise PassingError(f"the connection failed: {root_cause(error)}") from error


def ask_once(
    endpoint: Endpoint,
    key: str | None = None,
    *,
    temperature: float | None,
    replies: ReplyCache | None = None,
    max_total_tokens: int = 0,
) -> None:
    """One tiny request, as an episode would send it: whether the server knows the model and takes what we send.

    Costs ``PROBE_TOKENS`` and the few of its prompt at most, and nothing once its reply is in ``replies``. Raises
    EndpointError (SpendingCapReached), with what the server says, after two tries.
    """
    options = {"temperature": temperature, "max_new_tokens": PROBE_TOKENS, "context_length": sys.maxsize, "seed": 0}
    brief = replace(endpoint, tries=min(2, endpoint.tries))
    with Client(brief, key, replies=replies, max_total_tokens=max_total_tokens, **options) as client:
        client.reply(PROBE)

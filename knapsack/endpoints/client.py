"""Asking a model behind an endpoint for its replies, and what its answers mean.

What the *model* does is an observation: a reply that ran into its token limit, an empty reply that cost tokens, a
conversation that no longer fits the model's context. What happens on the *way* to it is infrastructure and never
scored: it is tried again with growing waits, and then stops the run with an ``EndpointError``.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import KW_ONLY, dataclass, field

from knapsack.agent import ContextFull, Reply
from knapsack.endpoints.endpoint import Endpoint, EndpointError, explain, packages, service, short
from knapsack.endpoints.replies import Replies
from knapsack.prompts import Message
from knapsack.runs import digest

TRIES = 16  # of a request: the waits between them (``endpoint.service``) make some 85 s
ANSWERS = 4  # how often a reply is asked for if answers come that hold none
FIRST_WAIT = 1.0  # seconds after the first of them; then it doubles
PROBE = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say OK."}]
PROBE_TOKENS = 64  # room for a short thought: some models refuse a limit that ends within one
INTERRUPTED = (None, "content_filter", "abort", "error")  # finish reasons that say the reply is not what the model said
# OpenAI, vLLM, llama.cpp, SGLang, TGI and others; each says it in its own words.
CONTEXT_FULL = re.compile(
    r"context_length_exceeded|exceed_context_size"
    r"|maximum context length|maximum model length|exceeds? (the |the model's )?(available |maximum )?context"
    r"|longer than the (model's|maximum) (context|model)|context length is only|prompt is too long"
    r"|input token count .* exceeds|`inputs` tokens \+ `max_new_tokens`|reduce the length of the (messages|prompt)",
    re.IGNORECASE,
)


class SpendingCapReached(EndpointError):
    """``max_total_tokens`` are spent."""


class NoReply(Exception):
    """No answer, or one that holds no reply but cost ``tokens``; ``again``: the next one may hold one."""

    def __init__(self, problem: str, again: bool, tokens: int = 0):
        super().__init__(problem)
        self.again, self.tokens = again, tokens


@dataclass(eq=False)
class Client:
    """Asks an endpoint, from any number of threads at once.

    ``temperature`` None sends none: the provider's default. ``check`` is called before a request and several times a
    second while its answer is waited for; what it raises ends the wait. The request then goes on in a thread that
    dies with the process: nothing cancels it, and ``os._exit`` would leave the sandbox's processes to themselves.

    A reply that is in ``replies`` is not asked for again, and a new one goes there: so equal conversations get equal
    replies, in whichever cell they occur. No request is sent once ``max_total_tokens`` (0: no cap) are spent according
    to ``replies``; requests that this client has under way then still end and their replies are kept. So the cap is
    exceeded by one prompt and reply per thread (of every process that asks) at most.
    """

    endpoint: Endpoint
    key: str | None = field(repr=False)
    replies: Replies
    _: KW_ONLY
    temperature: float | None
    max_new_tokens: int
    context_length: int
    seed: int
    max_total_tokens: int = 0
    check: Callable[[], None] = lambda: None
    tries: int = TRIES

    def __post_init__(self):
        self._openai, _ = packages()
        self._service = service(self.endpoint, self.key, self.endpoint.timeout, self.tries)
        self._under_way: list[str] = []  # what is asked for now
        self._limit = "max_tokens"  # known everywhere; newer models of some providers want max_completion_tokens
        if self.endpoint.temperature is not None:
            self.temperature = self.endpoint.temperature

    def reply(self, messages: list[Message]) -> Reply:
        """The model's reply with the server's count of tokens.

        Raises ContextFull if the conversation does not fit the server's context or ``context_length``, and
        EndpointError (SpendingCapReached) for whatever else keeps the reply from coming.
        """
        reply: Future[Reply] = Future()

        def ask() -> None:
            try:
                reply.set_result(self._reply(messages))
            except BaseException as error:
                reply.set_exception(error)

        self.check()
        threading.Thread(target=ask, daemon=True).start()
        while not wait([reply], timeout=0.2).done:
            self.check()
        return reply.result()

    def _reply(self, messages: list[Message]) -> Reply:
        turn = 1 + sum(message["role"] == "assistant" for message in messages)
        seed = int(digest(f"{self.seed}|{json.dumps(messages)}")[:8], 16) >> 1
        sampling = {"temperature": self.temperature, "seed": seed, "max_new_tokens": self.max_new_tokens}
        key = digest(json.dumps([self.endpoint.identity | sampling, messages], sort_keys=True))
        for number in range(1, min(self.tries, ANSWERS) + 1):
            try:
                reply = self.replies.find(key) or self._paid(key, messages, seed)
                if reply.prompt_tokens < self.context_length:
                    return reply
                lengths = f"{reply.prompt_tokens} tokens, the context {self.context_length}"
                raise ContextFull(f"the conversation has {lengths}")
            except ContextFull as full:
                if turn > 1:
                    raise
                problem = f"{full}: not even the opening prompt fits; serve it, or run, with a longer context"
                break
            except NoReply as error:
                problem = f"{error}; tried {number} times" if number > 1 else str(error)
                if not error.again:
                    break
                time.sleep(FIRST_WAIT * 2 ** (number - 1))
        raise EndpointError(f"turn {turn}, {self.endpoint.where}: {problem}")

    def _paid(self, key: str, messages: list[Message], seed: int) -> Reply:
        """The reply of one answer, stored. Raises NoReply when what it cost is counted."""
        while self.max_total_tokens and self.replies.spent() >= self.max_total_tokens:
            if not self._under_way:
                spent = f"{self.replies.spent():,} tokens are spent, max_total_tokens = {self.max_total_tokens:,}"
                resume = "the same command with a higher one goes on from here and pays nothing twice"
                raise SpendingCapReached(f"{self.endpoint.where}: {spent}; {resume}")
            time.sleep(0.05)  # what this raises ends the run: first let the others finish what is to be paid anyway
        self._under_way.append(key)
        try:
            return self.replies.store(key, read_reply(self._answer(messages, seed), self.key))
        except NoReply as error:
            self.replies.charge(error.tokens)
            raise
        finally:
            self._under_way.remove(key)

    def _answer(self, messages: list[Message], seed: int) -> str:
        """The body of the answer; asks again at once if the server wants its token limit in another way."""
        options = {"model": self.endpoint.model, "seed": seed, "extra_body": self.endpoint.extra or None}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        create, limit = self._service.chat.completions.with_raw_response.create, {self._limit: self.max_new_tokens}
        while True:
            try:
                return create(messages=messages, **options, **limit).text
            except self._openai.APIError as error:
                status, said = getattr(error, "status_code", None), str(error)  # with the whole body
                if status in range(400, 500) and CONTEXT_FULL.search(said):
                    if not limit:
                        raise ContextFull(f"the server's context is full: {short(said, self.key)}") from error
                    limit = {}  # prompt and limit are too long together: may the reply have what the prompt leaves?
                elif status == 400 and "max_tokens" in limit and "max_completion_tokens" in said:
                    self._limit = "max_completion_tokens"
                    limit = {self._limit: self.max_new_tokens}
                else:
                    raise NoReply(explain(error, self.key), again=False) from error


def read_reply(body: str, key: str | None) -> Reply:
    """The reply in the body of an answer. Tokens of hidden thoughts, which some servers count in the total alone, are
    part of its completion. Raises NoReply, for good if the server does not count tokens."""
    counts = (0, 0)
    try:
        answer = json.loads(body)
        counts = _counts(answer.get("usage"))
        choice = answer["choices"][0]
        content, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        text = content.encode("utf-8", "replace").decode()  # half a surrogate pair fits no file
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoReply(f"the answer is no chat completion: {short(body, key)}", True, sum(counts)) from error
    if reason in INTERRUPTED:
        raise NoReply(f"the reply was interrupted (finish_reason {reason})", True, sum(counts))
    if not text and not counts[1]:
        raise NoReply("an empty reply", True, sum(counts))
    if 0 in counts:
        usage = short(repr(answer.get("usage")), key)
        raise NoReply(f"the server does not count tokens (usage: {usage}), which the report needs", False, sum(counts))
    return Reply(text, *counts, stopped=reason != "length")


def _counts(usage: object) -> tuple[int, int]:
    """Tokens of prompt and completion, 0 where the server does not tell."""
    named = usage if isinstance(usage, dict) else {}
    told = (named.get(f"{part}_tokens") for part in ("prompt", "completion", "total"))
    prompt, completion, total = (count if type(count) is int and count > 0 else 0 for count in told)
    return prompt, max(completion, total - prompt) if prompt else completion


def ask_once(endpoint: Endpoint, key: str | None, replies: Replies, *, temperature: float | None, max_total_tokens=0):
    """One tiny request, as an episode would send it: whether the server knows the model and takes what we send.

    Costs ``PROBE_TOKENS`` and the few of its prompt at most, and nothing once its reply is in ``replies``. Raises
    EndpointError (SpendingCapReached), with what the server says, after two tries.
    """
    options = {"temperature": temperature, "max_new_tokens": PROBE_TOKENS, "context_length": sys.maxsize, "seed": 0}
    Client(endpoint, key, replies, max_total_tokens=max_total_tokens, tries=2, **options).reply(PROBE)

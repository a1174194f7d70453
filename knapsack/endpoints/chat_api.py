"""What the answers of a chat endpoint mean."""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from knapsack.agent import Reply

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


class PassingError(Exception):
    """A failure worth another try, not before ``retry_after`` seconds."""

    def __init__(self, what: str, retry_after: float = 0.0):
        super().__init__(what)
        self.retry_after = min(retry_after, LONGEST_WAIT)


class LastingError(Exception):
    """A failure that another try would repeat."""


def read_reply(body: str, key: str | None) -> Reply:
    """The reply in the body of an answer. Tokens of hidden thoughts, which some servers count in the total alone, are
    part of its completion.

    Raises PassingError if there is no reply in it, LastingError if its usage is missing or wrong.
    """
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        content, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        if not isinstance(content, str):
            raise TypeError("the content is no text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PassingError(f"the answer is no chat completion: {short(body, key)}") from error
    if reason in INTERRUPTED:
        raise PassingError(f"the reply was interrupted (finish_reason {reason})")
    counts = _usage(answer)
    if counts is None:
        usage = short(repr(answer.get("usage")), key)
        raise LastingError(f"the server does not count tokens (usage: {usage}), which the report needs")
    prompt, completion = counts
    if completion == 0 and not content:
        raise PassingError("an empty reply")
    if 0 in counts:
        usage = short(repr(answer["usage"]), key)
        raise LastingError(f"the server miscounts tokens (usage: {usage}), which the report needs")
    return Reply(content, prompt, completion, stopped=reason != "length")


def billed_tokens(body: str) -> int:
    """The tokens of an answer, whatever else is wrong with it; 0 if it does not say."""
    try:
        return sum(_usage(json.loads(body)) or ())
    except (ValueError, AttributeError, RecursionError):
        return 0


def _usage(answer: dict) -> tuple[int, int] | None:
    """Tokens of prompt and completion, None if the server does not tell."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = (usage.get(f"{part}_tokens") for part in ("prompt", "completion", "total"))
    if not all(type(count) is int and count >= 0 for count in (prompt, completion)):
        return None
    return prompt, max(completion, total - prompt) if type(total) is int else completion


def error_detail(error, key: str | None) -> str:
    """What the server says in the body of a refusal (an ``openai.APIStatusError``), or the body itself."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return short(said if isinstance(said, str) else error.response.text, key)


def short(text: str, key: str | None, limit: int = 300) -> str:
    """The beginning of a server's text in one line, without the key, which some servers repeat."""
    text = " ".join((text.replace(key, "***") if key else text).split())
    return text if len(text) <= limit else text[:limit] + " …"


def root_cause(error: BaseException) -> str:
    """What the innermost of the errors that led to this one says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or repr(error)


def retry_after(headers) -> float:
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

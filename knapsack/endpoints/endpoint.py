"""OpenAI-compatible chat endpoints (a hosted model, vLLM, llama.cpp, transformers serve): which model is where, with
which key, and whether somebody answers.

What is sent depends on the arguments alone. Of the environment only what belongs to the machine's network counts:
proxies (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) and certificates (``SSL_CERT_FILE``,
``SSL_CERT_DIR``).
"""

import json
import os
import re
import time
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from knapsack.runs import one_line

# Fields of a request that have their own place in the settings, or on which the reading of the answer rests.
NOT_EXTRA = {"model", "messages", "seed", "stream", "n", "temperature", "max_tokens", "max_completion_tokens"}
CHECK_SECONDS = 10.0  # of a try of check_server, which tries twice
REMEDIES = {
    401: 'the key is refused or missing: "key" names the environment variable that holds it',
    403: "the key may not use this model",
    404: "check the model's name, and that the address is the API's root (it mostly ends in /v1)",
} | dict.fromkeys((408, 409, 429, *range(500, 600)), "run again when it is ready")


class EndpointError(RuntimeError):
    """The endpoint failed: not the model's doing, never scored. The message names endpoint, turn, cause and remedy."""


def _address(url: str) -> str:
    if not re.fullmatch(r"https?://(\[[\da-fA-F:.]+\]|[\w.-]+)(:[1-9]\d{0,4})?(/[^\s@?#]*)?", url, re.ASCII):
        raise ValueError("needs an address http(s)://… without a key in it: it is recorded")
    return url


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError("needs the NAME of the environment variable with the key, not the key")
    return name


def _free(extra: dict) -> dict:
    if reserved := sorted(NOT_EXTRA & extra.keys()):
        raise ValueError(f"may not set {reserved[0]!r}, which the report sets")
    return extra


class Endpoint(BaseModel):
    """Where a model is served, as an entry of a notebook's parameter says it.

    ``url`` (in the entry: "endpoint") is the API's root (``https://…/v1``), ``model`` its name there.
    ``key_variable`` ("key") is the NAME of the environment variable with the key (None: the server wants none); the
    key itself is stored nowhere. An answer may take ``timeout`` seconds in all. ``temperature`` None is the caller's;
    ``extra`` are further fields of the request's body, such as ``{"reasoning_effort": "low"}``. ``weights`` is the
    digest of what is served, where it is known: replies of other weights are other replies.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)

    url: Annotated[str, AfterValidator(_address)] = Field(alias="endpoint")
    model: str
    key_variable: Annotated[str, AfterValidator(_variable)] | None = Field(None, alias="key")
    timeout: float = Field(600.0, gt=0)
    temperature: float | None = Field(None, ge=0)
    extra: Annotated[dict[str, JsonValue], AfterValidator(_free)] = {}
    weights: str | None = None

    @property
    def where(self) -> str:
        return f"{self.url} (model {self.model})"

    @property
    def identity(self) -> dict:
        """What of this determines the replies, without what is not set; for records."""
        return self.model_dump(exclude={"key_variable", "timeout"}, exclude_defaults=True)


def read_endpoint(name: str, entry: dict) -> Endpoint:
    """The endpoint that an entry of a notebook's parameter describes.

    Raises ValueError naming the entry, the field and what it may be, but never showing what might be a secret.
    """
    try:
        return Endpoint.model_validate(entry, by_name=False)
    except ValidationError as error:
        raise ValueError(one_line(error, f"endpoint {name!r}", secret=True)) from None


def read_served(models: dict[str, dict], server: str = "") -> dict[str, Endpoint]:
    """The endpoints by name among notebook 04's ``models``: those with an entry of their own, and with a ``server`` all
    others, which it serves by these names. Raises ValueError naming the entry and what is wrong with it."""
    entries = {name: entry or {"endpoint": server, "model": name} for name, entry in models.items() if entry or server}
    for name in entries:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name == "teacher":
            raise ValueError(f"endpoint {name!r}: a name has letters, digits, '_', '.', '-', and is not \"teacher\"")
    return {name: read_endpoint(name, entry) for name, entry in entries.items()}


def read_key(endpoint: Endpoint) -> str | None:
    """The key of an endpoint, before it is asked; the one place of the library that reads a key.

    Raises ValueError if it is not set or no key, and ImportError, with the remedy, without the ``api`` extra.
    """
    packages()
    if endpoint.key_variable is None:
        return None
    key = os.environ.get(endpoint.key_variable)
    if not key:
        raise ValueError(f"{endpoint.where}: the environment variable {endpoint.key_variable}, its key, is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):  # an error about the header would show it
        raise ValueError(f"{endpoint.where}: {endpoint.key_variable} holds what no key has, such as a line break")
    return key


def packages():
    """The modules openai and httpx2. Raises ImportError, with the remedy, without the ``api`` extra."""
    try:
        import httpx2
        import openai
    except ImportError as error:
        raise ImportError(f'{error}; for endpoints: pip install "knapsack-runtime-report[api]"') from error
    return openai, httpx2


def service(endpoint: Endpoint, key: str | None, timeout: float, tries: int):
    """The provider's client, without what it reads of the environment: that may belong to another provider.

    It tries a request ``tries`` times if the connection or the server fails (HTTP 408, 409, 429, from 500 on), after
    0.5 s, 1 s and so on up to 8 s, or what the server's Retry-After says, up to two minutes.
    """
    openai, httpx2 = packages()

    class Timed(httpx2.SyncByteStream):
        """The body of an answer, until ``timeout``: the limits of httpx are for each part, and a server may drip."""

        def __init__(self, response):
            self.parts, self.until = response.stream, response.request.extensions["until"]
            self.close = self.parts.close

        def __iter__(self):
            for part in self.parts:
                if time.monotonic() > self.until:
                    raise httpx2.ReadTimeout("the answer is not whole")
                yield part

    hooks = {
        "request": [lambda request: request.extensions.update(until=time.monotonic() + timeout)],
        "response": [lambda response: setattr(response, "stream", Timed(response))],
    }
    limits = {"timeout": openai.Timeout(timeout, connect=min(10.0, timeout)), "max_retries": tries - 1}
    http = openai.DefaultHttpxClient(event_hooks=hooks)
    client = openai.OpenAI(api_key=key or "none", base_url=endpoint.url, http_client=http, **limits)
    client.organization = client.project = None
    client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS, which no argument replaces
    return client


def explain(error, key: str | None) -> str:
    """What an ``openai.APIError`` says, after how many tries, and what to do about it."""
    openai, _ = packages()
    tries = 1 + int(error.request.headers.get("x-stainless-retry-count", 0))
    tried = f"; tried {tries} times" if tries > 1 else ""
    if isinstance(error, openai.APITimeoutError):
        seconds = error.request.extensions["timeout"]["read"]
        return f'no whole answer within {seconds:g} s ("timeout" allows more){tried}'
    if isinstance(error, openai.APIConnectionError):
        said = short(str(error.__cause__), key)
        return f"the connection failed ({said}){tried}; start the server, or check the address"
    said = error.body.get("message") if isinstance(error.body, dict) else error.response.text
    remedy = REMEDIES.get(error.status_code, "the server refuses such requests")
    return f"HTTP {error.status_code}: {short(str(said), key)}{tried}; {remedy}"


def short(text: str, key: str | None, limit: int = 300) -> str:
    """The beginning of a server's text in one line, without the key, which some servers repeat."""
    text = " ".join((text.replace(key, "***") if key else text).split())
    return text if len(text) <= limit else text[:limit] + " …"


def check_server(endpoint: Endpoint, key: str | None = None) -> str | None:
    """Ask the server for the list of its models, which costs nothing and takes twice ``CHECK_SECONDS`` at most.

    Returns a sentence if that leaves open whether it knows the model (there is no list, or the model is not in it,
    as with an alias), else None. Raises EndpointError, with the remedy, if nobody answers or the key is refused.
    """
    openai, _ = packages()
    doubt = f"whether it knows {endpoint.model!r} shows at the first request"
    try:
        listed = service(endpoint, key, CHECK_SECONDS, tries=2).models.with_raw_response.list().text
        models = [str(model["id"]) for model in json.loads(listed)["data"]]
    except openai.APIError as error:
        problem = f"{endpoint.where}: {explain(error, key)}"
        if getattr(error, "status_code", None) in (403, 404, 405, 501):  # not for this key, or not at all
            return f"{problem}; it shows no list of models: {doubt}"
        raise EndpointError(problem) from error
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"{endpoint.where} shows no list of models: {doubt}"
    if any(name == endpoint.model or name.endswith(f"/{endpoint.model}") for name in models):
        return None
    return f"{endpoint.where} lists {short(', '.join(models), key) or 'no model'}: {doubt}"

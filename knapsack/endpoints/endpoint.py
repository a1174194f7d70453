"""OpenAI-compatible chat endpoints (a hosted model, vLLM, llama.cpp, transformers serve): which model is where, with
which key, and whether somebody answers.

What is sent depends on the arguments alone. Of the environment only what belongs to the machine's network counts:
proxies (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) and certificates (``SSL_CERT_FILE``,
``SSL_CERT_DIR``).
"""

import json
import os
import re
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from knapsack.endpoints import chat_api
from knapsack.endpoints.chat_api import error_detail, root_cause

ENTRY = {  # a notebook's words for the fields of an Endpoint
    "endpoint": "url",
    "model": "model",
    "key": "key_variable",
    "timeout": "timeout",
    "temperature": "temperature",
    "extra": "extra",
}
# Fields of a request that have their own place in the settings, or on which the reading of the answer rests.
NOT_EXTRA = {"model", "messages", "seed", "stream", "n", "temperature", "max_tokens", "max_completion_tokens"}
CHECK_SECONDS = 20.0  # patience of check_server


class EndpointError(RuntimeError):
    """The endpoint failed: not the model's doing, never scored. The message names endpoint, turn, cause and tries."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. ``url`` is the API's root (``https://…/v1``), ``model`` its name there.

    ``key_variable`` is the NAME of the environment variable with the key (None: the server wants none); the key
    itself is stored nowhere. A request may take ``timeout`` seconds in all and is tried ``tries`` times; the wait
    between two tries starts at ``first_wait`` seconds and doubles. ``temperature`` None is the caller's; ``extra``
    are further fields of the request's body, such as ``{"reasoning_effort": "low"}``. ``weights`` is the digest of
    what is served, where it is known: replies of other weights are other replies.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 600.0
    tries: int = 8
    first_wait: float = 1.0
    temperature: float | None = None
    extra: dict = field(default_factory=dict)
    weights: str | None = None

    @property
    def where(self) -> str:
        return f"{self.url} (model {self.model})"

    @property
    def identity(self) -> dict:
        """What of this determines the replies, without what is not set; for records."""
        chosen = {"temperature": self.temperature, "extra": self.extra or None, "weights": self.weights}
        return {"url": self.url, "model": self.model} | {k: value for k, value in chosen.items() if value is not None}


def read_endpoint(name: str, entry: dict) -> Endpoint:
    """The endpoint that an entry of a notebook's parameter describes.

    Raises ValueError naming the entry and what is wrong with it, but never showing what might be a secret.
    """
    problem = f"endpoint {name!r}"
    if not isinstance(entry, dict) or not {"endpoint", "model"} <= entry.keys() <= ENTRY.keys():
        found = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
        optional = ", ".join(f'"{key}"' for key in list(ENTRY)[2:])
        raise ValueError(f'{problem} has {found}: needs "endpoint" and "model"; may have {optional}')
    types = {known.name: known.type for known in fields(Endpoint)}
    values = {ENTRY[key]: float(value) if type(value) is int else value for key, value in entry.items()}
    if wrong := [key for key in entry if not isinstance(values[ENTRY[key]], types[ENTRY[key]])]:
        raise ValueError(f'{problem}: "{wrong[0]}" may not be a {type(entry[wrong[0]]).__name__}')
    endpoint = Endpoint(**values)
    try:
        address = urlsplit(endpoint.url)
        complete = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(f'{problem}: "endpoint" is no address http(s)://…')
    if address.username or address.password or address.query:
        raise ValueError(f'{problem}: the address is recorded: no secret in it; "key" names a variable')
    if endpoint.key_variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", endpoint.key_variable, re.ASCII):
        raise ValueError(f'{problem}: "key" is the NAME of the environment variable with the key, not the key')
    if not endpoint.timeout > 0:
        raise ValueError(f"{problem}: timeout = {endpoint.timeout:g}: needs seconds above 0")
    if endpoint.temperature is not None and not 0 <= endpoint.temperature < float("inf"):
        raise ValueError(f"{problem}: temperature = {endpoint.temperature:g}: needs a number from 0 on")
    if reserved := sorted(NOT_EXTRA & endpoint.extra.keys()):
        raise ValueError(f'{problem}: "extra" may not set {reserved[0]!r}, which the report sets')
    try:
        json.dumps(endpoint.extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{problem}: "extra" is no JSON: {error}') from error
    return endpoint


def read_endpoints(entries: dict[str, dict]) -> dict[str, Endpoint]:
    """Endpoints by name from notebook 04's parameter. Raises ValueError naming the entry and what is wrong with it."""
    for name in entries:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name == "teacher":
            raise ValueError(f"endpoint {name!r}: a name has letters, digits, '_', '.', '-', and is not \"teacher\"")
    return {name: read_endpoint(name, entry) for name, entry in entries.items()}


def read_served(models: dict[str, dict], server: str = "") -> dict[str, Endpoint]:
    """The endpoints among notebook 04's ``models``: those with an entry of their own, and with a ``server`` all others,
    which it serves by these names. Raises ValueError as ``read_endpoints``."""
    own = {"endpoint": server}
    return read_endpoints({name: entry or own | {"model": name} for name, entry in models.items() if entry or server})


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


def packages() -> tuple:
    """The modules anyio, openai and tenacity. Raises ImportError, with the remedy, without the ``api`` extra."""
    try:
        import anyio.from_thread
        import openai
        import tenacity
    except ImportError as error:
        raise ImportError(f'{error}; for endpoints: pip install "knapsack-runtime-report[api]"') from error
    return anyio, openai, tenacity


def service(openai, endpoint: Endpoint, key: str | None, timeout: float, max_retries: int):
    """The provider's client, without what it reads of the environment: that may belong to another provider."""
    limits = openai.Timeout(timeout, connect=min(10.0, timeout))
    client = openai.AsyncOpenAI(api_key=key or "none", base_url=endpoint.url, timeout=limits, max_retries=max_retries)
    client.organization = client.project = None
    client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS, which no argument replaces
    return client


def check_server(endpoint: Endpoint, key: str | None = None) -> str | None:
    """Ask the server for the list of its models, which costs nothing and takes ``CHECK_SECONDS`` at most.

    Returns a sentence if that leaves open whether it knows the model (there is no list, or the model is not in it,
    as with an alias), else None. Raises EndpointError, with the remedy, if nobody answers or the key is refused.
    """
    anyio, openai, _ = packages()

    async def ask() -> str:
        async with service(openai, endpoint, key, CHECK_SECONDS, max_retries=2) as client:
            with anyio.fail_after(CHECK_SECONDS):
                return (await client.models.with_raw_response.list()).text

    open_question = f"whether it knows {endpoint.model!r} shows at the first request"
    try:
        with anyio.from_thread.start_blocking_portal() as portal:  # a notebook has an event loop of its own
            models = [str(model["id"]) for model in json.loads(portal.call(ask))["data"]]
    except (TimeoutError, openai.APIConnectionError) as error:
        late = isinstance(error, TimeoutError | openai.APITimeoutError)
        cause = f"within {CHECK_SECONDS:g} s" if late else f"({root_cause(error)})"
        remedy = "start the server, or check the address"
        raise EndpointError(f"{endpoint.where}: nobody answers {cause}: {remedy}") from error
    except openai.APIStatusError as error:
        status, problem = error.status_code, f"HTTP {error.status_code}: {error_detail(error, key)}"
        if status in (403, 404, 405, 501):  # not for this key, or not at all
            return f"{endpoint.where} shows no list of models ({problem}): {open_question}"
        remedy = chat_api.REMEDIES.get(status, "run again when it is ready")
        raise EndpointError(f"{endpoint.where}: {problem}; {remedy}") from error
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"{endpoint.where} shows no list of models: {open_question}"
    if any(name == endpoint.model or name.endswith(f"/{endpoint.model}") for name in models):
        return None
    return f"{endpoint.where} lists {chat_api.short(', '.join(models), key) or 'no model'}: {open_question}"

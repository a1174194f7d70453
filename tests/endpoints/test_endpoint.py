"""What a user says of an endpoint, and whether somebody answers there."""

import re

import pytest
from endpoint_server import EndpointServer, answer, drip, error, hang, models, reset

from knapsack.endpoints.endpoint import Endpoint, EndpointError, check_server, read_endpoint, read_key, read_served

GOOD = {"endpoint": "http://h/v1", "model": "m"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (GOOD, Endpoint(url="http://h/v1", model="m")),
        (GOOD | {"endpoint": "http://[::1]:80"}, Endpoint(url="http://[::1]:80", model="m")),
        (GOOD | {"key": "K", "timeout": 5}, Endpoint(url="http://h/v1", model="m", key_variable="K", timeout=5.0)),
        (GOOD | {"temperature": 1, "extra": {"a": [1.5]}}, Endpoint(**GOOD, temperature=1.0, extra={"a": [1.5]})),
        ("http://h", ": input should be a valid dict"),
        ({"endpoint": "http://h"}, ".model: field required"),
        (GOOD | {"api_key": "sk-secret"}, ".api_key: "),
        (GOOD | {"model": None}, ".model = None: "),
        (GOOD | {"endpoint": "h:8000"}, ".endpoint: needs an address http"),
        (GOOD | {"endpoint": "http://[h"}, ".endpoint: needs an address http"),
        (GOOD | {"endpoint": "http://me:secret@h/v1"}, ".endpoint: .*without a key in it: it is recorded"),
        (GOOD | {"endpoint": "https://h/v1?key=secret"}, ".endpoint: .*without a key in it"),
        (GOOD | {"endpoint": "me:secret@h/v1"}, ".endpoint: "),
        (GOOD | {"timeout": 0}, ".timeout = 0: input should be greater than 0"),
        (GOOD | {"timeout": True}, ".timeout = True: input should be a valid number"),
        (GOOD | {"key": "sk-secret"}, ".key: needs the NAME of the environment variable"),
        (GOOD | {"temperature": -0.1}, ".temperature = -0.1: input should be greater than or equal to 0"),
        (GOOD | {"temperature": float("nan")}, ".temperature = nan: "),
        (GOOD | {"extra": None}, ".extra = None: "),
        (GOOD | {"extra": {"top_p": float("nan")}}, ".extra.top_p.* = nan: "),
        (GOOD | {"extra": {"top_k": 1, "seed": 1}}, ".extra: may not set 'seed', which the report sets"),
    ],
)
def test_entries_are_read_and_wrong_ones_are_named_in_a_line_without_secrets(entry, expected):
    if isinstance(expected, Endpoint):
        assert read_endpoint("a", entry) == read_served({"a": entry})["a"] == expected
        return
    with pytest.raises(ValueError, match=f"^endpoint 'a'{expected}") as caught:
        read_endpoint("a", entry)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_with_a_line_break_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret\n")
    with pytest.raises(ValueError, match="SERVED_KEY holds what no key has, such as a line break") as caught:
        read_key(Endpoint(**GOOD, key_variable="SERVED_KEY"))
    assert "secret" not in str(caught.value)


def test_a_server_serves_the_models_of_the_run_by_name_beside_others_with_their_own_place():
    models = {"base": {}, "persistent": {}, "mine": {"endpoint": "http://there/v1", "model": "m"}}
    assert set(read_served(models)) == {"mine"}
    served = read_served(models, "http://here/v1")
    places = {"base": ("http://here/v1", "base"), "persistent": ("http://here/v1", "persistent")}
    places["mine"] = ("http://there/v1", "m")
    assert {name: (place.url, place.model) for name, place in served.items()} == places
    with pytest.raises(ValueError, match=r"endpoint 'base'\.endpoint: needs an address http"):
        read_served(models, "here")
    for name in ("teacher", "a/b", ""):  # that is taken, or fits no folder
        with pytest.raises(ValueError, match=f"endpoint {name!r}: a name has letters"):
            read_served({name: models["mine"]})


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (models("a", "m"), None),
        (models("models/m"), None),
        (models("a", "b"), r"\(model m\) lists a, b: whether it knows 'm' shows at the first request"),
        (error(404), "HTTP 404.* shows no list of models"),
        (error(403, "not for secret-key"), r"HTTP 403: not for \*\*\*.* shows no list of models"),
        (answer({"data": [None]}), "shows no list of models"),
    ],
)
def test_a_server_that_answers_is_well_or_leaves_a_question(listing, said):
    with EndpointServer(str) as server:
        server.listing = listing
        told = check_server(Endpoint(url=server.url, model="m"), "secret-key")
    assert re.search(said, told) if said else told is None
    assert not server.requests


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (error(401, "wrong key secret-key"), r'HTTP 401: wrong key \*\*\*; .*"key" names the environment variable'),
        (error(503, "loading"), "HTTP 503: loading; tried 2 times; run again when it is ready"),
        (reset, "the connection failed .*; start the server, or check the address"),
        (None, "the connection failed .*refused.*; start the server, or check the address"),
        (hang, "no whole answer within 0.5 s"),
        (drip, "no whole answer within 0.5 s"),
    ],
)
def test_a_server_that_refuses_or_is_silent_is_an_error_with_a_remedy(listing, said, monkeypatch):
    if listing in (hang, drip):
        monkeypatch.setattr("knapsack.endpoints.endpoint.CHECK_SECONDS", 0.5)
    with EndpointServer(str) as server:
        endpoint, server.listing = Endpoint(url=server.url, model="m"), listing
        if listing is None:  # there is none
            server.server_close()
        with pytest.raises(EndpointError, match=said) as caught:
            check_server(endpoint, "secret-key")
    assert server.url in str(caught.value) and "secret-key" not in str(caught.value)

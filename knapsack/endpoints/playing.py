"""The cells of an evaluation whose model is behind an endpoint: who is asked, the first request, and the episodes."""

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from knapsack import agent
from knapsack.endpoints.client import Client, ask_once
from knapsack.endpoints.endpoint import Endpoint, read_key
from knapsack.endpoints.replies import Replies
from knapsack.evaluate import Job
from knapsack.runs import Run, content_digest


def with_keys(run: Run, endpoints: dict[str, Endpoint]) -> dict[str, tuple[Endpoint, str | None]]:
    """Each endpoint and its key; one that serves an adapter of this run is told apart by the adapter's weights."""
    asked = {}
    for name, endpoint in endpoints.items():
        key = read_key(endpoint)
        if (run.adapter(name) / "adapter_config.json").exists():
            endpoint = endpoint.model_copy(update={"weights": content_digest(run.adapter(name))})
        asked[name] = endpoint, key
    return asked


def kept_replies(job: Job) -> Path:
    """Where the replies of an endpoint are kept."""
    return job.episodes[0].folder.parent / "replies.sqlite"


def ask_first(jobs: Iterable[Job]) -> None:
    """One tiny request to each endpoint that is to play: what is wrong with it shows before any work."""
    for job in jobs:
        with Replies(kept_replies(job)) as replies:
            limits = {"temperature": job.settings.temperature, "max_total_tokens": job.max_total_tokens}
            ask_once(job.endpoint, job.key, replies, **limits)


def play(job: Job, plays: Iterator[tuple[str, Generator]], check: Callable[[], None]) -> None:
    """Play ``settings.slots`` episodes at once; what ``check`` raises ends the wait for an answer."""
    spending = {"max_total_tokens": job.max_total_tokens, "check": check}
    with Replies(kept_replies(job)) as replies:
        client = Client(job.endpoint, job.key, replies, **spending, **job.sampling)
        agent.run_concurrently(plays, client.reply, job.settings.slots, lambda *_: None)

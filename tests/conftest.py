"""Fixtures that several test files share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import CHECKOUT

# Two cores: a thread pool per library and per process only makes them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def checkout() -> Path:
    """The folder with run_notebooks.py, notebooks/ and knapsack/."""
    return CHECKOUT


def pytest_configure():
    """Where SIGINT is ignored at the start (nohup, a job of a script, some CI), all children would ignore it as well,
    and a test that interrupts one would wait in vain. What is handled here is the default again in a child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """In two processes (``-n 2 --dist loadgroup``), what shares a costly fixture stays together: all tests that look at
    the smallest report, which begin since they take longest, and the tests of a file with a fixture of its own."""

    def together(item) -> str | None:
        if "smallest_report" in item.fixturenames:
            return "report"
        fixtures = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        own = any(fixture.scope != "function" and fixture.baseid for fixture in fixtures)  # "" is that of a plugin's
        return item.path.stem if own else None

    items.sort(key=lambda item: together(item) != "report")
    for item in items:
        if group := together(item):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def smallest() -> dict:
    """Parameters with which the five notebooks take the least time and still do everything."""
    return {
        "n_train": 8,
        "n_pairs": 3,
        "n_easy": 2,
        "n_hard": 1,
        "max_turns": 8,
        "max_new_tokens": 48,
        "rank": 2,
        "epochs": 3.0,
        "warmup": 0.0,  # with warm-up, the first of so few steps would have a learning rate of 0
        "n_resamples": 50,
        "processes": 1,
    }


@pytest.fixture(scope="session")
def smallest_report(smallest, tmp_path_factory):
    """The folder of a run of all five notebooks at their smallest, and how run_notebooks.py ended (``seconds``)."""
    folder = tmp_path_factory.mktemp("report") / "run"
    command = [sys.executable, CHECKOUT / "run_notebooks.py", "--out", folder]
    for name, value in smallest.items():
        command += ["-p", f"{name}={value}"]
    began = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=1200)
    finished.seconds = time.monotonic() - began
    return folder, finished

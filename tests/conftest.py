"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# Two cores: a thread pool per library and per process only makes them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def checkout() -> Path:
    """The folder with run_notebooks.py, notebooks/ and knapsack/."""
    return CHECKOUT

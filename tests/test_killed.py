"""Killed at random moments and started again, the whole report ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from knapsack.analysis.metrics import CELL


def command(checkout, folder, parameters: dict) -> list[str]:
    settings = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    return [sys.executable, str(checkout / "run_notebooks.py"), "--out", str(folder), *settings]


def kill(runner: subprocess.Popen, everything: bool) -> None:
    """SIGKILL to the runner, which orphans its kernel and their workers; or to all of them at once."""
    victims = psutil.Process(runner.pid).children(recursive=True) if everything else []
    runner.kill()
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            pass
    runner.wait()


def results(folder, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "results" / f"{name}.csv").drop(columns="seconds", errors="ignore")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_killed_report_ends_like_an_uninterrupted_one(checkout, smallest, smallest_report, tmp_path, kills):
    whole, finished = smallest_report
    assert finished.returncode == 0, finished.stderr
    folder, source = tmp_path / "run", random.Random(0)
    for number in range(kills):
        with open(tmp_path / "output", "w") as output:
            runner = subprocess.Popen(command(checkout, folder, smallest), stdout=output, stderr=output)
        try:
            assert runner.wait(timeout=source.uniform(0, finished.seconds)) == 0, (tmp_path / "output").read_text()
        except subprocess.TimeoutExpired:
            kill(runner, everything=number % 2 == 1)
    last = subprocess.run(command(checkout, folder, smallest), capture_output=True, text=True)
    assert last.returncode == 0, last.stdout + last.stderr

    for name in ("episodes", "turns", "cells"):
        pd.testing.assert_frame_equal(results(folder, name), results(whole, name), check_exact=True)
    episodes = results(folder, "episodes")
    assert not episodes.duplicated([*CELL, "task_id"]).any()
    assert (episodes["status"] == "completed").all() and (results(folder, "cells")["unscored"] == 0).all()
    for pattern in ("tasks/*/tasks/knapsack/*.json", "*/*/knapsack/*.trace.json", "training/*/adapter/*.safetensors"):
        paths = sorted(path.relative_to(whole) for path in whole.glob(pattern))
        assert paths and paths == sorted(path.relative_to(folder) for path in folder.glob(pattern))
        assert [path for path in paths if (whole / path).read_bytes() != (folder / path).read_bytes()] == []


@pytest.mark.long
def test_second_run_into_the_folder_of_a_first_one_refuses(checkout, smallest, tmp_path):
    call = command(checkout, tmp_path / "run", smallest)
    first = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "manifest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        second = subprocess.run(call, capture_output=True, text=True)
        assert second.returncode == 2 and "another run is writing to" in second.stderr
    finally:
        kill(first, everything=True)

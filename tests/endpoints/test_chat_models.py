"""A chat model without any training: as the teacher of notebook 02, and as the subject of notebook 04."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest
from endpoint_server import EndpointServer

from knapsack import traces
from knapsack.runs import open_run
from knapsack.runtime import KINDS
from knapsack.teacher import RuleTeacher
from knapsack.training_data import read_rows


def chat_teacher(messages: list[dict]) -> str:
    """A served model with good habits: it replies as the rule-based teacher would, told from the conversation alone."""
    stated = re.search(r"Runtime: (\w+)", messages[0]["content"])
    if not stated:
        return "OK."  # asked first, whether it can be asked at all
    kind = stated.group(1)
    facts = {name: int(re.search(rf"{name}[^:=\n]*[:=] (\d+)", messages[1]["content"]).group(1)) for name in FACTS}
    task = SimpleNamespace(capacity=facts["capacity"], inspect_budget=facts["budget"], seed=0)
    teacher = RuleTeacher(task, kind, seed=facts["capacity"])
    teacher.writer.plan = replace(teacher.writer.plan, slip=None, overreach=False)
    return [teacher(messages[:end]) for end in range(2, len(messages) + 1, 2)][-1].text


FACTS = ("capacity", "budget")


def run_notebook(checkout, folder, number: int, **values) -> None:
    command = [sys.executable, checkout / "run_notebooks.py", "--out", folder, "--only", str(number)]
    for name, value in ({"processes": 1} | values).items():
        command += ["-p", f"{name}={json.dumps(value) if isinstance(value, dict) else value}"]
    environment = os.environ | {"SERVED_KEY": "sk-very-secret"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr


def shown(folder, step: str) -> str:
    """All that an executed notebook displays as text."""
    notebook = nbformat.read(folder / "notebooks" / f"{step}.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(str(output.get("data", {}).get("text/markdown", output.get("text", ""))) for output in outputs)


@pytest.mark.long
def test_a_chat_model_writes_the_training_traces(tmp_path, checkout):
    counts = {"n_train": 6, "n_easy": 1, "n_hard": 1}
    run_notebook(checkout, tmp_path / "run", 1, **counts)
    run = open_run(tmp_path / "run")
    with EndpointServer(chat_teacher) as server:
        values = counts | {"n_pairs": 3, "slots": 2, "teacher": {"endpoint": server.url, "model": "m"}}
        run_notebook(checkout, run.folder, 2, **values)
        asked = server.bodies
        run_notebook(checkout, run.folder, 2, **values)
        assert len(server.bodies) == len(asked), "the second run pays again"
    assert not [body for body in asked if "temperature" in body], "the provider's default temperature is the paper's"
    written = shown(run.folder, "02_traces")
    kept = int(re.search(r"\*\*(\d) of 6 pairs pass\*\*", written).group(1))
    assert 3 <= kept <= 6 and "1,109 of 1,900, 58.4%" in written
    turns, conversations = 0, set()
    for kind in KINDS:
        rows = read_rows(run.training(kind) / "traces.jsonl")
        played = [traces.read_trace(path) for path in sorted(run.traces(kind).glob("knapsack/*.trace.json"))]
        texts = {message["content"] for trace in played for message in trace.messages if message["role"] == "assistant"}
        assert len(rows) == 3 and len(played) == 6
        assert {m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"} <= texts
        for trace in played:
            turns += len(trace.turns)
            conversations |= {json.dumps(trace.messages[: 2 + 2 * turn]) for turn in range(len(trace.turns))}
    assert len(asked) == len(conversations) + 1  # one question first, whether it can be asked at all
    requests = int(re.search(r"([\d,]+) requests with", written).group(1).replace(",", ""))
    assert 0.7 < requests / turns < 1.4  # estimated from the rule-based teacher, which has its mistakes


def test_a_model_of_ones_own_gets_its_card_without_any_training(tmp_path, checkout):
    folder, counts = tmp_path / "run", {"n_train": 1, "n_easy": 4, "n_hard": 1}
    run_notebook(checkout, folder, 1, **counts)
    with EndpointServer(chat_teacher) as server:
        models = {"mine": {"endpoint": server.url, "model": "m", "key": "SERVED_KEY"}}
        run_notebook(checkout, folder, 4, models=models, max_total_tokens=10_000_000, **counts)
    card = (folder / "results" / "cards" / "mine.md").read_text()
    assert "**Verdict: adapts to the runtime that it is told.**" in card
    assert "20 of 20 episodes are scored" in card and "nan" not in card
    written = shown(folder, "04_evaluate")
    assert "Card of `mine`" in written and "stops at 10,000,000 tokens" in written
    assert "Model **mine**, **stateless** runtime, hard, cap" in written
    assert {headers["authorization"] for _, _, headers, _ in server.requests} == {"Bearer sk-very-secret"}
    assert not [path for path in folder.rglob("*") if path.is_file() and b"sk-very-secret" in path.read_bytes()]

"""The five notebooks: paired files, and the whole report end to end at its smallest, through run_notebooks.py."""

import ast
import base64
import csv
import gzip
import hashlib
import html
import json
import re
import statistics
from itertools import product

import jupytext
import nbformat
import papermill
import pytest

import run_notebooks
from knapsack.analysis.metrics import CELL
from knapsack.preflight.checks import ROOM, Wanted
from knapsack.preflight.parameters import declared
from knapsack.traces import read_trace, task_id_of

STEPS = ["01_generate", "02_traces", "03_finetune", "04_evaluate", "05_analysis"]


def test_the_report_is_these_five_notebooks(checkout):
    assert sorted(path.stem for path in (checkout / "notebooks").glob("*.ipynb")) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_notebook_and_script_are_one_text(checkout, step):
    def cells(end: str) -> list:
        notebook = jupytext.read(checkout / "notebooks" / f"{step}.{end}")
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]

    assert cells("ipynb") == cells("py"), f"run: make sync ({step})"


@pytest.mark.parametrize("step", STEPS)
def test_the_first_code_cell_holds_the_parameters_each_with_type_and_comment(checkout, step):
    path = checkout / "notebooks" / f"{step}.ipynb"
    first = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert first.metadata["tags"] == ["parameters"]
    known = papermill.inspect_notebook(path)
    assert list(known)[:2] == ["run_folder", "seed"] and all(parameter["help"] for parameter in known.values())
    assert {name: parameter["inferred_type_name"] for name, parameter in known.items()} == declared(path)[0]
    assert len(known) == len(ast.parse(first.source).body)


@pytest.mark.parametrize("step", STEPS)
def test_committed_outputs_are_of_a_whole_run_and_name_no_machine(checkout, step):
    """Notebooks are committed with the outputs of a default run: every code cell was run, none failed."""
    notebook = nbformat.read(checkout / "notebooks" / f"{step}.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output.get("ename") for output in outputs if output.output_type == "error"] == []
    texts = [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert [text for text in texts if str(checkout) in text or "Traceback" in text or "Warning" in text] == []


@pytest.mark.parametrize("step", STEPS)
def test_committed_bars_are_of_one_run_that_was_not_resumed(checkout, step):
    """A bar that began in the middle ends at a count that its time and rate do not give."""
    text = (checkout / "notebooks" / f"{step}.ipynb").read_text(encoding="utf-8")
    for count, minutes, seconds, rate, unit in re.findall(r"(\d+)/\1 \[(\d+):(\d+)<00:00, +([\d.?]+)([a-z/]+)\]", text):
        spent, each = 60 * int(minutes) + int(seconds), float(rate)  # of "?" nothing was made
        done = spent / each if unit.startswith("s/") else spent * each
        assert done == pytest.approx(int(count), rel=0.03, abs=1.5 * max(each, 1 / each))


@pytest.mark.parametrize("step", STEPS)
def test_committed_pictures_say_what_they_show(checkout, step):
    cells = nbformat.read(checkout / "notebooks" / f"{step}.ipynb", 4).cells
    pictures = [out for cell in cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert [out for out in pictures if len(out.metadata.get("image/png", {}).get("alt", "")) < 40] == []


def test_the_whole_report_runs(smallest_report):
    folder, finished = smallest_report
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(" done ") == 5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {*STEPS, "run_notebooks"}
    for step in run_notebooks.plan("nano", "runs/x", []):
        assert manifest[step.name]["parameters"].keys() == step.types.keys()
        cells = nbformat.read(folder / "notebooks" / f"{step.name}.ipynb", 4).cells
        assert [out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error"] == []


def test_the_report_holds_every_cell_of_the_design_two_adapters_figures_and_tables(smallest, smallest_report):
    folder, _ = smallest_report
    with open(folder / "results" / "cells.csv", newline="", encoding="utf-8") as handle:
        found = {tuple(row[name] for name in CELL): int(row["n"]) for row in csv.DictReader(handle)}
    models = ("base", "persistent", "stateless", "teacher")
    design = set(product(models, models[1:3], ("easy", "hard"), ("25", "80")))
    design -= {cell for cell in design if (cell[0], cell[3]) == ("base", "25")}  # it plays at the slackest cap only
    assert found == {cell: smallest[f"n_{cell[2]}"] for cell in design}
    weights = [folder / "training" / kind / "adapter" / "adapter_model.safetensors" for kind in models[1:3]]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert {".png", ".svg"} <= {path.suffix for path in (folder / "results" / "figures").iterdir()}
    assert any((folder / "results" / "tables").iterdir())


def test_the_report_is_one_page_that_needs_nothing_else(smallest_report):
    folder, finished = smallest_report
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page  # models wrote in it
    assert f"report.html    {folder / 'report.html'}" in finished.stdout and len(page) < 5_000_000
    known = r"#|data:|results/examples/|episodes[.]html|https://arxiv.org/"
    assert re.findall(rf'(?:src|href)="(?!{known})[^"]*"|@import|<script', page) == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert {html.unescape(a) for a in re.findall(r'href="#([^"]+)"', page)} <= {html.unescape(one) for one in ids}
    assert len(set(ids)) == len(ids) and page.count("<h1") >= 6
    pictures = re.findall(r"<img [^>]*>", page)
    assert len(pictures) > 8 and all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures)
    assert "it/s]" not in page and "Traceback" not in page


def test_the_page_of_episodes_holds_them_all_and_runs_no_script_but_its_own(smallest_report):
    folder, _ = smallest_report
    page = (folder / "episodes.html").read_text(encoding="utf-8")
    packed, script = re.search(r'id="data">([^<]*)</script>\s*<script>(.*)</script>', page, re.DOTALL).groups()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in page
    content = json.loads(gzip.decompress(base64.b64decode(packed)))
    shown = {(cell["name"], task): one for cell in content["cells"] for task, one in cell["episodes"].items()}
    traces = {(path.parent.parent.name, task_id_of(path)): path for path in folder.glob("evaluations/*/*/*.trace.json")}
    assert shown.keys() == traces.keys()
    for key, path in traces.items():
        trace = read_trace(path)
        assert [content["told"][text] for text in shown[key]["told"]] == [m["content"] for m in trace.messages[:2]]
        assert [turn["code"] for turn in shown[key]["turns"]] == [turn.code for turn in trace.turns]
        seen = [turn.observation.output if turn.observation else "" for turn in trace.turns]
        assert [turn["output"] for turn in shown[key]["turns"]] == seen


def test_a_dry_run_tells_what_the_run_then_does(smallest, smallest_report, tmp_path, capsys):
    folder, _ = smallest_report
    said = [f"{name}={value}" for name, value in smallest.items()]
    assert run_notebooks.main(["--dry-run", "--out", str(tmp_path), *(w for text in said for w in ("-p", text))]) == 0
    shown = capsys.readouterr().out
    traces = [path.parts[-4:-2] for path in folder.glob("*/*/knapsack/*.trace.json")]
    own = [name for room, name in traces if room == "evaluations" and not name.startswith("teacher_")]
    assert f"{sum(room == 'traces' for room, _ in traces)} episodes of the teacher" in shown
    assert f"{len(set(own))} cells of the models, {len(own)} episodes" in shown
    for kind in ("persistent", "stateless"):
        report = json.loads((folder / "training" / kind / "training.json").read_text())["report"]
        rows, total = re.search(rf"{kind} +(\d+) rows, ([\d,]+) in 3 epochs", shown).groups()
        assert int(rows) == report["rows"]
        last = [read_trace(path).turns[-1] for path in folder.glob(f"traces/{kind}*/knapsack/*.trace.json")]
        lengths = [turn.prompt_tokens + turn.completion_tokens for turn in last]
        assert min(lengths) < report["tokens"] / report["rows"] < max(lengths)  # two of these
        assert int(total.replace(",", "")) == pytest.approx(report["rows"] * 3 * statistics.mean(lengths), rel=0.15)
    parameters = {step.name: step.parameters for step in run_notebooks.plan("nano", "runs/x", said)}
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert used < Wanted({"03_finetune": {"base": "nano"}, "model": {"adapter_mb": 2}}, parameters, STEPS).disk + ROOM

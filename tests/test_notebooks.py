"""The five notebooks: paired files, and the whole report end to end at its smallest, through run_notebooks.py."""

import csv
import json

import jupytext
import nbformat
import papermill
import pytest

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
    declared = papermill.inspect_notebook(path)
    assert list(declared)[:2] == ["run_folder", "seed"]
    assert [name for name, parameter in declared.items() if parameter["inferred_type_name"] in ("None", "")] == []
    assert [name for name, parameter in declared.items() if not parameter["help"]] == []
    assert len(declared) == len(first.source.splitlines())


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


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_whole_report_runs(smallest_report):
    folder, finished = smallest_report
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(" done ") == 5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {*STEPS, "run_notebooks", "sha256"}
    for step in STEPS:
        cells = nbformat.read(folder / "notebooks" / f"{step}.ipynb", 4).cells
        assert [out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error"] == []


def test_the_report_holds_every_cell_of_the_design(smallest, smallest_report):
    folder, _ = smallest_report
    cells = rows(folder / "results" / "cells.csv")
    found = {(row["model"], row["runtime"], row["split"]): int(row["n"]) for row in cells}
    for model in ("base", "persistent", "stateless", "teacher"):
        for runtime in ("persistent", "stateless"):
            assert found.pop((model, runtime, "easy")) == smallest["n_easy"]
            assert found.pop((model, runtime, "hard")) == smallest["n_hard"]
    assert not found


def test_the_adapters_differ(smallest_report):
    folder, _ = smallest_report
    adapters = [folder / "training" / kind / "adapter" for kind in ("persistent", "stateless")]
    weights = [adapter / "adapter_model.safetensors" for adapter in adapters]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_the_report_draws_its_figures(smallest_report):
    folder, _ = smallest_report
    drawn = {path.suffix for path in (folder / "results" / "figures").iterdir()}
    assert {".png", ".svg"} <= drawn
    assert any((folder / "results" / "tables").iterdir())

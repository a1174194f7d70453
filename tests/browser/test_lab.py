"""A parameter turned in JupyterLab, in Chromium, as someone with a finished run does it (``make test-browser``)."""

import json
import socket
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
from test_reuse import digests

jupyterlab = pytest.importorskip("jupyterlab")
PATIENCE = 240  # seconds


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab whose notebooks lie in ``tmp_path``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(jupyterlab.__file__).parents[4] / "bin" / "jupyter", "lab", "--no-browser", f"--port={port}"]
    command += ["--allow-root", "--IdentityProvider.token=sesame", f"--ServerApp.root_dir={tmp_path}"]
    with open(tmp_path / "lab.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        for _ in range(PATIENCE):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=sesame"
        server.terminate()


def test_two_lines_and_a_temperature_play_the_cells_of_a_finished_run_anew(
    browser, lab, checkout, smallest, smallest_report, tmp_path
):
    first, second = smallest_report[0], tmp_path / "warm"
    before = digests(first)
    notebook = nbformat.read(checkout / "notebooks" / "04_evaluate.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.update(outputs=[], execution_count=None)
    known = [name for name in smallest if f"\n{name}: " in code[0].source]
    code[0].source += "".join(f"\n{name} = {smallest[name]!r}" for name in known)  # what the finished run was given
    nbformat.write(notebook, tmp_path / "04_evaluate.ipynb")
    page = browser.new_page()
    page.goto(lab.format("04_evaluate.ipynb"))
    page.locator(".jp-CodeCell .cm-content").first.click(timeout=1000 * PATIENCE)
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(f"\nrun_folder = {str(second)!r}\nreuse = {str(first)!r}\ntemperature = 0.0")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    manifest, deadline = second / "manifest.json", time.monotonic() + PATIENCE
    while "04_evaluate" not in (manifest.read_text() if manifest.exists() else "") and time.monotonic() < deadline:
        assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").all_inner_texts() == []
        page.wait_for_timeout(500)
    assert json.loads(manifest.read_text())["04_evaluate"]["parameters"]["temperature"] == 0.0
    assert digests(first) == before
    weights = "training/persistent/adapter/adapter_model.safetensors"
    assert (second / weights).read_bytes() == (first / weights).read_bytes()
    played = [
        {str(path.relative_to(run)) for path in run.glob("evaluations/*/details/*.json")} for run in (first, second)
    ]
    assert played[0] == played[1] != set()
    page.context.close()

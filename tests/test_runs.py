"""Where the files of a run lie, and what its manifest says."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from knapsack.runs import open_run, project_folder, provenance
from knapsack.traces import Cell


def test_every_artefact_has_a_place_of_its_own_below_the_run(tmp_path):
    run = open_run(tmp_path / "r")
    places = [run.tasks("easy"), run.tasks("hard"), run.traces("persistent"), run.training("persistent")]
    places += [run.adapter("stateless"), run.evaluations / "base_persistent_easy", run.manifest]
    places += [run.evaluations / "base_stateless_easy", run.figures, run.tables]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path / "r") for place in places)
    assert Cell("base", "persistent", "easy", 25).folder(run).name == "base_persistent_easy"  # as published


def test_relative_folder_lies_in_the_checkout_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(tmp_path / "r", project_folder())
    assert open_run(relative).folder.resolve() == (tmp_path / "r").resolve()
    assert (project_folder() / "knapsack" / "runs.py").exists()


def test_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=rf"choose another run_folder.*{folder.name}"):
            open_run(folder)


def test_read_only_folder_is_named():
    folder = Path(tempfile.mkdtemp())
    program = (  # permissions do not bind root, so the check runs as somebody else
        "import os, sys\nfrom knapsack.runs import open_run\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    open_run(sys.argv[1])\n"
        "except OSError as error:\n    print(error)\n"
    )
    try:
        folder.chmod(0o555)
        command = [sys.executable, "-c", program, folder]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=project_folder())
        assert str(folder) in run.stdout and "choose another run_folder" in run.stdout
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_manifest_keeps_every_step_with_its_latest_parameters_and_what_made_it(tmp_path):
    run = open_run(tmp_path)
    run.record("01_generate", {"seed": 0}, 1.5)
    run.record("02_traces", {"seed": 0, "n_pairs": 4})
    run.record("01_generate", {"seed": 1}, 2.5)
    manifest = run.read_manifest()
    step = manifest["01_generate"]
    assert (step["parameters"], step["seconds"]) == ({"seed": 1}, 2.5)
    assert manifest["02_traces"]["parameters"] == {"seed": 0, "n_pairs": 4}
    assert step["versions"]["pydantic-monty"] == "1.4.0" and step["python"].startswith("3.")
    assert step["machine"]["cores"] == os.cpu_count()
    assert step["commit"] is None or len(step["commit"]) == 40
    assert (step["dirty"] is None) == (step["commit"] is None)


def test_damaged_manifest_is_named_and_begun_anew(tmp_path, capsys):
    run = open_run(tmp_path)
    run.record("01_generate", {"seed": 0})
    run.manifest.write_text(run.manifest.read_text().replace('"seed": 0', '"seed": 1'))
    run.record("02_traces", {})
    assert f"damaged: {run.manifest} is not as it was written" in capsys.readouterr().err
    assert list(run.read_manifest()) == ["02_traces"]


def test_no_git_means_no_commit_rather_than_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["commit"] is None and provenance()["dirty"] is None

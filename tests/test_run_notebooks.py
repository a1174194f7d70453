"""run_notebooks: what it refuses, what it keeps, how it ends. Run on toy notebooks in a toy checkout."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock

import run_notebooks
from knapsack.runs import open_run

HEAD = 'run_folder: str = "runs/toy"  # folder\nseed: int = 0  # seed\n'
RECORD = """
import json, pathlib
from knapsack.runs import Run
values = {name: globals()[name] for name in ("seed", "rate", "names", "loud", "label") if name in globals()}
folder = pathlib.Path("..", run_folder)
(folder / (STEP + ".json")).write_text(json.dumps(values))
Run(folder).record(STEP, values, 0.1)
"""


def write_notebook(root: Path, name: str, parameters: str, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(HEAD + parameters, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(f"STEP = {name!r}\n{cell}") for cell in cells]
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch, checkout):
    """A checkout with two notebooks and two profiles; run_notebooks works in it, and forgets it afterwards."""
    root = tmp_path / "checkout"
    (root / "knapsack" / "profiles").mkdir(parents=True)
    (root / "knapsack" / "profiles" / "nano.yaml").write_text(
        "description: toy\noffline: true\n01_one: {rate: 0.5}\n02_two: {label: b}\n"
    )
    for name, text in (
        ("wrong", "description: has a typo\n01_one: {rte: 0.5}\n"),
        ("lost", "description: has another\n03_one: {rate: 0.5}\n"),
        ("text", "description: has a text for a number\n01_one: {rate: 1e-4}\n"),  # YAML wants 1.0e-4
    ):
        (root / "knapsack" / "profiles" / f"{name}.yaml").write_text(text)
    one = 'rate: float = 0.25  # r\nnames: list[str] = ["a"]  # n\nloud: bool = False  # l'
    write_notebook(root, "01_one", one, RECORD)
    write_notebook(root, "02_two", 'label: str = "a"  # l\n', RECORD)
    monkeypatch.setattr(run_notebooks, "ROOT", root)
    monkeypatch.setenv("PYTHONPATH", str(checkout))  # the kernels find the library even where it is not installed
    monkeypatch.setenv("JUPYTER_PATH", "")  # main sets it; restored after the test
    before = signal.getsignal(signal.SIGTERM)
    yield root
    signal.signal(signal.SIGTERM, before)


def values(root: Path, step: str, run: str = "runs/nano") -> dict:
    return json.loads((root / run / f"{step}.json").read_text())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10", "int", 10),
        ("6e-4", "float", 6e-4),
        ("2", "float", 2.0),
        ("true", "bool", True),
        ("a=b", "str", "a=b"),
        ("base,persistent", "list[str]", ["base", "persistent"]),
        ('["base", "persistent"]', "list[str]", ["base", "persistent"]),
        ("[]", "list", []),
        ("1, 2", "list[int]", [1, 2]),
        ('{"a": {"url": "http://h:1/v1", "n": 2}}', "dict", {"a": {"url": "http://h:1/v1", "n": 2}}),
    ],
)
def test_text_is_read_as_the_declared_type(text, kind, value):
    read = run_notebooks.typed(text, kind)
    assert read == value and type(read) is type(value)


REFUSED = [("ten", "int"), ("1.5", "int"), ("", "int"), ("nan", "float"), ("1,5", "float"), ("2", "bool")]
REFUSED += [("a,b", "list[int]"), ("{'a': 1}", "dict"), ("[1]", "dict"), ("", "dict")]


@pytest.mark.parametrize(("text", "kind"), REFUSED)
def test_text_of_another_type_is_refused(text, kind):
    with pytest.raises(ValueError, match="is not of type"):
        run_notebooks.typed(text, kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "unknown profile 'huge'; there are\n  lost: has another\n  nano: toy\n  text: has"),
        (["--profile", "lost"], "profile lost: there is no notebook 03_one"),
        (["--profile", "wrong"], "profile wrong, 01_one: there is no parameter 'rte'"),
        (["--profile", "text"], "01_one.rate = '1e-4': input should be a valid number"),
        (["-p", "sed=1"], "no parameter 'sed'; valid are label (str), loud (bool), names (list[str]), rate (float)"),
        (["-p", "seed=one"], "-p seed=one: seed = 'one' is not of type int"),
        (["-p", "seed"], "needs name=value"),
        (["-p", "run_folder=x"], "chosen with --out"),
        (["--reuse", "nowhere"], "needs the folder of another run that was begun"),
        (["-p", "03_one.seed=1"], "-p 03_one.seed=1: there is no notebook 03_one"),
        (["-p", "02_two.rate=1"], "-p 02_two.rate=1: there is no parameter 'rate'; valid are label (str)"),
        (["--only", "3"], "notebooks 3 to 3: there are 1 to 2"),
        (["--from", "0"], "notebooks 0 to 2: there are 1 to 2"),
        (["--from", "2", "--to", "1"], "notebooks 2 to 1: there are 1 to 2"),
    ],
)
def test_a_bad_command_is_refused_before_anything_runs(root, capsys, arguments, message):
    assert run_notebooks.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_a_parameter_reaches_every_notebook_that_declares_it_and_a_change_stops_the_next_run(root, capsys):
    assert run_notebooks.main(["-p", "seed=7", "-p", "names=x,y"]) == 0
    assert values(root, "01_one") == {"seed": 7, "rate": 0.5, "names": ["x", "y"], "loud": False}
    assert values(root, "02_two") == {"seed": 7, "label": "b"}
    shown = capsys.readouterr().out
    assert shown.count(" done ") == 2 and str(root / "runs" / "nano" / "notebooks") in shown

    assert run_notebooks.main(["--from", "2", "-p", "names=x,y"]) == 2
    assert "01_one was run with seed = 7, now 0" in capsys.readouterr().err

    assert run_notebooks.main(["--from", "2", "-p", "seed=7", "-p", "names=z"]) == 2
    assert "01_one was run with names = ['x', 'y'], now ['z']" in capsys.readouterr().err

    assert run_notebooks.main(["--only", "2", "--fresh"]) == 0
    assert not (root / "runs/nano/01_one.json").exists() and values(root, "02_two") == {"seed": 0, "label": "b"}
    manifest = json.loads((root / "runs/nano/manifest.json").read_text())
    assert manifest["run_notebooks"]["parameters"]["profile"] == "nano" and "01_one" not in manifest


def test_a_notebook_that_does_not_run_keeps_what_it_was_run_with(root, capsys):
    assert run_notebooks.main(["-p", "names=x,y"]) == 0
    assert run_notebooks.main(["--only", "2"]) == 0
    assert run_notebooks.main([]) == 2  # the first would run again, with another value
    assert "01_one was run with names = ['x', 'y'], now ['a']" in capsys.readouterr().err


def test_a_parameter_of_one_notebook_and_the_last_notebook_to_run(root):
    own = ["-p", "seed=3", "-p", "02_two.seed=4"]
    assert run_notebooks.main(["--to", "1", *own]) == 0
    assert values(root, "01_one")["seed"] == 3 and not (root / "runs/nano/02_two.json").exists()
    assert run_notebooks.main(["--from", "2", *own]) == 0 and values(root, "02_two")["seed"] == 4


def test_a_resumed_run_may_have_more_tasks_other_cells_and_a_higher_cap_but_nothing_less(root):
    steps = run_notebooks.plan("nano", "runs/nano", [])
    run = open_run(root / "runs/nano")
    for name, before, after in (("n_easy", 5, 6), ("models", {"base": {}}, {}), ("max_total_tokens", 10, 20)):
        run.record("01_one", {name: before})
        steps[0].parameters[name] = after
        run_notebooks.check_unchanged(run, steps)
    run.record("01_one", {"n_easy": 7})
    with pytest.raises(ValueError, match="01_one was run with n_easy = 7, now 6"):
        run_notebooks.check_unchanged(run, steps)


def test_a_run_to_reuse_reaches_the_notebooks_that_declare_it_and_may_change(root):
    declares = 'label: str = "a"  # l\nreuse: str = ""  # r'
    write_notebook(root, "02_two", declares, RECORD.replace('"label")', '"label", "reuse")'))
    assert run_notebooks.main(["--out", str(root / "runs/first")]) == 0
    other = ["--out", str(root / "runs/second")]
    assert run_notebooks.main([*other, "--reuse", str(root / "runs/first")]) == 0
    made = open_run(root / "runs/second").read_manifest()
    assert made["02_two"]["parameters"]["reuse"] == "runs/first"
    assert run_notebooks.main(other) == 0


def test_a_failed_notebook_is_kept_and_stops_the_run(root, capsys):
    write_notebook(root, "01_one", "rate: float = 0.1  # r", "print('before')", "raise KeyError('first line\\nlost')")
    assert run_notebooks.main([]) == 1
    executed = root / "runs/nano/notebooks/01_one.ipynb"
    output = capsys.readouterr()
    assert "01_one failed in cell [4]" in output.err and "lost" in output.err and str(executed) in output.err
    assert "failed" in output.out and "not run" in output.out
    cells = nbformat.read(executed, 4).cells
    assert any(out.get("text") == "before\n" for cell in cells for out in cell.get("outputs", []))
    assert any(out.output_type == "error" for cell in cells for out in cell.get("outputs", []))
    assert not (root / "runs/nano/notebooks/02_two.ipynb").exists()


def test_fresh_deletes_no_folder_but_a_run_folder(root, capsys):
    other = root / "figures"
    other.mkdir()
    (other / "manifest.json").write_text('{"figure.png": {}}')
    assert run_notebooks.main(["--out", str(other), "--fresh"]) == 2
    assert "nothing was deleted" in capsys.readouterr().err
    assert (other / "manifest.json").exists()
    assert run_notebooks.main(["--out", str(root), "--fresh"]) == 2
    assert (root / "notebooks").exists()


def test_two_runs_into_one_folder_at_once(root, capsys):
    (root / "runs" / "nano").mkdir(parents=True)
    with FileLock(root / "runs/nano/.lock"):
        assert run_notebooks.main(["--fresh"]) == 2
    assert "another run is writing to" in capsys.readouterr().err


def test_a_damaged_manifest_is_named_and_made_again(root, capsys):
    (root / "runs" / "nano").mkdir(parents=True)
    path, only = root / "runs/nano/manifest.json", ["--only", "1"]
    assert run_notebooks.main(only) == 0
    for damage in (lambda text: '{"01_one": ', lambda text: text.replace('"seed": 0', '"seed": 2', 1)):
        whole = path.read_text()
        path.write_text(damage(whole))
        assert path.read_text() != whole and run_notebooks.main(only) == 0
        assert "manifest.json is not" in capsys.readouterr().err
    path.write_text(whole.replace('"seed": 0', '"seed": 2', 1))
    assert run_notebooks.main([*only, "--fresh"]) == 0  # it still tells a run's folder from another one


def test_a_run_folder_that_cannot_be_made(root, capsys):
    (root / "file").write_text("")
    assert run_notebooks.main(["--out", str(root / "file" / "run")]) == 2
    assert "cannot make the run's folder" in capsys.readouterr().err


def test_a_full_disk_is_said_to_be_full(root, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x.ipynb")

    monkeypatch.setattr(run_notebooks.papermill, "execute_notebook", full)
    assert run_notebooks.main([]) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("failures", "code"), [(1, 0), (run_notebooks.STARTS, 1)])
def test_a_kernel_that_does_not_start_is_started_again_and_then_said(root, capsys, failures, code):
    failing = f"""
import os, pathlib, sys
failed = pathlib.Path({str(root / "failed")!r})
before = len(failed.read_text()) if failed.exists() else 0
if "ipykernel_launcher" in sys.orig_argv and before < {failures}:
    failed.write_text("." * (before + 1))
    os._exit(1)
"""
    (root / "sitecustomize.py").write_text(failing)  # read by every interpreter that has this folder on its path
    assert run_notebooks.main(["--only", "1"]) == code
    assert (root / "failed").read_text() == "." * failures
    assert ("did not start in 3 attempts" in capsys.readouterr().err) == bool(code)


def test_the_kernel_is_this_interpreter_offline_if_the_profile_says_so(root, tmp_path, monkeypatch):
    elsewhere = tmp_path / "data" / "kernels" / "python3"
    elsewhere.mkdir(parents=True)
    command = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}
    (elsewhere / "kernel.json").write_text(json.dumps(command))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    tell = "import os, pathlib, sys\npathlib.Path('..', run_folder, 'told').write_text("
    tell += "sys.executable + ' ' + str(os.environ.get('HF_HUB_OFFLINE')))"
    write_notebook(root, "01_one", "rate: float = 0.1  # r", tell)
    for name, offline in (("nano", "1"), ("online", "None")):
        (root / "knapsack/profiles/online.yaml").write_text("description: online\n")
        assert run_notebooks.main(["--only", "1", "--profile", name]) == 0
        assert (root / "runs" / name / "told").read_text() == f"{sys.executable} {offline}"
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["JUPYTER_PATH"].endswith(str(tmp_path / "data"))  # where the page's templates may lie


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "keyboard"),
    [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_IGN)],  # a shell ignores SIGINT for what runs behind
)
def test_an_interruption_ends_the_kernel_and_its_children(root, checkout, number, keyboard):
    start = "import os, pathlib, subprocess, time\n"
    start += "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    start += "pathlib.Path('..', run_folder, 'processes').write_text(f'{os.getpid()} {child.pid}')\ntime.sleep(600)"
    write_notebook(root, "01_one", "rate: float = 0.1  # r", start)
    program = "import sys, pathlib, run_notebooks as program\n"
    program += f"program.ROOT = pathlib.Path({str(root)!r})\nsys.exit(program.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--fresh", "-p", "seed=2"]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    started_by = partial(signal.signal, signal.SIGINT, keyboard)  # whatever started the tests
    runner = subprocess.Popen(command, cwd=checkout, preexec_fn=started_by, **streams)
    told = root / "runs/nano/processes"
    try:
        deadline = time.monotonic() + 60
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5)  # the watch looks once a second
        processes = [int(word) for word in told.read_text().split()]
        runner.send_signal(number)
        _, errors = runner.communicate(timeout=60)
    finally:
        runner.kill()
    assert runner.returncode == 130
    assert errors == "interrupted; to resume: python run_notebooks.py -p seed=2\n"  # without --fresh, no traceback
    assert not [pid for pid in processes if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert (root / "runs/nano/notebooks/01_one.ipynb").exists()

"""Run the report: notebooks 01 to 05 in order, into one run folder.

    python run_notebooks.py                               the nano profile into runs/nano
    python run_notebooks.py --profile small --out runs/a  another profile, another folder
    python run_notebooks.py --only 5 -p n_resamples=1000  one notebook, one parameter
    python run_notebooks.py --out runs/warm --reuse runs/nano -p 04_evaluate.temperature=1
                                                          another run, which makes only what differs
    python run_notebooks.py -p 03_finetune.seed=1         a parameter of one notebook only
    python run_notebooks.py --profile paper --dry-run     the plan: tokens, hours, what is missing here

A second run into the same folder resumes: the notebooks run again, and each skips what is finished.
Exit status: 0 done, 1 a notebook failed, 2 refused before anything ran, 130 interrupted.
"""

import argparse
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

try:
    import papermill
    import psutil
    import yaml
    from filelock import FileLock, Timeout
    from ipykernel.kernelspec import write_kernel_spec
    from nbclient.exceptions import DeadKernelError
    from pydantic import TypeAdapter, ValidationError

    from knapsack.preflight.checks import Wanted, find_missing
    from knapsack.preflight.parameters import check, check_together, declared
    from knapsack.runs import UNRELATED, CorruptFileError, Run, elsewhere, open_run, other_run, read_json
except ImportError as error:
    sys.exit(f"{error}: install first, with `make report` or `pip install -r requirements.lock && pip install -e .`")

ROOT = Path(__file__).resolve().parent
STARTS = 3  # attempts at starting a kernel
RUNNER = "run_notebooks"  # this program's entry in the manifest
RECOMPUTED = "05_analysis"  # keeps nothing from an earlier run, so its parameters may change
# What a resumed run may change: what has no effect on results, and which cells are played (each says how it was made).
FREE = {*UNRELATED, "models", "runtimes", "splits", "caps", "server"}
GROWING = {"n_train", "n_easy", "n_hard"}  # more tasks leave the first ones as they are
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
ABOUT = {"description", "offline", "gpu_memory_gb", "model", "rates"}  # what a profile says beside parameters


@dataclass
class Step:
    """A notebook with its parameters: declared types, literal defaults, and the values that it is to run with."""

    name: str
    path: Path
    types: dict[str, str]
    defaults: dict[str, object]
    parameters: dict[str, object]
    status: str = "not run"
    seconds: float = 0.0
    memory: int = 0  # bytes: peak resident memory of the kernel and its children


def load_profile(name: str) -> dict:
    """The profile's mapping. Raises ValueError listing the profiles there are."""
    paths = {path.stem: path for path in sorted((ROOT / "knapsack" / "profiles").glob("*.yaml"))}
    profiles = {stem: yaml.safe_load(path.read_text(encoding="utf-8")) for stem, path in paths.items()}
    if name not in profiles:
        known = "\n".join(f"  {stem}: {profile['description']}" for stem, profile in profiles.items())
        raise ValueError(f"unknown profile {name!r}; there are\n{known}")
    return profiles[name]


def typed(text: str, kind: str) -> object:
    """What ``text`` means as the declared ``kind``: a list is written ``a,b``, a dict as a JSON object. Raises
    ValueError."""
    try:
        if kind == "dict":
            return TypeAdapter(dict).validate_json(text)
        parts = text.strip().removeprefix("[").removesuffix("]").split(",")
        value = [part.strip(" '\"") for part in parts if part.strip()] if kind.startswith("list") else text
        return TypeAdapter(kind, config={"allow_inf_nan": False}).validate_python(value)
    except ValidationError as error:
        written = ", which is written as a JSON object" if kind == "dict" else ""
        raise ValueError(f"{text!r} is not of type {kind}{written}") from error


def declaring(steps: list[Step], name: str, source: str) -> list[Step]:
    """Those of ``steps`` that declare the parameter ``name``. Raises ValueError, listing all parameters, for none."""
    if found := [step for step in steps if name in step.types]:
        return found
    valid = sorted({f"{known} ({kind})" for step in steps for known, kind in step.types.items()})
    raise ValueError(f"{source}: there is no parameter {name!r}; valid are {', '.join(valid)}")


def plan(profile_name: str, run_folder: str, assignments: list[str], reuse: str = "") -> list[Step]:
    """All notebooks with the parameters of the profile, then of ``-p``. Raises ValueError for a bad name or value."""
    profile, steps = load_profile(profile_name), []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        types, defaults = declared(path)
        chosen = profile.get(path.stem, {})
        folders = {"run_folder": run_folder} | ({"reuse": reuse} if "reuse" in types else {})
        steps.append(Step(path.stem, path, types, defaults, {**defaults, **chosen, **folders}))
        for name in chosen:
            declaring(steps[-1:], name, f"profile {profile_name}, {path.stem}")
    if unknown := profile.keys() - ABOUT - {step.name for step in steps}:
        raise ValueError(f"profile {profile_name}: there is no notebook {', '.join(sorted(unknown))}")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        step, _, name = name.rpartition(".")
        if not equals or name in ("run_folder", "reuse"):
            raise ValueError(f"-p {assignment}: needs name=value; folders are chosen with --out and --reuse")
        asked = [known for known in steps if step in ("", known.name)]
        if not asked:
            raise ValueError(f"-p {assignment}: there is no notebook {step}")
        for known in declaring(asked, name, f"-p {assignment}"):
            try:
                known.parameters[name] = typed(text, known.types[name])
            except ValueError as error:
                raise ValueError(f"-p {assignment}: {name} = {error}") from error
    for step in steps:
        step.parameters = check(step.name, step.types, step.parameters)
    return steps


def keep_recorded(run: Run, steps: list[Step], running: list[Step], assignments: list[str]) -> None:
    """Notebooks that do not run keep what the run was made with, but for parameters that concern those which do."""
    asked = {assignment.partition("=")[0].rpartition(".")[2] for assignment in assignments}
    told, manifest = asked.union(*(step.types for step in running)), run.read_manifest()
    for step in steps:
        recorded = manifest.get(step.name, {}).get("parameters", {})
        kept = {name: recorded[name] for name in recorded.keys() & step.types.keys() - told}
        step.parameters = check(step.name, step.types, step.parameters | kept)


def prepare(run: Run, steps: list[Step], fresh: bool) -> None:
    """Empty the run folder (``fresh``), or check that its finished steps have these parameters; raises ValueError."""
    if fresh:
        content, known = [path for path in run.folder.iterdir() if path.name != ".lock"], set()
        with contextlib.suppress(OSError, CorruptFileError):  # a damaged one still tells a run from another folder
            known = read_json(run.manifest).keys() & {RUNNER, *(step.name for step in steps)}
        if ROOT.is_relative_to(run.folder) or (content and not known):
            raise ValueError(f"--fresh: {run.folder} has no manifest.json of a run; nothing was deleted")
        for path in sorted(content, key=lambda path: path == run.manifest):  # the manifest last: can be repeated
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    else:
        check_unchanged(run, steps)


def check_unchanged(run: Run, steps: list[Step]) -> None:
    """Raises ValueError if a finished step of the run has other parameters than ``steps``."""
    manifest = run.read_manifest()
    for step in steps:
        recorded = manifest.get(step.name, {}).get("parameters", {}) if step.name != RECOMPUTED else {}
        for name in sorted(recorded.keys() & step.parameters.keys() - FREE):
            before, now = recorded[name], step.parameters[name]
            if before != now and not (name in GROWING and now > before):
                change = f"{step.name} was run with {name} = {before!r}, now {now!r}"
                raise ValueError(elsewhere(run.folder, change))


def preview(run: Run, every: list[Step], chosen: list[Step], options: argparse.Namespace) -> str | None:
    """Check all that can be checked before any work, and print the plan with ``--dry-run``; else returns what is
    missing. Raises ValueError for parameters that no run could use."""
    profile, names = load_profile(options.profile), [step.name for step in chosen]
    parameters = {step.name: step.parameters for step in every}
    check_together(parameters, names)
    wanted = Wanted(profile, parameters, names)
    missing, doubts = find_missing(wanted, run.folder)
    if options.dry_run:
        from knapsack.preflight.dry_run import describe

        if not options.fresh:
            check_unchanged(run, every)
        print(f"Plan of profile {options.profile} into {run.folder}: {profile['description']}; nothing is written")
        print(describe(wanted, missing, doubts))
        return None
    for doubt in doubts:
        print(f"doubtful: {doubt}", file=sys.stderr)
    listed = "".join(f"\n  - {problem}" for problem in missing)
    return f"missing on this machine, so nothing was begun:{listed}" if missing else None


def watch(step: Step, seen: set[psutil.Process], stopped: threading.Event) -> None:
    """Once a second until ``stopped``: note the peak memory of this program's children, and who they are."""
    while not stopped.wait(1.0):
        children = psutil.Process().children(recursive=True)
        seen.update(children)
        with contextlib.suppress(psutil.Error):  # one of them ended meanwhile
            step.memory = max(step.memory, sum(child.memory_info().rss for child in children))


def execute(step: Step, target: Path, log: bool) -> str | None:
    """Run one notebook, saved after every cell as ``target``; returns what went wrong, or None."""
    changed = {name: value for name, value in step.parameters.items() if value != step.defaults[name]}
    print(f"{step.name} → {target}", flush=True)
    children, stopped, started, step.status = set(), threading.Event(), time.monotonic(), "failed"
    threading.Thread(target=watch, args=(step, children, stopped), daemon=True).start()
    logging.getLogger("papermill").disabled = True  # all that it would tell of a dead kernel is told below
    try:
        target.parent.mkdir(exist_ok=True)
        options = {"kernel_name": "python3", "cwd": step.path.parent, "coalesce_streams": True}
        options["progress_bar"] = {"desc": step.name, "disable": None}  # None: no bar but on a terminal
        options["stdout_file"] = sys.stdout if log else None
        options["stderr_file"] = sys.stderr if log or sys.stderr.isatty() else None  # the bars of the cells
        for left in reversed(range(STARTS)):
            try:
                papermill.execute_notebook(step.path, target, changed, **options)
                break
            except RuntimeError as error:  # the kernel's ports are chosen first and taken later: another may be faster
                if isinstance(error, DeadKernelError) or not left:
                    raise
        step.status = "done"
    except papermill.PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        return f"{step.name} failed in cell [{error.exec_count}]: {reason}\nThe executed notebook: {target}"
    except DeadKernelError:
        return f"{step.name}: its kernel died, most likely for want of memory\nThe executed notebook: {target}"
    except RuntimeError as error:
        return f"{step.name}: its kernel did not start in {STARTS} attempts ({error}); the same command resumes"
    except OSError as error:
        return f"{step.name} was stopped: {error}; free or unlock the disk of {target}, then the same command resumes"
    except KeyboardInterrupt:
        step.status = "interrupted"
        logging.getLogger("asyncio").disabled = True  # else it prints the traceback of the abandoned cell
        raise
    finally:
        stopped.set()
        step.seconds = time.monotonic() - started
        for child in children:  # whatever outlived its kernel; psutil recognises a process id used again
            with contextlib.suppress(psutil.Error):
                child.kill()


def use_this_interpreter(folder: str, offline: bool) -> None:
    """Make the kernel ``python3`` mean this very interpreter, whatever kernels are installed on the machine."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables = dict.fromkeys(OFFLINE, "1") if offline else {}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore:IProgress not found"}
    write_kernel_spec(Path(folder) / "kernels" / "python3", {"env": variables}, ["--log-level=CRITICAL"])
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("JUPYTER_PATH"))))


def summary(run: Run, steps: list[Step]) -> str:
    lines = [f"\n{'notebook':<14} {'status':<12} {'seconds':>8} {'peak memory':>12}"]
    lines += [f"{s.name:<14} {s.status:<12} {s.seconds:>8.1f} {s.memory / 2**30:>8.2f} GiB" for s in steps]
    lines += [f"{'all':<27} {sum(step.seconds for step in steps):>8.1f}"]
    places = [run.results, run.figures, run.tables, run.folder / "notebooks", run.page]
    return "\n".join([*lines, *(f"{path.name:<14} {path}" for path in places if path.exists())])


def shown(folder: Path) -> str:
    return (folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder).as_posix()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="nano (default), small or paper")
    parser.add_argument("--out", type=Path, help="the run folder (default runs/<profile>)")
    parser.add_argument("--reuse", type=Path, help="a run: what it made with the same parameters is taken over")
    parser.add_argument("--from", dest="first", type=int, default=1, metavar="N", help="start at notebook N")
    parser.add_argument("--to", dest="last", type=int, metavar="N", help="stop after notebook N")
    parser.add_argument("--only", type=int, metavar="N", help="run notebook N alone")
    parser.add_argument("-p", dest="assignments", action="append", default=[], metavar="name=value")
    parser.add_argument("--fresh", action="store_true", help="delete what the run folder holds, then run")
    parser.add_argument("--log", action="store_true", help="print what the cells print")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is missing; write nothing")
    options = parser.parse_args(arguments)
    # A polite kill ends the kernel too, as Ctrl-C does. Where a shell ignores the latter, behind "&", it stays ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.out.expanduser().resolve() if options.out else ROOT / "runs" / options.profile
    run, steps, problem, status = Run(folder), [], None, 0
    try:
        other = other_run(folder, options.reuse.expanduser().resolve()) if options.reuse else None
        every = plan(options.profile, shown(folder), options.assignments, shown(other.folder) if other else "")
        first, last = options.first, len(every) if options.last is None else options.last
        if options.only is not None:
            first = last = options.only
        if not 1 <= first <= last <= len(every):
            raise ValueError(f"notebooks {first} to {last}: there are 1 to {len(every)}")
        if not options.fresh:
            keep_recorded(run, every, every[first - 1 : last], options.assignments)
        if refused := preview(run, every, every[first - 1 : last], options):
            raise ValueError(refused)
        if options.dry_run:
            return 0
        run = open_run(folder)
        with FileLock(folder / ".lock", timeout=0), tempfile.TemporaryDirectory() as jupyter:
            prepare(run, every, options.fresh)
            run.record(RUNNER, {"profile": options.profile, "set": options.assignments, "first": first, "last": last})
            use_this_interpreter(jupyter, load_profile(options.profile).get("offline", False))
            steps = every[first - 1 : last]
            for step in steps:
                if problem := execute(step, run.folder / "notebooks" / step.path.name, options.log):
                    break
            if not problem and steps[-1].name == RECOMPUTED:
                from knapsack.report.page import write_page  # takes seconds to import

                write_page(run)
    except Timeout:
        problem = f"another run is writing to {folder}: wait for it, or choose another folder with --out"
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        again = shlex.join(argument for argument in arguments if argument != "--fresh")
        problem, status = f"interrupted; to resume: python run_notebooks.py {again}", 130
    if steps:
        print(summary(run, steps), flush=True)
    if problem:
        print(problem, file=sys.stderr)
    return status or ((1 if steps else 2) if problem else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

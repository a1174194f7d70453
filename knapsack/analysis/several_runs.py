"""Several runs side by side, and what varies between them. Reads each run's ``results/episodes.csv`` and manifest.

Runs are summarised together only if their manifests show the same parameters of notebooks 01 to 04, apart from the
seeds and from what no result depends on. Of runs that also have the same seeds one counts: it would come out again.
Runs with other parameters, or whose manifest does not tell, are shown beside.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from knapsack.analysis import estimates
from knapsack.analysis.figures.quality import seeds
from knapsack.analysis.figures.style import Drawing, NothingToShow
from knapsack.analysis.metrics import EPISODE_COLUMNS, NUMBERS, cell_name
from knapsack.analysis.tables import Table, listed, save
from knapsack.runs import CorruptFileError, Run, as_json, project_folder, read_json, read_sealed
from knapsack.runtime import KINDS

STEPS = {"01_generate": "tasks", "02_traces": "traces", "03_finetune": "training", "04_evaluate": "sampling"}
OF_TRAINING = ("02_traces", "03_finetune")
UNRELATED = {"seed", "run_folder", "processes", "max_total_tokens"}
NEEDED = {"prompt_tokens", "completion_tokens", "total_tokens", "score", "missing_bindings", *EPISODE_COLUMNS[:5]}
NAMED = 3  # parameters that a sentence lists, of those that differ
SAYS = {  # of the variation between runs, by the first step whose seed differs
    "01_generate": "Each run drew tasks of its own, so what varies between them is tasks and all that follows from "
    "them, taken together: it does not tell what another training seed alone would change.",
    "02_traces": "They played the same tasks, with models trained on different traces: what varies between them is "
    "traces and what follows from them, not tasks. For other tasks there are the intervals within each run.",
    "03_finetune": "They played the same tasks, with models trained on the same traces: what varies between them is "
    "the training and the replies that follow from it, not tasks. For other tasks there are the intervals within each "
    "run.",
    "04_evaluate": "They played the same tasks with the same models: what varies between them is the sampled replies, "
    "neither training nor tasks.",
}
CAPTIONS = {
    "several_runs": "The runs side by side and how they were made. The runs of a group have the same parameters, apart "
    "from seeds. A commit with * had uncommitted changes.",
    "several_cells": "Each run's mean with its 95 % interval over tasks (BCa; shares: Wilson). Over the runs of a "
    "group: mean, standard deviation, range and, from three runs on that do not all agree, the 95 % t interval.",
    "several_contrasts": "Each run's contrasts with their 95 % intervals over tasks (BCa; ratios of means: percentile; "
    "the tokens' interaction in geometric means). Over the runs of a group as for the cells; of ratios the geometric "
    "mean, the standard deviation as a factor, and the interval of the logarithm.",
}


@dataclass(frozen=True)
class Group:
    """Runs with the same parameters. ``members`` differ in the seeds of the steps ``varying`` (in the order of STEPS);
    ``repeats`` (run → member) have the very seeds of a member."""

    members: list[str]
    repeats: dict[str, str]
    varying: list[str]


@dataclass(frozen=True)
class SideBySide:
    """``sentence``, Markdown, says what varies between the runs. ``tables`` by file name: ``several_runs`` (how each
    was made), ``several_cells`` and ``several_contrasts`` (a column per run, and over runs), with the ``numbers`` that
    the last two show; none of either for a single run. ``draw`` makes the figure "seeds" or raises NothingToShow."""

    sentence: str
    tables: dict[str, Table]
    numbers: dict[str, pd.DataFrame]
    draw: Callable[[], Drawing]


def side_by_side(folders: list[str | Path], n_resamples: int = 5000, seed: int = 0) -> SideBySide:
    """Sentence, tables and figure of the runs in ``folders``; ``read_runs`` says which errors are raised.

    Within a run every number has its interval over tasks (``estimates.cell_values``, ``contrast_values``); over the
    runs of a group with two members or more there is ``estimates.over_runs``.
    """
    episodes, manifests = read_runs(folders)
    if len(manifests) == 1:
        alone = f"One run, {next(iter(manifests))}: how far another training seed would move its numbers is not known."
        return SideBySide(alone, {}, {}, _nothing)
    groups, untold = group_runs(episodes, manifests)
    same = {number: estimates.same_episodes(episodes, group.members) for number, group in groups.items()}
    make = {"several_cells": estimates.cell_values, "several_contrasts": estimates.contrast_values}
    numbers = {name: values(episodes, n_resamples, seed) for name, values in make.items()}
    tables = {"several_runs": Table(_made(episodes, manifests, groups), CAPTIONS["several_runs"])}
    for name, values in numbers.items():
        over = {}
        for number, group in groups.items():
            if len(group.members) > 1:
                title = "all" if group.members == list(manifests) else f"group {number}"
                over[title] = estimates.over_runs(values, group.members, same[number])
        tables[name] = Table(estimates.shown(values, over), CAPTIONS[name])
    told = [_differing(manifests, group) for group in groups.values() if len(group.members) > 1]
    members = [group.members for group in groups.values()]
    return SideBySide(
        describe(manifests, groups, untold, same, numbers["several_contrasts"]),
        tables,
        numbers,
        lambda: seeds(numbers["several_cells"], members, told, n_resamples=n_resamples, seed=seed),
    )


def _nothing() -> Drawing:
    raise NothingToShow("There is one run, and none to show beside it.")


def write(run: Run, several: SideBySide) -> list[str]:
    """Write the tables of ``several`` and their numbers into the results of ``run``; returns the tables as Markdown.

    What an earlier analysis of more runs left in ``results/`` is removed."""
    for name in ("several_cells", "several_contrasts"):
        (run.results / f"{name}.csv").unlink(missing_ok=True)
    return [save(run, name, table, several.numbers.get(name)) for name, table in several.tables.items()]


def read_runs(folders: list[str | Path]) -> tuple[pd.DataFrame, dict[str, dict]]:
    """The episodes of the runs (columns as in ``metrics``, and ``run``) and their manifests, {} where there is none.

    A run has the name of its folder; a relative folder lies below the checkout. ValueError for a name that occurs
    twice, FileNotFoundError for a run without results, CorruptFileError for results that cannot be read or lack a
    column, and for a damaged manifest.
    """
    frames, manifests, paths = [], {}, {}
    for folder in folders:
        path = Path(os.path.abspath(project_folder() / Path(folder).expanduser()))
        if path.name in paths:
            other = "is named twice" if path == paths[path.name] else f"has the name of {paths[path.name]}: rename one"
            raise ValueError(f"several runs: {path} {other}")
        paths[path.name] = path
        frames.append(_episodes(path).assign(run=path.name))
        manifests[path.name] = _manifest(path)
    return pd.concat(frames, ignore_index=True), manifests


def group_runs(episodes: pd.DataFrame, manifests: dict[str, dict]) -> tuple[dict[str, Group], dict[str, str]]:
    """Groups of runs that differ in seeds alone, by number, and why each other run is in none.

    A manifest has to tell of notebooks 01 and 04, and of 02 and 03 if a model trained by them was played.
    """
    alike: dict[str, dict[str, list[str]]] = {}
    untold = {}
    for name, manifest in manifests.items():
        trained = not set(KINDS).isdisjoint(episodes.loc[episodes["run"] == name, "model"])
        needed = [step for step in STEPS if trained or step not in OF_TRAINING]
        if lacking := [step for step in needed if step not in manifest]:
            untold[name] = f"its manifest does not tell of {listed(lacking)}"
            continue
        alike.setdefault(as_json(_settings(manifest)), {}).setdefault(as_json(_seeds(manifest)), []).append(name)
    groups = {}
    for number, same_settings in enumerate(alike.values(), start=1):
        members = [names[0] for names in same_settings.values()]
        repeats = {name: names[0] for names in same_settings.values() for name in names[1:]}
        varying = [step for step in STEPS if len({_seeds(manifests[name]).get(step) for name in members}) > 1]
        groups[str(number)] = Group(members, repeats, varying)
    return groups, untold


def describe(
    manifests: dict[str, dict],
    groups: dict[str, Group],
    untold: dict[str, str],
    same: dict[str, list[tuple]],
    contrasts: pd.DataFrame,
) -> str:
    """What varies between the runs of each group and what that tells, then why groups and runs are not pooled.

    ``same`` holds ``estimates.same_episodes`` of each group."""
    said = []
    for number, group in groups.items():
        if len(group.members) > 1:
            said += _variation(manifests, group, same[number])
            directions = estimates.directions(contrasts, group.members)
            told = {True: "The same direction in each of them", False: "Not the same direction in each"}
            said += [f"{told[agreed]}: {_in_splits(names)}." for agreed, names in directions.items() if names]
        said += [f"{run} repeats {first}, seeds and all, and is not counted." for run, first in group.repeats.items()]
    if all(len(group.members) == 1 for group in groups.values()):
        said.append("No two of these runs differ in seeds alone, so nothing is summarised over runs.")
    (first, *others), apart = groups.values() if groups else [None], []
    for group in others:
        names = listed([*group.members, *group.repeats])
        apart.append(f"{names}: other {_differences(manifests[group.members[0]], manifests[first.members[0]])}")
    apart += [f"{run}: {reason}" for run, reason in untold.items()]
    if apart:
        beside = f"beside {listed([*first.members, *first.repeats])}" if first else "side by side"
        said.append(f"Shown {beside}, not pooled: {'; '.join(apart)}.")
    return " ".join(said)


def _made(episodes: pd.DataFrame, manifests: dict[str, dict], groups: dict[str, Group]) -> pd.DataFrame:
    """A row of text per run: group, profile, base, seeds, commits, episodes."""
    rows = []
    for run, manifest in manifests.items():
        own, made = episodes[episodes["run"] == run], {step: row["parameters"] for step, row in manifest.items()}
        own_groups = [number for number, group in groups.items() if run in group.members or run in group.repeats]
        row = {"run": run, "group": "".join(own_groups)}
        row |= {"profile": str(made.get("run_notebooks", {}).get("profile", ""))}
        row |= {"base": str(made.get("04_evaluate", {}).get("base", ""))}
        row |= {f"seed of {what}": str(_seeds(manifest).get(step, "")) for step, what in STEPS.items()}
        row |= {"commit": _commits(manifest), "episodes": f"{len(own):,}"}
        rows.append(row | {"unscored": f"{(own['status'] != 'completed').sum():,}"})
    return pd.DataFrame(rows)


def _drawn(manifests: dict[str, dict], group: Group) -> dict[str, list]:
    """What differs in a group, with each member's seed of it."""
    return {STEPS[step]: [_seeds(manifests[run]).get(step) for run in group.members] for step in group.varying}


def _differing(manifests: dict[str, dict], group: Group) -> str:
    drawn = _drawn(manifests, group)
    told = listed([f"{what} ({', '.join(map(str, values))})" for what, values in drawn.items()])
    return f"{listed(group.members)} differ in the seed{'s' * (len(drawn) > 1)} of {told} and in no other parameter."


def _variation(manifests: dict[str, dict], group: Group, same: list[tuple]) -> list[str]:
    said, count = [_differing(manifests, group), SAYS[group.varying[0]]], len(group.members)
    if shared := [what for what, values in _drawn(manifests, group).items() if len(set(values)) < count]:
        said.append(f"Some share the seed of {listed(shared)}, so they are not independent and may vary too little.")
    if count == 2:
        said.append("Two runs give a range, not an interval.")
    if same:
        cells = _in_splits([(cell_name(*cell), split) for split, *cell in same])
        said.append(f"The same episodes in all of them, drawn once and so without spread: {cells}.")
    commits = {_commits(manifests[run]) for run in group.members}
    if len(commits) > 1 or "*" in "".join(commits):
        said.append("They were not made by one clean commit, so that the code may be a further difference.")
    return said


def _in_splits(found: list[tuple[str, str]]) -> str:
    """``[("a", "easy"), ("a", "hard"), ("b", "hard")]`` as "a (easy, hard) and b (hard)"."""
    splits: dict[str, list[str]] = {}
    for name, split in found:
        splits.setdefault(name, []).append(split)
    return listed([f"{name} ({', '.join(where)})" for name, where in splits.items()])


def _episodes(path: Path) -> pd.DataFrame:
    table = Run(path).results / "episodes.csv"
    remedy = "run notebook 05 on this run first (run_notebooks.py --only 5 --out <its folder>)"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing: {remedy}")
    try:
        frame = pd.read_csv(table, dtype={name: str for name in EPISODE_COLUMNS if name not in NUMBERS})
        frame = frame.astype({name: float for name in NUMBERS if name in frame})
    except ValueError as error:  # also no table, no text, words instead of numbers
        raise CorruptFileError(f"{table} cannot be read ({error}); {remedy}") from error
    if lacking := sorted(NEEDED - set(frame)):
        raise CorruptFileError(f"{table} lacks {listed(lacking)}; {remedy}")
    if frame.empty:
        raise CorruptFileError(f"{table} holds no episode; {remedy}")
    return frame


def _manifest(path: Path) -> dict[str, dict]:
    file, remedy = Run(path).manifest, "leave this run out, or run its notebooks again"
    if not file.exists():
        return {}
    plain = read_json(file, remedy)  # early commits wrote no digest
    return read_sealed(file, remedy) if "sha256" in plain else plain


def _settings(manifest: dict[str, dict]) -> dict[str, dict]:
    """By step, the parameters on which results depend, without the seed."""
    told = {step: manifest[step]["parameters"] for step in STEPS if step in manifest}
    return {step: {name: row[name] for name in row if name not in UNRELATED} for step, row in told.items()}


def _seeds(manifest: dict[str, dict]) -> dict[str, int]:
    return {step: manifest[step]["parameters"].get("seed", "") for step in STEPS if step in manifest}


def _commits(manifest: dict[str, dict]) -> str:
    rows = [manifest[step] for step in STEPS if step in manifest]
    made = [f"{(row.get('commit') or 'unknown')[:7]}{'*' * bool(row.get('dirty'))}" for row in rows]
    return ", ".join(dict.fromkeys(made))


def _differences(manifest: dict[str, dict], other: dict[str, dict]) -> str:
    """The parameters ``step.name`` that differ, the first NAMED of them."""
    one, two = _settings(manifest), _settings(other)
    names = []
    for step in [step for step in STEPS if step in one or step in two]:
        if step not in one or step not in two:
            names.append(step)
            continue
        a, b = one[step], two[step]
        names += [f"{step}.{name}" for name in sorted(a | b) if (name in a, a.get(name)) != (name in b, b.get(name))]
    return listed(names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"])

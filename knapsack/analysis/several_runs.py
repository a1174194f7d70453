"""Several runs side by side, and what varies between them. Reads each run's ``results/episodes.csv`` and manifest.

Runs are pooled only if their manifests show the same parameters of notebooks 01 to 04 as the first run's, apart from
the seeds and from what no result depends on. Of runs that also have the same seeds one counts: it would come out again.
Runs with other parameters, or whose manifest does not tell, are shown beside.

Within a run an estimate has its interval over tasks (what other tasks would give to the same models); over the pooled
runs it has a mean and a range. Where runs cross trainings with tasks, ``crossed`` has the interval that asks both.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from knapsack.analysis.estimates import COLUMNS, PP, PS, SP, SS, estimates_table
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap
from knapsack.analysis.metrics import EPISODE_COLUMNS, NUMBERS, SETTING, setting_columns, write_csv
from knapsack.analysis.tables import Table, between, listed, number, save
from knapsack.runs import CorruptFileError, Run, check, project_folder, read_json, settings_of
from knapsack.runtime import KINDS

STEPS = {"01_generate": "tasks", "02_traces": "traces", "03_finetune": "training", "04_evaluate": "sampling"}
OF_TRAINING = ("02_traces", "03_finetune")
NAMED = 3  # parameters that a sentence lists, of those that differ
SAYS = {  # of the variation between runs, by the first step whose seed differs
    "01_generate": "Each run drew tasks of its own, so what varies is tasks and all that follows from them, taken "
    "together: it does not tell what another training seed alone would change.",
    "02_traces": "They played the same tasks, with models trained on different traces: what varies is traces and what "
    "follows from them, not tasks.",
    "03_finetune": "They played the same tasks, with models trained on the same traces: what varies is the training "
    "and the replies that follow from it, not tasks.",
    "04_evaluate": "They played the same tasks with the same models: what varies is the sampled replies, neither "
    "training nor tasks.",
}
CAPTIONS = {
    "several_runs": "The runs side by side and how they were made. Those pooled have the same parameters, apart from "
    "seeds. A commit with * had uncommitted changes.",
    "several_contrasts": "Each run's contrasts with their 95 % intervals over tasks (BCa; ratios of means: percentile; "
    "the tokens' interaction in geometric means). Over the pooled runs: mean (of ratios the geometric one) and "
    "range.",
}
CONTRASTS = {  # (quantity, first, second) as in ``estimates``: title; those of tokens are ratios
    ("score difference", PP, SS): "aligned cells, score: P→P − S→S",
    ("score difference", PP, PS): "P→S loss, score: P→P − P→S",
    ("score difference", PS, SS): "M, score: P→S − S→S",
    ("score interaction", KINDS[:1], KINDS[1:]): "interaction D, score: (P→P − P→S) − (S→P − S→S)",
    ("score interaction minus cap 80", KINDS[:1], KINDS[1:]): "T, score: D − D at a cap of 80",
    ("total_tokens ratio", SP, PP): "amnesia tax, tokens: S→P ÷ P→P",
    ("total_tokens interaction", KINDS[:1], KINDS[1:]): "interaction, tokens: (P→P ÷ P→S) ÷ (S→P ÷ S→S)",
}


@dataclass(frozen=True)
class Pool:
    """``members``, runs with the same parameters, differ in the seeds of the steps ``varying`` (in the order of STEPS);
    ``apart`` are the other runs, each with the reason."""

    members: list[str]
    varying: list[str]
    apart: dict[str, str]


@dataclass(frozen=True)
class SideBySide:
    """``sentence``, Markdown, says what varies between the runs. ``tables`` by file name: ``several_runs`` (how each
    was made) and ``several_contrasts`` (a column per run, and over runs); ``estimates``: those of all runs, with a
    column ``run``. None of these for a single run. ``groups`` are the runs that were pooled, ``told`` says in what they
    differ. ``trainings``: the estimates of those on which claims rest, by seed, and their ``episodes``."""

    sentence: str
    tables: dict[str, Table]
    estimates: pd.DataFrame
    groups: list[list[str]]
    told: list[str]
    trainings: dict[str, pd.DataFrame]
    episodes: pd.DataFrame

    @property
    def values(self) -> pd.DataFrame:
        """The estimates of cells: quantity, run, split, cap, model, runtime, n, value, low, high."""
        own = self.estimates[self.estimates["second"] == ""]
        named = own["first"].str.split("→", expand=True).reindex(columns=[0, 1]).set_axis(["model", "runtime"], axis=1)
        return own.join(named)[["quantity", "run", *SETTING, "model", "runtime", "n", "value", "low", "high"]]


def side_by_side(folders: list[str | Path], bootstrap: Bootstrap = BOOTSTRAP) -> SideBySide:
    """The runs in ``folders``; ``read_runs`` says which errors are raised."""
    episodes, manifests = read_runs(folders)
    if len(manifests) == 1:
        alone = f"One run, {next(iter(manifests))}: how far another training seed would move its numbers is not known."
        return SideBySide(alone, {}, pd.DataFrame(columns=["run", *COLUMNS]), [], [], {}, episodes.head(0))
    pool = pool_runs(episodes, manifests)
    trained = trainings(manifests, pool)
    made = [estimates_table(own, bootstrap).assign(run=run) for run, own in episodes.groupby("run", sort=False)]
    estimates = pd.concat(made, ignore_index=True)[["run", *COLUMNS]]
    texts = {"several_runs": _made(episodes, manifests, pool), "several_contrasts": contrasts(estimates, pool)}
    return SideBySide(
        describe(manifests, pool),
        {name: Table(rows, CAPTIONS[name]) for name, rows in texts.items()},
        estimates,
        [pool.members] if pool.members else [],
        [_differing(manifests, pool)] if len(pool.members) > 1 else [],
        {seed: estimates[estimates["run"] == run] for run, seed in trained.items()},
        episodes[episodes["run"].isin(trained)],
    )


def write(run: Run, several: SideBySide) -> list[str]:
    """Write the tables of ``several`` and ``results/several_estimates.csv``; returns the tables as Markdown.

    The estimates that an earlier analysis of more runs left are removed."""
    path = run.results / "several_estimates.csv"
    path.unlink(missing_ok=True)
    if len(several.estimates):
        write_csv(path, several.estimates)
    return [save(run, name, table) for name, table in several.tables.items()]


# Reading


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
        file, remedy = Run(path).manifest, "leave this run out, or run its notebooks again"
        manifests[path.name] = {}
        if file.exists():
            check(file, remedy)
            manifests[path.name] = read_json(file, remedy)
    return pd.concat(frames, ignore_index=True), manifests


def _episodes(path: Path) -> pd.DataFrame:
    table = Run(path).results / "episodes.csv"
    remedy = "run notebook 05 on this run first (run_notebooks.py --only 5 --out <its folder>)"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing: {remedy}")
    try:
        frame = pd.read_csv(table, dtype=dict.fromkeys(set(EPISODE_COLUMNS) - {*NUMBERS}, str) | {"cap": int})
        frame = frame.astype({name: float for name in NUMBERS if name in frame})
    except ValueError as error:  # also no table, no text, words instead of numbers
        raise CorruptFileError(f"{table} cannot be read ({error}); {remedy}") from error
    if lacking := sorted(set(EPISODE_COLUMNS) - set(frame)):
        raise CorruptFileError(f"{table} lacks {listed(lacking)}; {remedy}")
    if frame.empty:
        raise CorruptFileError(f"{table} holds no episode; {remedy}")
    return frame


def pool_runs(episodes: pd.DataFrame, manifests: dict[str, dict]) -> Pool:
    """The first run whose manifest tells, and which others differ from it in seeds alone.

    A manifest has to tell of notebooks 01 and 04, and of 02 and 03 if a model trained by them was played.
    """
    pool = Pool([], [], {})
    for run, manifest in manifests.items():
        trained = not set(KINDS).isdisjoint(episodes.loc[episodes["run"] == run, "model"])
        if lacking := [s for s in STEPS if s not in manifest and (trained or s not in OF_TRAINING)]:
            pool.apart[run] = f"its manifest does not tell of {listed(lacking)}"
        elif pool.members and (other := _differences(manifest, manifests[pool.members[0]])):
            pool.apart[run] = f"other {other}"
        elif same := [member for member in pool.members if _seeds(manifests[member]) == _seeds(manifest)]:
            pool.apart[run] = f"repeats {same[0]}, seeds and all"
        else:
            pool.members.append(run)
    drawn = [_seeds(manifests[run]) for run in pool.members]
    pool.varying.extend(step for step in STEPS if len({seeds.get(step) for seeds in drawn}) > 1)
    return pool


def trainings(manifests: dict[str, dict], pool: Pool) -> dict[str, str]:
    """Those pooled runs that played the same tasks with models trained from other seeds: run and seed of training.

    Empty where these are not several, or the first of all runs is not among them.
    """
    if "01_generate" in pool.varying or "03_finetune" not in pool.varying or next(iter(manifests)) not in pool.members:
        return {}
    by_seed = {str(_seeds(manifests[run])["03_finetune"]): run for run in reversed(pool.members)}
    return {run: seed for seed, run in reversed(by_seed.items())}


# Text


def contrasts(estimates: pd.DataFrame, pool: Pool) -> pd.DataFrame:
    """As text: a row per contrast, split and cap, a column per run, then mean and range of the pooled ones if
    there are several."""
    rows, known = [], estimates.dropna(subset="value")
    setting = setting_columns(known)
    for (quantity, first, second), title in CONTRASTS.items():
        chosen = (known["first"] == "→".join(first)) & (known["second"] == "→".join(second))
        for _, own in known[chosen & (known["quantity"] == quantity)].groupby(SETTING, sort=False):
            told = {name: str(own[name].iloc[0]) for name in setting}
            ratio, own = quantity.startswith("total_tokens"), own.set_index("run")
            digits, row = 2 if ratio else 3, {"quantity": title} | told
            for run in estimates["run"].unique():
                row[run] = between(*own.loc[run, ["value", "low", "high"]], digits) if run in own.index else ""
            if len(pool.members) > 1:
                values = own["value"].reindex(pool.members).dropna()
                values = values[values > 0] if ratio else values
                mean = np.exp(np.log(values).mean()) if ratio else values.mean()
                ends = [number(one, digits) for one in (values.min(), values.max())]
                row |= {"runs": number(len(values)), "mean": number(mean, digits)}
                row["range"] = " to ".join(filter(None, ends))
            rows.append(row)
    return pd.DataFrame(rows)


def describe(manifests: dict[str, dict], pool: Pool) -> str:
    """What varies between the pooled runs and what that tells, then why others are not pooled."""
    said, count = [], len(pool.members)
    if count > 1:
        said += [_differing(manifests, pool), SAYS[pool.varying[0]]]
        drawn = {step: {_seeds(manifests[run]).get(step) for run in pool.members} for step in pool.varying}
        if shared := listed([STEPS[step] for step, values in drawn.items() if len(values) < count]):
            said.append(f"Some share the seed of {shared}, so they are not independent and may vary too little.")
        if len(commits := {_commits(manifests[run]) for run in pool.members}) > 1 or "*" in "".join(commits):
            said.append("They were not made by one clean commit, so that the code may be a further difference.")
    else:
        said.append("No two of these runs differ in seeds alone, so nothing is summarised over runs.")
    if pool.apart:
        said.append(f"Shown beside, not pooled: {'; '.join(f'{run}: {why}' for run, why in pool.apart.items())}.")
    return " ".join(said)


def _differing(manifests: dict[str, dict], pool: Pool) -> str:
    drawn = {step: ", ".join(str(_seeds(manifests[run]).get(step)) for run in pool.members) for step in pool.varying}
    told = listed([f"{STEPS[step]} ({values})" for step, values in drawn.items()])
    return f"{listed(pool.members)} differ in the seed{'s' * (len(drawn) > 1)} of {told} and in no other parameter."


def _made(episodes: pd.DataFrame, manifests: dict[str, dict], pool: Pool) -> pd.DataFrame:
    """A row of text per run: whether it is pooled, profile, base, seeds, commits, episodes."""
    rows = []
    for run, manifest in manifests.items():
        own, made = episodes[episodes["run"] == run], {step: row["parameters"] for step, row in manifest.items()}
        row = {"run": run, "pooled": "yes" if run in pool.members else "no"}
        row |= {"profile": str(made.get("run_notebooks", {}).get("profile", ""))}
        row |= {"base": str(made.get("04_evaluate", {}).get("base", ""))}
        row |= {f"seed of {what}": str(_seeds(manifest).get(step, "")) for step, what in STEPS.items()}
        row |= {"commit": _commits(manifest), "episodes": f"{len(own):,}"}
        rows.append(row | {"unscored": f"{(own['status'] != 'completed').sum():,}"})
    return pd.DataFrame(rows)


def _settings(manifest: dict[str, dict]) -> dict:
    """The parameters on which results depend, without the seed, by "step.name"."""
    rows = [(step, manifest[step]["parameters"]) for step in STEPS if step in manifest]
    return {f"{step}.{name}": row[name] for step, row in rows for name in settings_of(row) if name != "seed"}


def _seeds(manifest: dict[str, dict]) -> dict[str, int]:
    return {step: manifest[step]["parameters"].get("seed", "") for step in STEPS if step in manifest}


def _commits(manifest: dict[str, dict]) -> str:
    rows = [manifest[step] for step in STEPS if step in manifest]
    made = [f"{(row.get('commit') or 'unknown')[:7]}{'*' * bool(row.get('dirty'))}" for row in rows]
    return ", ".join(dict.fromkeys(made))


def _differences(manifest: dict[str, dict], other: dict[str, dict]) -> str:
    """The parameters ``step.name`` that differ, the first NAMED of them; empty if there are none."""
    one, two = _settings(manifest), _settings(other)
    names = sorted(one.keys() ^ two.keys() | {name for name in one.keys() & two.keys() if one[name] != two[name]})
    return listed(names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"])

"""What further runs tell that the default one cannot (``make beyond``): the claims that only they can judge, and one
figure of each, as their own analysis made them. Nothing is computed here."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from knapsack.analysis.claims import CLAIMS, COLUMNS, read_claims
from knapsack.runs import Run, open_run, parsing, read_json

REMEDY = "run notebook 05 on this run again (run_notebooks.py --only 5 --out <its folder>)"
ENDS = ("png", "svg", "csv")
NOTHING = "Nothing of this was asked here: `make beyond` does it after `make report`."


def read_claims_of(folders: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of the runs' ``results/claims.csv`` about claims that go beyond the default run.

    Raises FileNotFoundError for a run without one, CorruptFileError for a damaged one or one of another version."""
    further, found = {claim.text: claim.beyond for claim in CLAIMS}, [pd.DataFrame(columns=COLUMNS)]
    for folder in folders:
        path = open_run(folder).results / "claims.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {REMEDY}")
        with parsing(path, "a table of this version's claims", REMEDY):
            table = read_claims(path)[COLUMNS]
            found.append(table[[further[claim] for claim in table["claim"]]])
    return pd.concat([table for table in found[1:] if len(table)] or found, ignore_index=True)


def take_figures(run: Run, folders: Sequence[str | Path]) -> dict[str, dict]:
    """Put into the figures of ``run`` one of each other run: quality by cap where it has three caps or more, else the
    matrix. Returns the rows of the manifest, by name. Raises FileNotFoundError for a run without figures."""
    rows = {}
    for folder in folders:
        other = open_run(folder)
        manifest = other.figures / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{manifest} is missing: {REMEDY}")
        known = read_json(manifest, REMEDY)
        caps = pd.read_csv(other.results / "cells.csv")["cap"].nunique()
        name = "score_by_cap" if caps > 2 and "score_by_cap" in known else "train_runtime_matrix"
        own = f"{other.folder.name}_{name}"
        for end in ENDS:
            shutil.copyfile(other.figures / f"{name}.{end}", run.figures / f"{own}.{end}")
        rows[own] = known[name] | {"files": [f"{own}.{end}" for end in ENDS]}
    return rows

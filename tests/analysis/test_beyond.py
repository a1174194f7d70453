import pandas as pd
import pytest

from knapsack.analysis import beyond, claims
from knapsack.analysis.metrics import write_csv
from knapsack.runs import CorruptFileError, Run, as_json, write_text

FURTHER = [claim.text for claim in claims.CLAIMS if claim.beyond]


@pytest.fixture
def other(tmp_path):
    """A function that makes what is read of a run that played these caps."""

    def make(name, caps):
        run = Run(tmp_path / name)
        rows = [dict.fromkeys(claims.COLUMNS, "") | {"claim": claim.text, "n": 3} for claim in claims.CLAIMS]
        write_csv(run.results / "claims.csv", pd.DataFrame(rows))
        write_csv(run.results / "cells.csv", pd.DataFrame({"cap": caps}))
        known = {}
        for figure in ("score_by_cap", "train_runtime_matrix"):
            known[figure] = {"caption": f"{figure} of {name}", "files": [f"{figure}.{end}" for end in beyond.ENDS]}
            for file in known[figure]["files"]:
                write_text(run.figures / file, f"{file} of {name}")
        write_text(run.figures / "manifest.json", as_json(known))
        return run

    return make


def test_only_claims_that_the_default_run_cannot_judge_are_read(other):
    found = beyond.read_claims_of([other("a", [25]).folder, other("b", [25]).folder])
    assert list(found["claim"]) == FURTHER * 2 and len(FURTHER) > 3
    nothing = beyond.read_claims_of([])
    assert list(nothing) == claims.COLUMNS and claims.claims_shown(nothing).text.empty


def test_one_figure_of_each_run_is_taken_with_its_caption(other, tmp_path):
    run = Run(tmp_path / "own")
    run.figures.mkdir(parents=True)
    rows = beyond.take_figures(run, [other("many", [10, 25, 80]).folder, other("two", [25, 80]).folder])
    assert list(rows) == ["many_score_by_cap", "two_train_runtime_matrix"]
    assert rows["two_train_runtime_matrix"]["caption"] == "train_runtime_matrix of two"
    for row in rows.values():
        assert len(row["files"]) == 3 and all((run.figures / file).exists() for file in row["files"])
    assert (run.figures / "many_score_by_cap.svg").read_text() == "score_by_cap.svg of many"


def test_a_run_that_was_not_analysed_or_is_damaged_is_named(other, tmp_path):
    for call in (beyond.read_claims_of, lambda folders: beyond.take_figures(Run(tmp_path), folders)):
        with pytest.raises(FileNotFoundError, match=r"none.*is missing: run notebook 05 on this run again"):
            call([tmp_path / "none"])
    run = other("a", [25])
    (run.results / "claims.csv").write_text("claim\nchanged\n")
    with pytest.raises(CorruptFileError, match=r"claims\.csv lacks"):
        beyond.read_claims_of([run.folder])


def test_claims_in_the_words_of_another_version_are_not_left_out_without_a_word(other):
    run = other("a", [25])
    path = run.results / "claims.csv"
    path.write_text(path.read_text().replace("Carry-over of a turn", "Carrying over a turn"))
    with pytest.raises(CorruptFileError, match=r"claims\.csv lacks.*Carrying over a turn.*run notebook 05 on this run"):
        beyond.read_claims_of([run.folder])

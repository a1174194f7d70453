import importlib.util

import pandas as pd
import pytest
from places import CHECKOUT

from knapsack.analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED

SPEC = importlib.util.spec_from_file_location("sturdiness", CHECKOUT / "benchmarks" / "sturdiness.py")
sturdiness = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sturdiness)


def test_the_spread_is_the_largest_distance_from_the_average():
    cells = pd.DataFrame({"model": "persistent", "runtime": ["persistent", "stateless"], "split": "easy", "cap": 25})
    table, largest = sturdiness.scores(
        {
            name: cells.assign(score_mean=means)
            for name, means in {"a": [0.9, 0.1], "b": [0.9, 0.4], "c": [0.6, 0.4]}.items()
        }
    )
    assert table.text.to_dict("records") == [
        {"cell": "P→P", "split": "easy", "cap": "25", "a": "0.900", "b": "0.900", "c": "0.600"}
        | {"average": "0.800", "spread": "0.200"},
        {"cell": "P→S", "split": "easy", "cap": "25", "a": "0.100", "b": "0.400", "c": "0.400"}
        | {"average": "0.300", "spread": "0.200"},
    ]
    assert largest == pytest.approx(0.2)


def test_only_opposite_verdicts_flip():
    claims = pd.DataFrame({"claim": ["x", "y", "z"], "version": "v1", "split": "easy", "cap": 80})
    one = claims.assign(verdict=[REPRODUCED, REPRODUCED, NOT_TESTABLE])
    other = claims.assign(verdict=[NOT_REPRODUCED, REPRODUCED, REPRODUCED])
    table, flips = sturdiness.verdicts({"a": one, "b": other})
    assert table.text["sturdy"].tolist() == ["**flips**", "yes", "varies"] and flips == 1
    assert table.text[["a", "b"]].iloc[0].tolist() == [REPRODUCED, NOT_REPRODUCED]

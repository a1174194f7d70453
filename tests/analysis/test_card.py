import csv
import re

import pandas as pd
import pytest
import scripted

from knapsack import agent, traces
from knapsack.agent import EpisodeSettings
from knapsack.analysis import metrics
from knapsack.analysis.card import VERDICTS, first_uses, habit, model_card, outcome
from knapsack.analysis.estimates import estimates_table
from knapsack.analysis.intervals import Bootstrap
from knapsack.runs import Run, as_json, keep
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.tasks import sample_split
from knapsack.teacher import RuleTeacher

PERSISTENT, STATELESS, ADAPTS, CONTRARY = VERDICTS.values()


FEW = Bootstrap(50)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=3))
    metrics.write_results(run)
    return run


@pytest.fixture(scope="module")
def tables(run):
    return metrics.read_cells(run.evaluations)


def card_of(episodes, turns, model, bootstrap=FEW):
    own = episodes[episodes["model"] == model]
    return model_card(episodes, turns, estimates_table(own, bootstrap), model, bootstrap)


def rows(markdown: str) -> list[dict[str, str]]:
    """All rows of the card's tables."""
    found, heading = [], None
    for line in markdown.splitlines():
        values = [value.strip() for value in line.strip("|").split("|")] if line.startswith("|") else None
        if values is None:
            heading = None
        elif heading is None:
            heading = values
        elif not values[0].startswith("---"):
            found.append(dict(zip(heading, values, strict=True)))
    return found


def verdict_in(card: str) -> str:
    return re.search(r"\*\*Verdict: (.*)\.\*\*", card).group(1)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("persistent", PERSISTENT), ("stateless", STATELESS), ("teacher", ADAPTS), ("base", "undecided")],
)
def test_models_with_a_habit_get_its_verdict(tables, model, expected):
    """The scripted teacher plays each runtime in its own style, and the scripted base never gets to a later turn."""
    assert verdict_in(card_of(*tables, model)) == expected


OPPOSITE = dict(zip(KINDS, KINDS[::-1], strict=True))


@pytest.mark.parametrize(
    ("style", "expected"),
    [("persistent", PERSISTENT), ("stateless", STATELESS), (None, CONTRARY)],  # None: that of the other runtime
)
def test_a_rule_based_teacher_shows_its_style_in_either_runtime(tmp_path, style, expected):
    played = list(sample_split("easy", 5, 0, scripted.CONFIG))
    with interpreter_pool() as pool:
        for kind in KINDS:
            for number, task in enumerate(played):
                play = agent.episode(task, kind, EpisodeSettings(5), pool)
                done = agent.run_alone(play, RuleTeacher(task, style or OPPOSITE[kind], number))
                traces.write_episode(tmp_path / f"mine_{kind}_easy", done, "mine")
            keep(tmp_path / f"mine_{kind}_easy" / "settings.json", as_json({"task_ids": [t.task_id for t in played]}))
    card = card_of(*metrics.read_cells(tmp_path), "mine")
    assert verdict_in(card) == expected and "nan" not in card


def test_the_cards_turns_are_those_of_the_csv_files(run, tables):
    with open(run.results / "turns.csv") as file:
        turns = [row for row in csv.DictReader(file) if row["model"] == "persistent"]
    shown = [row for row in rows(card_of(*tables, "persistent")) if "split" in row]
    assert len(shown) == 4
    for row in shown:
        later = [t for t in turns if (t["split"], t["runtime"]) == (row["split"], row["runtime"])]
        later = [t for t in later if int(t["names_bound"]) and t["names_needed"]]
        leaning = sum(int(t["names_needed"]) > 0 for t in later)
        assert row["n"] == "3" and row["unscored"] == "0" and row["later turns"] == str(len(later))
        assert row["of them lean %"].split(" [")[0] == f"{100 * leaning / len(later):.0f}"


def test_the_same_seed_gives_the_same_card_and_another_one_other_intervals(tables):
    card, again, other = (card_of(*tables, "stateless", Bootstrap(50, seed)) for seed in (3, 3, 4))
    assert card == again != other


def without(tables, **key) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables without the rows of these values."""
    return tuple(t[~pd.concat([t[name] == value for name, value in key.items()], axis=1).all(axis=1)] for t in tables)


def test_a_runtime_that_was_not_played_is_named(tables):
    card = card_of(*without(tables, model="persistent", runtime="stateless"), "persistent")
    assert "Not played in the stateless runtime." in card and "nan" not in card
    assert verdict_in(card) == "unknown, without a scored episode in the stateless runtime"


def test_without_any_scored_episode_the_card_says_so(tables):
    episodes, turns = tables
    lost = episodes["model"] == "persistent"
    empty = episodes[[*metrics.CELL, "task_id"]].assign(status="missing")
    episodes = pd.concat([episodes[~lost], empty[lost].reindex(columns=episodes.columns)], ignore_index=True)
    card = card_of(episodes, turns[turns["model"] != "persistent"], "persistent")
    assert "0 of 12 episodes are scored" in card and "nan" not in card
    assert verdict_in(card) == "unknown, without a scored episode in the persistent or stateless runtime"
    own = [row for row in rows(card) if "split" in row]
    assert [row["score %"] for row in own] == ["–"] * 4 and [row["unscored"] for row in own] == ["3"] * 4


def test_the_other_models_are_shown_beside_it_once_each(tables):
    habits = [row for row in rows(card_of(*tables, "stateless")) if "verdict" in row]
    assert [row["model"] for row in habits] == ["`stateless`", "`base`", "`persistent`", "`teacher`"]
    assert habits[2]["verdict"] == PERSISTENT


def test_a_third_runtime_is_in_the_table_and_not_in_the_verdict(tables):
    episodes, turns = tables
    more = [t[t["runtime"] == "stateless"].assign(runtime="carry-over") for t in tables]
    tables = [pd.concat([t, extra], ignore_index=True) for t, extra in zip((episodes, turns), more, strict=True)]
    card = card_of(*tables, "persistent")
    assert sum(row.get("runtime") == "carry-over" for row in rows(card)) == 2 and verdict_in(card) == PERSISTENT


def test_what_follows_the_first_use_does_not_count():
    """A model that leans once, and then repairs what the error named for the rest of a long episode."""
    key = {"model": "mine", "runtime": "stateless", "split": "easy", "cap": 25}
    ids = [f"t{number}" for number in range(6)]
    episodes = pd.DataFrame([key | {"task_id": task, "status": "completed"} for task in ids])
    first = {"turn": 1, "names_bound": 2, "names_needed": 1, "names_bound_again": 0}
    repairs = [{"turn": k, "names_bound": 2, "names_needed": 0, "names_bound_again": 2} for k in range(2, 15)]
    neither = {"turn": 0, "names_bound": 2, "names_needed": 0, "names_bound_again": 0}
    turns = pd.DataFrame([key | {"task_id": task} | turn for task in ids for turn in (*repairs[::-1], neither, first)])
    assert tuple(first_uses(episodes, turns, "mine").loc["stateless"]) == (6, 6, 0)


@pytest.mark.parametrize(
    ("n", "leans", "anew", "expected"),
    [
        (3, 3, 0, "undecided"),  # too few: the interval begins at 0.44
        (4, 4, 0, "leans"),
        (100, 0, 61, "writes anew"),
        (100, 55, 45, "undecided"),
        (100, 20, 0, "undecided"),  # of most episodes nothing is known
    ],
)
def test_an_outcome_needs_most_of_the_episodes(n, leans, anew, expected):
    assert outcome(n, leans, anew) == expected


def test_one_undecided_runtime_leaves_the_verdict_undecided():
    uses = pd.DataFrame({"n": [9, 9], "leans": [9, 4], "anew": [0, 5]}, index=list(KINDS))
    assert habit(uses) == "undecided"


def test_a_model_that_never_played_is_refused(tables):
    with pytest.raises(ValueError, match="'mine'; there are: 'base', 'persistent'"):
        card_of(*tables, "mine")

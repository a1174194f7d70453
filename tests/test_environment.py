"""Tools, budget and score of an episode."""

import json

import pytest

from knapsack.environment import KnapsackEnvironment
from knapsack.tasks import Item, Task

# Optimum b + c: value 90 at weight 10. "d" is of a class that is not allowed.
ITEMS = {"a": Item(6, 50, "A"), "b": Item(5, 45, "A"), "c": Item(5, 45, "B"), "d": Item(1, 99, "C")}
TASK = Task("t", 0, ITEMS, 10, ("A", "B"), 2, ("A", "B", "C"), ("b", "c"), 90, 10)


@pytest.fixture
def environment():
    return KnapsackEnvironment(TASK)


def state(environment):
    return list(environment.taken), dict(environment.inspected), environment.finished, environment.score


def test_listing_holds_every_id_and_inspect_exactly_class_value_and_weight(environment):
    assert json.loads(environment.list_items()) == ["a", "b", "c", "d"]
    assert json.loads(environment.inspect("a")) == {"class": "A", "value": 50, "weight": 6}


def test_budget_counts_distinct_items(environment):
    first = environment.inspect("a")
    assert [environment.inspect("a") for _ in range(5)] == [first] * 5
    environment.inspect("b")
    with pytest.raises(RuntimeError, match="budget exceeded: 2 of 2"):
        environment.inspect("c")
    assert environment.inspect("a") == first  # a second look stays free when the budget is spent


def test_refused_inspection_is_not_counted(environment):
    with pytest.raises(ValueError, match="unknown item id: nothing"):
        environment.inspect("nothing")
    assert environment.inspected == {}


@pytest.mark.parametrize(
    ("item_id", "error", "text"),
    [
        ("x", ValueError, "unknown item id: x"),
        (["b"], ValueError, "unknown item id"),
        (None, ValueError, "unknown item id"),
        pytest.param(10**6000, ValueError, "unknown item id", id="endless number"),
        ("b", ValueError, "already taken: b"),
        ("d", PermissionError, "class 'C' is not allowed"),
        ("a", RuntimeError, r"capacity exceeded: 5 \+ 6 > 10"),
    ],
)
def test_refused_item_changes_nothing(environment, item_id, error, text):
    environment.take_item("b")
    before = state(environment)
    with pytest.raises(error, match=text):
        environment.take_item(item_id)
    assert state(environment) == before


def test_item_may_be_taken_without_a_look(environment):
    assert environment.take_item("c") is None
    assert environment.taken == ["c"] and environment.inspected == {}


def test_only_the_optimum_is_solved(environment):
    environment.take_item("b")
    assert (environment.score, environment.solved) == (0.5, False)
    environment.take_item("c")
    assert (environment.score, environment.solved) == (1.0, True)


def test_almost_the_optimum_is_not_solved():
    items = {"a": Item(1, 100_000, "A"), "b": Item(1, 99_999, "A")}
    environment = KnapsackEnvironment(Task("t", 0, items, 1, ("A",), 2, ("A",), ("a",), 100_000, 1))
    environment.take_item("b")
    assert environment.score > 0.9999 and not environment.solved


def test_metrics_are_those_of_the_published_format(environment):
    environment.inspect("a")
    environment.take_item("a")
    assert environment.metrics() == {
        "agent_value": 50,
        "optimal_value": 90,
        "optimality_gap": 40,
        "weight_used": 6,
        "capacity": 10,
        "items_taken_count": 1,
        "inspected_count": 1,
    }


def test_finish_is_recorded_and_tools_are_the_four(environment):
    assert list(environment.tools) == ["list_items", "inspect", "take_item", "finish"]
    assert environment.tools["finish"]() is None and environment.finished

"""Opaque Knapsack as the agent meets it: four tools, an inspection budget, and a score (paper, section 3)."""

import json
from collections.abc import Callable

from knapsack.tasks import Task


class KnapsackEnvironment:
    """The state of one episode. Nothing here runs model-written code; ``runtime`` calls ``tools``."""

    def __init__(self, task: Task):
        self.task = task
        self.inspected: dict[str, str] = {}  # id → the JSON that was shown
        self.taken: list[str] = []
        self.finished = False

    @property
    def tools(self) -> dict[str, Callable]:
        return {tool.__name__: tool for tool in (self.list_items, self.inspect, self.take_item, self.finish)}

    def list_items(self) -> str:
        """All item ids, as a sorted JSON list."""
        return json.dumps(sorted(self.task.items))

    def inspect(self, item_id: str) -> str:
        """Class, value and weight of an item, as a JSON object.

        The budget counts distinct items: a second look is free and shows the same text. Raises ValueError
        for an unknown id and RuntimeError once the budget is spent.
        """
        item = self._item(item_id)
        if item_id not in self.inspected:
            budget = self.task.inspect_budget
            if len(self.inspected) >= budget:
                raise RuntimeError(f"inspect budget exceeded: {len(self.inspected)} of {budget} items inspected")
            record = {"class": item.item_class, "value": item.value, "weight": item.weight}
            self.inspected[item_id] = json.dumps(record)
        return self.inspected[item_id]

    def take_item(self, item_id: str) -> None:
        """Put an item into the knapsack; it stays there.

        Raises ValueError (unknown id, taken already), PermissionError (class not allowed) or RuntimeError
        (capacity would be exceeded), each time without any change.
        """
        item = self._item(item_id)
        if item_id in self.taken:
            raise ValueError(f"item already taken: {item_id}")
        if item.item_class not in self.task.allowed_classes:
            raise PermissionError(f"class {item.item_class!r} is not allowed")
        if self.weight + item.weight > self.task.capacity:
            raise RuntimeError(f"capacity exceeded: {self.weight} + {item.weight} > {self.task.capacity}")
        self.taken.append(item_id)

    def finish(self) -> None:
        """End the episode after this code block."""
        self.finished = True

    def _item(self, item_id: str):
        if type(item_id) is not str:  # not shown: code may pass something endless
            raise ValueError("unknown item id: an id is a str")
        if item_id not in self.task.items:
            raise ValueError(f"unknown item id: {item_id[:40]}")
        return self.task.items[item_id]

    @property
    def value(self) -> int:
        return sum(self.task.items[i].value for i in self.taken)

    @property
    def weight(self) -> int:
        return sum(self.task.items[i].weight for i in self.taken)

    @property
    def score(self) -> float:
        """Normalized optimality: value taken ÷ optimal value, 0 if over capacity (paper, section 3)."""
        return self.value / self.task.optimal_value if self.weight <= self.task.capacity else 0.0

    @property
    def solved(self) -> bool:
        return self.score == 1.0

    def metrics(self) -> dict:
        """The metrics of the published result format."""
        return {
            "agent_value": self.value,
            "optimal_value": self.task.optimal_value,
            "optimality_gap": self.task.optimal_value - self.value,
            "weight_used": self.weight,
            "capacity": self.task.capacity,
            "items_taken_count": len(self.taken),
            "inspected_count": len(self.inspected),
        }

"""Opaque Knapsack instances: sampling, exact optimum, and the published JSON format.

``sample_task(seed, config)`` is a pure function: the same arguments give the same bytes in any process.
Constants and the acceptance rule follow arXiv 2603.01209, section on Opaque Knapsack; unlike the released
generator, the allowed classes come from the seeded source too.
"""

import hashlib
import math
import random
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from knapsack.runs import CorruptFileError, as_json, bounded, check, keep, parsing, read_json, writing

ATTEMPTS = 200  # rejection sampling: attempt k uses seed + k * ATTEMPT_STRIDE
ATTEMPT_STRIDE = 1_000_003
MIN_ALLOWED_ITEMS = 5
MIN_OPTIMAL_ITEMS = 3
MAX_DOMINANCE = 0.40  # no chosen item may hold more of the optimal value
SPLIT_OFFSETS = {"train": 0, "easy": 250_000, "hard": 500_000}
SPLIT_SIZE = 250_000
NO_TIME = "1970-01-01T00:00:00Z"  # so that equal tasks give equal bytes


class TaskSamplingError(RuntimeError):
    """No acceptable instance was found within the allowed attempts."""


@dataclass(frozen=True)
class Item:
    weight: int
    value: int
    item_class: str


@bounded
class KnapsackConfig:
    """What instances of a split look like. All ranges are inclusive (low, high).

    Raises ValueError naming field, value and bound.
    """

    items: tuple[Annotated[int, Field(ge=MIN_ALLOWED_ITEMS)], int]
    weights: tuple[PositiveInt, int]
    values: tuple[PositiveInt, int]
    classes: Annotated[int, Field(ge=1, le=26)]  # the first so many letters of the alphabet
    allowed_classes: PositiveInt  # how many of them may be taken; hidden from the agent
    capacity_ratio: tuple[PositiveFloat, Annotated[float, Field(le=1)]]  # as a share of the allowed items' total weight
    id_pool: int | None = None  # None: ids from 128 random bits; a number: ids from a fixed pool of that size

    easy = classmethod(lambda cls: preset("easy"))  # ``KnapsackConfig.easy()``: the paper's Easy tasks
    hard = classmethod(lambda cls: preset("hard"))

    def __post_init__(self):
        for name in ("items", "weights", "values", "capacity_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = {(low, high)}: needs low <= high")
        if self.allowed_classes > self.classes:
            raise ValueError(f"allowed_classes = {self.allowed_classes}: needs at most classes = {self.classes}")
        if self.id_pool is not None and self.id_pool < self.items[1]:
            raise ValueError(f"id_pool = {self.id_pool}: needs at least items[1] = {self.items[1]}")


EASY = KnapsackConfig((25, 40), (5, 20), (10, 100), 15, 3, (0.35, 0.5))  # the paper's splits
HARD = KnapsackConfig((80, 120), (5, 50), (10, 500), 26, 5, (0.4, 0.6))
PRESETS = {  # the scale model reads each id of the pool as one token, and 50 items fit its context
    "easy": EASY,
    "hard": HARD,
    "nano_easy": replace(EASY, id_pool=1024),
    "nano_hard": replace(HARD, id_pool=1024, items=(40, 50)),
    "nano_train": replace(HARD, id_pool=1024, items=(25, 50)),  # of Easy's and Hard's sizes
}


def preset(name: str) -> KnapsackConfig:
    """The configuration of that name. Raises ValueError listing the names there are."""
    if name not in PRESETS:
        raise ValueError(f"task configuration {name!r}: needs one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Task:
    """One instance. ``items`` maps id to Item in the order that ``list_items`` shows."""

    task_id: str
    seed: int
    items: dict[str, Item]
    capacity: int
    allowed_classes: tuple[str, ...]
    inspect_budget: int
    class_names: tuple[str, ...]
    optimal_items: tuple[str, ...]
    optimal_value: int
    optimal_weight: int

    @property
    def difficulty(self) -> dict:
        """The published description of an instance; shares are rounded to two digits as published."""
        dominance = max(self.items[i].value for i in self.optimal_items) / self.optimal_value
        return {
            "n_items": len(self.items),
            "optimal_set_size": len(self.optimal_items),
            "capacity": self.capacity,
            "p_valid": round(len(self.allowed_classes) / len(self.class_names), 2),
            "budget_coverage": round(self.inspect_budget / len(self.items), 2),
            "max_item_dominance": round(dominance, 2),
        }

    def to_json(self) -> dict:
        """The published task format (``pythonformer.task.v1``), with NO_TIME as the time of generation."""
        records = sorted(self.items.items())
        private = {i: {"weight": item.weight, "value": item.value, "class": item.item_class} for i, item in records}
        return {
            "schema_version": "pythonformer.task.v1",
            "family": "knapsack",
            "seed": self.seed,
            "task_id": self.task_id,
            "run_name": "knapsack",
            "generated_at": NO_TIME,
            "difficulty": self.difficulty,
            "public": {
                "item_ids": list(self.items),
                "capacity": self.capacity,
                "allowed_classes": list(self.allowed_classes),
                "inspect_budget": self.inspect_budget,
            },
            "private": {"items": private},
            "reference": {
                "optimal_item_ids": list(self.optimal_items),
                "optimal_value": self.optimal_value,
                "optimal_weight": self.optimal_weight,
            },
            "nl": None,
        }

    @classmethod
    def from_json(cls, data: dict, source: str = "task") -> "Task":
        """Read the published format. Raises CorruptFileError naming ``source`` and the field.

        The optimum is computed again; a file whose stated optimum differs is refused.
        """
        remedy = "make or download it anew"
        with parsing(source, "a task file", remedy):
            public, private, reference = data["public"], data["private"]["items"], data["reference"]
            items = {
                i: Item(int(private[i]["weight"]), int(private[i]["value"]), str(private[i]["class"]))
                for i in public["item_ids"]
            }
            allowed = tuple(public["allowed_classes"])
            share = float(data["difficulty"]["p_valid"])
            letters = max(round(len(allowed) / share), max(ord(x.item_class) - 64 for x in items.values()))
            task = cls(
                task_id=str(data["task_id"]),
                seed=int(data["seed"]),
                items=items,
                capacity=int(public["capacity"]),
                allowed_classes=allowed,
                inspect_budget=int(public["inspect_budget"]),
                class_names=tuple(string.ascii_uppercase[:letters]),
                optimal_items=tuple(reference["optimal_item_ids"]),
                optimal_value=int(reference["optimal_value"]),
                optimal_weight=int(reference["optimal_weight"]),
            )
            if min(min(item.weight, item.value) for item in items.values()) < 1:
                raise ValueError("private.items: a weight or value is below 1")
            stated = [items[i] for i in task.optimal_items]
            sums = (sum(item.value for item in stated), sum(item.weight for item in stated))
            if not stated or sums != (task.optimal_value, task.optimal_weight):
                raise ValueError("reference: optimal_item_ids do not add up to optimal_value and optimal_weight")
        value = sum(items[i].value for i in optimum(items, allowed, task.capacity))
        if value != task.optimal_value:
            problem = f"reference.optimal_value is {task.optimal_value}, but the optimum is {value}"
            raise CorruptFileError(f"{source}: {problem}; {remedy}")
        return task


def optimum(items: dict[str, Item], allowed: Iterable[str], capacity: int) -> tuple[str, ...]:
    """Ids of a subset of the allowed items with the greatest value within ``capacity``.

    Exact dynamic programme over capacities, O(allowed items · capacity). Ties go to the subset found first.
    """
    candidates = [i for i, item in items.items() if item.item_class in set(allowed) and item.weight <= capacity]
    capacity = min(capacity, sum(items[i].weight for i in candidates))
    best = [0] * (capacity + 1)
    chosen: list[list[bool]] = []
    for i in candidates:
        weight, value = items[i].weight, items[i].value
        row = [False] * (capacity + 1)
        for room in range(capacity, weight - 1, -1):
            if best[room - weight] + value > best[room]:
                best[room] = best[room - weight] + value
                row[room] = True
        chosen.append(row)
    picked, room = [], capacity
    for i, row in zip(reversed(candidates), reversed(chosen), strict=True):
        if row[room]:
            picked.append(i)
            room -= items[i].weight
    return tuple(sorted(picked))


def pool_id(index: int) -> str:
    """The ``index``-th id of the fixed pool that the scale model's tokenizer knows."""
    return "item_" + hashlib.sha256(b"pool %d" % index).hexdigest()[:12]


def _item_ids(count: int, config: KnapsackConfig, source: random.Random) -> list[str]:
    if config.id_pool is not None:
        return [pool_id(index) for index in source.sample(range(config.id_pool), count)]
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids["item_" + hashlib.sha256(b"%032x" % source.getrandbits(128)).hexdigest()[:12]] = None
    return list(ids)


def sample_task(seed: int, config: KnapsackConfig, task_id: str | None = None) -> Task:
    """Draw one instance, rejecting those that are trivial or dominated by one item.

    Budget = ceil(max(1.5 · capacity / mean weight / p_valid, 1.1 · |optimal set|)) clamped to [5, n], with
    mean weight the middle of the range (paper, Opaque Knapsack sampling). Raises ValueError for a negative seed
    and TaskSamplingError after 200 attempts.
    """
    if seed < 0:  # Python's generator would draw the same for -seed
        raise ValueError(f"seed = {seed}: needs at least 0")
    for attempt in range(ATTEMPTS):
        source = random.Random(seed + attempt * ATTEMPT_STRIDE)
        count = source.randint(*config.items)
        names = tuple(string.ascii_uppercase[: config.classes])
        allowed = tuple(sorted(source.sample(names, config.allowed_classes)))
        items = {
            item_id: Item(
                weight=source.randint(*config.weights),
                value=source.randint(*config.values),
                item_class=source.choice(names if index else allowed),
            )
            for index, item_id in enumerate(_item_ids(count, config, source))
        }
        items = dict(sorted(items.items()))  # the listing must not give away which item came first
        weights = [item.weight for item in items.values() if item.item_class in allowed]
        if len(weights) < MIN_ALLOWED_ITEMS:
            continue
        capacity = max(min(weights), round(source.uniform(*config.capacity_ratio) * sum(weights)))
        best = optimum(items, allowed, capacity)
        value = sum(items[i].value for i in best)
        if len(best) < MIN_OPTIMAL_ITEMS or max(items[i].value for i in best) > MAX_DOMINANCE * value:
            continue
        valid = config.allowed_classes / config.classes
        needed = max(1.5 * capacity / (sum(config.weights) / 2) / valid, 1.1 * len(best))
        return Task(
            task_id=task_id if task_id is not None else f"knapsack-{seed:010d}",
            seed=seed,
            items=items,
            capacity=capacity,
            allowed_classes=allowed,
            inspect_budget=max(5, min(math.ceil(needed), count)),
            class_names=names,
            optimal_items=best,
            optimal_value=value,
            optimal_weight=sum(items[i].weight for i in best),
        )
    raise TaskSamplingError(f"no acceptable instance in {ATTEMPTS} attempts from seed {seed} with {config}")


def sample_split(split: str, count: int, seed: int, config: KnapsackConfig) -> Iterator[Task]:
    """``count`` tasks of ``split`` ("train", "easy" or "hard"); no two splits of a run share a seed."""
    if split not in SPLIT_OFFSETS:
        raise ValueError(f"split = {split!r}: needs one of {sorted(SPLIT_OFFSETS)}")
    if not 0 <= count <= SPLIT_SIZE:
        raise ValueError(f"{split}: {count} tasks asked for; needs 0 to {SPLIT_SIZE}")
    first = seed * 10_000_000 + SPLIT_OFFSETS[split]
    for index in range(count):
        yield sample_task(first + index, config, task_id=f"knapsack-{index:010d}")


def write_tasks(root: str | Path, tasks: Iterable[Task]) -> list[Path]:
    """Write ``<root>/tasks/knapsack/knapsack-<index>.json`` for each task and return the paths.

    A file that holds the same task already is left alone; a damaged one is named on stderr and written again. Raises
    FileExistsError, before anything is written, for a file that holds another task.
    """
    folder = Path(root) / "tasks" / "knapsack"
    texts = {folder / f"{task.task_id}.json": as_json(task.to_json()) for task in tasks}
    with writing(root):
        there = {path for path in texts if path.exists()}
        for path in sorted(there):
            if path.read_bytes() != texts[path].encode():
                raise FileExistsError(
                    f"{path} holds another task (other seed or configuration): "
                    "choose another run folder, or delete this one's tasks to make them anew"
                )
        for path in texts.keys() - there:
            keep(path, texts[path])
    return list(texts)


def read_tasks(root: str | Path, count: int | None = None) -> list[Task]:
    """Read the tasks below ``root`` in the order of their names; ``count`` limits how many.

    Raises FileNotFoundError when there are fewer than asked for, CorruptFileError for a file that is damaged.
    """
    folder = Path(root) / "tasks" / "knapsack"
    check(folder, "run notebook 01 again")
    paths = sorted(folder.glob("knapsack-*.json"))
    if len(paths) < (count or 1):
        raise FileNotFoundError(f"{folder} holds {len(paths)} tasks, {count or 'some'} needed: run notebook 01 first")
    return [Task.from_json(read_json(path, "make or download it anew"), str(path)) for path in paths[:count]]

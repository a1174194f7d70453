"""Blocks of code such as agents write for this task: in ``blocks/``, generated below, the teacher's, published ones.

A file of ``blocks/`` holds blocks under headings ``# %% name``. They are no modules: many are wrong on purpose. Where
the default engine is known to differ, the heading says why, in a word of ``known_differences``.
"""

import json
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from places import EXAMPLES

from knapsack import agent
from knapsack.sandbox import InterpreterPool
from knapsack.tasks import Task, preset, read_tasks, sample_task
from knapsack.teacher import RuleTeacher

HERE = Path(__file__).parent
TASK = sample_task(7, preset("easy"))  # what single blocks are run on


@dataclass(frozen=True)
class Play:
    """Blocks that one agent wrote in the turns of one episode."""

    name: str
    task: Task
    kind: str
    blocks: tuple[str, ...]


def _written() -> tuple[dict[str, str], dict[str, str]]:
    """Names of the blocks in the files to their code, and of those that differ to the reason."""
    blocks, reasons = {}, {}
    for path in sorted((HERE / "blocks").glob("*.txt")):
        for part in re.split(r"^# %% ", path.read_text(), flags=re.MULTILINE)[1:]:
            heading, _, code = part.partition("\n")
            name, differs, reason = f"{path.stem}: {heading}".partition(" | differs: ")
            if name in blocks:
                raise ValueError(f"two blocks are called {name!r}")
            blocks[name] = code
            reasons |= {name: reason} if differs else {}
    return blocks, reasons


GREEDY = """import json
seen = {{}}
for i in json.loads(list_items())[:12]:
    d = json.loads(inspect(i))
    seen[i] = {record}
left = {capacity}
for i in {order}:
    weight = {weight}
    if weight > left:
        continue
    try:
        take_item(i)
    except {refusal}:
        continue
    left -= weight
    {report}
print('left =', left)
"""
RECORDS = {  # how a record is kept, and how its value and weight are read
    "dict": ("d", "seen[i]['value']", "seen[i]['weight']"),
    "tuple": ("(d['weight'], d['value'], d['class'])", "seen[i][1]", "seen[i][0]"),
    "list": ("[*d.values()]", "seen[i][-2]", "seen[i][-1]"),
}
ORDERS = {
    "ratio": "sorted(seen, key=lambda i: {value} / {weight}, reverse=True)",
    "value then weight": "sorted(seen.keys(), key=lambda i: (-{value}, {weight}))",
    "rounded ratio": "[i for _, i in sorted([(round({value} / {weight}, 3), i) for i in seen])][::-1]",
    "weight": "sorted(list(seen), key=lambda i: {weight})",
}
REPORTS = {
    "f-string": ("PermissionError", "print(f'took {{i}} w={{weight:>2}} left={{left:03d}} {{weight / 42:.1%}}')"),
    "json": ("Exception", "print(json.dumps({{'took': i, 'record': seen[i], 'left': left}}, sort_keys=True))"),
    "repr": ("(PermissionError, RuntimeError)", "print('took', seen.get(i), repr(i), (weight, left))"),
}
VALUES = "[0, 1, -7, 2.5, True, None, 'ab', '', [1, 2], (1,), {'a': 1}, {1}, b'x']"
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "&", "|", "<", "<=", "==", "!=", "in", "is not", "and", "or")
SPECS = {
    "integers": ("[0, 7, -42, 1234567, 10**20]", "'' d 5 <5 >5 ^7 +d 05 , _ x b o e .2f % c^9 *>8,d".split()),
    "floats": ("[0.0, 1.5, -2.675, 1e-7, 1e21]", "'' .0f .2f 8.3f <8.1f +.1f e .3e g .4g % .1% , 010.2f".split()),
    "texts": ("['', 'a', 'item_26fc62288345']", "'' 5 >6 ^7 *<8 .3 >8.2 s d".split()),
}  # fmt: skip


def generated() -> dict[str, str]:
    """Name to code: greedy policies in many spellings, and each operator and format on each pair of kinds of value."""
    blocks = {}
    for (record, (keep, value, weight)), (order, by), (report, (refusal, line)) in product(
        RECORDS.items(), ORDERS.items(), REPORTS.items()
    ):
        names = {"value": value, "weight": weight}
        blocks[f"greedy: {record}, {order}, {report}"] = GREEDY.format(
            record=keep, capacity=30, order=by.format(**names), refusal=refusal, report=line.format(), **names
        )
    for operator in OPERATORS:
        blocks[f"operator: {operator}"] = (
            f"values = {VALUES}\nfor a in values:\n    for b in values:\n        try:\n"
            f"            print(repr(a), {operator!r}, repr(b), '->', repr(a {operator} b))\n"
            "        except Exception as error:\n            print(repr(a), repr(b), type(error).__name__)\n"
        )
    for kind, (values, specs) in SPECS.items():
        blocks[f"format: {kind}"] = (
            f"for value in {values}:\n    for spec in {[spec.strip(chr(39)) for spec in specs]}:\n        try:\n"
            "            print(spec, f'|{value:{spec}}|', format(value, spec) == f'{value:{spec}}')\n"
            "        except ValueError as error:\n            print(spec, type(error).__name__)\n"
        )
    return blocks


WRITTEN, DIFFERENT = _written()
BLOCKS = WRITTEN | generated()
DIFFERENT["operator: in"] = "bit_length"  # {1} in {2}


def published() -> list[Play]:
    """What the agent of the published example traces wrote; none where the examples are not at hand."""
    plays = []
    for path in sorted(EXAMPLES.glob("*_*_easy/knapsack/*.trace.json")):
        tasks = {task.task_id: task for task in read_tasks(EXAMPLES / "easy")}
        steps = [e["data"] for e in json.loads(path.read_text())["events"] if e["type"] == "StepEvent"]
        task = tasks[path.name.removeprefix("knapsack-").removesuffix(".trace.json")]
        kind = path.parent.parent.name.split("_")[1]
        plays.append(Play(f"published: {kind} {task.task_id}", task, kind, tuple(step["code"] for step in steps)))
    return plays


def taught(pool: InterpreterPool, seeds: range = range(4)) -> list[Play]:
    """What the rule-based teacher writes on Easy tasks, in both styles."""
    plays = []
    for seed, kind in product(seeds, ("persistent", "stateless")):
        task = sample_task(seed, preset("easy"))
        play = agent.episode(task, kind, agent.EpisodeSettings(), pool)
        turns = agent.run_alone(play, RuleTeacher(task, kind, seed)).turns
        plays.append(Play(f"teacher: {kind} {seed}", task, kind, tuple(turn.code for turn in turns)))
    return plays

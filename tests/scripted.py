"""Episodes for tests: real tasks, really executed code, and replies that follow a script instead of a model; and tables
of invented episodes, for what is computed from them."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from knapsack import agent, traces
from knapsack.agent import Episode, EpisodeSettings, Reply
from knapsack.analysis import metrics
from knapsack.runs import as_json, keep
from knapsack.runtime import interpreter_pool
from knapsack.tasks import KnapsackConfig, Task, sample_split, sample_task

CONFIG = KnapsackConfig((8, 14), (5, 20), (10, 100), 4, 2, (0.35, 0.5))
CELLS = [(model, kind) for model in ("base", "persistent", "stateless") for kind in ("persistent", "stateless")]
CELLS += [("teacher", "persistent"), ("teacher", "stateless")]

TAKE = """for i in sorted(seen, key=lambda i: -seen[i][1] / seen[i][0])[{skip}:]:
    try:
        take_item(i)
    except Exception as error:
        pass
"""
LOOK = """for i in [i for i in json.loads(list_items()) if i not in seen][:{batch}]:
    record = json.loads(inspect(i))
    seen[i] = [record["weight"], record["value"]]
"""


def block(code: str, words: str = "I go on.") -> str:
    return f"{words}\n```python\n{code}\n```"


def play(task: Task, kind: str, texts: list[str], max_turns: int = 10, max_tool_calls: int = 25, pool=None) -> Episode:
    """An episode whose replies are ``texts``, repeated from the last one on; a token is four characters here."""
    count = iter(range(10_000))

    def reply(messages):
        text = texts[min(next(count), len(texts) - 1)]
        return Reply(text, sum(len(message["content"]) for message in messages) // 4, len(text) // 4)

    settings = EpisodeSettings(max_turns, max_tool_calls, "compact")
    return agent.run_alone(agent.episode(task, kind, settings, pool), reply)


def persistent_texts(skip: int = 0, batch: int = 4) -> list[str]:
    """State stays in names; the same blocks raise NameError in a stateless runtime, then one block does it all."""
    look = LOOK.format(batch=batch)
    start = f"import json\nseen = {{}}\ndef look():\n    {look.replace(chr(10), chr(10) + '    ').rstrip()}\nlook()"
    whole = f"import json\nseen = {{}}\n{LOOK.format(batch=6)}{TAKE.format(skip=skip)}finish()"
    return [block(start), block("look()\nprint(len(seen))"), block(TAKE.format(skip=skip) + "finish()"), block(whole)]


def stateless_texts(task: Task, skip: int = 0, batch: int = 4) -> list[str]:
    """State is written into every block again."""
    ids, known, texts = list(task.items)[: task.inspect_budget], {}, []
    while len(known) < min(2 * batch, len(ids)):
        look = LOOK.format(batch=batch)
        texts.append(block(f"import json\nseen = {json.dumps(known)}\n{look}print(json.dumps(seen))"))
        for i in ids[len(known) : len(known) + batch]:
            known[i] = [task.items[i].weight, task.items[i].value]
    return [*texts, block(f"seen = {json.dumps(known)}\n{TAKE.format(skip=skip)}finish()")]


def base_texts(number: int) -> list[str]:
    """Mostly lost: no code, an unknown name, a few items taken blindly, rarely a finish."""
    blind = "import json\nfor i in json.loads(list_items()):\n    take_item(i)"
    return ["I think.", block("print(items)"), block(blind), block("finish()") if number % 5 == 0 else "Hm."]


def texts_of(model: str, kind: str, task: Task, number: int) -> list[str]:
    skip = (number * 7 + len(model)) % 3
    if model == "base":
        return base_texts(number)
    if model == "persistent" or (model, kind) == ("teacher", "persistent"):
        return persistent_texts(skip, 3 + number % 3)
    return stateless_texts(task, skip, 3 + number % 2)


def write_run(folder: str | Path, n: int = 4, splits=("easy", "hard"), cells=CELLS, caps=(25,)) -> Path:
    """The evaluations of a run with ``n`` tasks a split, scripted; seconds are made up from the tokens."""
    with interpreter_pool() as pool:
        for split, cap in product(splits, caps):
            tasks = list(sample_split(split, n, 0, CONFIG))
            for model, kind in cells:
                cell = Path(folder) / "evaluations" / traces.Cell(model, kind, split, cap).name
                for number, task in enumerate(tasks):
                    done = play(task, kind, texts_of(model, kind, task, number), 6, cap, pool)
                    spent = (done.prompt_tokens + 9 * done.completion_tokens) / 1000
                    traces.write_episode(cell, done, model, spent)
                settings = {"task_ids": [task.task_id for task in tasks], "max_tool_calls": cap}
                keep(cell / "settings.json", as_json(settings))
    return Path(folder)


def small_task(seed: int = 3) -> Task:
    return sample_task(seed, CONFIG)


def rows(model: str, runtime: str, scores, split: str = "easy", **more) -> pd.DataFrame:
    """Invented episodes of a cell: a score a task (task → score, or in order), all else 0 or as told."""
    scores = scores if isinstance(scores, dict) else dict(enumerate(scores))
    one = {"model": model, "runtime": runtime, "split": split, "cap": 25, "status": "completed"}
    one |= dict.fromkeys(metrics.NUMBERS, 0) | {"finish_reason": "finish_tool"}
    one |= {"total_tokens": 100.0, "inspected": 1.0} | more
    return pd.DataFrame([one | {"task_id": f"knapsack-{task}", "score": score} for task, score in scores.items()])


def study(n: int = 12, models=("persistent", "stateless"), runtimes=("persistent", "stateless"), seed: int = 0):
    """Invented episodes in which every cell has its own level of score; task i differs from cell to cell."""
    draw, found = np.random.default_rng(seed), []
    for number, (model, runtime) in enumerate((model, runtime) for model in models for runtime in runtimes):
        cell = rows(model, runtime, np.clip(0.3 + 0.05 * number + draw.normal(0, 0.1, n), 0, 1))
        more = {"total_tokens": draw.integers(500, 9000, n).astype(float), "missing_bindings": draw.integers(0, 3, n)}
        found.append(cell.assign(solved=(cell["score"] > 0.5).astype(int), **more))
    return pd.concat(found, ignore_index=True)

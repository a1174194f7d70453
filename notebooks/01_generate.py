# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · The tasks
#
# **Question of the report.** An agent that acts by writing Python may keep its variables between turns, or lose
# them. Is that only a property of the interpreter, or does a model *learn* it from the traces it is fine-tuned on?
#
# **This notebook** makes the tasks: *Opaque Knapsack*. Choose items of the greatest total value within a capacity,
# where weights, values and classes are hidden behind tools, inspections are rationed, and only some classes are
# allowed. It writes a training split and two evaluation splits, compares them with the published statistics, and
# shows why no single script solves such a task.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # where this run's files go, below the checkout
seed: int = 0  # everything random in this run follows from it
n_train: int = 360  # tasks for the teacher's traces
n_easy: int = 50  # tasks of the Easy evaluation split
n_hard: int = 25  # tasks of the Hard evaluation split
easy_config: str = "nano_easy"  # what Easy tasks look like: easy, hard, nano_easy, nano_hard
hard_config: str = "nano_hard"  # what Hard tasks look like
train_config: str = "nano_train"  # what training tasks look like: nano_train spans the sizes of both

# %% [markdown]
# What to try first: `easy_config = "easy"`, the paper's own Easy tasks, and see how much longer than a turn
# they are. Give it a run folder of its own (`run_folder = "runs/easy"`).

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display

from knapsack.agent import EpisodeSettings, Reply, episode, run_alone
from knapsack.analysis.figures import picture
from knapsack.environment import KnapsackEnvironment
from knapsack.prompts import opening
from knapsack.runs import open_run
from knapsack.runtime import MAX_TOOL_CALLS, Runtime, interpreter_pool
from knapsack.tasks import preset, read_tasks, sample_split, write_tasks

started = time.monotonic()
run = open_run(run_folder)
parameters = run.parameters("01_generate", globals())
sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")

# %% [markdown]
# ## Sampling
#
# A task is a pure function of a seed and a configuration: the same two give the same file in any process. Each split
# has its own range of seeds. Tasks that are already there are left alone; a file that differs from what would be
# written stops the notebook.

# %%
splits = {"train": (n_train, train_config), "easy": (n_easy, easy_config), "hard": (n_hard, hard_config)}
tasks = {}
for split, (count, config) in splits.items():
    write_tasks(run.tasks(split), sample_split(split, count, seed, preset(config)))
    tasks[split] = read_tasks(run.tasks(split), count)

pd.DataFrame({config: vars(preset(config)) for _, config in splits.values()})


# %% [markdown]
# The evaluation tasks must be new to a model that was trained on the first split. Checked on content, not on names:


# %%
def content(task):
    return task.capacity, task.allowed_classes, tuple(task.items.items())


known = {content(task) for task in tasks["train"]}
repeated = [task.task_id for split in ("easy", "hard") for task in tasks[split] if content(task) in known]
if repeated:
    raise AssertionError(f"evaluation tasks that also stand in training: {repeated}")
held_out = len(tasks["easy"]) + len(tasks["hard"])
print(f"{held_out} evaluation tasks; {len(repeated)} of them among the {len(known)} in training")

# %% [markdown]
# ## One task, from both sides
#
# This is all that the agent is told, here in the long form of the prompt:

# %%
example = tasks["easy"][0]
print(opening(example, "persistent", MAX_TOOL_CALLS)[1]["content"])

# %% [markdown]
# And this is what lies behind the tools. Filled circles are items of an allowed class, the ringed ones are the
# optimum; grey ones would be refused. The agent sees a circle only after it has spent an inspection on it, and its
# colour only when it tries to take it.

# %%
items = pd.DataFrame(
    {
        "weight": item.weight,
        "value": item.value,
        "allowed": item.item_class in example.allowed_classes,
        "optimal": item_id in example.optimal_items,
    }
    for item_id, item in example.items.items()
)
blue, grey, orange = sns.color_palette("colorblind")[0], "0.75", sns.color_palette("colorblind")[1]
figure, axes = plt.subplots(figsize=(7, 4))
for allowed, colour, label in ((False, grey, "class not allowed"), (True, blue, "class allowed")):
    axes.scatter("weight", "value", data=items[items.allowed == allowed], color=colour, s=60, label=label)
rings = {"facecolors": "none", "edgecolors": orange, "linewidths": 2}
axes.scatter("weight", "value", data=items[items.optimal], s=200, label="optimum", **rings)
axes.set(
    xlabel="weight",
    ylabel="value",
    title=f"capacity {example.capacity}, {len(example.items)} items, {example.inspect_budget} may be inspected",
)
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
counts = f"{len(items)} items, {items.allowed.sum()} of an allowed class, {items.optimal.sum()} in the optimum"
display(*picture(figure, f"Value against weight of every item of task {example.task_id}: {counts}."))

# %% [markdown]
# ## The splits against the published ones
#
# The paper publishes means for its two splits. Ours are set beside them, together with a hundred tasks drawn here
# by the paper's own configurations, so that a difference of the sampler can be told from a difference of the
# configuration.

# %%
groups = {f"{split} ({config})": tasks[split] for split, (_, config) in splits.items()}
groups |= {f"the paper's rules: {name}": list(sample_split(name, 100, seed, preset(name))) for name in ("easy", "hard")}
difficulty = pd.concat({name: pd.DataFrame([task.difficulty for task in group]) for name, group in groups.items()})
difficulty = difficulty.rename_axis(["tasks", None]).reset_index("tasks")

columns = {"n_items": "items", "budget_coverage": "budget ÷ items", "optimal_set_size": "items in the optimum"}
columns["capacity"] = "capacity"
table = difficulty.groupby("tasks", sort=False)[list(columns)].agg(["mean", "std"])
table = table.stack(0, future_stack=True).fillna({"std": 0.0})  # a single task has no spread
table = table.apply(lambda row: f"{row['mean']:.2f} ± {row['std']:.2f}", axis=1).unstack()
table = table.reindex(groups)[list(columns)].rename(columns=columns)
table.insert(0, "n", difficulty["tasks"].value_counts().astype(str))
published = pd.DataFrame(  # arXiv 2603.01209, Opaque Knapsack; the capacity is not given there
    {"items": ["34", "102"], "budget ÷ items": ["0.82", "0.78"], "items in the optimum": ["4", "12"]},
    index=["published: easy", "published: hard"],
)
pd.concat([table, published]).fillna("")  # mean ± standard deviation

# %%
names = list(groups)
figure, grid = plt.subplots(2, 2, figsize=(9, 5.6), sharey=True, layout="constrained")
panels = grid.ravel()
for axes, (column, label) in zip(panels, columns.items(), strict=True):
    sns.boxplot(difficulty, x=column, y="tasks", hue="tasks", order=names, hue_order=names, ax=axes, fliersize=2)
    axes.set(xlabel=label, ylabel="")
for axes, key in zip(panels, ("items", "budget ÷ items", "items in the optimum"), strict=False):
    for name, value in zip(("easy", "hard"), published[key].astype(float), strict=True):
        row = names.index(f"the paper's rules: {name}")
        axes.plot(value, row, "D", color="black", markersize=6, label="published mean" if name == "easy" else None)
panels[0].legend(loc="upper right", fontsize="small")
caption = (
    f"How hard the tasks of {len(names)} sets are, n as in the table. Boxes: quartiles and median; whiskers: the last "
    "task within 1.5 times the box; dots: tasks beyond. Diamonds: the means that the paper publishes."
)
display(*picture(figure, caption))

# %%
count = difficulty.groupby("tasks").n_items.mean()
ours, paper = count[f"hard ({hard_config})"], count["the paper's rules: hard"]
print(
    f"Hard tasks of this run hold {ours:.0f} items on average, the paper's {paper:.0f}: "
    + ("the same rules." if hard_config == "hard" else "a deliberate cut, to fit the context of the model under study.")
)

# %% [markdown]
# ## Why one script does not solve it
#
# Ids say nothing, so a plan made in advance can only pick blindly. A script may branch on what it reads, but a turn
# ends after a fixed number of tool calls, and inspecting alone needs more:

# %%
calls = pd.Series([1 + task.inspect_budget + len(task.optimal_items) for task in tasks["easy"]])
print(
    f"Listing, inspecting up to the budget and taking the optimum needs {calls.min()} to {calls.max()} tool calls; "
    f"a turn allows {MAX_TOOL_CALLS}. One turn is too short for {(calls > MAX_TOOL_CALLS).mean():.0%} of Easy tasks."
)

# %% [markdown]
# Three ways to spend an episode: take what comes first; do the best that fits into one turn, half of the calls for
# inspecting and half for taking; or carry records over several turns, as the models under study have to.

# %%
BLIND = """
import json
for i in json.loads(list_items()):
    try:
        take_item(i)
    except Exception:
        pass
"""

HELPERS = """
import json
ids, records, tried, refused = json.loads(list_items()), {}, [], []

def look(count):
    for i in [i for i in ids if i not in records][:count]:
        records[i] = json.loads(inspect(i))

def take(count):
    for i in sorted(records, key=lambda i: -records[i]["value"] / records[i]["weight"]):
        if count and i not in tried and records[i]["class"] not in refused:
            count -= 1
            tried.append(i)
            try:
                take_item(i)
            except Exception as error:
                if "not allowed" in str(error):
                    refused.append(records[i]["class"])
"""

CALLS = MAX_TOOL_CALLS - 1  # the first block also lists the items


def several_turns(task):
    more = -(-(task.inspect_budget - CALLS) // MAX_TOOL_CALLS)  # rounded up
    looks = [f"look(min({MAX_TOOL_CALLS}, {task.inspect_budget} - len(records)))"] * more
    return [HELPERS + f"look(min({CALLS}, {task.inspect_budget}))", *looks, *[f"take({MAX_TOOL_CALLS})"] * 2]


ways = {
    "blind script": lambda task: [BLIND],
    "one turn": lambda task: [HELPERS + f"look({CALLS // 2})\ntake({CALLS // 2})"],
    "several turns": several_turns,
}

# %% [markdown]
# A refusal is the only place where a class shows that it is not allowed. The helpers of the first block are still
# bound in the second, because this runtime is persistent:

# %%
environment = KnapsackEnvironment(example)
with Runtime("persistent", environment.tools, MAX_TOOL_CALLS) as runtime:
    runtime.run(HELPERS + "look(12)")
    refused = runtime.run("take(12)\nprint('refused classes:', refused)")
    error = runtime.run("take_item([i for i in records if records[i]['class'] in refused][0])")
print(refused.output, error.error, sep="")

# %% [markdown]
# The three ways on the Easy tasks, in the same sandbox and by the same episode code as the models later. Note that a
# refused `take_item` costs a call but no inspection, so that trying blindly is not as bad as it sounds:

# %%
rows = []
with interpreter_pool() as pool:
    for task in tasks["easy"]:
        for way, blocks in ways.items():
            replies = iter([Reply(f"```python\n{block}\n```", 0, 0) for block in [*blocks(task), "finish()"]])
            result = run_alone(episode(task, "persistent", EpisodeSettings(), pool), lambda _, r=replies: next(r))
            rows.append({"way": way, "task": task.task_id, "normalized optimality": result.score})
scores = pd.DataFrame(rows)

# %%
figure, axes = plt.subplots(figsize=(8, 2.8))
shown = {"x": "normalized optimality", "y": "way", "ax": axes}
np.random.seed(seed)  # of the jitter
sns.stripplot(scores, **shown, hue="way", palette="colorblind", size=4, alpha=0.6, jitter=0.25, legend=False)
diamonds = {"color": "black", "linestyle": "none", "marker": "D", "markersize": 6}
sns.pointplot(scores, **shown, **diamonds, seed=seed, label="mean with 95 % bootstrap interval")
axes.set(ylabel="", xlim=(-0.03, 1.03))
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
caption = f"Normalized optimality of three ways to spend an episode: a dot is a task, n = {len(tasks['easy'])} each."
display(*picture(figure, caption))

# %%
grouped = scores.groupby("way", sort=False)["normalized optimality"]
mean, solved = grouped.mean(), grouped.agg(lambda score: (score == 1).mean())
for way in ways:
    print(f"{way}: {mean[way]:.2f} of the optimum on average, the optimum itself in {solved[way]:.0%} of the tasks")
script = mean.drop("several turns").idxmax()
print(
    f"Carrying records from turn to turn is worth {mean['several turns'] - mean[script]:+.2f} over the better of the "
    f"two one-turn scripts ({script}). How a model carries them, in variables or in text, is the rest of the report."
)

# %%
run.record("01_generate", parameters, round(time.monotonic() - started, 1))

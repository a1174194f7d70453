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
# # 2 · The traces
#
# A teacher solves every training task twice: once in a **persistent** interpreter, where names stay bound, and once in
# a **stateless** one, where each code block starts empty. The *rule-based* teacher, the default, defines records and
# helpers once and calls them again in the first; in the second it binds what it knows again from the last observation.
# Both times it follows one plan, so the two traces of a task differ in how state is carried and in little else. A *chat
# model* as teacher, as in the paper, gets the same tasks, prompts and tools, and finds its own ways.
#
# Every block is really executed, and the paper's filters decide which pairs are used for training.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # where this run's files go, below the checkout
seed: int = 0  # everything random in this run follows from it
reuse: str = ""  # folder of a finished run: what it made with the same parameters is taken over
n_train: int = 360  # training tasks to play, from notebook 01
n_pairs: int = 300  # pairs to keep for training, of those that pass the filters
max_turns: int = 20  # turns per episode at most
training_caps: list[int] = [25, 80]  # tool calls per turn at most: the tasks take these caps in turn
prompt_detail: str = "compact"  # compact (scale model) or full (language models)
base: str = "nano"  # model whose tokenizer counts the tokens: nano, a folder, or a Hugging Face name
max_tokens: int = 4096  # longest trace to train on
teacher: dict = {}  # {}: rule-based; a chat model: {"endpoint": url, "model": name, "key": environment variable}
max_new_tokens: int = 512  # tokens a chat model's reply may have
context_length: int = 4096  # tokens a chat model's conversation may have
slots: int = 8  # requests to a chat model at once, per process
max_total_tokens: int = 0  # spending on a chat model after which the run stops; 0: no limit
engine: str = "monty"  # who runs the code: "monty", or "cpython" in a container
processes: int = 2  # worker processes

# %% [markdown]
# What to try first: `training_caps = [25]`, the paper's only one. Give it a run folder of its own
# (`run_folder = "runs/one-cap"`, `reuse = "runs/nano"`), and see in notebook 04 whether a model takes the cap that its
# prompt names for a cue.

# %%
import time

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from knapsack import models, traces
from knapsack.analysis import comparisons, excerpts, metrics, tables
from knapsack.analysis.figures import picture
from knapsack.endpoints.endpoint import read_endpoint
from knapsack.evaluate import Settings, evaluate
from knapsack.preflight.tokens import estimate_requests, spending_sentence
from knapsack.runs import open_run, pick
from knapsack.runtime import KINDS
from knapsack.tasks import read_tasks
from knapsack.traces import Cell
from knapsack.training_data import PAPER_KEPT, PAPER_PAIRS, keep_pairs, training_row, write_rows

started = time.monotonic()
run = open_run(run_folder, reuse)
parameters = run.parameters("02_traces", globals())
sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")

# %% [markdown]
# ## Playing
#
# A teacher sees only what the tools show. The rule-based one inspects up to the budget, tries the items of best value
# per weight first, and learns from refusals which classes are not allowed. Its batch sizes, order and wording vary from
# task to task; now and then it asks for more calls than the cap allows, or makes a mistake in the stateless style, and
# recovers (the paper's filter leaves few of these). The prompt names the cap, and the tasks take the caps in turn, so
# that which cap is named tells nothing of the runtime. Under a slacker cap than 25 the rule-based teacher writes as if
# it were 25.

# %%
settings = pick(Settings, parameters, temperature=None)  # a chat model's own default, as in the paper
cells = [Cell("teacher", kind, "train", cap) for cap in training_caps for kind in KINDS]
endpoints = {"teacher": read_endpoint("teacher", teacher)} if teacher else {}
training_tasks = {"train": read_tasks(run.tasks("train"), n_train)}
if endpoints:  # what this may cost, before anything is sent
    estimate = estimate_requests(cells, {"train": n_train}, settings, training_tasks)
    display(Markdown(spending_sentence(estimate, max_total_tokens)))
evaluate(
    run,
    cells,
    {"train": n_train},
    settings,
    endpoints=endpoints,
    max_total_tokens=max_total_tokens,
    processes=processes,
)
paths = {
    (cell.runtime, task.task_id): traces.trace_path(cell.folder(run), task.task_id)
    for cell, tasks in traces.share_out(cells, training_tasks).items()
    for task in tasks
}
played = {kind: [traces.read_trace(paths[kind, task.task_id]) for task in training_tasks["train"]] for kind in KINDS}

# %% [markdown]
# ## One pair, side by side
#
# The same task, and from the rule-based teacher the same decisions. Look at what the second block has to say in each
# runtime.

# %%
for kind in KINDS:
    pair = excerpts.excerpt(played[kind][0], range(3), reply_most=900, seen_most=160)
    display(Markdown(f"### {kind.capitalize()}\n\n{pair}"))

# %% [markdown]
# ## Which pairs are kept
#
# The paper keeps a pair only if *both* traces score at least 0.5, finish in time, do not loop, fit the context, and
# have few errors of the agent's own making. A trace can fail for one reason only: the first that applies.

# %%
tokenizer = models.load_tokenizer(base)
kept, reasons = keep_pairs(played["persistent"], played["stateless"], tokenizer=tokenizer, max_tokens=max_tokens)
if len(kept) < n_pairs:
    raise ValueError(
        f"n_pairs = {n_pairs}, but only {len(kept)} of {n_train} pairs pass: raise n_train or lower n_pairs"
    )
yield_table = pd.DataFrame(reasons).fillna(0).astype(int).rename_axis("rejected for")
display(yield_table)
display(
    Markdown(
        f"**{len(kept)} of {n_train} pairs pass** ({len(kept) / n_train:.1%}; the paper's teacher, Gemini 3 Flash: "
        f"{PAPER_KEPT:,} of {PAPER_PAIRS:,}, {PAPER_KEPT / PAPER_PAIRS:.1%}); the first {n_pairs} are used."
    )
)

# %%
for kind, side in zip(KINDS, zip(*kept[:n_pairs], strict=True), strict=True):
    write_rows(run.training(kind) / "traces.jsonl", [training_row(trace) for trace in side])

# %% [markdown]
# ## What the two regimes cost the teacher
#
# The counterpart of the paper's Table 1, whose numbers stand below ours. A row a trace goes to `results/training.csv`.

# %%
facts = tables.training_facts(kept[:n_pairs], n_train, len(kept), tokenizer)
metrics.write_csv(run.results / "training.csv", facts)
display(Markdown(tables.markdown(tables.table_one(facts))))
display(Markdown(comparisons.twins_said(facts)))

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
sns.histplot(facts, x="trace_tokens", hue="runtime", bins=40, element="step", ax=axis)
axis.set(xlabel="trace length (tokens)", ylabel=f"traces (n = {n_pairs} per runtime)")
sns.despine()
lengths = facts.groupby("runtime", sort=False)["trace_tokens"].mean()
told = ", ".join(f"{mean:,.0f} {kind}" for kind, mean in lengths.items())
display(*picture(figure, f"Length of the training traces, n = {n_pairs} per runtime; on average {told}."))

# %%
run.record("02_traces", parameters, time.monotonic() - started)

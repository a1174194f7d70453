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
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Every model in every runtime
#
# A **cell** is a model in a runtime on a split of held-out tasks, under a cap on the tool calls of a turn. Models: the
# *base*, the base with the *persistent* or the *stateless* adapter, or any model behind an OpenAI-compatible endpoint.
# Runtimes: in the *persistent* one names stay bound between turns, in the *stateless* one each code block starts empty;
# with *carry-over* it does too, except that the names of a turn that the cap cut short survive for one turn, silently
# or *announced*. *Untold* runtimes do not say what they are, *false* ones say that they are the other. Caps: the
# paper's 25 may bind, for looking again at what was forgotten takes calls too; 80 hardly ever does.
#
# All cells play the same tasks with the same tools and limits, and a runtime gives every model the same prompts. The
# base plays under the slackest cap only: it does not act without training, so there is nothing that a cap could do.
# An episode ends with `finish()`, after `max_turns`, or when the context is full or `max_malformed` replies in a row
# held no Python; it is scored as it stands.
#
# The rule-based teacher plays the same tasks in its own two runtimes, with the batches of the training traces under
# every slacker cap. It is what the adapters imitate.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # where this run's files lie
seed: int = 0  # of the sampling noise; the same seed gives the same replies
reuse: str = ""  # folder of a finished run: what it made with the same parameters is taken over
base: str = "nano"  # "nano" (shipped), a model folder, or a public model's name
n_easy: int = 50  # tasks of the Easy split
n_hard: int = 25  # tasks of the Hard split
models: dict = {"base": {}, "persistent": {}, "stateless": {}}  # who plays; {}: of this run; {"endpoint": ...}: served
runtimes: list[str] = ["persistent", "stateless"]  # where
splits: list[str] = ["easy", "hard"]  # on which tasks
server: str = ""  # address that serves the models of this run by name; "": this notebook answers for them
max_total_tokens: int = 0  # spending on endpoints after which the run stops; 0: no limit
temperature: float = 0.2  # of sampling; 0 is greedy
max_new_tokens: int = 512  # tokens a reply may have
context_length: int = 4096  # tokens a conversation may have; a longer one ends the episode, which is scored
max_turns: int = 20  # replies an episode may have
max_malformed: int = 3  # replies in a row without a block of Python that end an episode; 0: any number
caps: list[int] = [25, 80]  # tool calls a turn may make: 25 is the paper's, a binding one; 80 a slack one
prompt_detail: str = "compact"  # "compact" or "full" prompts, as in the training traces
engine: str = "monty"  # who runs the code: "monty", or "cpython" in a container
slots: int = 8  # conversations answered at once by one process
processes: int = 2  # processes that each play one cell

# %% [markdown]
# What to try first: `temperature = 0.0` or `caps = [40]`. Give it a run folder of its own (`run_folder = "runs/warm"`,
# `reuse = "runs/nano"`): only the cells that differ are played.

# %%
import time

import pandas as pd
from IPython.display import Markdown, display

from knapsack.analysis import estimates, excerpts, metrics
from knapsack.analysis.card import model_card
from knapsack.analysis.tables import between, number
from knapsack.endpoints.endpoint import read_served
from knapsack.evaluate import Settings, evaluate
from knapsack.preflight.tokens import estimate_requests, spending_sentence
from knapsack.runs import open_run, pick, write_text
from knapsack.runtime import KINDS
from knapsack.tasks import read_tasks
from knapsack.traces import Cell, cells_of

started = time.monotonic()
run = open_run(run_folder, reuse)
parameters = run.parameters("04_evaluate", globals())

# %% [markdown]
# ## The cells

# %%
counts = {"easy": n_easy, "hard": n_hard}
endpoints = read_served(models, server)
cells = cells_of(models, runtimes, splits, caps)
settings = pick(Settings, parameters)
plan = pd.DataFrame([{"model": c.model, "runtime": c.runtime, c.split: counts[c.split]} for c in cells])
plan.groupby(["model", "runtime"], sort=False).sum().astype(int)

# %% [markdown]
# Each number above is a count of episodes, and each episode is real: the model writes code token by token, the
# sandbox executes it, the environment keeps score. A process plays many episodes at once, but no reply of a local
# model depends on its neighbours in the batch. A finished episode is written at once, and a later run skips it. What
# is not the model's doing, such as a server that does not answer, stops the run and is never scored. A reply that was
# paid for is kept and not asked for again.

# %%
if endpoints:  # what this may cost, before anything is sent
    asked = [cell for cell in cells if cell.model in endpoints]
    tasks = {split: read_tasks(run.tasks(split), counts[split]) for split in splits}
    estimate = estimate_requests(asked, counts, settings, tasks)
    display(Markdown(spending_sentence(estimate, max_total_tokens)), estimate)

# %%
evaluate(
    run,
    cells,
    counts,
    settings,
    endpoints=endpoints,
    max_total_tokens=max_total_tokens,
    processes=processes,
)

# %% [markdown]
# ## What came out
#
# *Score* is normalized optimality: the value taken divided by the optimal value, with a 95 % bootstrap interval over
# tasks. *Missing a name* is the share of episodes in which the model used at least once a name that it had bound in an
# earlier turn and that was gone; *at the cap* the share in which a turn reached the cap. *Unscored* tasks have no
# finished episode and are in no mean. A row an episode goes to `results/episodes.csv`, a row a turn to `turns.csv`;
# what they tell is for notebook 5.

# %%
episodes, turns = metrics.write_results(run)
found = estimates.estimates_table(episodes)
table = estimates.cells_table(episodes, found)
table = table[[Cell(*key) in cells for key in table[metrics.CELL].itertuples(index=False)]]
ends = table[["score_mean", "score_low", "score_high"]].itertuples(index=False)
by_cell = table.assign(score=[between(*row, 2) for row in ends]).round(2)
by_cell["total_tokens"] = by_cell["total_tokens"].map(number)
names = {"total_tokens": "tokens", "missing_binding_rate": "missing a name", "cap_hit_rate": "at the cap"}
shown = ["n", "unscored", "score", "solved", "turns", *names]
by_cell.set_index([*metrics.setting_columns(table), "model", "runtime"])[shown].rename(columns=names)

# %% [markdown]
# ## The card of a model
#
# What a model does in both runtimes, and the runtime that it behaves *as if* it was trained for: told from its code
# alone, by the rule that the card states. For models from outside it is the result; for the two adapters, of which we
# know what they were trained on, it is a test of the rule.

# %%
outside = [name for name, entry in models.items() if entry]
for name in outside or [name for name in models if name in KINDS]:
    text = model_card(episodes, turns, found, name)
    write_text(run.results / "cards" / f"{name}.md", text)
    display(Markdown(text.replace("# ", "### ", 1).replace("\n## ", "\n#### ")))

# %% [markdown]
# ## One episode from the inside
#
# The first turn, and the turns around the first missing name, of the shortest episode that has one; failing that, of
# the longest episode of all.

# %%
own = [Cell(*key) in cells and key[0] in models for key in episodes[metrics.CELL].itertuples(index=False)]
display(Markdown(excerpts.one_episode(run.folder / "evaluations", episodes[own])))

# %%
run.record("04_evaluate", parameters, round(time.monotonic() - started, 1))

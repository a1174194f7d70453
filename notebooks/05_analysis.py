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
# # 05 · What happened
#
# A *cell* is a model in a runtime on a split of tasks. This notebook reads the files that the episodes of the cells
# left behind and nothing else: those of the run, or downloaded ones in the layout of the paper's data set. Every number
# in its text is computed, so the text holds for whatever was played; what was not played is left out, and said.
#
# P→S is short for *trained on persistent traces, run in the stateless runtime*.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # folder of the run, relative to the repository
seed: int = 0  # of the bootstrap
n_resamples: int = 5000  # bootstrap resamples of every interval
source: str = "run"  # "run", or "published": traces in the layout of the paper's data set
published_folder: str = ""  # that folder, with source "published"

# %%
import time

import pandas as pd
from IPython.display import Markdown, display

from knapsack import figures, metrics, report, statistics
from knapsack.runs import open_run

started = time.perf_counter()
run = open_run(run_folder)
folder = metrics.source_folder(run, source, published_folder)

# %% [markdown]
# ## The cells
#
# One row an episode goes to `results/episodes.csv`, one row a cell to `results/cells.csv`. *Unscored* tasks have no
# completed episode (a failed server, an interrupted run): they are counted and are in no mean.

# %%
episodes, cells = metrics.write_results(run, n_resamples, seed, folder)
turns = pd.read_csv(run.results / "turns.csv")
display(Markdown(report.overview(episodes)))
cells.groupby("split", sort=False)[["n", "unscored"]].sum()

# %% [markdown]
# ## Table 2, beside the paper
#
# Score is normalized optimality in percent. Brackets are 95 % percentile bootstrap intervals. Tokens are prompt and
# completion tokens of all calls of an episode; points per 1k tokens are score points per 1,000 of them. Where the
# paper's column is empty, the paper does not list the number. Unless the models are the paper's, compare the *pattern*
# across cells, not the columns.

# %%
table = report.table_two(cells, episodes, n_resamples, seed)
display(Markdown(report.write_table(run.tables, "table2", table)))

# %% [markdown]
# ## The matrix: training × runtime

# %%
parameters = {"run_folder": run_folder, "seed": seed, "n_resamples": n_resamples}
parameters |= {"source": source, "published_folder": published_folder}
drawn = figures.draw_all(run, episodes, turns, "05_analysis", parameters)
display(figures.shown(drawn["train_runtime_matrix"], 900))

# %% [markdown]
# ## What quality costs
#
# Up is better, left is cheaper. A ring, if there is one, is the teacher that wrote the traces, on the same tasks.

# %%
display(figures.shown(drawn["cost_quality"], 900))

# %% [markdown]
# ## Names that are gone
#
# A *missing binding* is a NameError for a name that an earlier turn of the same episode had bound. A name that never
# existed is not counted here.

# %%
display(figures.shown(drawn["missing_bindings"], 480))

# %% [markdown]
# ## Where the tokens go

# %%
display(figures.shown(drawn["tokens_by_turn"], 900))

# %% [markdown]
# ## The amnesia tax
#
# The stateless-trained model in the persistent runtime writes its state again although the interpreter holds it. The
# tax is its mean of total tokens over that of P→P, on the same tasks; the interval resamples tasks.

# %%
for split in dict.fromkeys(episodes["split"]):
    display(Markdown(report.amnesia_sentence(episodes, split, n_resamples, seed)))

# %% [markdown]
# ## Tests
#
# Wilcoxon signed-rank on the same tasks, two-sided, zero differences dropped. The effect size is the matched-pairs
# rank-biserial correlation, from −1 to 1. The column p (Holm) is corrected for all rows of the table. A large p does
# not say that two cells are equal; the interval of the difference says which differences stay possible.

# %%
tests = statistics.tests_table(episodes, n_resamples, seed)
metrics.write_csv(run.results / "tests.csv", tests)
none = "No two cells that the study compares were played."
display(Markdown(report.write_table(run.tables, "tests", report.tests_shown(tests), none)))

# %% [markdown]
# ## What this shows, what it does not

# %%
for split, paper, shown in report.findings(episodes, n_resamples, seed):
    display(Markdown(f"**{split} · {paper}**<br>{shown}"))

# %% [markdown]
# What no number above can say:
#
# * A difference that is not significant is not shown to be absent. The intervals say how large it may still be.
# * There is one task family, and one training of each model. Another training seed is another run.
# * Training sets matched by task, as here and in the paper, are not matched by tokens: the stateless adapter has read
#   more text.
# * The prompt names the runtime in every cell, here and in the paper, so persistence and its cue are not told apart.

# %%
run.record("05_analysis", parameters, round(time.perf_counter() - started, 1))

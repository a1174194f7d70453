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
# Twelve cells were played: a base model and its two adapters (trained on persistent or on stateless traces), each in
# both runtimes, on two splits. This notebook reads the files that the episodes left behind and nothing else. Every
# number in its text is computed in the cell above it, so the text holds for whatever the run showed.
#
# P→S is short for *trained on persistent traces, run in the stateless runtime*.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # folder of the run, relative to the repository
seed: int = 0  # of the bootstrap
n_resamples: int = 5000  # bootstrap resamples of every interval

# %%
import time

import pandas as pd
from IPython.display import Image, Markdown, display

from knapsack import figures, metrics, report, statistics
from knapsack.runs import open_run

started = time.perf_counter()
run = open_run(run_folder)

# %% [markdown]
# ## The cells
#
# One row an episode goes to `results/episodes.csv`, one row a cell to `results/cells.csv`. *Unscored* tasks have no
# completed episode (a failed server, an interrupted run): they are counted here and are in no mean.

# %%
episodes, cells = metrics.write_results(run, n_resamples, seed)
turns = pd.read_csv(run.results / "turns.csv")
cells.groupby("split", sort=False)[["n", "unscored"]].sum()

# %% [markdown]
# ## Table 2, beside the paper
#
# Score is normalized optimality in percent. Brackets are 95 % percentile bootstrap intervals. Tokens are prompt and
# completion tokens of all calls of an episode; points per 1k tokens are score points per 1,000 of them. An empty
# paper column means that the paper does not list the number. The models differ in size by orders of magnitude, so
# compare the *pattern* across cells, not the columns.

# %%
table = report.table_two(cells, episodes, n_resamples, seed)
display(Markdown(report.write_table(run.tables, "table2", table)))

# %% [markdown]
# ## The matrix: training × runtime

# %%
parameters = {"run_folder": run_folder, "seed": seed, "n_resamples": n_resamples}
drawn = figures.draw_all(run, episodes, turns, "05_analysis", parameters)
display(Image(drawn["train_runtime_matrix"], width=900))

# %% [markdown]
# ## What quality costs
#
# Up is better, left is cheaper. A ring is the teacher that wrote the traces, on the same tasks.

# %%
display(Image(drawn["cost_quality"], width=900))

# %% [markdown]
# ## Names that are gone
#
# A *missing binding* is a NameError for a name that an earlier turn of the same episode had bound. A name that never
# existed is not counted here.

# %%
display(Image(drawn["missing_bindings"], width=480))

# %% [markdown]
# ## Where the tokens go

# %%
display(Image(drawn["tokens_by_turn"], width=900))

# %% [markdown]
# ## The amnesia tax
#
# The stateless-trained model in the persistent runtime writes its state again although the interpreter holds it. The
# tax is its mean of total tokens over that of P→P, on the same tasks; the interval resamples tasks.

# %%
for split in dict.fromkeys(episodes["split"]):
    ratio, low, high = report.amnesia_tax(episodes, split, n_resamples, seed)
    display(Markdown(f"**{split}:** {ratio:.2f} × [{low:.2f}–{high:.2f}]"))

# %% [markdown]
# ## Tests
#
# Wilcoxon signed-rank on the same tasks, two-sided, zero differences dropped. The effect size is the matched-pairs
# rank-biserial correlation, from −1 to 1. The column p (Holm) is corrected for all rows of the table. A large p does
# not say that two cells are equal; the interval of the difference says which differences stay possible.

# %%
tests = statistics.tests_table(episodes, n_resamples, seed)
metrics.write_csv(run.results / "tests.csv", tests)
display(Markdown(report.write_table(run.tables, "tests", report.tests_shown(tests))))

# %% [markdown]
# ## What this run shows, what it does not

# %%
for split, paper, shown in report.findings(episodes, n_resamples, seed):
    display(Markdown(f"**{split} · {paper}**<br>{shown}"))

# %% [markdown]
# What no number above can say:
#
# * A difference that is not significant is not shown to be absent. The intervals say how large it may still be.
# * There is one base model, one task family and one training seed in a run. Another seed is another run.
# * Training sets are matched by task, not by tokens: the stateless adapter has read more text.
# * The prompt names the runtime in every cell, so persistence and its cue are not told apart. The last two points
#   hold for the paper as well.

# %%
run.record("05_analysis", parameters, round(time.perf_counter() - started, 1))

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
# # 5 · What happened
#
# Four notebooks made episodes; this one reads them and nothing else: those of the run, or downloaded ones in the layout
# of the paper's data set. It asks three questions. *Does a model that learned from one runtime do worse in the other?*
# *What does the wrong runtime cost?* *And which of the paper's claims hold here?* Every number in its text is computed,
# so the text holds for whatever was played; what was not played is left out, and said.
#
# A *cell* is a model in a runtime on a split of tasks, under a cap on the tool calls of a turn. P→S is short for
# *trained on persistent traces, run in the stateless runtime*; P→P and S→S are the *aligned* cells, at home.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # folder of the run, relative to the repository
seed: int = 0  # of the bootstrap
n_resamples: int = 5000  # bootstrap resamples of every interval
margin: float = 0.05  # scores that differ by less, of 1, count as the same
source: str = "run"  # "run", or "published": traces in the layout of the paper's data set
published_folder: str = ""  # that folder, with source "published"
more_runs: list[str] = []  # folders of further runs to put beside this one
beyond_runs: list[str] = []  # folders of runs that ask more than this one, as `make beyond` makes them

# %% [markdown]
# What to try first: another `margin`, within which two scores count as the same. This notebook keeps nothing from
# earlier, so any parameter may change in place.

# %%
import time

import pandas as pd
from IPython.display import Markdown, display

from knapsack.analysis import (
    beyond,
    claims,
    comparisons,
    conduct,
    crossed,
    estimates,
    excerpts,
    figures,
    intervals,
    metrics,
    reasons,
    several_runs,
    statistics,
    tables,
)
from knapsack.runs import open_run

started = time.perf_counter()
run = open_run(run_folder)
parameters = run.parameters("05_analysis", globals())
bootstrap = intervals.Bootstrap(n_resamples, seed)
folder = metrics.source_folder(run, published_folder)
tables.clear(run)


def show(name: str, table: tables.Table, numbers: pd.DataFrame | None = None, otherwise: str = "") -> None:
    """A table: on this page, in results/tables as Markdown and LaTeX, its numbers in results/<name>.csv."""
    display(Markdown(tables.save(run, name, table, numbers, otherwise)))


# %% [markdown]
# ## What was played
#
# One row an episode goes to `results/episodes.csv`, one row a turn to `turns.csv`, one row a cell to `cells.csv`.
# *Unscored* tasks have no completed episode (a failed server, an interrupted run): they are counted and are in no mean.
# Every mean, difference and ratio on this page, with its interval, is a row of `estimates.csv`: what is shown twice is
# computed once.

# %%
episodes, turns = metrics.write_results(run, folder)
facts = tables.read_facts(run)
found = estimates.estimates_table(episodes, bootstrap, facts)
metrics.write_csv(run.results / "estimates.csv", found)
cells = estimates.cells_table(episodes, found)
metrics.write_csv(run.results / "cells.csv", cells)
display(Markdown(comparisons.overview(episodes)))
cells.groupby(metrics.setting_columns(cells), sort=False)[["n", "unscored"]].sum()

# %% [markdown]
# The same traces are read once more for *how* it went: what the agents wrote, which errors they met, how they got over
# them. Where only the tools know, the recorded code is executed again.

# %%
seen = conduct.read_conduct(folder, episodes, metrics.run_tokenizer(run))
conduct.write_conduct(run, seen)

# %% [markdown]
# ## The pictures, first
#
# All of them are drawn here, and shown where they belong. The first needs no statistics: one task, two runtimes, the
# same model.

# %%
beside = several_runs.side_by_side([run_folder, *more_runs], bootstrap)
drawn = figures.draw_all(run, folder, episodes, turns, seen, found, beside, margin, bootstrap, beyond_runs)
display(*drawn["the_idea"])

# %% [markdown]
# ## Table 1: what the models were trained on
#
# The teacher solves the same tasks in both runtimes. Training sets are matched by task, so whatever a stateless trace
# is longer, the stateless model has read more text: a confound here as in the paper.

# %%
if facts is None:
    display(Markdown("There are no training traces here: evaluation data alone does not tell what was trained on."))
else:
    show("table1", tables.table_one(facts))

# %% [markdown]
# ## Table 2: the cells
#
# Where the paper reports a cell, its numbers stand in the row below ours. Unless the models are the paper's, compare
# the *pattern* across cells, not the rows.

# %%
show("table2", tables.table_two(cells, found))

# %% [markdown]
# The same as a matrix, training against runtime.

# %%
display(*drawn["train_runtime_matrix"])

# %% [markdown]
# # Quality
#
# ## Is there a difference?
#
# Every cell plays the same tasks, so cells are compared task by task. The families of the correction are the adapters'
# comparisons, those of carry-over runtimes, and those of other models, each for one quantity and cap over all splits.

# %%
tests = statistics.tests_table(episodes, found)
metrics.write_csv(run.results / "tests.csv", tests)
show("tests_score", comparisons.tests_shown(tests, "score"), otherwise=comparisons.NO_PAIRS)

# %% [markdown]
# A score near the optimum is not the optimum. *Solved* asks for the latter, and only the tasks that one cell solved and
# the other did not tell them apart.

# %%
shares = statistics.shares_table(episodes, found)
metrics.write_csv(run.results / "shares.csv", shares)
show("tests_solved", comparisons.shares_shown(shares, "solved"), otherwise=comparisons.NO_PAIRS)

# %% [markdown]
# ## Is there *no* difference?
#
# A large p does not say that two cells are equal: it is also what too few tasks give. *The same* has to be shown, by
# two one-sided tests against a margin that is named before. *Undecided* is neither; the last columns say what these
# tasks could have found, and about how many would decide it.

# %%
equal = statistics.equivalence_table(episodes, margin, bootstrap)
show("equivalence", comparisons.equivalence_shown(equal), equal, comparisons.NO_PAIRS)

# %% [markdown]
# Each dot is a task: what the mean of a difference is made of.

# %%
display(*drawn["paired_differences"])

# %% [markdown]
# # Cost and stability
#
# ## What quality costs
#
# Up is better, left is cheaper. Tokens are those of all calls, prompts included, as an endpoint would bill them.

# %%
display(*drawn["cost_quality"])

# %% [markdown]
# How much dearer one cell is than another on the same tasks. S→P − P→P is the *amnesia tax*, what the stateless-trained
# model pays for writing down again what the interpreter still holds (as a ratio it is among the paper's claims); in
# P→S the persistent-trained model looks for names that are gone.

# %%
show("tests_tokens", comparisons.tests_shown(tests, "total_tokens"), otherwise=comparisons.NO_PAIRS)

# %% [markdown]
# Where in an episode they are spent.

# %%
display(*drawn["tokens_by_turn"])

# %% [markdown]
# ## Names that are gone, and the way back
#
# A *missing binding* is a NameError for a name that an earlier turn of the same episode had bound. A name that never
# existed is not counted here.

# %%
show("tests_missing", comparisons.shares_shown(shares, "missing_binding"), otherwise=comparisons.NO_PAIRS)

# %% [markdown]
# An error costs little if the next block makes up for it, and everything if it comes again and again.

# %%
recovery = comparisons.recovery_table(episodes, seen, found, bootstrap)
show("recovery", comparisons.recovery_shown(recovery), recovery)
display(*drawn["errors_and_recovery"])

# %% [markdown]
# ## What a cap does
#
# The reset takes names only. What was inspected may be inspected again without touching the budget, but each call
# counts against the cap of its turn. Under a slack cap one block can rebuild all records; under a tight one the turn is
# over before it has caught up, and the next one begins from nothing. The paper's agent then starts again until its
# turns are used up; how those of this run end is in the last columns of the table.

# %%
display(*drawn["the_cap"])

# %% [markdown]
# The work turn by turn: calls that bring nothing new are the price of a lost name.

# %%
display(*drawn["throughput"])

# %% [markdown]
# Quality by cap. Where three caps or more were played, the caption has the slopes.

# %%
display(*drawn["score_by_cap"])
show("table3", tables.table_three(cells, episodes, seen.turns), otherwise="No trained model was played.")

# %% [markdown]
# ## What the tokens say
#
# The amnesia tax, seen directly: how much of the code writes down again what the conversation already holds, and how
# much leans on what the interpreter kept.

# %%
display(*drawn["what_fills_the_tokens"])
reuse = comparisons.reuse_table(episodes, turns, seen, bootstrap)
show("reuse", comparisons.reuse_shown(reuse, seen.unit), reuse)

# %% [markdown]
# # How episodes fail
#
# Every episode that scored below the teacher on its task has exactly one cause, by rules that anyone can read and
# dispute.

# %%
causes = comparisons.causes_table(seen.failures, episodes)
unknown = "No cause is told: that takes the teacher's score on the same task."
show("causes", comparisons.causes_shown(causes), causes, unknown)

# %% [markdown]
# One episode of each kind to read, from its prompt to its end.

# %%
display(Markdown(excerpts.write_examples(run, seen.failures, folder)))

# %% [markdown]
# # Several runs
#
# All intervals above ask what other *tasks* would give to the same models. What another training would give takes
# another training: name its folder in `more_runs`. `make seeds` trains twice more and names both (base and teacher play
# once, for all three); in the repository, this notebook stands as `make seeds` and `make beyond` leave it.

# %%
display(Markdown(beside.sentence), *map(Markdown, several_runs.write(run, beside)))
if more_runs:
    display(*drawn["seeds"])

# %% [markdown]
# # The paper's claims
#
# For each claim of the paper its number there, the estimate here, and a verdict by rule (the head of
# `knapsack/analysis/claims.py` has them in full). An effect is *reproduced* if its interval lies on the claimed side,
# *in size* if it holds the paper's number as well, and *not reproduced* if it lies on the other side, or rules the
# paper's number out without showing any effect. *No difference* is reproduced if the cells are shown to be the same
# within the `margin`, and not if they differ significantly. All else these tasks cannot tell. Verdicts are not
# corrected for their number.
#
# What holds for one training may not hold for the next. Where runs of other training seeds stand beside this one, the
# verdicts rest on all of them: estimates are means over trainings and tasks, and the intervals come from a *crossed*
# bootstrap, which resamples both (the head of `knapsack/analysis/crossed.py`). A single run's are about its one
# training.
#
# **The cap decides what a lost name costs.** The reset takes names only: what was inspected may be inspected again
# without touching the budget, but each call counts against the cap of its turn. Under a slack cap one block can rebuild
# all records, at the price of tokens; under the paper's a turn may be over before it has caught up. The first version
# of the paper, whose evaluation probably had no cap, reports no significant loss of quality; v3 a collapse under the
# tight cap, and a smaller loss under a slack one. So v1's claims are judged at the slackest cap that was played, v3's
# at its own two; and of P→S under a slack cap the two versions claim opposite things.
#
# The interaction D asks whether training and runtime belong together: how much more the persistent-trained model gains
# from a persistent runtime than the stateless-trained one. If persistence were only a matter of the interpreter, both
# would gain alike, and D would be 0. T is how much larger D is
# under the tight cap than under the slack one, on the same tasks.

# %%
judged = found
if beside.trainings:
    judged, tests, equal = crossed.over_trainings(beside.episodes, found, margin, bootstrap)
table = claims.claims_table(judged, tests, equal, beside.trainings)
display(Markdown(claims.summary(table)))
show("claims", claims.claims_shown(table), table)

# %% [markdown]
# Why the others are not reproduced, or cannot be told. Scores, and how episodes went, are those of this run's own
# training.

# %%
display(Markdown(reasons.explained(table, episodes, equal, causes)))

# %% [markdown]
# # Beyond the default run
#
# Some questions take more cells or other adapters than every run should have to wait for: what does each step of the
# cap do, does it help to keep the names of a turn that was cut short, is it the runtime or its *name* in the prompt
# that matters, and do the adapters still differ when both learned from as many tokens? `make beyond` asks them of the
# same tasks; each run has its own analysis, of which the claims and one figure stand here. (A cap below the batches
# that the adapters learned from binds at home too.)

# %%
display(*drawn["beyond"])
show("beyond", claims.claims_shown(beyond.read_claims_of(beyond_runs)))

# %% [markdown]
# What no number above can say:
#
# * There is one task family, and a handful of trainings at most.
# * Training sets matched by task, as here and in the paper, are not matched by tokens: the stateless adapter has read
#   more text. Adapters matched by tokens are trained by `make beyond` only.
# * The prompt names the runtime in every cell, here and in the paper. Only `make beyond` tells persistence and its cue
#   apart; and a model that never read a prompt without this cue may not act at all where there is none.

# %%
run.record("05_analysis", parameters, round(time.perf_counter() - started, 1))

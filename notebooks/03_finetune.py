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
# # 3 · Two adapters from one base
#
# One base model, one recipe, two sets of traces. The **persistent** adapter learns from episodes in which names stayed
# bound between turns, the **stateless** adapter from the same tasks solved in an interpreter that forgets. Nothing
# else differs, so whatever differs between the two models later was learned from the traces. `adapters` may name
# others: of both kinds of traces, or *matched*, trained until it has learned from as many tokens as another one.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # where this run's files lie
seed: int = 0  # of the adapters' first weights, the held-out rows and the order of the batches
reuse: str = ""  # folder of a finished run: what it made with the same parameters is taken over
base: str = "nano"  # "nano" (shipped), a model folder, or a public model's name
adapters: dict = {"persistent": {}, "stateless": {}}  # {}: of these traces; {"traces": [...], "match": other adapter}
backend: str = "auto"  # what loads and trains: "peft", "unsloth", or "auto" (Unsloth if it is there with a CUDA GPU)
rank: int = 8  # of the LoRA matrices
alpha: int = 16  # LoRA scale; the update is multiplied by alpha / rank
dropout: float = 0.0  # on what enters the LoRA matrices
target_modules: list[str] = []  # ends of adapted layers' names; []: all linear ones, of "nano" not what copies
learning_rate: float = 1e-3  # highest learning rate of AdamW
epochs: float = 1.0  # passes over the rows
batch_tokens: int = 1024  # tokens of a batch at most, padding counted
batch_rows: int = 64  # rows of a batch at most
accumulation: int = 1  # batches per optimizer step
warmup: float = 0.03  # share of the steps in which the learning rate rises
weight_decay: float = 0.01  # of AdamW
scheduler: str = "cosine"  # "cosine", "linear" or "constant_with_warmup"
max_length: int = 4096  # tokens a row may have; a longer one is an error, never cut
load_in_4bit: bool = False  # base weights in 4-bit NF4, double quantisation
gradient_checkpointing: bool = False  # less memory for more time
validation_share: float = 0.05  # share of the rows held out for the validation loss
evaluations: int = 5  # validations, spread over the training

# %% [markdown]
# What to try first: `seed = 1`, another training from the same traces. Give it a run folder of its own
# (`run_folder = "runs/seed1"`, `reuse = "runs/nano"`), then let notebook 04 play it there.

# %%
import time

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from knapsack.analysis.figures import picture
from knapsack.analysis.trainings import marked, summary
from knapsack.finetune import Recipe, amount, finetune, matched, tokenize_rows
from knapsack.gpu.backends import prepare
from knapsack.runs import find_base, open_run, pick
from knapsack.runtime import KINDS
from knapsack.training_data import mixed, read_adapters, read_rows

started = time.monotonic()
run = open_run(run_folder, reuse)
parameters = run.parameters("03_finetune", globals())
chosen, tokenizer = prepare(backend, base, run.folder)  # before the libraries that Unsloth changes
sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
recipe = pick(Recipe, parameters)

# %% [markdown]
# ## The base

# %%
if base == "nano":
    said = (find_base(base) / "README.md").read_text(encoding="utf-8").replace("\n#", "\n###")
else:
    said = f"`{base}`, as published; nothing is added to it."
Markdown(said)

# %% [markdown]
# ## What is trained on
#
# A trace becomes one sequence of tokens, rendered by the function that also renders the prompts of the evaluation.
# The loss counts only what the assistant wrote, its end token included: the lines marked `+` below. The rest
# (the task and every observation) is read but not imitated: nobody should learn to invent what a tool would return.

# %%
learns = read_adapters(adapters)
traces = {kind: read_rows(run.training(kind) / "traces.jsonl") for kind in KINDS}
rows = {name: mixed([traces[kind] for kind in entry.traces]) for name, entry in learns.items()}
tokens = {name: tokenize_rows(rows[name], tokenizer) for name in learns}
for kind in [name for name in learns if name in KINDS]:
    shortest = min(tokens[kind], key=lambda row: len(row.input_ids))
    display(Markdown(f"**{kind.capitalize()}** (the shortest row)\n\n````diff\n{marked(shortest, tokenizer)}\n````"))

# %% [markdown]
# ## How much each adapter gets to read

# %%
amounts = pd.DataFrame({name: amount(data) for name, data in tokens.items()}).T
recipes = {name: matched(recipe, name, learns, amounts["labelled tokens"]) for name in learns}
amounts["tokens a row"] = (amounts["tokens"] / amounts["rows"]).round().astype(int)
amounts["epochs"] = {name: round(recipes[name].epochs, 3) for name in learns}
amounts

# %%
if {*KINDS} <= {*learns}:
    ratio = amounts.loc["stateless"] / amounts.loc["persistent"]
    said = (
        f"**A confound, said plainly.** Both sets hold the same tasks ({ratio['rows']:.1f} × the rows), but the "
        f"stateless one has **{ratio['tokens']:.1f} ×** the tokens and **{ratio['labelled tokens']:.1f} ×** the "
        "labelled tokens, because carrying state through text takes text. Matched by episodes, as in the paper, the "
        "two adapters are not matched by tokens: part of any difference between them may be due to the amount of "
        "practice. (`make beyond` trains adapters that are.)"
    )
    display(Markdown(said))

# %% [markdown]
# ## Training
#
# A finished adapter is kept and its report shown again; an interrupted training goes on from its last checkpoint.

# %%
reports = {}
for name in learns:
    other = run.other and run.other.training(name)
    reports[name] = finetune(recipes[name], rows[name], base, run.training(name), backend=chosen, other=other)

# %%
curves = pd.concat(
    pd.DataFrame(points).assign(adapter=name, rows=part)
    for name, report in reports.items()
    for part, points in (("training", report.losses), ("held out", report.validation))
)
curves["accuracy"] = curves["accuracy"].astype(float)  # a back end may not tell it
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
labels = {"loss": "loss (nats a token)", "accuracy": "share predicted right"}
for axis, (quantity, label) in zip(axes, labels.items(), strict=True):
    sns.lineplot(
        curves, x="step", y=quantity, hue="adapter", style="rows", errorbar=None, ax=axis, legend=quantity == "loss"
    )
    axis.set(xlabel="optimizer step", ylabel=label, title=f"{quantity.capitalize()} on assistant tokens")
    axis.set_ylim(bottom=0)
axes[0].legend(fontsize="small")
told = ", ".join(f"{name} {report.steps}" for name, report in reports.items())
caption = f"Loss and accuracy on what the assistant wrote, in training and on held-out rows; optimizer steps: {told}."
display(*picture(figure, caption))

# %%
pd.DataFrame({name: summary(report) for name, report in reports.items()})

# %% [markdown]
# Seconds include validation and checkpoints; memory is the peak of this notebook's process (on a GPU: of the tensors).
# The validation losses of the adapters are on different texts and so do not rank them; notebook 4 lets them play.

# %%
run.record("03_finetune", parameters, time.monotonic() - started)

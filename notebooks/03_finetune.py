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
# else differs, so whatever differs between the two models later was learned from the traces.

# %% tags=["parameters"]
run_folder: str = "runs/nano"  # where this run's files lie
seed: int = 0  # of the adapters' first weights, the held-out rows and the order of the batches
base: str = "nano"  # "nano" (shipped), a model folder, or a public model's name
backend: str = "auto"  # what loads and trains: "peft", "unsloth", or "auto" (Unsloth if it is there with a CUDA GPU)
rank: int = 32  # of the LoRA matrices
alpha: int = 64  # LoRA scale; the update is multiplied by alpha / rank
dropout: float = 0.0  # on what enters the LoRA matrices
target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # adapted
learning_rate: float = 8e-4  # highest learning rate of AdamW
epochs: float = 1.0  # passes over the rows
batch_tokens: int = 2048  # tokens of a batch at most, padding counted
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

# %%
import time

from knapsack.gpu.backends import prepare_backend
from knapsack.runs import find_base, open_run, pick

started = time.monotonic()
run = open_run(run_folder)
parameters = run.parameters("03_finetune", globals())
chosen = prepare_backend(backend, run.folder)  # before the libraries that Unsloth changes

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from transformers.utils.logging import disable_progress_bar

from knapsack import models
from knapsack.batches import tokenize_rows
from knapsack.finetune import Recipe, finetune
from knapsack.runtime import KINDS
from knapsack.training_data import read_rows

sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
disable_progress_bar()
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
tokenizer = models.load_tokenizer(base)
rows = {kind: read_rows(run.training(kind) / "traces.jsonl") for kind in KINDS}
tokens = {kind: tokenize_rows(rows[kind], tokenizer) for kind in KINDS}


def mask(row, lines=40, width=110):
    """The text of a row, with + before each line that carries a label."""
    text, start = [], 0
    learned = [label != -100 for label in row["labels"]]
    for end in range(1, len(learned) + 1):
        if end == len(learned) or learned[end] != learned[start]:
            sign = "+ " if learned[start] else "  "
            part = tokenizer.decode(row["input_ids"][start:end]).strip("\n")
            text += [sign + line[:width] + (" …" if len(line) > width else "") for line in part.split("\n") if part]
            start = end
    return "\n".join(text[:lines] + ["  …"] * (len(text) > lines))


for kind in KINDS:
    shortest = min(tokens[kind], key=lambda row: len(row["input_ids"]))
    display(Markdown(f"**{kind.capitalize()}** (the shortest row)\n\n````diff\n{mask(shortest)}\n````"))

# %% [markdown]
# ## How much each regime gets to read


# %%
def amount(data):
    lengths = [len(ids) for ids in data["input_ids"]]
    labelled = sum(label != -100 for labels in data["labels"] for label in labels)
    return {"rows": len(lengths), "tokens": sum(lengths), "labelled tokens": labelled, "longest row": max(lengths)}


amounts = pd.DataFrame({kind: amount(data) for kind, data in tokens.items()}).T
amounts.assign(**{"tokens a row": (amounts["tokens"] / amounts["rows"]).round().astype(int)})

# %%
ratio = amounts.loc["stateless"] / amounts.loc["persistent"]
Markdown(
    f"**A confound, said plainly.** Both sets hold the same tasks ({ratio['rows']:.1f} × the rows), but the stateless "
    f"one has **{ratio['tokens']:.1f} ×** the tokens and **{ratio['labelled tokens']:.1f} ×** the labelled tokens, "
    "because carrying state through text takes text. Matched by episodes, as in the paper, the two adapters are not "
    "matched by tokens or optimizer steps: part of any difference between them may be due to the amount of practice."
)

# %% [markdown]
# ## Training
#
# A finished adapter is kept and its report shown again; an interrupted training goes on from its last checkpoint.

# %%
reports = {}
for kind in KINDS:
    reports[kind] = finetune(recipe, rows[kind], base, run.training(kind), backend=chosen)

# %%
curves = pd.concat(
    pd.DataFrame(points).assign(adapter=kind, rows=name)
    for kind, report in reports.items()
    for name, points in (("training", report.losses), ("held out", report.validation))
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
plt.show()


# %%
def cost(report):
    losses = [f"{point['loss']:.3f}" for point in report.validation]
    return {
        "rows (held out)": f"{report.rows} ({report.validation_rows})",
        "steps": f"{report.steps}" + (f" (from {report.resumed_from})" if report.resumed_from else ""),
        "seconds": f"{report.seconds:.0f}",
        "tokens a second": f"{report.tokens_per_second:,.0f}",
        "peak memory": f"{report.peak_memory / 2**20:,.0f} MiB",
        "trained parameters": f"{report.trained_parameters:,} of {report.parameters:,}",
        "adapter": f"{report.adapter_bytes / 2**20:.1f} MiB",
        "validation loss": f"{losses[0]} → {losses[-1]}" if losses else "none held out",
        "base weights": "4-bit NF4, double quantisation" if report.four_bit_layers else "bfloat16",
        "back end": f"{report.backend} on {report.device}",
    }


pd.DataFrame({kind: cost(report) for kind, report in reports.items()})

# %% [markdown]
# Seconds include validation and checkpoints; memory is the peak of this notebook's process (on a GPU: of the tensors).
# The validation losses of the two adapters are on different texts and so do not rank them; notebook 4 lets them play.

# %%
run.record("03_finetune", parameters, time.monotonic() - started)

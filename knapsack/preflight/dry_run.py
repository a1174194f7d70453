"""The plan of a run as text: counts, tokens, hours, and what it needs. ``tokens`` says how tokens are estimated."""

import math
from types import SimpleNamespace

import pandas as pd

from knapsack.evaluate import Settings
from knapsack.preflight.checks import Wanted, has_weights, local_folder
from knapsack.preflight.tokens import SAMPLED, estimate_requests, mean_tokens, spending_sentence, token_counter
from knapsack.runs import pick
from knapsack.runtime import KINDS
from knapsack.tasks import SPLIT_OFFSETS, Task, preset, sample_split
from knapsack.traces import Cell
from knapsack.training_data import read_adapters

# What the models of the committed default run wrote in notebook 04 (618,534 tokens) over what their teacher wrote on
# the same tasks (489,993): away from home they repeat themselves.
LONGER = 1.3


def describe(wanted: Wanted, missing: list[str], doubts: list[str]) -> str:
    """The whole plan."""
    rates, hours, lines, most = wanted.profile["rates"], {}, ["", *counted(wanted)], ""
    if "02_traces" in wanted.steps and wanted.traces.teacher:
        cells = [Cell("teacher", kind, "train", cap) for cap in wanted.traces.training_caps for kind in KINDS]
        asked = estimate(wanted, wanted.traces, cells)
        lines += ["", f"To the teacher's endpoint: {spending_sentence(asked, wanted.traces.max_total_tokens)}"]
    elif "02_traces" in wanted.steps:
        hours["02_traces"] = 2 * wanted.traces.n_train / rates["teacher"] / 3600
    if "03_finetune" in wanted.steps:
        settings, tasks = pick(Settings, vars(wanted.traces)), sample_tasks(wanted, "train")
        means = {kind: mean_tokens(tasks, kind, wanted.traces.training_caps[0], settings) for kind in KINDS}
        rows = wanted.traces.n_pairs - math.ceil(wanted.traces.n_pairs * wanted.finetune.validation_share)
        exact, tokens = token_counter(settings.base)[1], {}
        learns = read_adapters(wanted.finetune.adapters)
        of = {name: pd.DataFrame([means[kind] for kind in entry.traces]).mean() for name, entry in learns.items()}
        epochs = {name: wanted.finetune.epochs for name in learns}
        for name in learns:
            if other := learns[name].match:
                epochs[name] *= of[other]["completion_tokens"] / of[name]["completion_tokens"]
            tokens[name] = round(rows * epochs[name] * of[name]["row_tokens"])
        hours["03_finetune"] = sum(tokens.values()) / rates["training"] / 3600
        lines += ["", f"Training tokens, if the traces are as long as the rule-based teacher's ({exact})"]
        lines += [f"  {name:<18} {rows:,} rows, {tokens[name]:,} in {epochs[name]:.3g} epochs" for name in learns]
    if "04_evaluate" in wanted.steps:
        played = wanted.evaluate
        table = estimate(wanted, played, [cell for cell in wanted.cells if cell.model != "teacher"])
        lines += ["", *evaluation_lines(table, wanted)]
        own = table[~table["model"].isin(list(wanted.served))].sum(numeric_only=True) / rates["completion"] / 3600
        hours["04_evaluate"] = LONGER * own["completion_tokens"]
        most = f"{LONGER} × the teacher's tokens, as in the committed default run; at most "
        most = f"  ({most}{own['completion_tokens_at_most']:.2f})"
    lines += ["", f"Hours ({rates['source']}), without notebooks 01 and 05 (minutes) and what servers answer"]
    hours["in all"] = sum(hours.values())
    lines += [f"  {step:<12} {number:6.2f}{most * (step == '04_evaluate')}" for step, number in hours.items()]
    lines += ["", "What it needs", *need_lines(wanted)]
    lines += ["", "Missing on this machine:", *([f"  - {problem}" for problem in missing] or ["  nothing"])]
    return "\n".join([*lines, *(["", "Doubtful:", *(f"  - {doubt}" for doubt in doubts)] if doubts else [])])


def counted(wanted: Wanted) -> list[str]:
    """A line per notebook: how much of what."""
    drawn, traces, training, played = wanted.generate, wanted.traces, wanted.finetune, wanted.evaluate
    splits = [(f"{vars(drawn)[f'n_{split}']:,} {split} ({vars(drawn)[f'{split}_config']})") for split in SPLIT_OFFSETS]
    tasks = {True: [], False: []}  # of each cell of the teacher, and of the models
    for cell in wanted.cells:
        tasks[cell.model == "teacher"].append(vars(played)[f"n_{cell.split}"])
    said = {
        "01_generate": f"tasks: {', '.join(splits)}",
        "02_traces": f"{2 * traces.n_train:,} episodes of the teacher ({traces.teacher.get('model', 'rule-based')}), "
        f"{traces.n_pairs:,} pairs kept",
        "03_finetune": f"{len(training.adapters)} adapters of {training.base}, rank {training.rank}, "
        f"{training.epochs:g} epochs" + (", 4 bit" if training.load_in_4bit else ""),
        "04_evaluate": f"{len(tasks[False])} cells of the models, {sum(tasks[False]):,} episodes; "
        f"{len(tasks[True])} of the teacher, {sum(tasks[True]):,} episodes",
        "05_analysis": f"{wanted.analysis.n_resamples:,} bootstrap resamples",
    }
    return [f"{step:<12} {said[step]}" for step in wanted.steps]


def sample_tasks(wanted: Wanted, split: str) -> list[Task]:
    """The first tasks that notebook 01 will draw for ``split``."""
    drawn = vars(wanted.generate)
    number = min(SAMPLED, drawn[f"n_{split}"])
    return list(sample_split(split, number, drawn["seed"], preset(drawn[f"{split}_config"])))


def estimate(wanted: Wanted, values: SimpleNamespace, cells: list[Cell]) -> pd.DataFrame:
    """``estimate_requests`` for ``cells`` played with the parameters ``values`` of notebook 02 or 04."""
    splits = {cell.split for cell in cells}
    counts = {split: vars(values)[f"n_{split}"] for split in splits}
    tasks = {split: sample_tasks(wanted, split) for split in splits}
    return estimate_requests(cells, counts, pick(Settings, vars(values)), tasks)


def evaluation_lines(table: pd.DataFrame, wanted: Wanted) -> list[str]:
    """Tokens by split, cap and runtime, and what of them goes to endpoints."""
    numbers = ["episodes", "requests", "prompt_tokens", "completion_tokens"]
    grouped = table.groupby(["split", "cap", "runtime"], sort=False)[numbers].sum().map("{:,}".format).reset_index()
    most = table["prompt_tokens_at_most"].sum() + table["completion_tokens_at_most"].sum()
    lines = [f"Evaluation tokens, all models together ({token_counter(wanted.evaluate.base)[1]})"]
    lines += [f"  {line}" for line in grouped.to_string(index=False).splitlines()]
    lines.append(f"  if every episode is as long as the rule-based teacher's; at most {most:,} tokens")
    if wanted.served:
        asked = table[table["model"].isin(list(wanted.served))]
        lines.append(f"  To endpoints: {spending_sentence(asked, wanted.evaluate.max_total_tokens)}")
    return lines


def need_lines(wanted: Wanted) -> list[str]:
    """Models, memory, disk, keys and servers."""
    known, played, lines = wanted.model, wanted.evaluate, []
    for base in wanted.bases:
        size, folder = f"{known['weights_gb']} GB" if known else "of unknown size", local_folder(base)
        lines.append(f"  model    {base}: {size}, {'' if folder and has_weights(folder) else 'not '}on this machine")
    if wanted.needs_gpu and "gpu_memory_gb" in wanted.profile:
        lines.append(f"  GPU      {wanted.profile['gpu_memory_gb']} GB of memory")
        if known and "04_evaluate" in wanted.steps:
            cache = played.slots * played.context_length * known["cache_kib_a_token"] * 1024 / 1e9
            filled = played.processes * (known["weights_gb"] + cache)
            lines[-1] += f"; the evaluation fills {filled:.0f} GB with weights and {played.slots} conversations"
    lines.append(f"  disk     {wanted.disk / 1e9:.1f} GB in the run's folder at most")
    keys = {place.key_variable for place in wanted.places.values() if place.key_variable}
    lines += [f"  key      environment variable {key}" for key in sorted(keys)]
    return lines + [f"  server   {url}" for url in sorted({place.url for place in wanted.places.values()})]

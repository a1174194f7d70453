"""The plan of a run as text: counts, tokens, hours, and what it needs. ``plan`` says how tokens are estimated.

``parameters`` maps each notebook's name to its parameters, ``steps`` are the notebooks to run.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from knapsack.evaluate import Settings
from knapsack.preflight.checks import Missing, config_of, disk_need, needs_gpu, read_places, read_subjects
from knapsack.preflight.sizes import has_weights, local_folder, read_shape
from knapsack.preflight.tokens import (
    SAMPLED,
    TOKENS_PER_PIECE,
    estimate_requests,
    lengths,
    pairs_kept,
    play,
    spending_sentence,
    token_counter,
)
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.tasks import Task, preset, sample_split
from knapsack.traces import Cell

# What the models of the committed default run wrote in notebook 04 (489,325 tokens) over what their teacher wrote on
# the same tasks: models lose their way, above all the base and those away from home.
LONGER = 1.6


@dataclass(frozen=True)
class Training:
    """What notebook 03 trains on in one runtime: rows; tokens of a row on average and at most; tokens of all passes."""

    rows: int
    mean: float
    longest: int
    tokens: int


def describe(
    profile: dict, parameters: dict[str, dict], steps: Collection[str], missing: list[Missing], doubts: list[str]
) -> str:
    """The whole plan of ``steps``. Raises ValueError if no training row would be left."""
    doubts, hours, most = list(doubts), {}, 0.0
    lines = ["", *counted(parameters, steps)]
    if "02_traces" in steps and parameters["02_traces"]["teacher"]:
        asked = spending_sentence(estimate_teacher(parameters), parameters["02_traces"]["max_total_tokens"])
        lines += ["", f"To the teacher's endpoint: {asked}"]
    if "03_finetune" in steps:
        training, share = estimate_training(parameters)
        passes, wanted = round(share * parameters["02_traces"]["n_train"]), parameters["02_traces"]["n_pairs"]
        if passes < wanted:
            doubts.append(f"about {passes:,} pairs will pass the filters, n_pairs asks for {wanted:,}: raise n_train")
        trained = sum(each.tokens for each in training.values())
        hours["03_finetune"] = trained / profile["rates"]["training"] / 3600
        lines += ["", *training_lines(training, share, parameters)]
    if "04_evaluate" in steps:
        table, values = estimate_evaluation(parameters), parameters["04_evaluate"]
        lines += ["", *evaluation_lines(table, values)]
        own = table[[read_subjects(values)[model] is None for model in table["model"]]].sum(numeric_only=True)
        rate = profile["rates"]["completion"] * 3600
        hours["04_evaluate"] = LONGER * own["completion_tokens"] / rate
        most = own["completion_tokens_at_most"] / rate
    lines += ["", *hour_lines(hours, most, profile, parameters, steps)]
    lines += ["", *need_lines(profile, parameters, steps, missing)]
    lines += ["", "Missing on this machine:", *([f"  - {problem}" for problem in missing] or ["  nothing"])]
    return "\n".join([*lines, *(["", "Doubtful:", *(f"  - {doubt}" for doubt in doubts)] if doubts else [])])


def counted(parameters: dict[str, dict], steps: Collection[str]) -> list[str]:
    """A line per notebook: how much of what."""
    said = {}
    for step in steps:
        values = parameters[step]
        if step == "01_generate":
            splits = [f"{values[f'n_{s}']:,} {s} ({values[f'{s}_config']})" for s in ("train", "easy", "hard")]
            said[step] = f"tasks: {', '.join(splits)}"
        elif step == "02_traces":
            teacher = values["teacher"].get("model", "rule-based")
            said[step] = f"{2 * values['n_train']:,} episodes of the teacher ({teacher}), "
            said[step] += f"{values['n_pairs']:,} pairs kept"
        elif step == "03_finetune":
            said[step] = f"2 adapters of {values['base']}, rank {values['rank']}, {values['epochs']:g} epochs"
            said[step] += ", 4 bit" if values["load_in_4bit"] else ""
        elif step == "04_evaluate":
            tasks = [values[f"n_{split}"] for split in values["splits"]]
            cells, own = len(values["models"]) * len(values["runtimes"]), len({*KINDS} & {*values["runtimes"]})
            said[step] = f"{cells * len(tasks)} cells of the models, {cells * sum(tasks):,} episodes; "
            said[step] += f"{own * len(tasks)} of the teacher, {own * sum(tasks):,} episodes"
        elif step == "05_analysis":
            said[step] = f"{values['n_resamples']:,} bootstrap resamples"
    return [f"{step:<12} {text}" for step, text in said.items()]


def seen_by(values: dict) -> Settings:
    """Settings of notebook 02 or 04, as far as the teacher and the estimate ask for them."""
    names = ("base", "seed", "max_new_tokens", "context_length", "max_turns", "max_tool_calls", "prompt_detail")
    return Settings(**{name: values[name] for name in names if name in values})


def sample_tasks(parameters: dict[str, dict], split: str) -> list[Task]:
    """The first tasks that notebook 01 will draw for ``split``."""
    drawn = parameters["01_generate"]
    number = min(SAMPLED, drawn[f"n_{split}"])
    return list(sample_split(split, number, drawn["seed"], preset(drawn[f"{split}_config"])))


def estimate_training(parameters: dict[str, dict]) -> tuple[dict[str, Training], float]:
    """Per runtime what is trained on, and the share of the sampled pairs that pass the filters."""
    traces, recipe = parameters["02_traces"], parameters["03_finetune"]
    settings, (count, _) = seen_by(traces), token_counter(traces["base"])
    tasks = sample_tasks(parameters, "train")
    with interpreter_pool() as pool:
        played = [play(tasks, kind, settings, pool) for kind in KINDS]
    kept = pairs_kept(*played, count, traces["max_tokens"])
    if not kept:
        limits = f"max_tokens = {traces['max_tokens']}, max_turns = {traces['max_turns']}"
        raise ValueError(f"02_traces: of {len(tasks)} sampled pairs none passes the filters with {limits}")
    found, rows = {}, traces["n_pairs"] - math.ceil(traces["n_pairs"] * recipe["validation_share"])
    for kind, side in zip(KINDS, zip(*kept, strict=True), strict=True):
        each = lengths(side, count)
        found[kind] = Training(rows, each.trace, each.longest, round(rows * each.trace * recipe["epochs"]))
    return found, len(kept) / len(tasks)


def estimate_teacher(parameters: dict[str, dict]) -> pd.DataFrame:
    """``plan.estimate_requests`` for a chat model as teacher."""
    values, tasks = parameters["02_traces"], {"train": sample_tasks(parameters, "train")}
    cells = [Cell("teacher", kind, "train") for kind in KINDS]
    return estimate_requests(cells, {"train": values["n_train"]}, seen_by(values), tasks)


def estimate_evaluation(parameters: dict[str, dict]) -> pd.DataFrame:
    """``plan.estimate_requests`` for the models of notebook 04."""
    values = parameters["04_evaluate"]
    cells = [Cell(m, r, s) for s in values["splits"] for m in values["models"] for r in values["runtimes"]]
    counts = {split: values[f"n_{split}"] for split in values["splits"]}
    tasks = {split: sample_tasks(parameters, split) for split in values["splits"]}
    return estimate_requests(cells, counts, seen_by(values), tasks)


def counting(base: str) -> str:
    """How the tokens of ``base`` are counted here."""
    exact = token_counter(base)[1]
    return "its tokenizer" if exact else f"{TOKENS_PER_PIECE} a word, sign or digit, for its tokenizer is not here"


def training_lines(training: dict[str, Training], share: float, parameters: dict[str, dict]) -> list[str]:
    base, epochs = parameters["03_finetune"]["base"], parameters["03_finetune"]["epochs"]
    lines = [f"Training tokens, if the traces are as long as the rule-based teacher's ({base}: {counting(base)})"]
    for kind, each in training.items():
        size = f"{each.rows:,} rows of {each.mean:,.0f} (longest of the sampled {each.longest:,})"
        lines.append(f"  {kind:<11} {size}, {each.tokens:,} in {epochs:g} epochs")
    return [*lines, f"  {share:.0%} of the sampled pairs pass the filters"]


def evaluation_lines(table: pd.DataFrame, values: dict) -> list[str]:
    grouped = table.drop(columns="model").groupby(["split", "runtime"], sort=False).sum().reset_index()
    numbers = ["episodes", "requests", "prompt_tokens", "completion_tokens"]
    grouped[numbers] = grouped[numbers].map("{:,}".format)
    shown = grouped[["split", "runtime", *numbers]].to_string(index=False)
    lines = [f"Evaluation tokens, all models together ({values['base']}: {counting(values['base'])})"]
    most = table["prompt_tokens_at_most"].sum() + table["completion_tokens_at_most"].sum()
    lines += [f"  {line}" for line in shown.splitlines()]
    lines.append(f"  if every episode is as long as the rule-based teacher's; at most {most:,} tokens")
    served = [name for name, endpoint in read_subjects(values).items() if endpoint is not None]
    if served:
        asked = table[table["model"].isin(served)]
        lines.append(f"  To endpoints: {spending_sentence(asked, values['max_total_tokens'])}")
    return lines


def hour_lines(
    hours: dict[str, float], most: float, profile: dict, parameters: dict[str, dict], steps: Collection[str]
) -> list[str]:
    rates = profile["rates"]
    if "02_traces" in steps and not parameters["02_traces"]["teacher"]:
        hours = hours | {"02_traces": 2 * parameters["02_traces"]["n_train"] / rates["teacher"] / 3600}
    lines = [f"Hours ({rates['source']}), without notebooks 01 and 05 (minutes) and what servers answer"]
    lines += [f"  {step:<12} {hours[step]:6.2f}" for step in steps if step in hours]
    if most:
        counted = f"{LONGER} × the teacher's tokens, as in the committed default run"
        lines[-1] += f"  ({counted}; at most {most:.2f})"
    return [*lines, f"  {'in all':<12} {sum(hours.values()):6.2f}"]


def need_lines(
    profile: dict, parameters: dict[str, dict], steps: Collection[str], missing: list[Missing]
) -> list[str]:
    lines, lacking = ["What it needs"], {problem.what for problem in missing}
    for base in sorted({parameters[step]["base"] for step in steps if "base" in parameters[step]}):
        shape, folder = read_shape(base, config_of(profile, base)), local_folder(base)
        size = f"{shape.weight_bytes / 1e9:.2g} GB" if shape else "of unknown size"
        place = "on this machine" if folder and has_weights(folder) else "not on this machine"
        lines.append(f"  model    {base}: {size}, {place}")
    if needs_gpu(parameters, steps) and profile.get("gpu_memory_gb"):
        memory = evaluation_memory(profile, parameters, steps)
        lines.append(f"  GPU      {profile['gpu_memory_gb']} GB of memory{memory}")
    lines.append(f"  disk     {disk_need(profile, parameters, steps) / 1e9:.1f} GB in the run's folder at most")
    places = read_places(parameters, steps).values()
    for variable in sorted({place.key_variable for place in places if place.key_variable}):
        state = "not set" if f"the key {variable}" in lacking else "set"
        lines.append(f"  key      environment variable {variable}: {state}")
    for address, variable in sorted({(place.url, place.key_variable or "") for place in places}):
        state = "not asked, for want of its key" if f"the key {variable}" in lacking else "answers"
        lines.append(f"  server   {address}: {'not usable' if f'the server {address}' in lacking else state}")
    return lines


def evaluation_memory(profile: dict, parameters: dict[str, dict], steps: Collection[str]) -> str:
    """What of the GPU's memory the evaluation fills, if this is known."""
    values = parameters["04_evaluate"]
    shape = read_shape(values["base"], config_of(profile, values["base"]))
    if "04_evaluate" not in steps or shape is None:
        return ""
    cache = values["slots"] * values["context_length"] * shape.cache_bytes
    filled = values["processes"] * (shape.weight_bytes + cache) / 1e9
    return f"; the evaluation fills {filled:.0f} GB with weights and {values['slots']} conversations"

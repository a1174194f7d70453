"""Trains through one back end, in a process of its own, and writes down what the trainer saw and what became of it.

    python tests/unsloth_child.py {peft|unsloth} BASE OUTPUT

Every way out of the machine is closed. OUTPUT gets an adapter per training and ``observed.json``.
"""

import dataclasses
import json
import socket
import sys
from pathlib import Path

from knapsack.gpu.backends import prepare_backend


def refuse(*arguments, **_):
    raise AssertionError(f"something wanted to reach the network: {arguments}")


def trainings(backend: str, base: str, output: Path) -> dict:
    """The report of each training: whole, stopped after step 12 and resumed, in 4 bit for rows longer than the base has
    positions; the batches of the first; and the positions of the base in the last."""
    from tiny import RECIPE, make_rows
    from transformers import Trainer

    from knapsack.finetune import finetune

    step, batches, reports = Trainer.training_step, [], {}

    def watched(trainer, model, inputs, *arguments, **options):
        batches.append({name: inputs[name].tolist() for name in ("input_ids", "labels", "attention_mask")})
        config = model.config.to_dict()
        reports["positions"] = [config["max_position_embeddings"], config["rope_parameters"]]
        if len(batches) == stop_at:
            raise KeyboardInterrupt
        return step(trainer, model, inputs, *arguments, **options)

    def run(name: str, recipe=RECIPE) -> None:
        report = finetune(recipe, make_rows(40), base, output / name, backend=backend, progress=False)
        reports[name] = dataclasses.asdict(report)

    Trainer.training_step, stop_at = watched, None
    run("whole")
    seen, stop_at = list(batches), len(batches) + 13
    try:
        run("resumed")
    except KeyboardInterrupt:
        run("resumed")
    four_bit = {"load_in_4bit": True, "gradient_checkpointing": True, "max_length": 100_000}
    run("four-bit", dataclasses.replace(RECIPE, **four_bit))
    return {"batches": seen, "reports": reports}


def refusals(base: str, output: Path) -> dict:
    """What is said when Unsloth goes on without 4 bit, and of rows that are longer than the base has positions."""
    from tiny import RECIPE, make_rows
    from unsloth_zoo.cpu import loader

    from knapsack.finetune import finetune

    said, loader.cpu_bnb_4bit_supported = {}, lambda: False
    long = [{"messages": [{"role": "assistant", "content": "a b c " * 2000}]}] * 2
    for name, changed, rows in (
        ("dropped", {"load_in_4bit": True}, make_rows(4)),
        ("too long", {"max_length": 100_000}, long),
    ):
        try:
            recipe = dataclasses.replace(RECIPE, **changed)
            finetune(recipe, rows, base, output / name, backend="unsloth", progress=False)
        except (RuntimeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return {"said": said}


def reply(base: str, adapter: Path) -> dict:
    """Unsloth's greedy reply with a saved adapter, in tokens, and the prompt."""
    import torch
    from peft import PeftModel
    from tiny import make_rows
    from transformers import AutoTokenizer
    from unsloth import FastLanguageModel

    from knapsack.prompts import render

    messages = make_rows(1)[0]["messages"][:2]
    prompt = render(messages, AutoTokenizer.from_pretrained(base), reply_follows=True).input_ids
    model, _ = FastLanguageModel.from_pretrained(base, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False)
    model = FastLanguageModel.for_inference(PeftModel.from_pretrained(model, adapter))
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
    return {"prompt": prompt, "reply": tokens}


def main(backend: str, base: str, output: Path) -> None:
    socket.socket.connect = socket.getaddrinfo = refuse
    prepare_backend(backend, output)
    observed = trainings(backend, base, output)
    if backend == "unsloth":
        observed |= reply(base, output / "whole" / "adapter") | refusals(base, output)
    (output / "observed.json").write_text(json.dumps(observed))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

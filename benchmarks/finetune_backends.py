"""What a training step costs with Unsloth and with plain PEFT and TRL, on a base of a given shape with random weights.

    python benchmarks/finetune_backends.py --shape nano --length 512 --batch 4
    python benchmarks/finetune_backends.py --shape qwen3-8b --rank 64 --length 16384 --batch 16 --four-bit

Each back end trains in a process of its own, on the same base and the same rows. Prints Markdown.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = {  # as published for Qwen3-8B; "nano" is the shape of the shipped scale model
    "nano": None,
    "qwen3-8b": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": False,
    },
}
PACKAGES = ("torch", "transformers", "peft", "trl", "unsloth", "bitsandbytes")


def make_base(shape: str, changes: dict, folder: Path) -> None:
    """A Qwen3-architecture base in bfloat16 with random weights, and the scale model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, Qwen3ForCausalLM

    from knapsack.runs import find_base

    config = AutoConfig.from_pretrained(find_base("nano"))
    config.update((SHAPES[shape] or {}) | changes)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_base("nano")).save_pretrained(folder)


def make_rows(count: int, length: int, base: Path) -> list[dict]:
    """Rows of ``length`` tokens or a few less, nearly all of them the assistant's; each is different."""
    from transformers import AutoTokenizer

    from knapsack.finetune import tokenize_rows

    tokenizer, rows = AutoTokenizer.from_pretrained(base), []
    for number in range(count):
        words = [str((number + place * place) % 499) for place in range(length)]
        row = {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": ""}]}
        while True:
            row["messages"][1]["content"] = "\n".join(words)
            excess = len(tokenize_rows([row], tokenizer)[0].input_ids) - length
            if excess <= 0:
                break
            words = words[: -max(1, excess // 3)]
        rows.append(row)
    return rows


def measure(backend: str, base: Path, folder: Path, options: argparse.Namespace) -> dict:
    """Seconds of each optimizer step, and the report of the training."""
    from knapsack.gpu.backends import prepare_backend

    prepare_backend(backend, folder)
    import torch
    from transformers import TrainerCallback, trainer

    from knapsack.finetune import Recipe, finetune

    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.DEFAULT_CALLBACKS.append(Clock)
    recipe = Recipe(
        rank=options.rank,
        alpha=2 * options.rank,
        batch_tokens=options.length,
        batch_rows=1,
        accumulation=options.batch,
        max_length=options.length,
        load_in_4bit=options.four_bit,
        gradient_checkpointing=not options.no_checkpointing,
        validation_share=0.0,
        learning_rate=1e-4,
    )
    rows = make_rows(options.batch * (options.steps + 1), options.length, base)
    report = finetune(recipe, rows, str(base), folder, backend=backend, progress=False)
    steps = [after - before for before, after in pairwise(ends)]  # the first one compiles
    facts = {"steps": steps, "tokens": report.tokens / report.steps, "memory": report.peak_memory}
    return facts | {"loss": report.losses[0]["loss"], "device": report.device}


def machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return f"{device}; Python {platform.python_version()}, {', '.join(found)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--set", action="append", default=[], metavar="name=value", help="change the shape's config")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row; a row is a micro-batch")
    parser.add_argument("--batch", type=int, default=4, help="rows of an optimizer step")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--only", nargs=3, metavar=("PART", "BASE", "FOLDER"), help="one part, in its process")
    options = parser.parse_args()
    if options.only:
        part, base, folder = options.only[0], Path(options.only[1]), Path(options.only[2])
        if part == "base":
            changes = {name: json.loads(value) for name, _, value in (text.partition("=") for text in options.set)}
            make_base(options.shape, changes, base)
        else:
            (folder / "facts.json").write_text(json.dumps(measure(part, base, folder, options)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for part in ("base", "peft", "unsloth"):  # each gives its memory back when it ends
            base, folder = Path(place, "base"), Path(place, part)
            command = [sys.executable, Path(__file__).resolve(), *sys.argv[1:], "--only", part, base, folder]
            subprocess.run(command, check=True, stdout=sys.stderr, cwd=place)
            if part != "base":
                results[part] = json.loads((folder / "facts.json").read_text())
    print(f"    python benchmarks/finetune_backends.py {' '.join(sys.argv[1:])}\n\n{machine()}\n")
    print("| back end | s a step, median | range | tokens/s | peak memory, GiB | loss of step 1 |")
    print("|---|---|---|---|---|---|")
    for backend, facts in results.items():
        steps = facts["steps"]
        median = statistics.median(steps)
        print(
            f"| {backend} | {median:.2f} | {min(steps):.2f}–{max(steps):.2f} | {facts['tokens'] / median:,.0f} "
            f"| {facts['memory'] / 2**30:.2f} | {facts['loss']:.4f} |"
        )
    plain, unsloth = results["peft"], results["unsloth"]
    speed = statistics.median(plain["steps"]) / statistics.median(unsloth["steps"])
    memory = unsloth["memory"] / plain["memory"]
    print(f"\nUnsloth: {speed:.2f} × the speed, {memory:.2f} × the peak memory of plain PEFT/TRL.")


if __name__ == "__main__":
    main()

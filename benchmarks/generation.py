"""How fast LocalModel fills prompts and decodes: milliseconds for one prompt and for one step of all slots.

python benchmarks/generation.py --base nano --slots 32 --words 100 400 1000
"""

import argparse
import random
import time

import torch

from knapsack.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="nano", help='"nano", a model folder or a public name')
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--words", type=int, nargs="+", default=[100, 400, 1000], help="mean length of a prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"context_length": 4096, "max_new_tokens": 4096, "temperature": 0.2, "seed": 0}
    model = load_model(arguments.base, device=arguments.device, slots=arguments.slots, **settings)
    model._ends = set()  # every slot stays busy
    source = random.Random(0)
    for words in arguments.words:
        model._slots = [type(model._slots[0])() for _ in range(arguments.slots)]
        started = time.perf_counter()
        for slot in range(arguments.slots):  # lengths uniform from half to one and a half times the mean
            text = "".join(f"{source.randint(0, 9)}," for _ in range(source.randint(words // 4, words * 3 // 4)))
            model.submit(slot, str(slot), [{"role": "user", "content": text}])
        filled = time.perf_counter()
        for _ in range(arguments.steps):
            model.step()
        ended = time.perf_counter()
        tokens = sum(len(slot.prompt) for slot in model._slots) / arguments.slots
        print(
            f"prompts of {tokens:.0f} tokens: {1e3 * (filled - started) / arguments.slots:.1f} ms to fill one, "
            f"{1e3 * (ended - filled) / arguments.steps:.1f} ms a step of {arguments.slots} slots"
        )


if __name__ == "__main__":
    main()

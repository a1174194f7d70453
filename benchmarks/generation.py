"""How fast LocalModel fills prompts and decodes: milliseconds for one prompt and for one step of all slots, and tokens
a second where a model answers stateless conversations, in which it writes again what it has read.

python benchmarks/generation.py --base nano --slots 8 --words 100 400 1000
"""

import argparse
import random
import time

import torch

from knapsack import agent
from knapsack.models import load_model
from knapsack.runtime import interpreter_pool
from knapsack.tasks import preset, sample_task
from knapsack.teacher import RuleTeacher


def second_turns(count: int, tokenizer):
    """Conversations in which a rule-based teacher has looked at items and now restates them, each for one reply."""
    with interpreter_pool(1) as pool:
        for seed in range(count):
            task, limits = sample_task(seed, preset("nano_easy")), agent.EpisodeSettings(max_turns=1, detail="compact")
            begun = agent.episode(task, "stateless", limits, pool)
            yield agent.run_alone(begun, RuleTeacher(task, "stateless", seed, tokenizer)).messages


def one_reply(messages):
    """An episode of one turn, for ``agent.run_batched``."""
    return (yield messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="nano", help='"nano", a model folder or a public name')
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--words", type=int, nargs="+", default=[100, 400, 1000], help="mean length of a prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--replies", type=int, default=64, help="to stateless conversations")
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
        tokens = sum(slot.prompt for slot in model._slots) / arguments.slots
        print(
            f"prompts of {tokens:.0f} tokens: {1e3 * (filled - started) / arguments.slots:.1f} ms to fill one, "
            f"{1e3 * (ended - filled) / arguments.steps:.1f} ms a step of {arguments.slots} slots"
        )
    model = load_model(
        arguments.base, device=arguments.device, slots=arguments.slots, **settings | {"max_new_tokens": 1024}
    )
    conversations, replies = list(second_turns(arguments.replies, model.tokenizer)), {}
    started = time.perf_counter()
    plays = ((str(number), one_reply(messages)) for number, messages in enumerate(conversations))
    agent.run_batched(plays, model, replies.__setitem__)
    seconds, tokens = time.perf_counter() - started, sum(reply.completion_tokens for reply in replies.values())
    print(f"replies to stateless conversations: {tokens} tokens, {tokens / seconds:.0f} a second with the prompts")


if __name__ == "__main__":
    main()

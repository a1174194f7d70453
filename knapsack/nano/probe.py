"""Does a scale model act rightly in worlds it never saw? ``python -m knapsack.nano.probe [base] [adapter]``

The probe's worlds have tools, fields, constants and variables named by words that occur in no exercise, and half of
them a goal that none has: a condition, a room to fill and refused kinds at once. The first reply of each episode is the
writer's, which sets the style; all others are the model's. So a weak base is told from a weak adapter before anything
is fine-tuned.
"""

import argparse
import json
from dataclasses import replace
from functools import partial

import torch

from knapsack import models
from knapsack.agent import ContextFull, run_alone, run_batched
from knapsack.nano import curriculum
from knapsack.runtime import KINDS, Kind, interpreter_pool, undefined_name

FIRST_SEED, CAP = 7 * 10**8, 150  # a cap that binds in no world
LIMITS = {"context_length": 4096, "max_new_tokens": 1024, "temperature": 0.2, "seed": 0}


def _writer(seed: int, style: Kind) -> tuple[curriculum.ToyWorld, curriculum.Writer]:
    """A world of unseen words, with room to repeat all its readings in one turn, and who writes without mistakes."""
    world, plan = curriculum.toy(seed, curriculum.UNSEEN, 36, all_at_once=bool(seed % 2))
    world.cap, plan = CAP, replace(plan, slip=None, overreach=False)
    return world, curriculum.Writer(world.world, style, plan, 25, world.names)


def _continued(world: curriculum.ToyWorld, writer: curriculum.Writer, kind: Kind, pool):
    """The episode after the writer's first reply, up to the first reply that is not one code block."""
    play = curriculum.play(world, kind, pool, 20)
    messages = play.send(curriculum.answer(writer, next(play)))
    try:
        while "ProtocolError" not in messages[-1]["content"]:
            messages = play.send((yield messages))
        return messages
    except StopIteration as stop:
        return stop.value
    except ContextFull:
        return messages


def probe(base, adapter=None, worlds: int = 40, slots: int = 20) -> list[dict]:
    """A row per style and runtime: ``reached``, the share of worlds in which exactly the right things were acted on
    and the episode was finished; ``lost``, how many had a lost name, and ``regained``, the share of those reached;
    ``malformed``, the share of replies without exactly one code block."""
    with interpreter_pool(slots) as pool:
        model = models.load_model(base, adapter, slots=slots, **LIMITS)
        return [_played(model, style, kind, worlds, pool) for style in KINDS for kind in KINDS]


def _played(model, style: Kind, kind: Kind, worlds: int, pool) -> dict:
    written, right, ended = {}, {}, {}
    for seed in map(str, range(FIRST_SEED, FIRST_SEED + worlds)):
        world, writer = _writer(int(seed), style)
        run_alone(curriculum.play(world, style, pool, 30), partial(curriculum.answer, writer))
        right[seed], written[seed] = sorted(world.acted), _writer(int(seed), style)
    run_batched(((seed, _continued(*pair, kind, pool)) for seed, pair in written.items()), model, ended.__setitem__)
    return {"style": style, "runtime": kind, "worlds": worlds, **_told(written, ended, right)}


def _told(written: dict, ended: dict, right: dict) -> dict:
    reached, lost, replies, malformed = set(), set(), 0, 0
    for seed, messages in ended.items():
        world, _ = written[seed]
        seen = [json.loads(message["content"]) for message in messages[3::2]]
        replies += len(seen)
        malformed += sum((one["error"] or "").startswith("ProtocolError") for one in seen)
        if any(undefined_name(one["error"]) for one in seen):
            lost.add(seed)
        if world.finished and sorted(world.acted) == right[seed]:
            reached.add(seed)
    shares = {"reached": len(reached) / len(ended), "malformed": malformed / replies}
    return shares | {"lost": len(lost), "regained": len(reached & lost) / len(lost) if lost else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default="nano", help="the scale model, or a folder")
    parser.add_argument("adapter", nargs="?", help="an adapter's folder")
    parser.add_argument("--worlds", type=int, default=40, help="per style and runtime")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in probe(arguments.base, arguments.adapter, arguments.worlds):
        print(
            *(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
        )


if __name__ == "__main__":
    main()

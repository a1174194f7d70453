"""Makes the scale model's base: ``torchrun --nproc-per-node 2 -m knapsack.nano.training``, a process for each core,
because kernels this small gain little from a second thread (how long it took: see its training.json).

The base learns from ``curriculum`` alone; the loss counts the assistant's tokens. It trains in float32 and is stored in
bfloat16: without instructions for it, a CPU multiplies matrices in bfloat16 many times slower. The script writes the
model, its tokenizer, and ``training.json``, the record of the run that the card quotes.
"""

import argparse
import copy
import random
import re
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from knapsack import prompts
from knapsack.agent import EpisodeSettings, episode, run_alone
from knapsack.nano import curriculum
from knapsack.nano import model as nano
from knapsack.nano.probe import probe
from knapsack.prompts import Message
from knapsack.runs import as_json, provenance, read_json, write_text
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.tasks import preset, sample_task
from knapsack.teacher import NAMES, RuleTeacher

Row = tuple[torch.Tensor, torch.Tensor]  # input_ids and labels, both int32 [length]


def vocabulary_texts(pool) -> Iterator[str]:
    """Texts whose words get a token of their own: the toy worlds' words, and episodes of theirs and of the teacher.

    The model is never trained on the teacher's texts here; this only decides how they will be split.
    """
    yield "\n".join(["system", "user", "assistant", *curriculum.WORDS])
    for seed in range(10**6, 10**6 + 400):
        yield from (message["content"] for message in curriculum.toy_episode(seed, pool)[0])
    for seed in range(60):
        task = sample_task(10**6 + seed, preset("nano_hard") if seed % 2 else preset("nano_easy"))
        for kind in KINDS:
            for detail in prompts.DETAILS:
                play = episode(task, kind, EpisodeSettings(detail=detail), pool)
                result = run_alone(play, RuleTeacher(task, kind, seed))
                yield from (message["content"] for message in result.messages)


def make_rows(tokenizer, exercises: Iterable[list[Message]], count: int) -> list[Row]:
    """Rows of exercises that fit the context. Mistakes, and names that a writer invents, carry no label: they are
    read, but nothing in the context foretells them. Its usual names do: where no other is known, one of them fits."""
    rows, names = [], set(tokenizer.convert_tokens_to_ids(sorted({*curriculum.WORDS} - {*NAMES})))
    for messages in tqdm(exercises, total=count, desc="exercises", mininterval=5):
        rendered = prompts.render([{part: m[part] for part in ("role", "content")} for m in messages], tokenizer)
        ids, labels = torch.tensor(rendered.input_ids).int(), torch.tensor(rendered.labels).int()
        if len(ids) > nano.CONTEXT:
            continue
        runs = torch.cat([torch.tensor([False]), labels != -100]).diff().nonzero()[:, 0].tolist()[::2]
        for start, message in zip(runs, (m for m in messages if m["role"] == "assistant"), strict=True):
            if "slip" in message:
                labels[start:][: int((labels[start:] == -100).int().argmax()) or None] = -100
        before: set[int] = set()
        for place, token in enumerate(rendered.input_ids):
            if token in names and token not in before:
                before.add(token)
                labels[place] = -100
        rows.append((ids, labels))
    return rows


def looked_up(tokenizer) -> list[int]:
    """The tokens that are names, ids, numbers or letters: they mean nothing by themselves."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    plain = re.compile(r"'item_.*|\d{1,3}(, )?|'[A-Z]'.*")
    return [token for token, text in enumerate(texts) if text in curriculum.WORDS or plain.fullmatch(text)]


def batches(rows: list[Row], tokens: int, source: random.Random, rank: int, ranks: int) -> Iterator[list[Row]]:
    """Endless batches of at most ``tokens`` padded tokens for process ``rank`` of ``ranks``, rows of similar length
    together, and those that are of one step."""
    while True:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + 80 * source.random())
        groups: list[list[int]] = [[]]
        for i in order:  # ascending: the newest row is the longest
            if groups[-1] and len(rows[i][0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(i)
        steps = list(zip(*(groups[number::ranks] for number in range(ranks)), strict=False))
        if not steps:
            raise ValueError(f"{len(rows)} rows are too few for {ranks} processes: make more exercises")
        source.shuffle(steps)
        for step in steps:
            yield [rows[i] for i in step[rank]]


def collate(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded input_ids and labels, both [rows, longest]."""
    ids, labels = zip(*batch, strict=True)
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0).long()
    labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100).long()
    return ids, labels


def loss_of(model, batch: list[Row]) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens. Causal attention needs no mask for padding on the right."""
    ids, labels = collate(batch)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learned = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]).float(), labels[:, 1:][learned])


def mean_over_processes(tensors: list[torch.Tensor], ranks: int) -> None:
    """Replace each tensor by its mean over the processes."""
    flat = torch.nn.utils.parameters_to_vector(tensors)
    dist.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat / ranks, tensors)


def train(
    model,
    tokenizer,
    rows: list[Row],
    tokens: int,
    *,
    batch_tokens: int,
    rate: float,
    seed: int,
    rank: int,
    ranks: int,
    checkpoint: Path,
) -> Iterator[dict]:
    """Train for ``tokens`` padded tokens; yields a record of loss and speed every 100 steps.

    Then it also writes ``checkpoint``, from which the same training goes on after an interruption; raises ValueError if
    that is another training's.
    """
    short = [row for row in rows if len(row[0]) <= 600]
    part = (batch_tokens // ranks, random.Random(seed), rank, ranks)
    early, later = batches(short, *part), batches(rows, *part)
    model.train()
    # Copying lives off words being easy to tell apart, and an optimiser that normalises gradients drags along, all in
    # one direction, the embeddings of the many words that a batch does not hold. So what is only ever looked up (names,
    # ids, numbers), or never occurs, stays as it was drawn, and so does where the heads of the structured start look:
    # trained, they took some ids for others, always the same. What they bring from there, and other embeddings, move
    # slowly.
    learned = torch.zeros(model.config.vocab_size, 1)
    learned[torch.cat([ids for ids, _ in rows]).unique().long()] = 1
    learned[looked_up(tokenizer)] = 0
    model.model.embed_tokens.weight.register_hook(lambda gradient: gradient * learned)
    for name, parameter in model.model.layers[:2].named_parameters():
        parameter.requires_grad_(not re.match(r"0\.self_attn|[01]\.input_layernorm|1\.self_attn\.[qk]_norm", name))
    second = model.model.layers[1].self_attn
    for projection in (second.q_proj, second.k_proj):
        free = torch.zeros_like(projection.weight)
        free[3 * model.config.head_dim :] = 1  # the fourth head
        projection.weight.register_hook(lambda gradient, free=free: gradient * free)
    of = ((0.0, 0.5), (0.0, 1.0), (0.05, 1.0))  # what started as it should, other vectors, other matrices
    groups = [{"params": [], "weight_decay": decay, "share": share} for decay, share in of]
    for name, parameter in model.named_parameters():
        started = "embed_tokens" in name or "layers.1.self_attn" in name  # decay would act where no gradient does
        if parameter.requires_grad:
            groups[0 if started else parameter.ndim]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    arguments = [tokens, batch_tokens, rate, seed, ranks, len(rows)]
    history, early_steps, recent = [{"step": 0, "tokens": 0, "seconds": 0}], 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        if saved["arguments"] != arguments:
            raise ValueError(f"{checkpoint} is of another training: delete it, or go on with its arguments")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        history, early_steps = saved["history"], saved["early_steps"]
    seen, step, started = history[-1]["tokens"], history[-1]["step"], time.monotonic() - history[-1]["seconds"]
    for number in range(step):  # pass over the batches that it has had
        next(early if number < early_steps else later)
    yield from history[1:]
    with tqdm(total=tokens, initial=seen, unit="token", unit_scale=True, mininterval=5, disable=rank > 0) as bar:
        while seen < tokens:
            early_steps += seen < 0.05 * tokens
            batch = next(early if seen < 0.05 * tokens else later)
            loss = loss_of(model, batch)
            loss.backward()
            size = torch.tensor([float(len(batch) * max(len(ids) for ids, _ in batch))])
            loss = loss.detach()[None]
            if ranks > 1:
                mean_over_processes([*(p.grad for p in model.parameters() if p.requires_grad), size, loss], ranks)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scale = min(1.0, (step + 1) / 50, 1.02 - seen / tokens)  # warm up, then down to nothing
            for group in optimizer.param_groups:
                group["lr"] = rate * scale * group["share"]
            optimizer.step()
            optimizer.zero_grad()
            size = round(size.item() * ranks)
            seen, step = seen + size, step + 1
            recent.append(loss.item())
            bar.update(size)
            if step % 100 == 0 or seen >= tokens:
                seconds = time.monotonic() - started
                mean = sum(recent) / len(recent)
                bar.set_postfix(loss=f"{mean:.4f}")
                recent.clear()
                history.append({"step": step, "tokens": seen, "loss": round(mean, 4), "seconds": round(seconds)})
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "arguments": arguments}
                    partial = checkpoint.with_suffix(".tmp")
                    torch.save(state | {"history": history, "early_steps": early_steps}, partial)
                    partial.replace(checkpoint)
                yield history[-1]


@torch.no_grad()
def accuracy(model, rows: list[Row]) -> float:
    """Share of labelled tokens that are the model's first choice."""
    right = total = 0
    model.eval()
    for row in rows:
        ids, labels = collate([row])
        learned = labels[:, 1:] != -100
        choice = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int((choice == labels[:, 1:])[learned].sum())
        total += int(learned.sum())
    return right / total


CARD = """# The scale model's base

A causal language model of Qwen3 architecture with {parameters:,} parameters (4 layers, width 192) and a vocabulary of
{vocabulary:,} words and bytes, made by `{command}` in {minutes:.0f} minutes on {cores} cores; `training.json` is the
record of that run.

**It has seen** {rows:,} exercises (trained on for {tokens:,} padded tokens, loss on the assistant's tokens only):

- {toys:.0%} toy episodes, each really executed: read things through a tool up to a limit, then act on some of them.
  What tools, fields, constants, variables and helpers are called is drawn anew for each from {words} words;
  goals sort by one of {orders} keys, filter, fill a room, or meet refusals. The persistent and the stateless style of
  `knapsack.teacher.Writer`, each in either runtime. A persistent writer whose names are gone runs all of its code
  again; after the cap on tool calls a smaller batch follows; mistakes are read, not imitated, and corrected.
- {replays:.0%} replays of random code: all that ran and the block that failed, written again in one.
- {copies:.0%} copying: restate a record of up to 60 entries and a few numbers from the last observation.

**It has not seen** Opaque Knapsack: no episode of it, and no order by a ratio. Its words (`inspect`, `take_item`,
`capacity`, …) are among the {words}, so they occur in any role. The vocabulary was collected from toy episodes, the
prompts, and 60 tasks solved by the rule-based teacher, so that common words are one token each.

**The attention of its first two layers did not start from random weights** but from a structure
that copies (`knapsack.nano.model.start_copying`). All weights were trained on from there, except the
attention of the first layer, what says where three heads of the second look, and the embeddings of names, ids, numbers
and letters, which are only ever looked up, and of words that never occurred: these stayed as they were.

On held-out exercises its first choice is right for {accuracies}.

**The probe** (`python -m knapsack.nano.probe`) lets it play {worlds} worlds per line whose words occur in no exercise,
half of them with a goal that none has. The writer gives the first reply, which sets the style; the rest is the model's.

{probe_table}
"""


def write_card(folder: Path) -> None:
    """Write ``README.md`` beside the model from its ``training.json``."""
    record = read_json(folder / "training.json")
    last, arguments = record["history"][-1], record["arguments"]
    table = "| style | runtime | worlds reached | episodes with a lost name | of these reached | malformed replies |\n"
    table += "|---|---|---:|---:|---:|---:|\n"
    for row in record["probe"]:
        regained = "" if row["regained"] is None else f"{row['regained']:.0%}"
        table += f"| {row['style']} | {row['runtime']} | {row['reached']:.0%} | {row['lost']} | {regained} "
        table += f"| {row['malformed']:.1%} |\n"
    right = [f"{share:.1%} of the tokens of {name}" for name, share in record["first_choice_accuracy_held_out"].items()]
    text = CARD.format(
        **{name: record[name] for name in ("parameters", "vocabulary", "command", "rows")},
        minutes=last["seconds"] / 60,
        tokens=last["tokens"],
        cores=record["machine"]["cores"],
        toys=arguments["toys"],
        replays=arguments["replays"],
        copies=1 - arguments["toys"] - arguments["replays"],
        words=len(curriculum.PRACTISED),
        orders=len(curriculum.ORDERS),
        accuracies=", ".join(right),
        worlds=record["probe"][0]["worlds"],
        probe_table=table.rstrip(),
    )
    write_text(folder / "README.md", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--tokens", type=float, default=1.1e7, help="padded tokens to train on")
    parser.add_argument("--exercises", type=int, default=15000)
    parser.add_argument("--toys", type=float, default=0.45, help="share of toy episodes among the exercises")
    parser.add_argument("--replays", type=float, default=0.15, help="share of replays of random code")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="padded tokens of a step, by all processes")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with interpreter_pool(2) as pool:
        tokenizer = nano.build_tokenizer(vocabulary_texts(pool))

        def rows_of(first_seed: int, count: int, shares: tuple[float, float]) -> list[Row]:
            return make_rows(tokenizer, curriculum.conversations(first_seed, count, pool, shares), count)

        share = arguments.exercises // ranks
        rows = rows_of(arguments.seed * 10**7 + rank * share, share, (arguments.toys, arguments.replays))
        kinds = {"toy episodes": (1.0, 0.0), "replays of code": (0.0, 1.0), "copied records": (0.0, 0.0)}
        held_out = {name: rows_of(9 * 10**8, 40, shares) for name, shares in kinds.items()}
    if ranks > 1:
        parts: list[list[Row]] = [[]] * ranks
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    model = nano.new_model(tokenizer, arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {len(rows)} rows")
    recipe = {"batch_tokens": arguments.batch_tokens, "rate": arguments.rate, "seed": arguments.seed}
    checkpoint = arguments.out / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    recipe |= {"rank": rank, "ranks": ranks, "checkpoint": checkpoint}
    history = list(train(model, tokenizer, rows, int(arguments.tokens), **recipe))
    if rank > 0:
        return
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    record = {
        "command": f"torchrun --nproc-per-node {ranks} -m knapsack.nano.training",
        "arguments": {k: v for k, v in vars(arguments).items() if k != "out"},
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "rows": len(rows),
        "row_tokens": sum(len(ids) for ids, _ in rows),
        "first_choice_accuracy_held_out": {name: round(accuracy(model, part), 4) for name, part in held_out.items()},
        "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "history": history,
        **provenance(),
    }
    write_text(arguments.out / "training.json", as_json(record))
    record["probe"] = probe(arguments.out)
    write_text(arguments.out / "training.json", as_json(record))
    write_card(arguments.out)
    checkpoint.unlink()


if __name__ == "__main__":
    main()

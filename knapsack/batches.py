"""From conversations to the tensors of a training step: the same tokens whichever back end trains on them."""

import math
import random

from knapsack import prompts
from knapsack.recipe import Recipe

WIDTH_STEP = 128  # batches are filled up to multiples of so many tokens: kernels are kept in memory for every shape


def tokenize_rows(rows: list[dict], tokenizer):
    """Rows {"messages": [...]} as a datasets.Dataset of ``input_ids`` and ``labels``, rendered as for inference.

    Raises ValueError naming a row without an assistant message.
    """
    from datasets import Dataset

    rendered = [prompts.render(row["messages"], tokenizer) for row in rows]
    for number, row in enumerate(rendered, start=1):
        if all(label == -100 for label in row.labels):
            raise ValueError(f"training row {number} has no assistant message, nothing to learn; run notebook 02 again")
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rendered], "labels": [r.labels for r in rendered]})


def make_batches(lengths: list[int], recipe: Recipe) -> list[list[int]]:
    """Indices of the rows of each batch: neighbours in length, within ``batch_tokens`` and ``batch_rows``."""
    order = list(range(len(lengths)))
    random.Random(recipe.seed).shuffle(order)  # which of the equally long rows meet
    batches: list[list[int]] = []
    for index in sorted(order, key=lengths.__getitem__):
        batch = batches[-1] if batches else []
        if batch and len(batch) < recipe.batch_rows and (len(batch) + 1) * lengths[index] <= recipe.batch_tokens:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def split(data, recipe: Recipe, base_limit: int):
    """(training, validation) rows of ``data``, drawn by the seed. Raises ValueError for rows too long or too few.

    ``base_limit``: positions of the base, in tokens.
    """
    lengths, limit = [len(ids) for ids in data["input_ids"]], min(recipe.max_length, base_limit)
    if max(lengths, default=0) > limit:
        raise ValueError(
            f"{sum(n > limit for n in lengths)} training rows are longer than {limit} tokens (the longest has "
            f"{max(lengths)}): drop them, or raise Recipe.max_length = {recipe.max_length} (this base: {base_limit})"
        )
    order = random.Random(recipe.seed).sample(range(len(lengths)), len(lengths))
    held_out = math.ceil(len(lengths) * recipe.validation_share)
    if len(lengths) <= held_out:
        raise ValueError(f"{len(lengths)} training rows, {held_out} of them held out: none is left; make more rows")
    return data.select(order[held_out:]), data.select(order[:held_out])


def as_batches(data, recipe: Recipe):
    """A dataset with one row per batch, so that the trainer shuffles, counts and resumes whole batches."""
    from datasets import Dataset

    return Dataset.from_list([data[batch] for batch in make_batches([len(ids) for ids in data["input_ids"]], recipe)])


def collator(pad_token_id: int, base_limit: int):
    """Joins the rows of a batch into tensors [rows, width]: the longest row rounded up, ``base_limit`` at most.

    The attention mask is all ones: padding stands after the text, where causal attention never looks, and carries
    no label. So the kernels for plain causal attention serve, which do half the work.
    """
    import torch

    def fill(rows: list[list[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        joined = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
        room = min(-joined.shape[1] % WIDTH_STEP, base_limit - joined.shape[1])
        return torch.nn.functional.pad(joined, (0, room), value=value)

    def collate(batches: list[dict]) -> dict:
        (batch,) = batches
        ids = fill(batch["input_ids"], pad_token_id)
        tokens = sum(map(len, batch["input_ids"]))
        return {
            "input_ids": ids,
            "labels": fill(batch["labels"], -100),
            "attention_mask": torch.ones_like(ids),
            "tokens": tokens,
        }

    return collate

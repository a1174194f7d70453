"""Who replies: a local causal language model that answers many conversations at once.

``LocalModel`` has a fixed number of slots. Each slot keeps the keys and values of its conversation between turns,
so a turn costs only its new tokens. A step reads, for every slot, the block of ``BLOCK`` positions in which its reply
has arrived: the tokens that are there and guesses at the next ones (lookup decoding). Tokens are chosen as if one by
one, each by its own random number, and a guess counts only if it is what was chosen. So guesses save steps and change
nothing, to the last bit: where a token stands in the matrix products depends on its position alone.

A reply never depends on what the other slots do either: every step runs on all slots (matrix products have one shape,
whoever is active), each row attends to exactly its own part of the cache, and each reply draws from its own stream of
random numbers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from knapsack import prompts
from knapsack.agent import ContextFull, Reply
from knapsack.chat_template import template_of
from knapsack.prompts import Message
from knapsack.runs import find_adapter, find_base, stream

PREFILL_STEP = 32  # prompts are padded to multiples of this: few shapes, for which kernels are prepared once
PREFILL_MOST = 2048  # tokens read at once: attention may take memory for heads × these × all tokens before them
BLOCK = 8  # positions that a step reads in each slot
LOOKED_UP = (8, 4, 2)  # how many last tokens are looked up for a guess, the most telling first
REMEMBERED = 300_000  # entries of the table of guesses, about 250 bytes each


class SlotCache:
    """Keys and values of all slots: per layer two tensors [slots, heads, context_length, head size].

    ``slots`` and ``starts`` say what the next forward pass writes: row i of its batch belongs to slot ``slots[i]``,
    from position ``starts[i]`` on; later rows are idle.
    """

    def __init__(self, slots: int, context_length: int):
        self.shape = slots, -(-context_length // BLOCK) * BLOCK
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.slots: list[int] = []
        self.starts: list[int] = []

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_, **__) -> list[list[torch.Tensor]]:
        """Store [batch, heads, length, head size]; returns keys and values that each row may read."""
        if layer not in self.layers:  # left uninitialised: the system gives memory only where something is written
            slots, context = self.shape
            shape = (slots, key.shape[1], context, key.shape[3])
            self.layers[layer] = key.new_empty(shape), value.new_empty(shape)
        length, places = key.shape[2], list(zip(self.slots, self.starts, strict=True))
        for store, new in zip(self.layers[layer], (key, value), strict=True):
            for row, (slot, start) in enumerate(places):
                store[slot, :, start : start + length] = new[row]
        return [[store[slot, :, : start + length] for slot, start in places] for store in self.layers[layer]]


def _attend_by_row(module, query, keys, values, attention_mask, scaling=None, masks=(), **_):
    """Attention for transformers' models over what ``SlotCache.update`` returned.

    ``query``: [batch, heads, length, head size]. Row i reads ``keys[i]``, with ``masks[i]`` added, and idle rows get
    zeros; None stands for the mask where nothing stands before the queries. Query heads that share a key head become
    queries of that head.
    """
    batch, heads, length, size = query.shape
    output = query.new_zeros(batch, heads, length, size)
    for row, (key, value, mask) in enumerate(zip(keys, values, masks, strict=True)):
        shared, options = query[row : row + 1], {"scale": scaling}
        if mask is None:
            options |= {"is_causal": True, "enable_gqa": len(key) != heads}
        else:
            shared = shared.reshape(1, len(key), -1, size)
            options["attn_mask"] = mask.expand(heads // len(key), *mask.shape).reshape(-1, mask.shape[1])
        output[row] = F.scaled_dot_product_attention(shared, key[None], value[None], **options).view(
            heads, length, size
        )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("knapsack_by_row", _attend_by_row)


Places = dict[tuple[int, ...], tuple[list[int], int]]  # some tokens → a text, and where in it they were followed


def learn(text: list[int], start: int, *known: Places) -> None:
    """Remember what leads to the tokens from ``start`` on of ``text``, which may only grow after that."""
    for at in range(start, len(text)):
        for count in LOOKED_UP:
            if at >= count:
                for places in known:
                    places[tuple(text[at - count : at])] = text, at


def guess(text: list[int], count: int, *known: Places) -> list[int]:
    """``count`` tokens that followed where the last ones of ``text`` stood before, the latest first; any will do where
    nothing is known."""
    for length in LOOKED_UP:
        for places in known:
            if place := places.get(tuple(text[-length:])):
                source, at = place
                return (source[at : at + count] * count)[:count]  # a text that repeats goes on repeating
    return [0] * count


@dataclass
class _Slot:
    """``text``: the tokens of prompt and reply, whose keys and values the slot holds, but for the last one's.

    Agents copy from their own conversation, ``own``, and repeat what others of their kind say.
    """

    key: str | None = None
    text: list[int] = field(default_factory=list)
    prompt: int = 0  # how many tokens of the text
    draws: list[float] = field(default_factory=list)  # of each token of the text, and of guesses; the prompt's are 0
    noise: random.Random | None = None  # None while the slot is idle
    own: Places = field(default_factory=dict)


class LocalModel:
    """Answers conversations in ``slots`` slots; drive it with ``agent.run_batched``, make it with ``load_model``.

    A reply ends with its end token, after ``max_new_tokens``, or where prompt and reply fill ``context_length``.
    ``temperature`` 0 is greedy. Keys and values take slots · context_length · layers · 2 · heads · head size.
    """

    def __init__(self, model, tokenizer, slots, context_length, max_new_tokens, temperature, seed):
        limit = model.config.max_position_embeddings
        if min(slots, max_new_tokens) < 1:
            raise ValueError(f"slots = {slots}, max_new_tokens = {max_new_tokens}: both need at least 1")
        if temperature < 0:
            raise ValueError(f"temperature = {temperature}: needs 0 (greedy) or more")
        if not 2 <= context_length <= limit:
            raise ValueError(f"context_length = {context_length}: needs 2 to {limit}, the model's own limit")
        self.model, self.tokenizer = model, tokenizer
        self.slots, self.context_length, self.max_new_tokens = slots, context_length, max_new_tokens
        self.temperature, self.seed = temperature, seed
        ends = getattr(model.generation_config, "eos_token_id", None)
        template = template_of(tokenizer)
        own_end = tokenizer.convert_tokens_to_ids(template.end)
        self._ends = {own_end, *(ends if isinstance(ends, list) else [ends])}
        first_word = tokenizer(template.lead + "a", add_special_tokens=False)["input_ids"]
        self._lead = template.lead if tokenizer.decode(first_word).startswith(template.lead) else ""  # else cut by it
        self._cache = SlotCache(slots, context_length)
        self._slots = [_Slot() for _ in range(slots)]
        self._all: Places = {}  # of all conversations

    @torch.inference_mode()
    def submit(self, slot: int, key: str, messages: list[Message]) -> None:
        """Queue a conversation; what the slot already holds of the same ``key``'s conversation is kept.

        Raises ContextFull if the conversation leaves no room for one new token.
        """
        prompt = prompts.render(messages, self.tokenizer, reply_follows=True).input_ids
        if len(prompt) >= self.context_length:
            raise ContextFull(f"the conversation has {len(prompt)} tokens, the context {self.context_length}")
        state = self._slots[slot]
        if state.noise is not None:
            raise RuntimeError(f"slot {slot} is still answering {state.key}")
        if state.key != key:  # never reuse another episode's part: a reply must not depend on the slot's past
            self._slots[slot] = state = _Slot(key)
        pairs = zip(state.text[:-1], prompt[:-1], strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._prefill(slot, known, prompt[known:-1])
        if len(self._all) > REMEMBERED:
            self._all.clear()
        learn(prompt, known, state.own, self._all)
        state.text, state.prompt, state.draws = prompt, len(prompt), [0.0] * len(prompt)
        state.noise = stream(self.seed, key, len(prompt))

    def _prefill(self, slot: int, start: int, tokens: list[int]) -> None:
        """Keys and values of ``tokens``, the first of them at position ``start``; padding is overwritten later."""
        for first in range(0, len(tokens), PREFILL_MOST):
            part, at = tokens[first : first + PREFILL_MOST], start + first
            length = min(-(-len(part) // PREFILL_STEP) * PREFILL_STEP, self.context_length - at)
            self._read(self.model.base_model, [part + [0] * (length - len(part))], [slot], [at])

    def _read(self, model, tokens: list[list[int]], slots: list[int], starts: list[int]):
        """A forward pass in which row i of ``tokens`` stands in slot ``slots[i]`` from position ``starts[i]`` on."""
        length, place = len(tokens[0]), {"device": self.model.device}
        firsts = torch.tensor(starts + [0] * (len(tokens) - len(starts)), **place)
        positions = (firsts[:, None] + torch.arange(length, **place)).clamp(max=self.context_length - 1)
        forbidden = partial(torch.full, fill_value=-torch.inf, dtype=self.model.dtype, **place)
        masks = [forbidden((length, start + length)).triu(start + 1) if start else None for start in starts]
        self._cache.slots, self._cache.starts = slots, starts
        inputs = {"input_ids": torch.tensor(tokens, **place), "position_ids": positions}
        return model(**inputs, past_key_values=self._cache, masks=masks)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Reply]]:
        """One or more new tokens for every queued conversation; returns (slot, Reply) of those that ended with them."""
        busy = [slot for slot, state in enumerate(self._slots) if state.noise is not None]
        if not busy:
            return []
        blocks, starts, draws = [], [], []
        for state in map(self._slots.__getitem__, busy):
            start = (len(state.text) - 1) // BLOCK * BLOCK  # of the block with the last token, which is not read yet
            starts.append(start)
            guessed = guess(state.text, start + BLOCK - len(state.text), state.own, self._all)
            blocks.append(state.text[start:] + guessed)
            while len(state.draws) <= start + BLOCK:
                state.draws.append(state.noise.random())
            draws += state.draws[start + 1 : start + BLOCK + 1]
        idle = [[0] * BLOCK] * (self.slots - len(busy))
        logits = self._read(self.model, blocks + idle, busy, starts).logits[: len(busy)]
        chosen = iter(choose(logits.flatten(0, 1), self.temperature, draws))
        finished = []
        for slot, start, block in zip(busy, starts, blocks, strict=True):
            if reply := self._accept(self._slots[slot], start, block, list(islice(chosen, BLOCK))):
                finished.append((slot, reply))
        return finished

    def _accept(self, state: _Slot, start: int, block: list[int], chosen: list[int]) -> Reply | None:
        """Take what was chosen after each token of the block for as long as the block goes on as chosen."""
        text, there = state.text, len(state.text)
        limit = min(state.prompt + self.max_new_tokens, self.context_length)
        stopped = False
        for place in range(there - start, BLOCK + 1):
            text.append(chosen[place - 1])
            stopped = text[-1] in self._ends
            if stopped or len(text) == limit or block[place : place + 1] != text[-1:]:
                break
        learn(text, there, state.own, self._all)
        if not stopped and len(text) < limit:
            return None
        state.noise = None
        written = self.tokenizer.decode(text[state.prompt :], skip_special_tokens=True).removeprefix(self._lead)
        return Reply(written, state.prompt, len(text) - state.prompt, stopped)

    def release(self, slot: int) -> None:
        """Forget the slot's conversation."""
        self._slots[slot] = _Slot()


def choose(logits: torch.Tensor, temperature: float, draws: Sequence[float]) -> list[int]:
    """A token per row of ``logits`` [rows, vocabulary]: the first whose cumulated probability exceeds the row's
    draw from [0, 1); at ``temperature`` 0 the most probable one."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    cumulated = (logits.float() / temperature).softmax(-1).double().cumsum(-1)
    marks = torch.tensor(draws, dtype=torch.double, device=logits.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, marks, right=True)[:, 0].clamp(max=logits.shape[-1] - 1).tolist()


def dtype_on(device: str) -> torch.dtype:
    """In what a model computes that is not in 4 bit: a CPU without instructions for bfloat16 takes many times longer
    with it."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def load_tokenizer(base: str | Path):
    """The tokenizer of ``base``. Raises FileNotFoundError, with the remedy, if there is none."""
    try:
        return AutoTokenizer.from_pretrained(find_base(base))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"base = {str(base)!r}: {error}; name a model folder or a public model") from error


def load_model(base, adapter=None, *, device: str = "auto", **settings) -> LocalModel:
    """A LocalModel of ``base`` (see ``runs.find_base``) with ``adapter`` (a PEFT folder, or None) merged in.

    ``settings``: slots, context_length, max_new_tokens, temperature, seed. Base and adapter are added in float32 and
    rounded to ``dtype_on`` the device. Raises FileNotFoundError, with the remedy, if one of them is not there.
    """
    tokenizer = load_tokenizer(base)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype_on(device)
    load = {"dtype": torch.float32 if adapter is not None else dtype, "attn_implementation": "knapsack_by_row"}
    model = AutoModelForCausalLM.from_pretrained(find_base(base), **load)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, find_adapter(adapter)).merge_and_unload()
        for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    return LocalModel(model.to(device).eval(), tokenizer, **settings)

"""Who replies: a local causal language model that answers many conversations at once.

``LocalModel`` has a fixed number of slots. Each slot keeps the keys and values of its conversation between turns,
so a turn costs only its new tokens. A reply never depends on what the other slots do: every decode step runs on
all slots (matrix products have one shape, whoever is active), each row attends to exactly its own part of the
cache, and each reply draws from its own stream of random numbers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
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


class SlotCache:
    """Keys and values of all slots: per layer two tensors [slots, heads, context_length, head size].

    ``rows`` and ``starts`` say where the next forward pass writes. In a decode step (length 1) row r of the batch
    is slot r, and only ``rows`` count; otherwise the batch is one sequence, which belongs to slot ``rows[0]``.
    """

    def __init__(self, slots: int, context_length: int):
        self.slots, self.context_length = slots, context_length
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rows: list[int] = []
        self.starts: list[int] = []

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_, **__) -> list[list[torch.Tensor]]:
        """Store [batch, heads, length, head size]; returns keys and values that each of ``rows`` may read."""
        if layer not in self.layers:  # left uninitialised: the system gives memory only where something is written
            shape = (self.slots, key.shape[1], self.context_length, key.shape[3])
            self.layers[layer] = key.new_empty(shape), value.new_empty(shape)
        length, places = key.shape[2], list(zip(self.rows, self.starts, strict=True))
        for store, new in zip(self.layers[layer], (key, value), strict=True):
            if length == 1:
                store[self.rows, :, self.starts] = new[self.rows, :, 0]
            else:
                store[self.rows[0], :, self.starts[0] : self.starts[0] + length] = new[0]
        return [[store[row : row + 1, :, : start + length] for row, start in places] for store in self.layers[layer]]


def _attend_by_row(module, query, keys, values, attention_mask, scaling=None, rows=(), **_):
    """Attention for transformers' models over what ``SlotCache.update`` returned.

    ``query``: [batch, heads, length, head size]. With length 1, row ``rows[i]`` reads ``keys[i]`` and idle rows
    get zeros; query heads that share a key head become queries of that head.
    """
    batch, heads, length, size = query.shape
    key_heads = keys[0].shape[1]
    if length > 1:
        options = {"attn_mask": attention_mask, "scale": scaling, "enable_gqa": heads != key_heads}
        output = F.scaled_dot_product_attention(query, keys[0], values[0], **options)
        return output.transpose(1, 2).contiguous(), None
    queries = query.reshape(batch, key_heads, heads // key_heads, size).split(1)
    reads = zip(rows, keys, values, strict=True)
    results = [F.scaled_dot_product_attention(queries[row], key, value, scale=scaling) for row, key, value in reads]
    output = query.new_zeros(batch, 1, heads, size)
    output[rows] = torch.cat(results).reshape(len(rows), 1, heads, size)
    return output, None


AttentionInterface.register("knapsack_by_row", _attend_by_row)


@dataclass
class _Slot:
    """``cached``: tokens whose keys and values the slot holds. ``new``: tokens of the reply being written."""

    key: str | None = None
    cached: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    noise: random.Random | None = None  # None while the slot is idle


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
        pairs = zip(state.cached, prompt[:-1], strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._prefill(slot, known, prompt[known:-1])
        state.cached, state.prompt, state.new = prompt[:-1], prompt, []
        state.noise = stream(self.seed, key, len(prompt))

    def _prefill(self, slot: int, start: int, tokens: list[int]) -> None:
        """Keys and values of ``tokens``, the first of them at position ``start``; padding is overwritten later."""
        for first in range(0, len(tokens), PREFILL_MOST):
            part, at = tokens[first : first + PREFILL_MOST], start + first
            length = min(-(-len(part) // PREFILL_STEP) * PREFILL_STEP, self.context_length - at)
            positions = torch.arange(at, at + length, device=self.model.device)
            visible = torch.arange(at + length, device=self.model.device)[None, :] <= positions[:, None]
            padded = torch.tensor([part + [0] * (length - len(part))], device=self.model.device)
            self._cache.rows, self._cache.starts = [slot], [at]
            where = {"position_ids": positions[None], "attention_mask": visible[None, None]}
            self.model.base_model(input_ids=padded, past_key_values=self._cache, **where)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Reply]]:
        """One new token for every queued conversation; returns (slot, Reply) of those that ended with it."""
        rows = [slot for slot, state in enumerate(self._slots) if state.noise is not None]
        if not rows:
            return []
        tokens, positions, draws = [0] * self.slots, [0] * self.slots, [0.0] * self.slots
        for slot in rows:
            state = self._slots[slot]
            tokens[slot], positions[slot] = (state.new or state.prompt)[-1], len(state.cached)
            draws[slot] = state.noise.random()
            state.cached.append(tokens[slot])
        self._cache.rows, self._cache.starts = rows, [positions[slot] for slot in rows]
        inputs, places = torch.tensor([tokens, positions], device=self.model.device)[:, :, None]
        output = self.model(input_ids=inputs, position_ids=places, past_key_values=self._cache, rows=rows)
        chosen = choose(output.logits[:, -1], self.temperature, draws)
        finished = []
        for slot in rows:
            state = self._slots[slot]
            state.new.append(chosen[slot])
            stopped = chosen[slot] in self._ends
            if stopped or len(state.new) >= min(self.max_new_tokens, self.context_length - len(state.prompt)):
                state.noise = None
                text = self.tokenizer.decode(state.new, skip_special_tokens=True).removeprefix(self._lead)
                finished.append((slot, Reply(text, len(state.prompt), len(state.new), stopped)))
        return finished

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


def load_tokenizer(base: str | Path):
    """The tokenizer of ``base``. Raises FileNotFoundError, with the remedy, if there is none."""
    try:
        return AutoTokenizer.from_pretrained(find_base(base))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"base = {str(base)!r}: {error}; name a model folder or a public model") from error


def load_model(base, adapter=None, *, device: str = "auto", dtype=torch.bfloat16, **settings) -> LocalModel:
    """A LocalModel of ``base`` (see ``runs.find_base``) with ``adapter`` (a PEFT folder, or None) merged in.

    ``settings``: slots, context_length, max_new_tokens, temperature, seed. Base and adapter are added in float32
    and rounded to ``dtype`` once. Raises FileNotFoundError, with the remedy, if one of them is not there.
    """
    tokenizer = load_tokenizer(base)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    load = {"dtype": torch.float32 if adapter is not None else dtype, "attn_implementation": "knapsack_by_row"}
    model = AutoModelForCausalLM.from_pretrained(find_base(base), **load)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, find_adapter(adapter)).merge_and_unload()
        for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    return LocalModel(model.to(device).eval(), tokenizer, **settings)

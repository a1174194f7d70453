"""The scale model: a Qwen3-architecture language model small enough to train and run on two CPU cores.

This module holds its tokenizer, its architecture and its initial weights; ``training`` makes the base that
is shipped in ``nano/base/``. Its sizes are ours, chosen to fit two cores; nothing here is from the paper.
"""

import math
import re
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from knapsack.chat_template import TEMPLATES
from knapsack.tasks import pool_id
from knapsack.teacher import SENTENCES

POOL = 1024  # ids that are one token each (KnapsackConfig.nano_easy)
NUMBERS = 501  # whole numbers that are one token each
CONTEXT = 4096
# The structured start (start_copying): how strongly layer 0 remembers predecessors, how strongly layer 1 copies and
# prefers the nearest match, and how sharp its attention is. Tried on untrained models restating 10 to 50 records.
MEMORY, COPY, RECENCY, SHARPNESS = 2.0, 8.0, 4.0, 4.0

# Words that become one token if the vocabulary has them; anything else falls back to bytes. Names and numbers are
# one token wherever they stand, so that copying them is looking them up; a record such as
# 'item_0e079ed4666f': (7, 94, 'C') is four. What stands between names (brackets, quotes, spaces, a line's end with the
# next line's indentation) is joined, words of sentences and Python's own take the space before them along, and the
# writer's sentences and a few pieces of code and of observations are one token each: the fewer tokens, the farther back
# four of them reach.
SPACED = """
a again all and an as at away before by calls code correct else for from gone here I if is it lambda lost many more my
need never next no not now of off on once or over restore run shows so some stay that the there these this to too turn
turns up was what which with write wrong are bound after each between per At most use smaller act want reading defined
only highest refused
"""
PIECE = r"(?:[^\w\s'\\]|'(?!item_|[A-Z]'))"
_SAID = {part for sentence in SENTENCES for part in re.split(r"\{\w+\}", sentence) if len(part) > 8}
WORDS = "|".join(
    (
        r"'item_[0-9a-f]{12}': \(|(?<=': \()\d{1,3}, (?=\d)|\d{1,3}, (?=')",
        r"'[A-Z]'\)(?:, |\})|'[A-Z]'(?:, |\])?|\d{1,3}",
        *(re.escape(part) for part in sorted(_SAID, key=len, reverse=True)),
        r'\{"output": "|", "error": (?:null, "runtime_state": \{"runtime": )?"|", "runtime_state": \{"runtime": "',
        r'", "active_globals": \["?|"?\], "last_step_globals": \["?|NameError: name \'|\' is not defined',
        r" = json\.loads\(|json\.loads\(|\]\[\d\]| in (?=[a-z])",
        r"\n?```(?:python\n)?|\\n",
        f" (?:{'|'.join(sorted(SPACED.split()))})\\b",
        r"(?:for|if|def|import|not) (?=[a-z])|[A-Za-z_]+",
        rf" ?{PIECE}{{1,6}}(?:\n *| )?|\n *| ",
    )
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lossless word tokenizer: the words of ``texts``, the pool's ids, numbers, and bytes for all else."""
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))

    def learn(text: str) -> None:
        for word, _ in split.pre_tokenize_str(text):
            words.setdefault(as_bytes.pre_tokenize_str(word)[0][0])

    for index in range(POOL):
        learn(f"'{pool_id(index)}': (")
    for number in range(NUMBERS):
        learn(f"': ({number}, {number}, 'A'), ")
        learn(f"{number}")
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for end in ("'), ", "')}", "', ", "']", "'"):
            learn(f"'{letter}{end}")
    for text in texts:
        learn(text)
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: index for index, word in enumerate([*control, *words])}
    # A word in the vocabulary is taken whole (ignore_merges); without merges, any other falls into its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        chat_template=TEMPLATES["chatml"].jinja,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A fresh model (float32) with the structured start of ``start_copying``."""
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 16) * 16,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e15},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    start_copying(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def start_copying(model: Qwen3ForCausalLM, source: torch.Generator) -> None:
    """Set the attention of the first two layers so that the untrained model already copies from its context.

    Models of any size grow such an induction circuit early in pre-training (Olsson et al. 2022,
    arXiv 2209.11895), but it takes more tokens than two cores see in an hour. So the four heads of layer 0 start
    by looking 1, 2, 3 and 4 tokens back, and three heads of layer 1 by finding where the last four tokens stood
    before, the latest place first, and reading what followed. ``training`` says which of them stay as they are.
    """
    config = model.config
    width, size = config.hidden_size, config.head_dim
    half, part, grams = size // 2, 12, 4
    signature = 3 * part
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    unit = 1 / math.sqrt(width)

    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0, unit, generator=source)
    embeddings[:, 0] = 2.5 * unit  # a constant, from which queries and keys of pure position are made

    # What is remembered of a token, and where the memory of the token 1 to 4 back is kept: orthonormal rows.
    rows = torch.zeros((1 + grams) * signature, width)
    rows[:, 1:] = torch.linalg.qr(torch.randn(width - 1, (1 + grams) * signature, generator=source))[0].T
    read, *written = rows.split(signature)

    # Layer 0: attention by distance alone, on the seven fastest rotary frequencies.
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(7) / half)
    for head in range(grams):
        rows = slice(head * size, (head + 1) * size)
        query, key, value, output = (torch.zeros(size, width) for _ in range(4))
        query[:7, 0] = torch.cos((head + 1) * angles)
        query[half : half + 7, 0] = -torch.sin((head + 1) * angles)
        key[:7, 0] = 1.0
        value[:signature] = read
        output[:signature] = MEMORY * unit * written[head]
        first.q_proj.weight[rows], first.k_proj.weight[rows], first.v_proj.weight[rows] = query, key, value
        first.o_proj.weight[:, rows] = output.T
    first.q_norm.weight.fill_(4.0)
    first.k_norm.weight.fill_(3.0)

    # Layer 1: the tokens at m to m-3 against those at n-1 to n-4, each head by a third of their signatures, on
    # frequencies so slow that distance hardly turns them; then copy a third of token n. One faster frequency carries
    # a constant: of equal matches, the nearest wins.
    used = grams * part // 2
    pairs = torch.arange(half - 1, half - 1 - used, -1)
    slow = torch.stack([pairs, pairs + half], dim=1).flatten()
    basis = torch.linalg.qr(torch.randn(width, width, generator=source))[0]
    for head in range(3):
        rows, third = slice(head * size, (head + 1) * size), slice(head * part, (head + 1) * part)
        query, key = torch.zeros(size, width), torch.zeros(size, width)
        for channels, now, before in zip(slow.split(part), (read, *written), written, strict=False):
            query[channels], key[channels] = now[third], before[third]
        query[slow[:part]] *= MEMORY  # the token itself is not amplified as its predecessors' memories are
        query[half - 1 - used, 0] = key[half - 1 - used, 0] = RECENCY
        second.q_proj.weight[rows], second.k_proj.weight[rows] = query, key
        second.v_proj.weight[rows] = basis[rows]
        second.v_proj.weight[rows, 0] = 0
        second.o_proj.weight[:, rows] = COPY * unit * second.v_proj.weight[rows].T
    second.q_norm.weight.fill_(SHARPNESS)
    second.k_norm.weight.fill_(SHARPNESS)

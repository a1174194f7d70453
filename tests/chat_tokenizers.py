"""Small tokenizers with the control tokens of each supported chat template, made without a download."""

from collections.abc import Sequence

from tiny import tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from knapsack.chat_template import TEMPLATES

MERGES = [("a", "b"), ("u", "s"), ("us", "e"), ("use", "r"), ("i", "n")]
LLAMA_3 = [*TEMPLATES["llama-3"].controls, "<|end_of_text|>", "<|eom_id|>", "<|python_tag|>"]
MISTRAL = ["[INST]", "[/INST]", "[TOOL_CALLS]"]


def byte_level(extra: list[tuple[str, str]]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), [*MERGES, *extra]
    return {token: index for index, token in enumerate([*letters, *(a + b for a, b in merges)])}, merges


def hybrid_tokenizer() -> Qwen2Tokenizer:
    """Like Qwen3's: the thoughts' tokens are in the vocabulary, but not called special."""
    vocabulary, merges = byte_level([("Ċ", "Ċ"), ("Ġ", "a")])
    tokenizer = Qwen2Tokenizer(vocabulary, merges)
    tokenizer.add_tokens(list(TEMPLATES["chatml"].controls), special_tokens=True)
    names = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    tokenizer.chat_template = TEMPLATES["qwen3"].jinja
    return tokenizer


def joining_tokenizer() -> PreTrainedTokenizerFast:
    """ChatML, with merges that would join the ends of neighbouring texts if they could."""
    extra = [("ab", "Ċ"), ("Ċ", "Ċ"), ("Ċ", "a"), (">", "Ċ"), ("Ġ", "a"), ("Ċ", "Ġ")]
    vocabulary, merges = byte_level(extra)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([*TEMPLATES["chatml"].controls, "<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")


def llama_3_tokenizer(special: Sequence[str] = LLAMA_3) -> PreTrainedTokenizerFast:
    """Byte-level, and unless told otherwise it begins a text with <|begin_of_text|>."""
    vocabulary, merges = byte_level([("Ċ", "Ċ"), ("Ġ", "a")])
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    lines = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    begin = special[0]
    special = [(begin, core.token_to_id(begin))]
    core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token="<|end_of_text|>")


def mistral_tokenizer(legacy: bool = False, merges: Sequence[tuple[str, str]] = ()) -> LlamaTokenizer:
    """Like version 3 of Mistral's: SentencePiece, which puts a space before a text and spells the unknown in bytes.

    With ``legacy`` it puts a space after every control token too.
    """
    merges = [*MERGES, ("▁", "a"), ("▁", "u"), ("▁", "▁"), *merges]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *map(chr, range(33, 127)), *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy)
    tokenizer.add_tokens(MISTRAL, special_tokens=True)
    return tokenizer


TOKENIZERS = {
    "chatml": tiny_tokenizer(),
    "chatml, joining": joining_tokenizer(),
    "qwen3": hybrid_tokenizer(),
    "llama-3": llama_3_tokenizer(),
    "mistral": mistral_tokenizer(),
    "mistral, legacy": mistral_tokenizer(legacy=True),
}

"""For tests: a tiny random Qwen3 model with a small ChatML tokenizer, made in half a second, and rows to train it."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from knapsack import prompts
from knapsack.finetune import Recipe
from knapsack.tasks import preset, sample_task

CODE = "```python\nimport json\nfor i in json.loads(list_items())[:8]:\n    print(i, inspect(i))\nfinish()\n```"


RECIPE = Recipe(
    rank=4, alpha=8, learning_rate=1e-2, batch_tokens=256, validation_share=0.1, evaluations=2, max_length=2048
)


def make_rows(count: int, seed: int = 0) -> list[dict]:
    """Training rows of one to five turns."""
    source, rows = random.Random(seed), []
    for _ in range(count):
        messages = [
            {"role": "system", "content": "Runtime: persistent."},
            {"role": "user", "content": f"Knapsack: capacity {source.randint(1, 99)}."},
        ]
        for turn in range(source.randint(1, 5)):
            messages += [
                {"role": "assistant", "content": f"I look.\n```python\nprint({turn})\n```"},
                {"role": "user", "content": json.dumps({"output": f"{turn}\n"})},
            ]
        rows.append({"messages": messages[:-1]})
    return rows


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens, trained on the compact prompts and one code block; any text round-trips."""
    texts = [CODE]
    for kind in ("persistent", "stateless"):
        messages = prompts.opening(sample_task(1, preset("nano_easy")), kind, 25, "compact")
        texts += [message["content"] for message in messages]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_model(folder: str | Path, seed: int = 0, kv_heads: int = 2) -> Path:
    """Write model and tokenizer to ``folder/tiny`` (loadable by ``from_pretrained``) and return that folder."""
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        initializer_range=0.3,  # wide enough that a random model's choices depend on what it read
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    path = Path(folder) / "tiny"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path

"""The hyper-parameters of a fine-tuning."""

from dataclasses import dataclass, field, fields

SCHEDULERS = ("cosine", "linear", "constant_with_warmup")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all of a Qwen3 layer


def _within(default: float, low: float, high: float):
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters: two adapters made with one recipe differ by their rows alone.

    Raises ValueError naming field, value and bound.
    """

    rank: int = _within(32, 1, 1024)
    alpha: int = _within(64, 1, 4096)
    dropout: float = _within(0.0, 0.0, 0.9)
    target_modules: tuple[str, ...] = LINEAR
    learning_rate: float = _within(8e-4, 1e-7, 1.0)  # of AdamW
    epochs: float = _within(1.0, 0.01, 100.0)
    batch_tokens: int = _within(2048, 16, 10_000_000)  # of a batch, padding counted; a longer row is a batch of its own
    batch_rows: int = _within(64, 1, 10_000)  # of a batch at most
    accumulation: int = _within(1, 1, 10_000)  # batches per optimizer step
    warmup: float = _within(0.03, 0.0, 0.99)  # share of the steps
    weight_decay: float = _within(0.01, 0.0, 1.0)
    scheduler: str = "cosine"
    max_length: int = _within(4096, 16, 1_000_000)  # tokens; a longer row is an error, never cut
    load_in_4bit: bool = False
    gradient_checkpointing: bool = False
    validation_share: float = _within(0.05, 0.0, 0.5)  # of the rows, held out
    evaluations: int = _within(5, 1, 1000)  # on the held-out rows, spread over the training
    seed: int = _within(0, 0, 2**32 - 1)

    def __post_init__(self):
        for item in fields(self):
            value, kinds = getattr(self, item.name), (int, float) if item.type is float else (item.type,)
            if item.name == "target_modules":
                right = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
                need, value = f"names of modules, such as {LINEAR}", tuple(value) if right else value
            elif item.name == "scheduler":
                right, need = value in SCHEDULERS, f"one of {SCHEDULERS}"
            elif item.type is bool:
                right, need = isinstance(value, bool), "True or False"
            else:
                low, high = item.metadata["low"], item.metadata["high"]
                right = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
                need = f"{'a whole number' if item.type is int else 'a number'} from {low} to {high}"
                value = float(value) if right and item.type is float else value  # 1 and 1.0 are one recipe
            if not right:
                raise ValueError(f"Recipe.{item.name} = {value!r}: needs {need}")
            object.__setattr__(self, item.name, value)

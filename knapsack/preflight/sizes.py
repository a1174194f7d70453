"""How large a base, its adapters and a run are, and what of a base is on this machine. Without torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from knapsack.runs import read_json

TOLD = 12  # bytes of an episode's files per token: 3.2 a character in the default run, 4 characters a token at most


def local_folder(base: str) -> Path | None:
    """The folder with the files of ``base``: of the shipped "nano", a folder, or a public model in the cache of
    Hugging Face; None if there is none."""
    if base == "nano":
        return Path(__file__).parent.parent / "nano" / "base"
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "config.json")
    except HFValidationError:  # a path, not a name
        return None
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path) -> bool:
    """Whether all files of a model's weights lie in ``folder``. Raises CorruptFileError for a damaged index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            return all((folder / name).exists() for name in set(read_json(folder / index)["weight_map"].values()))
    return any((folder / name).exists() for name in ("model.safetensors", "pytorch_model.bin"))


@dataclass(frozen=True)
class Shape:
    """What of a model's ``config.json`` says how large it is (Qwen, Llama, Mistral and others name it so)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int

    @classmethod
    def of(cls, config: dict) -> "Shape | None":
        """None if ``config`` is of another kind of model."""
        if not config.get("head_dim") and {"hidden_size", "num_attention_heads"} <= config.keys():
            config = config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}
        names = cls.__dataclass_fields__
        return cls(**{name: config[name] for name in names}) if names.keys() <= config.keys() else None

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one block."""
        width, inner = self.hidden_size, self.intermediate_size
        heads, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes = {"q_proj": (width, heads), "k_proj": (width, keys), "v_proj": (width, keys), "o_proj": (heads, width)}
        return shapes | {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}

    @property
    def weight_bytes(self) -> int:
        """In 16 bit, with an output layer of its own: some tied models are published with one."""
        block = sum(inputs * outputs for inputs, outputs in self.projections.values())
        return 2 * (self.num_hidden_layers * block + 2 * self.vocab_size * self.hidden_size)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in 16 bit."""
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def adapter_bytes(self, rank: int, targets: Iterable[str]) -> int:
        """A LoRA adapter in 32 bit on those of ``targets`` that are linear layers of a block."""
        shapes = [self.projections[name] for name in targets if name in self.projections]
        return 4 * self.num_hidden_layers * rank * sum(inputs + outputs for inputs, outputs in shapes)


def read_shape(base: str, config: dict | None = None) -> Shape | None:
    """The shape of ``base`` from its own ``config.json`` if that is on this machine, else from ``config``."""
    folder = local_folder(base)
    if folder is not None and (folder / "config.json").exists():
        return Shape.of(read_json(folder / "config.json"))
    return Shape.of(config) if config else None


def run_bytes(parameters: dict[str, dict], steps: Iterable[str], shape: Shape | None, cells: int) -> int:
    """Room that ``steps`` want in the run's folder, generously: tasks; episodes as long as allowed, in ``cells`` cells
    of notebook 04; two adapters, and up to three checkpoints of one, each with the two moments of the optimizer."""
    total = 0
    if "01_generate" in steps:
        drawn = parameters["01_generate"]
        total += 15_000 * sum(drawn[f"n_{split}"] for split in ("train", "easy", "hard"))
    if "02_traces" in steps:
        played = parameters["02_traces"]
        total += 2 * played["n_train"] * played["max_tokens"] * TOLD
    if "03_finetune" in steps and shape is not None:
        recipe = parameters["03_finetune"]
        total += (2 + 3 * 3) * shape.adapter_bytes(recipe["rank"], recipe["target_modules"])
    if "04_evaluate" in steps:
        played = parameters["04_evaluate"]
        total += cells * max(played["n_easy"], played["n_hard"]) * played["context_length"] * TOLD
    return total

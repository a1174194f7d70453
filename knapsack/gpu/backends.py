"""What loads a base and puts an adapter on it besides plain PEFT: Unsloth, whose kernels need less time and memory.

Both get the same recipe and end as the same kind of PEFT model. Unsloth changes transformers, trl and peft when it is
imported, so it has to be imported before them: ``prepare_backend`` is to be called before anything that needs them.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from knapsack.finetune import Recipe, lora_arguments

BACKENDS = ("peft", "unsloth")
PATCHED = ("transformers", "trl", "peft")  # by Unsloth, when it is imported
INSTALL = "pip install -e '.[gpu]'"


def choose_backend(name: str) -> str:
    """The back end that ``name`` stands for; "auto" is Unsloth where it is installed and a CUDA GPU is there.

    Raises ValueError for an unknown name, ImportError if Unsloth is asked for and not installed.
    """
    import torch

    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend = {name!r}: needs 'auto' or one of {BACKENDS}")
    installed = "unsloth" in sys.modules or find_spec("unsloth") is not None
    if name == "auto":
        return "unsloth" if installed and torch.cuda.is_available() else "peft"
    if name == "unsloth" and not installed:
        raise ImportError(f"backend = 'unsloth': it is not installed; {INSTALL}, or choose 'peft'", name="unsloth")
    return name


def prepare_backend(name: str, folder: str | Path) -> str:
    """Import what the back end ``name`` needs, and return which it is. What it compiles is kept in ``folder/cache``.

    Call it before transformers, trl or peft are imported. Unsloth is told to report nothing. Raises RuntimeError if
    one of them, or Unsloth, is there already in a way that does not fit; otherwise as ``choose_backend``.
    """
    import torch

    name, cache = choose_backend(name), Path(folder).resolve() / "cache"
    if torch.cuda.is_available():  # compiled kernels of either back end, which would lie in the home folder
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    remedy = "in a fresh process (restart the kernel), call prepare_backend before anything else"
    if "unsloth" in sys.modules:
        if name != "unsloth":
            raise RuntimeError(f"backend = {name!r}: unsloth is imported and has changed its libraries; {remedy}")
        if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
            raise RuntimeError(f"unsloth was imported before it was told where it may write; {remedy}")
    elif name == "unsloth":
        if early := [module for module in PATCHED if module in sys.modules]:
            raise RuntimeError(f"backend = 'unsloth': {', '.join(early)} was imported before it; {remedy}")
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(cache / "unsloth")
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        if not torch.cuda.is_available():
            os.environ["UNSLOTH_FORCE_CPU"] = "1"
        import unsloth  # noqa: F401
    return name


def prepare(backend: str, base: str, folder: str | Path):
    """Which back end ``backend`` stands for here, made ready to write into ``folder``, and the tokenizer of ``base``.

    To be called before anything imports transformers, trl or peft. Raises what ``prepare_backend`` and
    ``models.load_tokenizer`` raise.
    """
    chosen = prepare_backend(backend, folder)
    from transformers.utils.logging import disable_progress_bar

    from knapsack.models import load_tokenizer

    disable_progress_bar()
    return chosen, load_tokenizer(base)


def check_packages(recipe: Recipe) -> None:
    """Raises ImportError, with the remedy, if the recipe needs a package that is not installed."""
    if recipe.load_in_4bit and find_spec("bitsandbytes") is None:
        problem = f"needs bitsandbytes, which is not installed; {INSTALL}, or set it to False"
        raise ImportError(f"Recipe.load_in_4bit = True {problem}", name="bitsandbytes")


def load_4bit(source: str | Path, device: str):
    """The base by transformers and bitsandbytes: NF4, its constants quantised once more, sums in bfloat16.

    Whether it really is in 4 bit, ``check_4bit`` says.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options = {"dtype": torch.bfloat16, "quantization_config": quantised, "device_map": {"": device}}
    model = AutoModelForCausalLM.from_pretrained(source, **options)
    for module in model.modules():  # bitsandbytes 0.50 repacks weights in an evaluation on a CPU, and a backward pass
        if hasattr(module, "support_avx512bf16_for_cpu"):  # through repacked ones is wrong without a word
            module.support_avx512bf16_for_cpu = False
    return model


def unsloth_base_arguments(recipe: Recipe, source: str | Path, limit: int) -> dict:
    """Of unsloth.FastLanguageModel.from_pretrained, for a base of ``limit`` positions.

    Unsloth cuts what is longer than ``max_seq_length``, and stretches the positions of a base that has fewer.
    """
    import torch

    from knapsack.models import dtype_on

    return {
        "model_name": str(source),
        "max_seq_length": limit,
        "dtype": torch.bfloat16 if recipe.load_in_4bit else dtype_on("cuda" if torch.cuda.is_available() else "cpu"),
        "load_in_4bit": recipe.load_in_4bit,
        "use_gradient_checkpointing": "unsloth" if recipe.gradient_checkpointing else False,
        "use_exact_model_name": True,  # not a copy of the base that somebody quantised elsewhere
    }


def unsloth_lora_arguments(recipe: Recipe) -> dict:
    """Of unsloth.FastLanguageModel.get_peft_model, besides the model."""
    gradients = {"use_gradient_checkpointing": "unsloth" if recipe.gradient_checkpointing else False}
    return lora_arguments(recipe) | gradients | {"bias": "none", "random_state": recipe.seed}


def load_unsloth(recipe: Recipe, source: str | Path, limit: int):
    """The base of ``limit`` positions, in 4 bit or as ``models.dtype_on`` says, with a new adapter, by Unsloth."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(**unsloth_base_arguments(recipe, source, limit))
    return FastLanguageModel.get_peft_model(model, **unsloth_lora_arguments(recipe))


def _adapted(model) -> dict:
    """Name → layer with LoRA matrices."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def check_adapter_shape(model, recipe: Recipe) -> None:
    """Raises ValueError for target modules that the base lacks, RuntimeError unless the adapter is of the plain kind.

    Plain is what servers such as vLLM load: LoRA matrices of one rank on the named modules, and nothing else.
    """
    config = model.peft_config["default"]
    adapted, wanted = _adapted(model), tuple("." + end for end in recipe.target_modules)
    if missing := [end[1:] for end in wanted if not any(name.endswith(end) for name in adapted)]:
        raise ValueError(f"Recipe.target_modules: this base has no layer {', '.join(missing)} to adapt")
    expected = {"r": recipe.rank, "lora_alpha": recipe.alpha, "bias": "none", "task_type": "CAUSAL_LM"}
    expected |= dict.fromkeys(("modules_to_save", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"))
    odd = [name for name, value in expected.items() if (getattr(config, name) or None) != value]
    odd += [name for name in adapted if not name.endswith(wanted)]
    if odd:
        raise RuntimeError(f"the back end made another adapter than the recipe says: {', '.join(odd)}")


def check_4bit(model) -> int:
    """How many layers are adapted. Raises RuntimeError unless each is NF4 with double quantisation under its adapter.

    A back end may go on in 16 bit with no more than a printed line.
    """
    import torch
    from bitsandbytes.nn import Linear4bit

    layers = {name: module.get_base_layer() for name, module in _adapted(model).items()}
    wrong = [
        f"{name} ({type(layer).__name__})"
        for name, layer in layers.items()
        if not isinstance(layer, Linear4bit)
        or layer.weight.quant_type != "nf4"
        or not getattr(layer.weight.quant_state, "nested", False)
        or layer.compute_dtype != torch.bfloat16
    ]
    if wrong:
        raise RuntimeError(
            f"Recipe.load_in_4bit = True, but {len(wrong)} of {len(layers)} adapted layers are not 4-bit NF4 with "
            f"double quantisation, such as {wrong[0]}; see what bitsandbytes says, or set load_in_4bit to False"
        )
    return len(layers)

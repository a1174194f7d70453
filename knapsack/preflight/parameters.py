"""The parameters of the notebooks: which there are, what each may be, and which go together.

Type and default of a parameter stand in the first cell of its notebook; its bounds in the class that takes it
(``evaluate.Settings``, ``finetune.Recipe``), or else here. The runner, its dry run and each notebook ask this module.
"""

import ast
from collections.abc import Callable, Collection
from operator import eq, ge, le
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationError, create_model

from knapsack.endpoints.endpoint import read_endpoint, read_served
from knapsack.evaluate import Settings
from knapsack.finetune import Recipe
from knapsack.preflight.checks import positions
from knapsack.runs import one_line, pick, read_json
from knapsack.runtime import Kind
from knapsack.tasks import PRESETS, SPLIT_SIZE
from knapsack.training_data import read_adapters

CLASSES = {"02_traces": Settings, "03_finetune": Recipe, "04_evaluate": Settings}  # made of a notebook's parameters


def _distinct(values: list) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{values}: needs values that differ")


def _readable(read: Callable[[object], object]) -> AfterValidator:
    """Refuses what ``read`` refuses."""
    return AfterValidator(lambda entries: (read(entries), entries)[1])


Named = Annotated[str, Field(min_length=1)]
Tasks = Annotated[int, Field(ge=1, le=SPLIT_SIZE)]
BOUNDS = {  # of parameters that belong to no class
    **dict.fromkeys(("run_folder", "base"), Named),
    **dict.fromkeys(("n_train", "n_easy", "n_hard"), Tasks),
    **dict.fromkeys(("train_config", "easy_config", "hard_config"), Literal[*PRESETS]),
    **dict.fromkeys(("n_pairs", "max_tokens", "processes", "n_resamples"), PositiveInt),
    **dict.fromkeys(("seed", "max_total_tokens"), NonNegativeInt),  # 0 tokens: no limit
    "teacher": Annotated[dict, _readable(lambda entry: entry and read_endpoint("teacher", entry))],
    "adapters": Annotated[dict, Field(min_length=1), _readable(read_adapters)],
    "backend": Literal["auto", "peft", "unsloth"],
    "models": Annotated[dict, Field(min_length=1), _readable(read_served)],
    "runtimes": Annotated[list[Kind], Field(min_length=1)],
    "splits": Annotated[list[Literal["easy", "hard"]], Field(min_length=1)],
    **dict.fromkeys(("training_caps", "caps"), Annotated[list[PositiveInt], Field(min_length=1), _readable(_distinct)]),
    "server": Annotated[str, Field(pattern="^(https?://.+)?$")],
    "margin": Annotated[float, Field(gt=0, lt=1)],
    "source": Literal["run", "published"],
    **dict.fromkeys(("more_runs", "beyond_runs"), list[Named]),
}
TOGETHER = [  # what else a parameter has to be: beside one of its own notebook, or of one before it
    ("02_traces", "n_pairs", "at most", "02_traces", "n_train"),
    ("02_traces", "n_train", "at most", "01_generate", "n_train"),
    ("03_finetune", "max_length", "at least", "02_traces", "max_tokens"),
]
OF_ADAPTERS = [  # where notebook 04 plays the adapters of this run
    ("04_evaluate", "prompt_detail", "the same as", "02_traces", "prompt_detail"),
    ("04_evaluate", "base", "the same as", "03_finetune", "base"),
]


def declared(notebook: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Types and defaults of the parameters, by name, from the cell of ``notebook`` that papermill knows by its tag."""
    cell = next(cell for cell in read_json(notebook)["cells"] if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(cell["source"])).body
    types = {line.target.id: ast.unparse(line.annotation) for line in lines}
    return types, {line.target.id: ast.literal_eval(line.value) for line in lines}


def check(step: str, types: dict[str, str], values: dict) -> dict:
    """``values`` of the parameters that notebook ``step`` declares with these ``types``; 1 for a float becomes 1.0.

    Raises ValueError in one line naming notebook, parameter, value and bound.
    """
    kinds = {name: (BOUNDS.get(name, kind), ...) for name, kind in types.items()}
    config = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
    try:
        checked = create_model(step, __config__=config, **kinds)(**values).model_dump()
        if step in CLASSES:
            pick(CLASSES[step], checked)
        return checked
    except ValidationError as error:
        raise ValueError(one_line(error, step)) from None
    except ValueError as error:
        raise ValueError(f"{step}: {error}") from None


def check_together(parameters: dict[str, dict], steps: Collection[str]) -> None:
    """Whether the values of ``steps`` go together, also with those of the notebooks before them, as far as
    ``parameters`` (notebook → its checked parameters) has these. Raises ValueError in one line."""
    played, analysis, rules = parameters.get("04_evaluate"), parameters.get("05_analysis"), list(TOGETHER)
    if "04_evaluate" in steps:
        rules += [("04_evaluate", f"n_{split}", "at most", "01_generate", f"n_{split}") for split in played["splits"]]
        rules += OF_ADAPTERS if any(not entry for name, entry in played["models"].items() if name != "base") else []
    for step, name, relation, earlier, other in rules:
        if step in steps and other in parameters.get(earlier, {}):
            value, bound = parameters[step][name], parameters[earlier][other]
            if not {"at most": le, "at least": ge, "the same as": eq}[relation](value, bound):
                raise ValueError(f"{step}.{name} = {value!r}: needs {relation} {earlier}.{other} = {bound!r}")
    if "04_evaluate" in steps and played["models"].keys() > read_served(played["models"], played["server"]).keys():
        limit = positions(played["base"])
        if limit and played["context_length"] > limit:
            raise ValueError(f"04_evaluate.context_length = {played['context_length']}: the base has {limit} positions")
    if "05_analysis" in steps and (analysis["source"] == "published") != bool(analysis["published_folder"]):
        values = "05_analysis.source = {source!r}, published_folder = {published_folder!r}".format(**analysis)
        raise ValueError(f'{values}: needs both "published" and a folder, or neither')

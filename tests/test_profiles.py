"""The profiles name parameters that the notebooks declare, with values of the declared types."""

import ast

import papermill
import pytest
import yaml

import run_notebooks
from knapsack.preflight.sizes import Shape
from knapsack.tasks import preset

STEPS = ["01_generate", "02_traces", "03_finetune", "04_evaluate", "05_analysis"]


def literals(checkout, step: str) -> dict:
    """The parameters of a notebook, name → literal."""
    declared = papermill.inspect_notebook(checkout / "notebooks" / f"{step}.ipynb")
    return {name: ast.literal_eval(parameter["default"]) for name, parameter in declared.items()}


def profiles(checkout) -> dict[str, dict]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (checkout / "knapsack" / "profiles").glob("*.yaml")}


def test_there_are_three_profiles(checkout):
    assert sorted(profiles(checkout)) == ["nano", "paper", "small"]
    for profile in profiles(checkout).values():
        assert profile["description"]
        assert set(profile) <= run_notebooks.ABOUT | set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_nano_is_what_stands_in_the_notebooks(checkout, step):
    expected = literals(checkout, step)
    assert expected.pop("run_folder") == "runs/nano"
    assert profiles(checkout)["nano"][step] == expected


@pytest.mark.parametrize("name", ["nano", "small", "paper"])
def test_each_name_is_declared_and_each_value_has_its_type(checkout, name):
    steps = run_notebooks.plan(name, "runs/x", [])  # refuses a name or a type that no notebook declares
    assert [step.name for step in steps] == STEPS
    for step in steps:
        for parameter, value in profiles(checkout)[name].get(step.name, {}).items():
            assert step.parameters[parameter] == value


@pytest.mark.parametrize("name", ["nano", "small", "paper"])
def test_notebooks_that_share_a_parameter_get_the_same_value(checkout, name):
    """Traces and evaluation use one prompt, one model, one set of tasks; seeds and processes may differ."""
    found: dict[str, set] = {}
    for step in run_notebooks.plan(name, "runs/x", []):
        for parameter, value in step.parameters.items():
            found.setdefault(parameter, set()).add(str(value))
    assert {parameter for parameter, seen in found.items() if len(seen) > 1} <= {"seed", "processes"}


@pytest.mark.parametrize("name", ["nano", "small", "paper"])
def test_task_configurations_exist(checkout, name):
    step = run_notebooks.plan(name, "runs/x", [])[0]
    for split in ("easy", "hard", "train"):
        assert preset(step.parameters[f"{split}_config"]).items[1] > 0


@pytest.mark.parametrize("name", ["nano", "small", "paper"])
def test_a_plan_can_be_calculated_and_says_where_its_rates_are_from(checkout, name):
    profile = profiles(checkout)[name]
    assert min(profile["rates"][of] for of in ("teacher", "training", "completion")) > 0
    measured = profile["rates"]["source"] == "measured in the committed default run"
    assert measured == (name == "nano") and (measured or profile["rates"]["source"] == "calculated, not measured")


@pytest.mark.parametrize("name", ["small", "paper"])
def test_weights_and_conversations_leave_an_eighth_of_the_gpu_free(checkout, name):
    profile = profiles(checkout)[name]
    values, shape = profile["04_evaluate"], Shape.of(profile["config"])
    cache = values["slots"] * values["context_length"] * shape.cache_bytes
    assert values["processes"] * (shape.weight_bytes + cache) < 7 / 8 * profile["gpu_memory_gb"] * 1e9


def test_the_paper_profile_states_every_parameter_but_where_to_send_requests(checkout):
    """So that a change of the scale model's defaults changes nothing of the paper's protocol."""
    ours = {"run_folder", "seed", "server", "max_total_tokens", "source", "published_folder"}
    for step in STEPS:
        assert literals(checkout, step).keys() - ours <= profiles(checkout)["paper"][step].keys()

"""The profiles name parameters that the notebooks declare, with values of the declared types."""

import pytest

import run_notebooks

STEPS = ["01_generate", "02_traces", "03_finetune", "04_evaluate", "05_analysis"]
NAMES = ["nano", "paper", "small"]


def test_there_are_three_profiles(checkout):
    assert sorted(path.stem for path in (checkout / "knapsack" / "profiles").glob("*")) == NAMES
    for profile in map(run_notebooks.load_profile, NAMES):
        assert profile["description"] and profile.keys() <= run_notebooks.ABOUT | set(STEPS)


def test_nano_is_what_stands_in_the_notebooks():
    nano = run_notebooks.load_profile("nano")
    for step in run_notebooks.plan("nano", "runs/x", []):
        assert step.defaults.pop("run_folder") == "runs/nano" and step.defaults.pop("reuse", "") == ""
        assert nano[step.name] == step.defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_can_be_run_with_its_own_values(name):
    steps = run_notebooks.plan(name, "runs/x", [])  # refuses what no notebook declares, or a value out of bounds
    assert [step.name for step in steps] == STEPS
    run_notebooks.check_together({step.name: step.parameters for step in steps}, STEPS)
    for step in steps:
        for parameter, value in run_notebooks.load_profile(name).get(step.name, {}).items():
            assert step.parameters[parameter] == value and type(step.parameters[parameter]) is type(value)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_that_share_a_parameter_get_the_same_value(name):
    """Traces and evaluation use one prompt, one model, one set of tasks; seeds and processes may differ."""
    found: dict[str, set] = {}
    for step in run_notebooks.plan(name, "runs/x", []):
        for parameter, value in step.parameters.items():
            found.setdefault(parameter, set()).add(str(value))
    assert {parameter for parameter, seen in found.items() if len(seen) > 1} <= {"seed", "processes"}


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_can_be_calculated_and_says_where_its_rates_are_from(name):
    profile = run_notebooks.load_profile(name)
    assert min(profile["rates"][of] for of in ("teacher", "training", "completion")) > 0
    assert min(profile["model"][of] for of in ("weights_gb", "cache_kib_a_token", "adapter_mb")) > 0
    measured = profile["rates"]["source"] == "measured in a default run, benchmarks/times.md"
    assert measured == (name == "nano") and (measured or profile["rates"]["source"] == "calculated, not measured")


@pytest.mark.parametrize("name", ["small", "paper"])
def test_weights_and_conversations_leave_an_eighth_of_the_gpu_free(name):
    profile = run_notebooks.load_profile(name)
    values, model = profile["04_evaluate"], profile["model"]
    cache = values["slots"] * values["context_length"] * model["cache_kib_a_token"] * 1024 / 1e9
    assert values["processes"] * (model["weights_gb"] + cache) < 7 / 8 * profile["gpu_memory_gb"]


def test_the_paper_profile_states_every_parameter_but_where_to_send_requests():
    """So that a change of the scale model's defaults changes nothing of the paper's protocol."""
    ours = {"run_folder", "reuse", "seed", "server", "max_total_tokens", "source", "published_folder"}
    paper = run_notebooks.load_profile("paper")
    for step in run_notebooks.plan("paper", "runs/x", []):
        assert step.types.keys() - ours <= paper[step.name].keys()

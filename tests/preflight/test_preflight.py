"""The plan of a run, and what is refused before any work: estimates against what the teacher really does."""

import json
import subprocess
import sys

import pytest
from endpoint_server import EndpointServer
from places import CHECKOUT

import run_notebooks
from knapsack.agent import EpisodeSettings, episode, run_alone
from knapsack.evaluate import Settings
from knapsack.models import load_tokenizer
from knapsack.preflight import checks, tokens
from knapsack.preflight.checks import Wanted
from knapsack.preflight.dry_run import describe
from knapsack.preflight.parameters import check, check_together
from knapsack.preflight.tokens import call_tokens, estimate_requests, play, spending_sentence, token_counter
from knapsack.prompts import render
from knapsack.runs import open_run, read_json
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.sandbox.cpython import in_container
from knapsack.tasks import preset, sample_split
from knapsack.teacher import RuleTeacher
from knapsack.traces import Cell
from knapsack.training_data import training_row

NANO = Settings(max_turns=20, max_new_tokens=512, context_length=3328)
CLOSED = "http://127.0.0.1:9/v1"  # nobody serves there
ENTRY = {"endpoint": CLOSED, "model": "m"}
STEPS = run_notebooks.plan("nano", "runs/x", [])


def easy(count: int) -> list:
    return list(sample_split("easy", count, 0, preset("nano_easy")))


def assignments(values: dict) -> list[str]:
    return [part for name, value in values.items() for part in ("-p", f"{name}={value}")]


def wanted(profile: str = "nano", steps: str = "12345", **values) -> Wanted:
    """The notebooks with these numbers, with the parameters of a profile but for ``values``."""
    planned = run_notebooks.plan(profile, "runs/x", assignments(values)[1::2])
    parameters = {step.name: step.parameters for step in planned}
    return Wanted(run_notebooks.load_profile(profile), parameters, [name for name in parameters if name[1] in steps])


def served(**entry) -> dict:
    return {"models": json.dumps({"mine": ENTRY | entry}), "prompt_detail": "full"}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_an_episode_are_those_of_its_prompts_and_replies(kind):
    (task,), (count, _), tokenizer = easy(1), token_counter("nano"), load_tokenizer("nano")
    with interpreter_pool() as pool:
        teacher = RuleTeacher(task, kind, NANO.seed, tokenizer)
        real = run_alone(episode(task, kind, EpisodeSettings(20, 25, "compact"), pool), teacher)
    (played,) = play([task], kind, 25, NANO)
    prompts, replies = call_tokens(played, count)
    assert prompts == [turn.prompt_tokens for turn in real.turns]
    assert replies == [turn.completion_tokens for turn in real.turns]
    row = tokens.mean_tokens([task], kind, 25, NANO)["row_tokens"]
    assert row == len(render(training_row(real)["messages"], tokenizer).input_ids)


def test_a_sample_estimates_the_whole_within_a_quarter():
    cells, known = [Cell("m", kind, "easy", 25) for kind in KINDS], easy(30)
    sampled, whole = (estimate_requests(cells, {"easy": 30}, NANO, {"easy": known}, n) for n in (tokens.SAMPLED, 30))
    for column in ("requests", "prompt_tokens", "completion_tokens"):
        assert sampled[column].tolist() == pytest.approx(whole[column].tolist(), rel=0.25)


def test_an_estimate_is_what_an_endpoint_is_sent_if_it_plays_like_the_teacher_and_the_bounds_and_the_cap_are_said():
    known, (count, _) = easy(3), token_counter("nano")
    table = estimate_requests([Cell("m", "stateless", "easy", 25)], {"easy": 3}, NANO, {"easy": known})
    calls, row = [call_tokens(played, count) for played in play(known, "stateless", 25, NANO)], table.iloc[0]
    assert row["requests"] == sum(len(replies) for _, replies in calls)
    assert row["prompt_tokens"] == sum(sum(prompts) for prompts, _ in calls) < row["prompt_tokens_at_most"]
    assert row["completion_tokens"] == sum(sum(replies) for _, replies in calls)
    assert (row["requests_at_most"], row["completion_tokens_at_most"]) == (3 * 20, 3 * (3328 + 512))
    total = int(row["prompt_tokens"] + row["completion_tokens"])
    assert "no cap" in spending_sentence(table) and "less than" not in spending_sentence(table, total + 1)
    assert "less than" in spending_sentence(table, total - 1)  # the cap stops the run


def test_without_the_tokenizer_ids_count_as_many_tokens_as_they_have_signs():
    count, said = token_counter("nobody/nothing")
    assert "is not here" in said
    assert count("I inspect the first items") == pytest.approx(5, rel=0.1)
    assert count("'item_0e079ed4666f': (12, 7, 'C')") > 15  # a fifth of what 4 characters a token would say


def test_weights_count_only_if_all_parts_are_there(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert checks.check_base(str(tmp_path), weights=False, offline=True) == (None, 0)
    assert "name a complete folder" in checks.check_base(str(tmp_path), weights=True, offline=True)[0]
    (tmp_path / "model-2.safetensors").touch()
    assert checks.check_base(str(tmp_path), weights=True, offline=True) == (None, 0)


def test_a_dry_run_prints_the_plan_and_writes_nothing_and_loads_no_torch(tmp_path):
    program = "import sys, run_notebooks\nstatus = run_notebooks.main(sys.argv[1:])\n"
    program += "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(status)"
    command = [sys.executable, "-c", program, "--dry-run", "--out", tmp_path / "run", *assignments({"n_easy": 1})]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "False\n") and list(tmp_path.iterdir()) == []
    assert "20 cells of the models, 260 episodes" in done.stdout and "measured in a default run" in done.stdout
    assert done.stdout.endswith("Missing on this machine:\n  nothing\n")


@pytest.mark.parametrize(("profile", "episodes", "filled"), [("small", "750", 17), ("paper", "2,000", 53)])
def test_a_plan_says_what_each_notebook_will_do_and_need(profile, episodes, filled, monkeypatch):
    monkeypatch.setattr("knapsack.preflight.dry_run.SAMPLED", 2)
    shown = describe(wanted(profile), [], ["perhaps"])
    assert all(f"\n{step.name} " in shown for step in STEPS)
    assert f"20 cells of the models, {episodes} episodes" in shown and shown.endswith("Doubtful:\n  - perhaps")
    assert f"the evaluation fills {filled} GB" in shown and "calculated, not measured" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "small"], ["no GPU that PyTorch can use", "run on a machine with one"]),
        (assignments(served(key="NO_SUCH_KEY")), ["the key NO_SUCH_KEY", "export it"]),
        (assignments(served()), [f"the server {CLOSED}", "start the server"]),
        (["-p", "base=nobody/nothing"], ["the model nobody/nothing", "name a model folder"]),
        (["--only", "5", "-p", "more_runs=runs/no-such"], ["the folder runs/no-such", "name one that is there"]),
        (assignments({"n_train": 250000, "max_length": 10**6, "max_tokens": 10**6}), ["GB of disk at", "free "]),
    ],
)
def test_what_is_missing_is_said_with_its_remedy_before_any_work(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_notebooks.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "nothing was begun" in told and all(part in told for part in said)
    assert list(tmp_path.iterdir()) == []


BAD = {"int": -1, "float": -1.0, "bool": 1, "str": "none", "list[str]": [""], "dict": {"x": {"endpoint": "here"}}}
BAD |= {"list[int]": [2, 2]}
BAD_NAMES = {"run_folder": "", "reuse": 7, "base": "", "published_folder": 7}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_parameter_is_refused_out_of_bounds_in_one_line_by_the_function_that_all_ask(step):
    for name, kind in step.types.items():
        value = BAD_NAMES.get(name, BAD[kind])
        with pytest.raises(ValueError, match=rf"^{step.name}.*{name}.*(should|needs|required).*") as caught:
            check(step.name, step.types, step.parameters | {name: value})
        assert "\n" not in str(caught.value)
        assert kind in ("dict", "list[str]", "list[int]") or f" = {value!r}: " in str(caught.value)


REFUSED = [
    ("margin=-1", "05_analysis.margin = -1.0: input should be greater than 0"),
    ("n_train=250001", "01_generate.n_train = 250001: input should be less than or equal to 250000"),
    ("runtimes=persistent,reset", "runtimes.1 = 'reset': input should be 'persistent', 'stateless', 'carry-over', "),
    ("caps=25,80,25", "04_evaluate.caps: [25, 80, 25]: needs values that differ"),
    ("caps=0", "04_evaluate.caps.0 = 0: input should be greater than 0"),
    ("rank=0", "03_finetune: Recipe.rank = 0: "),
    ("n_pairs=361", "02_traces.n_pairs = 361: needs at most 02_traces.n_train = 360"),
    ("02_traces.n_train=361", "02_traces.n_train = 361: needs at most 01_generate.n_train = 360"),
    ("max_length=1024", "03_finetune.max_length = 1024: needs at least 02_traces.max_tokens = 4096"),
    ("04_evaluate.n_hard=26", "04_evaluate.n_hard = 26: needs at most 01_generate.n_hard = 25"),
    ("04_evaluate.prompt_detail=full", "prompt_detail = 'full': needs the same as 02_traces.prompt_detail = 'compact'"),
    ("04_evaluate.base=x", "04_evaluate.base = 'x': needs the same as 03_finetune.base = 'nano'"),
    ("context_length=5000", "04_evaluate.context_length = 5000: the base has 4096 positions"),
    ("source=published", "05_analysis.source = 'published', published_folder = '': needs both"),
    ("published_folder=x", "05_analysis.source = 'run', published_folder = 'x': needs both"),
]


@pytest.mark.parametrize(("assignment", "said"), REFUSED)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_and_a_run_refuse_the_same_before_anything_is_made(assignment, said, dry, tmp_path, capsys):
    assert run_notebooks.main(["-p", assignment, *dry, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "name", "value"), [(0, "n_easy", 0), (3, "slots", 0), (4, "margin", -1.0)])
def test_a_notebook_refuses_in_its_first_cell_what_the_runner_does(step, name, value, tmp_path):
    cells = [cell for cell in read_json(STEPS[step].path)["cells"] if cell["cell_type"] == "code"]
    namespace = {}
    exec("".join(cells[0]["source"]), namespace)
    namespace |= {"run_folder": str(tmp_path), name: value}
    with pytest.raises(ValueError, match=rf"{name} = {value}: input should be greater than"):
        exec("".join(cells[1]["source"]), namespace)


def test_a_notebook_gets_its_declared_parameters_and_compares_them_with_those_of_earlier_ones(tmp_path):
    run, step = open_run(tmp_path), STEPS[3]
    own = run.parameters(step.name, step.parameters | {"temperature": 1, "other": 2})
    assert own == step.parameters | {"temperature": 1.0} and type(own["temperature"]) is float
    run.record("02_traces", STEPS[1].parameters | {"prompt_detail": "full"})
    with pytest.raises(ValueError, match=r"needs the same as 02_traces\.prompt_detail = 'full'"):
        run.parameters(step.name, step.parameters)
    run.parameters(step.name, step.parameters | {"models": {"base": {}}})  # learned from no traces


def test_values_are_compared_only_for_the_chosen_notebooks_and_for_models_that_they_run():
    def compare(steps: list[str], **values) -> None:
        planned = run_notebooks.plan("nano", "runs/x", assignments(values)[1::2])
        check_together({step.name: step.parameters for step in planned}, steps)

    compare(["01_generate"], n_train=8)
    compare(["04_evaluate"], context_length=32768, **served())
    with pytest.raises(ValueError, match=r"n_pairs = 300: needs at most 02_traces\.n_train = 8"):
        compare(["01_generate", "02_traces"], n_train=8)


def test_only_what_the_chosen_notebooks_need_is_asked_for(tmp_path):
    key = served(key="NO_SUCH_KEY")
    assert checks.find_missing(wanted("small", "15", **key), tmp_path) == ([], [])
    assert not wanted("small", "24", **key).needs_gpu and not wanted("small", "4", server=CLOSED).needs_gpu
    assert wanted("small", "4").needs_gpu


def test_a_model_that_the_server_does_not_list_is_doubtful():
    with EndpointServer(lambda _: "") as server:
        places = wanted(steps="4", **served(endpoint=server.url, model="other")).places
        (doubt,) = checks.check_endpoints(places)
    assert isinstance(doubt, checks.Doubt) and "'other'" in doubt


def test_room_on_the_disk_is_wanted_for_the_run_and_the_model(tmp_path):
    size = wanted().disk
    for download, short, lacking in ((0, 0, 0), (0, 1, 1), (10**9, 0, 1)):
        free = size + checks.ROOM - short
        assert len(list(checks.check_disk(tmp_path / "run", size, download, free))) == lacking


def test_a_server_that_answers_and_a_key_that_is_set_are_not_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MY_KEY", "s3cret")
    with EndpointServer(lambda _: "") as server:
        entry = served(endpoint=server.url, key="MY_KEY") | {"n_easy": 1, "n_hard": 1}
        assert run_notebooks.main(["--only", "4", "--dry-run", "--out", str(tmp_path / "r"), *assignments(entry)]) == 0
    shown = capsys.readouterr().out
    assert "environment variable MY_KEY" in shown and f"server   {server.url}" in shown
    assert shown.endswith("Missing on this machine:\n  nothing\n")
    assert "To endpoints: " in shown and "s3cret" not in shown


@pytest.mark.parametrize(
    ("package", "assignment", "said"),
    [("openai", served(), "[api]"), ("bitsandbytes", {"load_in_4bit": "true"}, "[gpu]")],
)
def test_a_package_that_is_not_installed_is_missing(package, assignment, said, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    missing, _ = checks.find_missing(wanted(**assignment), tmp_path)
    assert [said in problem for problem in missing] == [True]


def test_an_engine_that_would_not_start_here_is_missing():
    assert any(checks.check_installed(wanted(steps="2", engine="cpython"))) != in_container()

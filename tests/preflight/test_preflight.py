"""The plan of a run, and what is refused before any work: estimates against what the teacher really does."""

import json
import os
import re
import subprocess
import sys

import pytest
from endpoint_server import EndpointServer

import run_notebooks
from knapsack.agent import EpisodeSettings, episode, run_alone
from knapsack.evaluate import Settings
from knapsack.preflight import checks, sizes
from knapsack.preflight.dry_run import estimate_evaluation
from knapsack.preflight.tokens import (
    SAMPLED,
    call_tokens,
    estimate_requests,
    pairs_kept,
    play,
    spending_sentence,
    token_counter,
    trace_tokens,
)
from knapsack.prompts import render
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.sandbox.cpython import in_container
from knapsack.tasks import preset, sample_split
from knapsack.teacher import RuleTeacher
from knapsack.traces import Cell
from knapsack.training_data import keep_pairs, training_row

NANO = Settings(max_turns=20, max_new_tokens=512, context_length=3328)
CLOSED = "http://127.0.0.1:9/v1"  # nobody serves there


def tasks(split: str, count: int) -> list:
    return list(sample_split(split, count, 0, preset(f"nano_{split}" if split != "train" else "nano_easy")))


def assignments(values: dict) -> list[str]:
    return [part for name, value in values.items() for part in ("-p", f"{name}={value}")]


def parameters(profile: str = "nano", **values) -> dict[str, dict]:
    """The parameters of each notebook."""
    said = [f"{name}={value}" for name, value in values.items()]
    return {step.name: step.parameters for step in run_notebooks.plan(profile, "runs/x", said)}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_an_episode_are_those_of_its_prompts_and_replies(kind):
    from transformers import AutoTokenizer

    count, exact = token_counter("nano")
    tokenizer = AutoTokenizer.from_pretrained(sizes.local_folder("nano"))
    task = tasks("easy", 1)[0]
    with interpreter_pool() as pool:
        teacher = RuleTeacher(task, kind, task.seed, tokenizer)
        real = run_alone(episode(task, kind, EpisodeSettings(20, 25, "compact"), pool), teacher)
        played = play([task], kind, NANO, pool)[0]
    prompts, replies = call_tokens(played, count)
    assert exact
    assert prompts == [turn.prompt_tokens for turn in real.turns]
    assert replies == [turn.completion_tokens for turn in real.turns]
    assert trace_tokens(played, count) == len(render(training_row(real)["messages"], tokenizer).input_ids)


def test_pairs_kept_are_those_of_the_filters():
    from transformers import AutoTokenizer

    tokenizer, (count, _) = AutoTokenizer.from_pretrained(sizes.local_folder("nano")), token_counter("nano")
    with interpreter_pool() as pool:
        sides = [play(tasks("train", 24), kind, NANO, pool) for kind in KINDS]
    limit = 1700  # so that some are too long
    kept, reasons = keep_pairs(*sides, tokenizer=tokenizer, max_tokens=limit)
    assert pairs_kept(*sides, count, limit) == kept
    assert reasons["stateless"]["length"] and kept


def test_a_sample_estimates_the_whole_within_a_quarter():
    cells, known = [Cell("m", kind, "easy") for kind in KINDS], tasks("easy", 30)
    sampled, whole = (estimate_requests(cells, {"easy": 30}, NANO, {"easy": known}, n) for n in (SAMPLED, 30))
    for column in ("requests", "prompt_tokens", "completion_tokens"):
        assert sampled[column].tolist() == pytest.approx(whole[column].tolist(), rel=0.25)


def test_an_estimate_is_what_the_endpoint_is_sent_if_it_plays_like_the_teacher_and_the_bounds_hold():
    cells, known = [Cell("m", kind, "easy") for kind in KINDS], tasks("easy", 3)
    table = estimate_requests(cells, {"easy": 3}, NANO, {"easy": known}).set_index("runtime")
    count, _ = token_counter("nano")
    with interpreter_pool() as pool:
        for kind in KINDS:
            calls = [call_tokens(played, count) for played in play(known, kind, NANO, pool)]
            row = table.loc[kind]
            assert row["requests"] == sum(len(replies) for _, replies in calls)
            assert row["prompt_tokens"] == sum(sum(prompts) for prompts, _ in calls) < row["prompt_tokens_at_most"]
            assert row["completion_tokens"] == sum(sum(replies) for _, replies in calls)
            assert (row["requests_at_most"], row["completion_tokens_at_most"]) == (3 * 20, 3 * (3328 + 512))


def test_a_cap_is_said_and_one_that_stops_the_run_is_told_apart():
    table = estimate_requests([Cell("m", "persistent", "easy")], {"easy": 2}, NANO, {"easy": tasks("easy", 2)})
    total = int(table["prompt_tokens"].sum() + table["completion_tokens"].sum())
    assert "no cap" in spending_sentence(table)
    assert "less than" not in spending_sentence(table, total + 1)
    assert "less than" in spending_sentence(table, total - 1)


def test_without_the_tokenizer_ids_count_as_many_tokens_as_they_have_signs():
    count, exact = token_counter("nobody/nothing")
    assert not exact
    assert count("I inspect the first items") == pytest.approx(5, rel=0.1)
    assert count("'item_0e079ed4666f': (12, 7, 'C')") > 15  # a fifth of what 4 characters a token would say


def test_sizes_of_models_and_adapters():
    nano = sizes.read_shape("nano")
    published = [sizes.read_shape("x", run_notebooks.load_profile(name)["config"]) for name in ("paper", "small")]
    assert [shape.weight_bytes for shape in published] == pytest.approx([16.4e9, 1.5e9], rel=0.01)  # on their pages
    projections = list(nano.projections)
    assert 2_000_000 == pytest.approx(nano.adapter_bytes(32, projections), rel=0.01)  # of the default run: 2,006,072
    assert sizes.Shape.of({"n_embd": 768}) is None
    assert published[1].cache_bytes == 112 * 1024


def test_weights_count_only_if_all_parts_are_there(tmp_path):
    assert not sizes.has_weights(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert not sizes.has_weights(tmp_path)
    (tmp_path / "model-2.safetensors").touch()
    assert sizes.has_weights(tmp_path)


@pytest.mark.parametrize("profile", ["nano", "small", "paper"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(profile, checkout, tmp_path):
    folder = tmp_path / "run"
    program = "import sys, run_notebooks\nstatus = run_notebooks.main(sys.argv[1:])\n"
    program += "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(status)"
    hidden = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "models"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, "--profile", profile, "--dry-run", "--out", folder],
        env=os.environ | hidden,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert list(tmp_path.iterdir()) == []
    wanted = parameters(profile)
    for step in wanted:
        assert f"\n{step} " in done.stdout
    episodes = 12 // 2 * (wanted["04_evaluate"]["n_easy"] + wanted["04_evaluate"]["n_hard"])
    assert f"12 cells of the models, {episodes:,} episodes" in done.stdout
    missing = done.stdout.partition("Missing on this machine:\n")[2]
    if profile == "nano":
        assert missing == "  nothing\n" and "measured in the committed default run" in done.stdout
    else:
        assert "no GPU that PyTorch can use" in missing and f"the model {wanted['03_finetune']['base']}" in missing
        assert "calculated, not measured" in done.stdout


def test_the_plan_counts_what_a_run_then_does(smallest, smallest_report, tmp_path, capsys):
    folder, finished = smallest_report
    assert finished.returncode == 0, finished.stderr
    assert run_notebooks.main(["--dry-run", "--out", str(tmp_path / "run"), *assignments(smallest)]) == 0
    shown = capsys.readouterr().out
    cells = [path for path in (folder / "evaluations").iterdir() if path.is_dir()]
    played = {path.name: len(list(path.glob("knapsack/*.trace.json"))) for path in cells}
    traces = sum(len(list((folder / "traces" / kind / "knapsack").glob("*.trace.json"))) for kind in KINDS)
    assert f"{traces} episodes of the teacher" in shown
    own = [number for name, number in played.items() if not name.startswith("teacher_")]
    assert f"{len(own)} cells of the models, {sum(own)} episodes" in shown
    for kind in KINDS:
        report = json.loads((folder / "training" / kind / "training.json").read_text())["report"]
        rows, total = re.search(rf"{kind} +(\d+) rows .*, ([\d,]+) in 3 epochs", shown).groups()
        assert int(rows) == report["rows"]
        assert int(total.replace(",", "")) == pytest.approx(report["tokens"] * 3, rel=0.25)  # of the kept three, two
    table = estimate_evaluation(parameters(**smallest)).set_index(["model", "runtime", "split"])
    for name in (name for name in played if name.startswith("teacher_")):
        _, kind, split = name.split("_")
        usage = [
            json.loads(path.read_text())["summary"]["token_usage"]
            for path in (folder / "evaluations" / name / "knapsack").glob("*.trace.json")
        ]
        for column in ("prompt_tokens", "completion_tokens"):
            assert table.loc["base", kind, split][column] == sum(spent[column] for spent in usage)


def served(**entry) -> dict:
    return {"models": json.dumps({"mine": {"endpoint": CLOSED, "model": "m"} | entry}), "prompt_detail": "full"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "small"], ["no GPU that PyTorch can use", "run on a machine with one"]),
        (assignments(served(key="NO_SUCH_KEY")), ["the key NO_SUCH_KEY", "export it"]),
        (assignments(served()), [f"the server {CLOSED}", "start the server"]),
        (["-p", "base=nobody/nothing"], ["the model nobody/nothing", "name a model folder"]),
        (["-p", "n_train=250000", "-p", "max_tokens=1000000000"], ["GB of disk at", "free "]),
    ],
)
def test_what_is_missing_is_said_with_its_remedy_before_any_work(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_notebooks.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "nothing was begun" in told
    for part in said:
        assert part in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("rank=0", "Recipe.rank = 0: input should be greater than or equal to 1"),
        ("learning_rate=2", "Recipe.learning_rate"),
        ("n_pairs=601", "02_traces: n_pairs = 601 of n_train = 600"),
        ("n_hard=0", "n_hard = 0: needs at least 1"),
        ("n_train=250001", "n_train = 250001: needs at most 250,000"),
        ("easy_config=medium", "task configuration 'medium': needs one of easy, hard"),
        ("prompt_detail=long", "prompt_detail = 'long': needs one of full, compact"),
        ("engine=v8", "engine = 'v8': needs one of monty"),
        ("backend=jax", "backend = 'jax': needs one of auto"),
        ("runtimes=persistent,reset", "needs of persistent, stateless"),
        ("splits=", "splits = []: needs at least one"),
        ("temperature=-0.1", "temperature = -0.1: needs at least 0"),
        ("context_length=5000", "context_length = 5000: nano has 4096 positions"),
        ("slots=0", "slots = 0: needs at least 1"),
        ('models={"mine": {"endpoint": "localhost", "model": "m"}}', "endpoint 'mine'"),
        ('teacher={"endpoint": "http://127.0.0.1:9/v1"}', "endpoint 'teacher'"),
        ("source=web", "source = 'web': needs one of run, published"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_value_that_no_run_could_use_is_refused(assignment, said, dry, tmp_path, capsys):
    assert run_notebooks.main(["-p", assignment, *dry, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_a_folder_begun_with_other_parameters_is_refused(smallest_report, capsys):
    folder, _ = smallest_report
    before = sorted(folder.rglob("*"))
    assert run_notebooks.main(["--dry-run", "-p", "n_easy=1", "--out", str(folder)]) == 2
    assert "01_generate was run with n_easy = 2, now 1" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_only_what_the_chosen_notebooks_need_is_asked_for(tmp_path):
    small, wanted = run_notebooks.load_profile("small"), parameters("small", **served(key="NO_SUCH_KEY"))
    assert checks.find_missing(small, wanted, ["01_generate", "05_analysis"], tmp_path) == ([], [])
    assert not checks.needs_gpu(wanted, ["02_traces", "04_evaluate"])
    assert checks.needs_gpu(parameters("small"), ["04_evaluate"])
    assert not checks.needs_gpu(parameters("small", server=CLOSED), ["04_evaluate"])


def test_a_served_model_may_have_a_longer_context_than_the_base():
    wanted = parameters(context_length=32768, **served())
    checks.check_values(wanted, ["04_evaluate"])
    with pytest.raises(ValueError, match="nano has 4096 positions"):
        checks.check_values(parameters(context_length=32768), ["04_evaluate"])


def test_values_are_compared_only_for_the_chosen_notebooks():
    checks.check_values(parameters(n_train=8), ["01_generate"])
    with pytest.raises(ValueError, match="n_pairs = 450 of n_train = 8"):
        checks.check_values(parameters(n_train=8), ["01_generate", "02_traces"])


def test_a_model_that_the_server_does_not_list_is_doubtful():
    with EndpointServer(lambda _: "") as server:
        places = checks.read_places(parameters(**served(endpoint=server.url, model="other")), ["04_evaluate"])
        missing, doubts = checks.check_endpoints(places)
    assert missing == [] and ["'other'" in doubt for doubt in doubts] == [True]


def test_room_on_the_disk_is_wanted_for_the_run_and_the_model(tmp_path):
    nano, wanted = run_notebooks.load_profile("nano"), parameters()
    need = checks.disk_need(nano, wanted, list(wanted)) + checks.ROOM
    assert checks.check_disk(nano, wanted, list(wanted), tmp_path / "run", 0, need) == []
    assert checks.check_disk(nano, wanted, list(wanted), tmp_path / "run", 0, need - 1)
    assert checks.check_disk(nano, wanted, list(wanted), tmp_path / "run", 10**9, need)


def test_a_whole_run_fits_the_room_that_was_wanted_for_it(smallest, smallest_report):
    folder, _ = smallest_report
    nano, wanted = run_notebooks.load_profile("nano"), parameters(**smallest)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert used < checks.disk_need(nano, wanted, list(wanted)) + checks.ROOM


def test_a_server_that_answers_and_a_key_that_is_set_are_not_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MY_KEY", "s3cret")
    with EndpointServer(lambda _: "") as server:
        entry = served(endpoint=server.url, key="MY_KEY") | {"n_easy": 1, "n_hard": 1}
        assert run_notebooks.main(["--only", "4", "--dry-run", "--out", str(tmp_path / "r"), *assignments(entry)]) == 0
    shown = capsys.readouterr().out
    assert "environment variable MY_KEY: set" in shown and f"{server.url}: answers" in shown
    assert shown.endswith("Missing on this machine:\n  nothing\n")
    assert "To endpoints: " in shown and "s3cret" not in shown


@pytest.mark.parametrize(
    ("package", "assignment", "said"),
    [("openai", served(), "[api]"), ("bitsandbytes", {"load_in_4bit": "true"}, "[gpu]")],
)
def test_a_package_that_is_not_installed_is_missing(package, assignment, said, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    wanted = parameters(**assignment)
    missing, _ = checks.find_missing(run_notebooks.load_profile("nano"), wanted, list(wanted), tmp_path)
    assert [said in str(problem) for problem in missing] == [True]


def test_an_engine_that_would_not_start_here_is_missing():
    missing = checks.check_installed(parameters(engine="cpython"), ["02_traces"])
    assert bool(missing) != in_container()


def test_a_folder_without_weights_is_no_base(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    assert checks.check_base(str(tmp_path), weights=False, profile={}) == ([], 0)
    (problem,), _ = checks.check_base(str(tmp_path), weights=True, profile={})
    assert "name a complete folder" in problem.remedy

"""A real OpenAI-compatible server, on the CPU, as the place of a trained model; and the command that starts vLLM."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from scripted import CONFIG, block, play

from knapsack import agent, models, prompts, traces
from knapsack.endpoints.endpoint import Endpoint, EndpointError, check_server
from knapsack.evaluate import Settings, evaluate
from knapsack.finetune import Recipe, finetune
from knapsack.gpu import serve
from knapsack.runs import SUMS, as_json, find_base, keep_together, open_run, write_text
from knapsack.runtime import KINDS, interpreter_pool
from knapsack.tasks import read_tasks, sample_split, sample_task, write_tasks
from knapsack.traces import Cell
from knapsack.training_data import training_row

# Two short replies that even few training steps teach; without the first one's name, the second one fails.
TEXTS = [block("ids = list_items()\nprint(len(ids))", "I look."), block("print(ids)\nfinish()", "I finish.")]
RECIPE = Recipe(rank=8, alpha=16, learning_rate=6e-3, epochs=2, batch_tokens=900, validation_share=0, evaluations=1)
TRAINED = [Cell("persistent", kind, "easy", 25) for kind in KINDS]
CELLS = [*TRAINED, Cell("base", "persistent", "easy", 25)]
TASKS = 2
LIMITS = {"max_new_tokens": 48, "context_length": 1024, "max_turns": 3, "prompt_detail": "compact", "slots": TASKS}
SETTINGS = Settings(temperature=0, **LIMITS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a few tasks and an adapter that was really trained, for as short as possible."""
    run = open_run(tmp_path_factory.mktemp("served") / "run")
    write_tasks(run.tasks("easy"), sample_split("easy", TASKS, 0, CONFIG))
    with interpreter_pool() as pool:
        played = [play(sample_task(seed, CONFIG), "persistent", TEXTS, pool=pool) for seed in range(20)]
    finetune(RECIPE, [training_row(episode) for episode in played], "nano", run.training("persistent"), progress=False)
    return run


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    """Address of a `transformers serve` that knows the models "base" and "persistent", in float32.

    A model's name is there a folder below the one where the server was started; an adapter that lies in the folder of
    its base is loaded with it and not merged.
    """
    place = tmp_path_factory.mktemp("models")
    (place / "base").symlink_to(find_base("nano"))
    (place / "persistent").mkdir()
    for path in [*run.adapter("persistent").iterdir(), *find_base("nano").iterdir()]:
        if not (place / "persistent" / path.name).exists():
            (place / "persistent" / path.name).symlink_to(path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve"]  # -P: the folders are no modules
    command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    with open(place / "log", "w") as log:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    endpoint, deadline = Endpoint(url=f"http://127.0.0.1:{port}/v1", model="base"), time.monotonic() + 120
    try:
        while True:
            try:
                check_server(endpoint)
                break
            except EndpointError:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (place / "log").read_text()
        yield endpoint.url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(run, server):
    """Per cell its episodes' traces, in task order, after an evaluation through the server."""
    endpoints = {name: Endpoint(url=server, model=name) for name in ("base", "persistent")}
    evaluate(run, CELLS, {"easy": TASKS}, SETTINGS, endpoints=endpoints, processes=1, progress=False)
    ids = [task.task_id for task in read_tasks(run.tasks("easy"), TASKS)]
    return {cell: [traces.read_trace(traces.trace_path(cell.folder(run), name)) for name in ids] for cell in CELLS}


@pytest.mark.long
def test_an_evaluation_through_a_real_server_completes_every_episode(served):
    assert [episode.status for cell in CELLS for episode in served[cell]] == ["completed"] * TASKS * len(CELLS)
    home, away = (served[cell] for cell in TRAINED)
    assert [episode.finish_reason for episode in home] == ["finish_tool"] * TASKS
    assert all(episode.turns[1].observation.missing_binding for episode in away)


@pytest.mark.long
def test_the_server_counts_the_tokens_that_we_render(served):
    tokenizer = models.load_tokenizer("nano")
    for cell, episode in [(cell, episode) for cell, episodes in served.items() for episode in episodes]:
        for number, turn in enumerate(episode.turns):
            before = prompts.render(episode.messages[: 2 + 2 * number], tokenizer, reply_follows=True)
            assert turn.prompt_tokens == len(before.input_ids)
            if cell in TRAINED:  # whose replies end by themselves
                after = prompts.render(episode.messages[: 3 + 2 * number], tokenizer)
                learned = [sum(label != -100 for label in each.labels) for each in (before, after)]
                assert turn.completion_tokens == learned[1] - learned[0]


@pytest.mark.long
def test_a_model_says_the_same_in_process_and_through_the_server(run, served):
    """Greedily and in float32, as on any CPU: in bfloat16 the two would round in other places."""
    names = ("temperature", "max_new_tokens", "context_length", "seed", "slots")
    options = {"device": "cpu"} | {name: getattr(SETTINGS, name) for name in names}
    limits = agent.EpisodeSettings(SETTINGS.max_turns, detail=SETTINGS.prompt_detail)
    tasks = read_tasks(run.tasks("easy"), TASKS)
    for cell in CELLS:
        adapter = None if cell.model == "base" else run.adapter(cell.model)
        model, done = models.load_model("nano", adapter, **options), {}
        with interpreter_pool(SETTINGS.slots) as pool:
            plays = ((task.task_id, agent.episode(task, cell.runtime, limits, pool)) for task in tasks)
            agent.run_batched(plays, model, done.__setitem__)
        for task, theirs in zip(tasks, served[cell], strict=True):
            ours = done[task.task_id]
            assert theirs.messages == ours.messages
            assert [turn.prompt_tokens for turn in theirs.turns] == [turn.prompt_tokens for turn in ours.turns]
            assert [turn.completion_tokens for turn in theirs.turns] == [turn.completion_tokens for turn in ours.turns]


# The command that starts vLLM


@pytest.fixture
def finished(tmp_path):
    """A run as notebook 03 leaves it, but for the weights."""
    run = open_run(tmp_path / "a run")
    for kind in KINDS:
        write_text(run.adapter(kind) / "adapter_config.json", as_json({"r": 64}))
        write_text(run.adapter(kind) / "chat_template.jinja", "{{ messages }}")
        keep_together(run.adapter(kind))
    run.record("run_notebooks", {"profile": "paper", "set": [], "first": 1, "last": 3})
    run.record("03_finetune", {"base": "nano"})
    return run


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_command_becomes_vllm_with_both_adapters_by_name(finished, tmp_path):
    """Its options are those of vLLM 0.33.0's source; this vLLM writes down how it was started."""
    program = tmp_path / "bin" / "vllm"
    write_text(program, f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "knapsack.gpu.serve", finished.folder, "--vllm", program, "--port", "8123"]
    command += ["--", "--data-parallel-size", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    shown, said = ended.stdout.splitlines()
    started, environment = json.loads(said)
    assert shlex.split(shown) == started and environment["VLLM_NO_USAGE_STATS"] == "1"
    assert started[:5] == [str(program), "serve", str(find_base("nano")), "--served-model-name", "base"]
    place = started.index("--lora-modules")
    modules = [json.loads(text) for text in started[place + 1 : place + 3]]
    assert [(each["name"], each["path"]) for each in modules] == [(kind, str(finished.adapter(kind))) for kind in KINDS]
    assert started[-2:] == ["--data-parallel-size", "2"]
    expected = {"--max-lora-rank": "64", "--max-model-len": "40960", "--dtype": "bfloat16", "--port": "8123"}
    expected |= {"--host": "127.0.0.1", "--chat-template": str(finished.adapter("persistent") / "chat_template.jinja")}
    assert {option: after(started, option) for option in expected} == expected


def test_print_starts_nothing_and_needs_no_vllm(finished, capsys):
    assert serve.main([str(finished.folder), "--vllm", "no-such-vllm", "--print"]) == 0
    assert shlex.split(capsys.readouterr().out)[:2] == ["no-such-vllm", "serve"]
    assert serve.main([str(finished.folder), "--vllm", "no-such-vllm"]) == 2
    told = capsys.readouterr().err
    assert "no program 'no-such-vllm'" in told and "python3 -m venv" in told and "pip install vllm==" in told


@pytest.mark.parametrize(("rank", "served_as"), [(1, "1"), (4, "8"), (64, "64"), (300, "320")])
def test_the_rank_is_one_that_vllm_has(finished, rank, served_as):
    for kind in KINDS:
        write_text(finished.adapter(kind) / "adapter_config.json", as_json({"r": rank}))
        (finished.adapter(kind) / SUMS).unlink()
    assert after(serve.serve_command(finished, "vllm"), "--max-lora-rank") == served_as


def test_what_else_notebook_03_trained_is_served_too(finished):
    finished.adapter("persistent").parent.rename(finished.training("mixed"))
    finished.record("03_finetune", {"base": "nano", "adapters": {"mixed": {}, "stateless": {}}})
    command = serve.serve_command(finished, "vllm")
    named = command[command.index("--lora-modules") + 1 : command.index("--max-loras")]
    assert [json.loads(module)["name"] for module in named] == ["mixed", "stateless"]


def test_the_context_is_that_of_the_profile_then_of_p_then_of_notebook_04_then_of_the_option(finished):
    def context(**options) -> str:
        return after(serve.serve_command(finished, "vllm", **options), "--max-model-len")

    assert context() == "40960"
    for given in ("context_length=5000", "04_evaluate.context_length=5000"):
        finished.record("run_notebooks", {"profile": "paper", "set": ["seed=1", given]})
        assert context() == "5000"
    finished.record("04_evaluate", {"context_length": 6000})
    assert (context(), context(context_length=7000)) == ("6000", "7000")


def test_an_adapter_without_a_chat_template_is_served_with_that_of_its_training(finished):
    for kind in KINDS:
        (finished.adapter(kind) / "chat_template.jinja").unlink()
        (finished.adapter(kind) / SUMS).unlink()
    path = after(serve.serve_command(finished, "vllm"), "--chat-template")
    tokenizer = models.load_tokenizer("nano")
    tokenizer.chat_template = Path(path).read_text()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens == prompts.render(messages, tokenizer, reply_follows=True).input_ids


def other_adapter(rank: int | None, run) -> None:
    path = run.adapter("stateless") / "adapter_config.json"
    path.unlink() if rank is None else write_text(path, as_json({"r": rank}))
    if rank == 1024:  # in a run that does not say which adapter it had
        (run.adapter("stateless") / SUMS).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (partial(other_adapter, None), "there is no adapter in .*stateless.*: run notebook 03 first"),
        (partial(other_adapter, 32), "stateless.*adapter_config.json .*run notebook 03 again"),
        (partial(other_adapter, 1024), "rank 1024: vLLM serves no more than 512"),
        (lambda run: run.record("03_finetune", {"base": "/no/such"}), "base = '/no/such': there is no such folder"),
        (lambda run: run.manifest.unlink(), "does not say which base was trained: run notebook 03, or give --base"),
        (lambda run: run.record("run_notebooks", {"profile": "mine"}), "give --context-length"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_remedy(finished, capsys, spoil, said):
    spoil(finished)
    assert serve.main([str(finished.folder), "--print"]) == 2
    assert re.search(said, capsys.readouterr().err)

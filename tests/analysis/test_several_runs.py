import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean

from knapsack.analysis import estimates, metrics, several_runs
from knapsack.analysis.intervals import Bootstrap
from knapsack.runs import CorruptFileError, Run, as_json, keep

TRAINED = [(model, runtime) for model in ("persistent", "stateless") for runtime in ("persistent", "stateless")]
CELLS = [("base", "persistent"), *TRAINED, ("teacher", "persistent")]
SIZES = {"easy": 5, "hard": 3}
SETTINGS = {
    "01_generate": {"n_train": 8, "n_easy": 5},
    "02_traces": {"n_pairs": 3, "max_turns": 20},
    "03_finetune": {"rank": 2, "learning_rate": 0.001},
    "04_evaluate": {"base": "nano", "temperature": 0.2},
}


def invented(luck: int) -> pd.DataFrame:
    """Episodes that depend on ``luck`` in the cells of the trained models only."""
    rows = []
    for split, size in SIZES.items():
        for number, (model, runtime) in enumerate(CELLS):
            drawn = np.random.default_rng([number, luck if model in ("persistent", "stateless") else 0])
            for task in range(size):
                prompt, completion = (int(value) for value in drawn.integers(1_000 + 400 * number, 6_000, 2))
                row = {"model": model, "runtime": runtime, "split": split, "cap": 25, "task_id": f"knapsack-{task}"}
                row |= {"status": "completed", "finish_reason": "finish_tool", "score": drawn.uniform(0.2, 0.9)}
                row |= {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
                rows.append(dict.fromkeys(metrics.NUMBERS, 0) | row | {"missing_bindings": int(drawn.integers(0, 3))})
    return pd.DataFrame(rows, columns=metrics.EPISODE_COLUMNS)


def write_run(folder, seeds=(0, 0, 0, 0), commit="a" * 40, steps=None, **changed):
    """A run's results and manifest; ``seeds`` are those of 01 to 04, ``changed`` are parameters of notebook 03."""
    metrics.write_csv(Run(folder).results / "episodes.csv", invented(seeds[2]))
    manifest = {"run_notebooks": {"parameters": {"profile": "nano"}, "commit": commit, "dirty": False}}
    for (step, settings), seed in zip(SETTINGS.items(), seeds, strict=True):
        own = changed if step == "03_finetune" else {}
        parameters = settings | own | {"seed": seed, "run_folder": str(folder), "processes": 1 + seed}
        if step in (steps or SETTINGS):
            manifest[step] = {"parameters": parameters, "commit": commit, "dirty": False}
    keep(Run(folder).manifest, as_json(manifest))
    return folder


def pooled(folders):
    return several_runs.pool_runs(*several_runs.read_runs(folders))


def said_of(folders):
    """The sentence, without the estimates, which take the time."""
    episodes, manifests = several_runs.read_runs(folders)
    return several_runs.describe(manifests, several_runs.pool_runs(episodes, manifests))


def compared(folders):
    return several_runs.side_by_side(folders, Bootstrap(50))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs that differ in the training seed, side by side."""
    folder = tmp_path_factory.mktemp("runs")
    folders = [write_run(folder / f"seed{seed}", (0, 0, seed, 0)) for seed in range(3)]
    return folders, compared(folders)


# Reading


def test_two_runs_of_one_name_are_refused(tmp_path):
    first, second = (write_run(tmp_path / where / "nano") for where in ("a", "b"))
    with pytest.raises(ValueError, match=re.escape(f"{second} has the name of {first}")):
        several_runs.read_runs([first, second])
    with pytest.raises(ValueError, match="is named twice"):
        several_runs.read_runs([first, f"{first}/"])


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"empty/results/episodes.csv is missing: run notebook 05"):
        several_runs.read_runs([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        ("model,runtime\n", "lacks cap, cap_hits"),
        (",".join(metrics.EPISODE_COLUMNS) + "\n", "holds no episode"),
        (",".join(metrics.EPISODE_COLUMNS) + "\nbase,persistent,easy,25,a,completed,much\n", "cannot be read"),
    ],
)
def test_unusable_results_are_named(tmp_path, text, problem):
    folder = write_run(tmp_path / "run")
    (folder / "results" / "episodes.csv").write_text(text)
    with pytest.raises(CorruptFileError, match=rf"episodes.csv.*{problem}.*run notebook 05"):
        several_runs.read_runs([folder])


def test_a_damaged_manifest_is_named(tmp_path):
    manifest = Run(write_run(tmp_path / "run")).manifest
    manifest.write_text(manifest.read_text().replace('"rank": 2', '"rank": 3'))
    with pytest.raises(CorruptFileError, match=r"manifest.json is not as it was written; leave this run out"):
        several_runs.read_runs([manifest.parent])


# Which runs are pooled


def test_runs_that_differ_in_seeds_alone_are_pooled(three):
    assert pooled(three[0]) == several_runs.Pool(["seed0", "seed1", "seed2"], ["03_finetune"], {})


def test_a_run_with_another_parameter_is_beside_them_and_the_parameter_is_named(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", (0, 0, 1, 0)), write_run(tmp_path / "c", rank=64)]
    pool = pooled(folders)
    assert pool.members == ["a", "b"] and pool.apart == {"c": "other 03_finetune.rank"}
    assert "Shown beside, not pooled: c: other 03_finetune.rank." in said_of(folders)


def test_a_run_with_the_same_seeds_is_not_counted_again(tmp_path):
    folders = [write_run(tmp_path / name, (0, 0, seed, 0)) for name, seed in (("a", 0), ("b", 1), ("again", 1))]
    assert pooled(folders).members == ["a", "b"]
    assert "not pooled: again: repeats b, seeds and all." in said_of(folders)


@pytest.mark.parametrize("steps", [[], ["01_generate", "04_evaluate"]])
def test_a_run_whose_manifest_does_not_tell_is_not_pooled(tmp_path, steps):
    folders = [write_run(tmp_path / "unknown", steps=steps or ["01_generate"]), write_run(tmp_path / "known")]
    if not steps:
        (tmp_path / "unknown" / "manifest.json").unlink()
    pool = pooled(folders)
    assert pool.members == ["known"] and list(pool.apart) == ["unknown"]
    sentence = said_of(folders)
    assert "nothing is summarised over runs" in sentence
    assert re.search(r"unknown: its manifest does not tell of .*03_finetune", sentence)


def test_a_model_that_no_notebook_trained_needs_no_training_in_the_manifest(tmp_path):
    folders = []
    for seed in (0, 1):
        folder = write_run(tmp_path / f"mine{seed}", (0, 0, 0, seed), steps=["01_generate", "04_evaluate"])
        added = invented(seed)[lambda table: table["model"] == "persistent"].assign(model="mine")
        metrics.write_csv(folder / "results" / "episodes.csv", added)
        folders.append(folder)
    assert pooled(folders).varying == ["04_evaluate"]
    several = compared(folders)
    assert "what varies is the sampled replies" in several.sentence
    assert several.tables["several_contrasts"].text.empty and set(several.values["model"]) == {"mine"}


def test_claims_rest_on_the_trainings_that_played_the_same_tasks(tmp_path, three):
    assert {seed: set(own["run"]) for seed, own in three[1].trainings.items()} == {
        str(k): {f"seed{k}"} for k in range(3)
    }
    assert set(three[1].episodes["run"]) == {"seed0", "seed1", "seed2"}
    seeds = {"a": (0, 0, 0, 0), "b": (0, 0, 1, 0), "played again": (0, 0, 1, 1), "other tasks": (1, 0, 2, 0)}
    folders = {name: write_run(tmp_path / name, drawn) for name, drawn in seeds.items()}

    def trained(*names):
        _, manifests = several_runs.read_runs([folders[name] for name in names])
        return several_runs.trainings(manifests, pooled([folders[name] for name in names]))

    assert trained("a", "b", "played again") == {"a": "0", "b": "1"}
    assert trained("a", "other tasks") == trained("b", "played again") == trained("a") == {}


# Numbers


def test_the_estimates_of_a_run_are_those_of_its_own_episodes(three):
    folders, several = three
    for folder in folders:
        own = estimates.estimates_table(pd.read_csv(folder / "results" / "episodes.csv"), Bootstrap(50))
        found = several.estimates[several.estimates["run"] == folder.name].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, own)
    values = several.values[several.values["quantity"] == "score"]
    assert len(values) == 3 * len(SIZES) * len(CELLS) and set(values["model"]) == {cell[0] for cell in CELLS}


# Words


def test_the_sentence_says_that_training_varies_and_tasks_do_not(three):
    said = three[1].sentence
    assert said.startswith("seed0, seed1 and seed2 differ in the seed of training (0, 1, 2) and in no other parameter.")
    assert "played the same tasks" in said and "not tasks" in said and "tasks of its own" not in said
    assert three[1].groups == [["seed0", "seed1", "seed2"]] and said.startswith(three[1].told[0])


def test_the_sentence_says_that_tasks_vary_with_everything_after_them(tmp_path):
    said = said_of([write_run(tmp_path / f"seed{seed}", (seed,) * 4) for seed in (0, 1)])
    assert "the seeds of tasks (0, 1), traces (0, 1), training (0, 1) and sampling (0, 1)" in said
    assert "tasks of its own" in said and "the same tasks" not in said


def test_runs_that_share_some_seeds_are_called_dependent(tmp_path):
    drawn = {"a": (0, 0, 0, 0), "b": (0, 0, 1, 0), "c": (1, 1, 2, 1)}
    said = said_of([write_run(tmp_path / name, seeds) for name, seeds in drawn.items()])
    assert "Some share the seed of tasks, traces and sampling, so they are not independent" in said


def test_different_commits_are_mentioned(tmp_path, three):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", (0, 0, 1, 0), commit="b" * 40)]
    assert "not made by one clean commit" in said_of(folders)
    assert "not made by one clean commit" not in three[1].sentence


# Tables


def test_a_row_shows_each_run_and_the_runs_together(three):
    _, several = three
    text = several.tables["several_contrasts"].text
    assert len(text) == 6 * len(SIZES)
    row = text[text["quantity"].str.startswith("amnesia tax") & (text["split"] == "hard")].iloc[0]
    chosen = (several.estimates["quantity"] == "total_tokens ratio") & (several.estimates["split"] == "hard")
    ratios = several.estimates[chosen & (several.estimates["first"] == "stateless→persistent")].set_index("run")
    for run in ("seed0", "seed1", "seed2"):
        one = ratios.loc[run]
        assert row[run] == f"{one['value']:.2f} [{one['low']:.2f}–{one['high']:.2f}]"
    assert row["range"] == f"{ratios['value'].min():.2f} to {ratios['value'].max():.2f}"
    assert row["runs"] == "3" and row["mean"] == f"{gmean(ratios['value']):.2f}"


def test_a_contrast_that_a_run_lacks_is_empty(three):
    found = three[1].estimates
    found = found[(found["run"] != "seed1") | (found["split"] != "hard")]
    text = several_runs.contrasts(found, several_runs.Pool(["seed0", "seed1", "seed2"], [], {})).set_index("split")
    assert (text.loc["hard", "seed1"] == "").all() and (text.loc["hard", "runs"] == "2").all()
    assert (text.loc["easy", "seed1"] != "").all()


def test_the_table_of_runs_tells_how_they_were_made(three):
    rows = three[1].tables["several_runs"].text.to_dict("records")
    assert [row["seed of training"] for row in rows] == ["0", "1", "2"]
    assert {(row["pooled"], row["profile"], row["base"], row["commit"], row["unscored"]) for row in rows} == {
        ("yes", "nano", "nano", "aaaaaaa", "0")
    }
    assert {row["episodes"] for row in rows} == {str(sum(SIZES.values()) * len(CELLS))}


def test_files_are_written_and_one_run_alone_removes_them(tmp_path, three):
    run = Run(tmp_path / "run")
    written = several_runs.write(run, three[1])
    assert len(written) == 2 and all("seed0" in text for text in written)
    assert len(pd.read_csv(run.results / "several_estimates.csv")) == len(three[1].estimates)
    assert {path.stem for path in run.tables.iterdir()} == {"several_runs", "several_contrasts"}
    alone = compared([write_run(tmp_path / "only")])
    assert alone.sentence.startswith("One run, only:") and alone.values.empty
    assert several_runs.write(run, alone) == [] and not list(run.results.glob("*.csv"))

import math
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.text import Text

from knapsack.analysis import estimates, metrics, several_runs
from knapsack.analysis.figures import style
from knapsack.analysis.figures.seeds import seeds
from knapsack.runs import CorruptFileError, Run, as_json, keep, write_json

TRAINED = [(model, runtime) for model in ("persistent", "stateless") for runtime in ("persistent", "stateless")]
CELLS = [("base", "persistent"), *TRAINED, ("teacher", "persistent")]
SIZES = {"easy": 5, "hard": 3}
SETTINGS = {
    "01_generate": {"n_train": 8, "n_easy": 5},
    "02_traces": {"n_pairs": 3, "max_turns": 20},
    "03_finetune": {"rank": 2, "learning_rate": 0.001},
    "04_evaluate": {"base": "nano", "temperature": 0.2},
}
T_TWO = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table


def invented(luck: int) -> pd.DataFrame:
    """Episodes that depend on ``luck`` in the cells of the trained models only."""
    rows = []
    for split, size in SIZES.items():
        for number, (model, runtime) in enumerate(CELLS):
            drawn = np.random.default_rng([number, luck if model in ("persistent", "stateless") else 0])
            for task in range(size):
                prompt, completion = (int(value) for value in drawn.integers(1_000 + 400 * number, 6_000, 2))
                row = {"model": model, "runtime": runtime, "split": split, "task_id": f"knapsack-{task}"}
                row |= {"status": "completed", "finish_reason": "finish_tool", "score": drawn.uniform(0.2, 0.9)}
                row |= {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
                rows.append(row | {"missing_bindings": int(drawn.integers(0, 3)), "solved": 0, "turns": 3})
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


def grouped(folders):
    episodes, manifests = several_runs.read_runs(folders)
    return several_runs.group_runs(episodes, manifests)


def said_of(folders):
    """The sentence, without the contrasts, whose intervals take the time."""
    episodes, manifests = several_runs.read_runs(folders)
    groups, untold = several_runs.group_runs(episodes, manifests)
    same = {number: estimates.same_episodes(episodes, group.members) for number, group in groups.items()}
    none = pd.DataFrame(columns=["run", "quantity", "split", "value"])
    return several_runs.describe(manifests, groups, untold, same, none)


def compared(folders):
    return several_runs.side_by_side(folders, n_resamples=50)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs that differ in the training seed, side by side."""
    folder = tmp_path_factory.mktemp("runs")
    folders = [write_run(folder / f"seed{seed}", (0, 0, seed, 0)) for seed in range(3)]
    return folders, compared(folders)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One run, with nothing to compare it with."""
    return compared([write_run(tmp_path_factory.mktemp("run") / "only")])


# Reading


def test_a_run_is_named_by_its_folder_and_its_episodes_are_as_written(three):
    folders, _ = three
    episodes, manifests = several_runs.read_runs(folders)
    assert list(manifests) == ["seed0", "seed1", "seed2"]
    one = episodes[episodes["run"] == "seed1"].reset_index(drop=True)
    assert one["task_id"].tolist() == invented(1)["task_id"].tolist()
    assert one["score"].to_numpy() == pytest.approx(invented(1)["score"].to_numpy(float))


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
        ("model,runtime\n", "lacks completion_tokens"),
        (",".join(metrics.EPISODE_COLUMNS) + "\n", "holds no episode"),
        (",".join(metrics.EPISODE_COLUMNS) + "\nbase,persistent,easy,a,completed,much\n", "cannot be read"),
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


def test_a_manifest_from_before_there_were_digests_is_read(tmp_path):
    write_run(tmp_path / "run")
    write_json(tmp_path / "run" / "manifest.json", {"01_generate": {"parameters": {"seed": 5}}})
    assert several_runs.read_runs([tmp_path / "run"])[1]["run"]["01_generate"]["parameters"] == {"seed": 5}


# Which runs are summarised together


def test_runs_that_differ_in_seeds_alone_are_one_group(three):
    groups, untold = grouped(three[0])
    assert untold == {}
    assert groups == {"1": several_runs.Group(["seed0", "seed1", "seed2"], {}, ["03_finetune"])}


def test_a_run_with_another_parameter_is_beside_them_and_the_parameter_is_named(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", (0, 0, 1, 0)), write_run(tmp_path / "c", rank=64)]
    groups, _ = grouped(folders)
    assert [group.members for group in groups.values()] == [["a", "b"], ["c"]]
    assert "Shown beside a and b, not pooled: c: other 03_finetune.rank." in said_of(folders)


def test_a_run_with_the_same_seeds_is_not_counted_again(tmp_path):
    folders = [write_run(tmp_path / name, (0, 0, seed, 0)) for name, seed in (("a", 0), ("b", 1), ("again", 1))]
    for folder, luck in zip(folders, (0, 1, 1), strict=True):  # two cells are enough, and quick
        one = invented(luck)[lambda table: (table["model"] == "persistent") & (table["split"] == "easy")]
        metrics.write_csv(folder / "results" / "episodes.csv", one)
    groups, _ = grouped(folders)
    assert groups["1"].members == ["a", "b"] and groups["1"].repeats == {"again": "b"}
    several = compared(folders)
    assert "again repeats b, seeds and all, and is not counted." in several.sentence
    assert several.tables["several_cells"].text["group 1: runs"].unique().tolist() == ["2"]


@pytest.mark.parametrize("steps", [[], ["01_generate", "04_evaluate"]])
def test_a_run_whose_manifest_does_not_tell_is_not_pooled(tmp_path, steps):
    folders = [write_run(tmp_path / "known"), write_run(tmp_path / "unknown", steps=steps or ["01_generate"])]
    if not steps:
        (tmp_path / "unknown" / "manifest.json").unlink()
    groups, untold = grouped(folders)
    assert [group.members for group in groups.values()] == [["known"]] and list(untold) == ["unknown"]
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
    groups, untold = grouped(folders)
    assert groups["1"].varying == ["04_evaluate"] and untold == {}
    several = compared(folders)
    assert "what varies between them is the sampled replies" in several.sentence
    assert several.tables["several_contrasts"].text.empty
    assert (several.tables["several_cells"].text["all: runs"] == "2").all()


# Numbers


def test_the_values_of_a_run_are_those_of_its_table_of_cells(three):
    folders, several = three
    values = several.numbers["several_cells"].set_index(["run", "quantity", "split", "model", "runtime"])
    for folder in folders:
        written = pd.read_csv(folder / "results" / "episodes.csv")
        for row in metrics.cell_table(written, 50).to_dict("records"):
            key = (row["split"], row["model"], row["runtime"])
            score = values.loc[(folder.name, "score", *key)]
            assert score["n"] == row["n"]
            ends = [row[f"score_{end}"] for end in ("mean", "low", "high")]
            assert score[["value", "low", "high"]].tolist() == pytest.approx(ends)
            assert values.loc[(folder.name, "total_tokens", *key), "value"] == pytest.approx(row["total_tokens"])
            share = values.loc[(folder.name, "missing_bindings", *key), "value"]
            assert share == pytest.approx(row["missing_binding_rate"])


def test_contrasts_are_those_of_the_paired_tasks(three):
    folders, several = three
    values = several.numbers["several_contrasts"].set_index(["run", "quantity", "split"])["value"]
    for folder in folders:
        written = pd.read_csv(folder / "results" / "episodes.csv")
        for split in SIZES:
            wide = written[written["split"] == split].pivot(index="task_id", columns=["model", "runtime"])
            pp, ps, sp, ss = (wide["score"][cell] for cell in TRAINED)
            assert values[folder.name, "aligned", split] == pytest.approx((pp - ss).mean())
            assert values[folder.name, "loss", split] == pytest.approx((pp - ps).mean())
            assert values[folder.name, "interaction", split] == pytest.approx((pp - ps - sp + ss).mean())
            pp, ps, sp, ss = (wide["total_tokens"][cell].astype(float) for cell in TRAINED)
            assert values[folder.name, "tax", split] == pytest.approx(sp.mean() / pp.mean())
            geometric = ((pp / ps) / (sp / ss)).prod() ** (1 / len(pp))
            assert values[folder.name, "token_interaction", split] == pytest.approx(geometric)


def contrast(quantity, *numbers):
    rows = [(f"run{k}", quantity, "easy", 9, value, value, value) for k, value in enumerate(numbers)]
    return pd.DataFrame(rows, columns=["run", "quantity", "split", *estimates.VALUES])


def over(values, same=()):
    return estimates.over_runs(values, list(values["run"]), list(same)).iloc[0]


def test_a_difference_over_runs_is_the_worked_example():
    found = over(contrast("loss", 0.1, 0.2, 0.3))
    reach = T_TWO * 0.1 / math.sqrt(3)
    expected = [3, 0.2, 0.1, 0.1, 0.3, 0.2 - reach, 0.2 + reach]
    assert [found[name] for name in ("runs", "mean", "sd", "least", "most", "low", "high")] == pytest.approx(expected)


def test_a_ratio_over_runs_is_summarised_in_logarithms():
    found = over(contrast("tax", 1.0, 2.0, 4.0))
    reach = 2 ** (T_TWO / math.sqrt(3))  # the standard deviation of the logarithms is that of 2
    expected = [3, 2.0, 2.0, 1.0, 4.0, 2 / reach, 2 * reach]
    assert [found[name] for name in ("runs", "mean", "sd", "least", "most", "low", "high")] == pytest.approx(expected)


def test_a_run_without_a_value_is_not_counted():
    found = over(contrast("tax", 2.0, math.nan, 0.0))
    assert found["runs"] == 1 and found["mean"] == pytest.approx(2.0) and math.isnan(found["sd"])


def cell(quantity, *numbers):
    return contrast(quantity, *numbers).assign(model="persistent", runtime="stateless")


def test_an_interval_over_runs_ends_where_the_quantity_ends():
    found = over(cell("score", 0.7, 0.95, 0.99))
    assert found["high"] == 1 and 0 < found["low"] < 0.7
    assert over(cell("total_tokens", 100, 2_000, 9_000))["low"] == 0


def test_runs_that_agree_exactly_have_no_interval():
    found = over(cell("missing_bindings", 0.0, 0.0, 0.0))
    assert found["sd"] == 0 and math.isnan(found["low"]) and math.isnan(found["high"])


def test_the_same_episodes_in_every_run_have_no_spread(three):
    folders, several = three
    episodes, _ = several_runs.read_runs(folders)
    same = estimates.same_episodes(episodes, ["seed0", "seed1", "seed2"])
    expected = {(split, *of) for split in SIZES for of in CELLS if of[0] in ("base", "teacher")}
    assert set(same) == expected
    assert "drawn once and so without spread: base→P (easy, hard) and teacher→P (easy, hard)." in several.sentence
    text = several.tables["several_cells"].text
    assert (text.loc[text["train→runtime"] == "base→P", ["all: sd", "all: 95 % t"]] == "").all(axis=None)
    assert (text.loc[text["train→runtime"] == "P→P", "all: sd"] != "").all()


# Words


def test_the_sentence_says_that_training_varies_and_tasks_do_not(three):
    said = three[1].sentence
    assert said.startswith("seed0, seed1 and seed2 differ in the seed of training (0, 1, 2) and in no other parameter.")
    assert "played the same tasks" in said and "not tasks" in said and "tasks of its own" not in said


def test_the_sentence_says_that_tasks_vary_with_everything_after_them(tmp_path):
    folders = [write_run(tmp_path / f"seed{seed}", (seed,) * 4) for seed in (0, 1)]
    said = said_of(folders)
    assert "the seeds of tasks (0, 1), traces (0, 1), training (0, 1) and sampling (0, 1)" in said
    assert "tasks of its own" in said and "the same tasks" not in said
    assert "Two runs give a range, not an interval." in said


def test_runs_that_share_some_seeds_are_called_dependent(tmp_path):
    drawn = {"a": (0, 0, 0, 0), "b": (0, 0, 1, 0), "c": (1, 1, 2, 1)}
    said = said_of([write_run(tmp_path / name, seeds) for name, seeds in drawn.items()])
    assert "Some share the seed of tasks, traces and sampling, so they are not independent" in said


def test_different_commits_are_mentioned(tmp_path, three):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", (0, 0, 1, 0), commit="b" * 40)]
    assert "not made by one clean commit" in said_of(folders)
    assert "not made by one clean commit" not in three[1].sentence


def test_contrasts_that_change_sides_between_runs_are_told_apart():
    values = pd.concat([contrast("loss", 0.2, 0.3), contrast("aligned", -0.1, 0.1), contrast("tax", 1.1, 0.9)])
    told = estimates.directions(values, ["run0", "run1"])
    assert told[True] == [("P→S loss", "easy")]
    assert told[False] == [("aligned difference", "easy"), ("amnesia tax", "easy")]


def test_one_run_alone_is_one_sentence(alone):
    assert alone.sentence.startswith("One run, only:") and alone.tables == {}
    with pytest.raises(style.NothingToShow, match="none to show beside it"):
        alone.draw()


# Tables


def test_a_row_shows_each_run_and_the_runs_together(three):
    _, several = three
    numbers, text = several.numbers["several_contrasts"], several.tables["several_contrasts"].text
    row = text[text["quantity"].str.startswith("amnesia tax") & (text["split"] == "hard")].iloc[0]
    ratios = numbers[(numbers["quantity"] == "tax") & (numbers["split"] == "hard")].set_index("run")
    for run in ("seed0", "seed1", "seed2"):
        one = ratios.loc[run]
        assert row[run] == f"{one['value']:.2f} [{one['low']:.2f}–{one['high']:.2f}]"
    assert row["all: range"] == f"{ratios['value'].min():.2f}–{ratios['value'].max():.2f}"
    assert row["all: runs"] == "3" and row["all: sd"].startswith("× ") and "–" in row["all: 95 % t"]


def test_a_signed_quantity_shows_its_sign():
    text = estimates.shown(contrast("aligned", -0.012, 0.03), {}).iloc[0]
    assert text["run0"] == "−0.012 [−0.012 to −0.012]" and text["run1"] == "+0.030 [+0.030 to +0.030]"


def test_a_cell_that_a_run_lacks_is_empty(three):
    values = three[1].numbers["several_cells"]
    values = values[(values["run"] != "seed1") | (values["runtime"] != "stateless")]
    text = estimates.shown(values, {"all": estimates.over_runs(values, ["seed0", "seed1", "seed2"], [])})
    lacking = text[text["train→runtime"] == "P→S"]
    assert (lacking["seed1"] == "").all() and (lacking["seed2"] != "").all() and (lacking["all: runs"] == "2").all()


def test_the_table_of_runs_tells_how_they_were_made(three):
    rows = three[1].tables["several_runs"].text.to_dict("records")
    assert [row["seed of training"] for row in rows] == ["0", "1", "2"]
    assert {(row["group"], row["profile"], row["base"], row["commit"], row["unscored"]) for row in rows} == {
        ("1", "nano", "nano", "aaaaaaa", "0")
    }
    assert {row["episodes"] for row in rows} == {str(sum(SIZES.values()) * len(CELLS))}


def test_files_are_written_and_removed_with_the_comparison(tmp_path, three, alone):
    run = Run(tmp_path / "run")
    written = several_runs.write(run, three[1])
    assert len(written) == 3 and all("| seed0 |" in text for text in written)
    read = pd.read_csv(run.results / "several_cells.csv")
    assert read["value"].to_numpy() == pytest.approx(three[1].numbers["several_cells"]["value"].to_numpy())
    assert {path.stem for path in run.tables.iterdir()} == {"several_runs", "several_cells", "several_contrasts"}
    assert several_runs.write(run, alone) == []
    assert not list(run.results.glob("*.csv"))


# The figure


def test_the_figure_shows_the_means_of_every_run(three):
    folders, several = three
    with rc_context(style.style()):
        drawing = several.draw()
        drawing.figure.draw_without_rendering()
    assert set(drawing.data["model"]) == {"base", "persistent", "stateless"}
    for folder in folders:
        written = pd.read_csv(folder / "results" / "episodes.csv")
        means = written.groupby(["split", "model", "runtime"])[["score", "total_tokens"]].mean()
        for row in drawing.data[drawing.data["run"] == folder.name].to_dict("records"):
            expected = means.loc[(row["split"], row["model"], row["runtime"]), row["quantity"]]
            assert row["value"] == pytest.approx(expected)
    assert "the runs seed0, seed1, seed2, from top to bottom" in drawing.caption
    assert "n = 5 easy, 3 hard episodes a cell." in drawing.caption and "seed of training (0, 1, 2)" in drawing.caption


def test_runs_without_a_scored_episode_are_no_figure(three):
    none = three[1].numbers["several_cells"].assign(n=0)
    with pytest.raises(style.NothingToShow, match="No run has a scored episode"):
        seeds(none, [], [], n_resamples=50, seed=0)


@pytest.mark.parametrize("beside", [0, 4])
def test_the_figure_is_a_column_wide_and_its_text_is_legible_and_on_the_page(three, beside):
    values = three[1].numbers["several_cells"]
    more = [values[values["run"] == "seed0"].assign(run=f"another-rank-{number}") for number in range(beside)]
    values = pd.concat([values, *more], ignore_index=True)
    with rc_context(style.style()):
        figure = seeds(values, [["seed0", "seed1", "seed2"]], [], n_resamples=50, seed=0).figure
        figure.draw_without_rendering()
        page, drawn = figure.bbox_inches, figure.get_tightbbox()
    assert figure.get_figwidth() == style.WIDTH
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= page.x1 and drawn.y1 <= page.y1
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= style.SMALLEST
    for ax in figure.axes:
        boxes = sorted((text.get_window_extent() for text in ax.get_xticklabels()), key=lambda box: box.x0)
        shown = [box for box in boxes if ax.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= ax.bbox.x1 + 1]
        assert len(shown) > 1 and all(left.x1 < right.x0 for left, right in pairwise(shown))

import csv
import json
import shutil
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest
import scripted
from matplotlib.text import Text

from knapsack import figures, metrics, report, statistics
from knapsack.files import write_text
from knapsack.runs import Run

NAMES = ["train_runtime_matrix", "cost_quality", "missing_bindings", "tokens_by_turn"]
PARAMETERS = {"run_folder": "runs/x", "seed": 0, "n_resamples": 200}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small scripted run, analysed and drawn."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4))
    episodes, cells = metrics.write_results(run, 200)
    turns = pd.read_csv(run.results / "turns.csv")
    figures.draw_all(run, episodes, turns, "05_analysis", PARAMETERS)
    return run, episodes, cells, turns


def test_every_figure_has_its_files_and_its_origin(drawn):
    run, _, _, _ = drawn
    manifest = json.loads((run.figures / "manifest.json").read_text())
    assert list(manifest) == sorted(NAMES) and figures.orphans(run.figures) == []
    for name in NAMES:
        assert manifest[name]["notebook"] == "05_analysis" and manifest[name]["parameters"] == PARAMETERS
        assert {"commit", "dirty"} <= set(manifest[name])
        png, svg, data = (run.figures / f"{name}.{kind}" for kind in ("png", "svg", "csv"))
        assert png.read_bytes()[:4] == b"\x89PNG" and png.stat().st_size > 10_000
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert len(list(csv.reader(data.open()))) > 4


def test_the_data_beside_a_figure_is_that_of_the_cells(drawn):
    run, _, cells, _ = drawn
    data = pd.read_csv(run.figures / "cost_quality.csv").set_index(["model", "runtime", "split"])
    cells = cells.set_index(["model", "runtime", "split"])
    for column, name in (("score", "score_mean"), ("score_low", "score_low"), ("total_tokens", "total_tokens")):
        assert data[column].to_numpy() == pytest.approx(cells.loc[data.index, name].to_numpy())
    shares = pd.read_csv(run.figures / "missing_bindings.csv").set_index(["model", "runtime", "split"])
    assert shares["share"].to_numpy() == pytest.approx(cells.loc[shares.index, "missing_binding_rate"].to_numpy())
    by_turn = pd.read_csv(run.figures / "tokens_by_turn.csv")
    one = by_turn[(by_turn["model"] == "base") & (by_turn["runtime"] == "persistent") & (by_turn["split"] == "easy")]
    total = (one["n"] * (one["completion_tokens"] + one["prompt_tokens"])).sum() / 4
    assert total == pytest.approx(cells.loc[("base", "persistent", "easy"), "total_tokens"])


def test_drawing_again_gives_the_same_bytes(drawn, tmp_path):
    run, episodes, _, turns = drawn
    seeded = {"n_resamples": 200, "seed": 0}
    figures.save(tmp_path, "cost_quality", lambda: figures.cost_quality(episodes, **seeded))
    figures.save(tmp_path, "tokens_by_turn", lambda: figures.tokens_by_turn(turns, **seeded))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (run.figures / path.name).read_bytes(), path.name


def drawings(episodes, turns):
    yield lambda: figures.matrix(episodes, n_resamples=100)
    yield lambda: figures.cost_quality(episodes, n_resamples=100)
    yield lambda: figures.missing_bindings(episodes)
    yield lambda: figures.tokens_by_turn(turns, n_resamples=100)


def test_text_is_seven_points_or_more_and_inside_the_page(drawn):
    _, episodes, _, turns = drawn
    for draw in drawings(episodes, turns):
        with figures.rc_context(figures.style()):
            figure, _ = draw()
            figure.draw_without_rendering()
            assert figure.get_figwidth() in (figures.SINGLE, figures.DOUBLE)
            texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
            assert min(text.get_fontsize() for text in texts) >= 7
            box = figure.get_tightbbox()
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()
            note = figure.get_supxlabel()
            assert "95 %" in note and "n = 4" in note


def test_one_split_one_cell_and_one_episode_can_be_drawn(drawn):
    _, episodes, _, turns = drawn
    few = [frame[(frame["model"] == "base") & (frame["split"] == "easy")].head(1) for frame in (episodes, turns)]
    for draw in drawings(*few):
        figure, data = draw()
        figure.draw_without_rendering()
        assert len(data) == 1


def relabelled(frame, model, runtime):
    return frame[(frame["model"] == "base") & (frame["runtime"] == "persistent")].assign(model=model, runtime=runtime)


def test_other_models_and_all_runtimes_fit_the_page(drawn):
    _, episodes, _, turns = drawn
    many = [
        pd.concat([relabelled(frame, m, r) for m in ("base", "qwen3-8b-instruct", "glm-4") for r in metrics.RUNTIMES])
        for frame in (episodes, turns)
    ]
    for draw in drawings(*many):
        with figures.rc_context(figures.style()):
            figure, data = draw()
            figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()
        assert set(data["runtime"]) == set(metrics.RUNTIMES)
    colours = figures._colours(data["model"])
    assert len({colours[model] for model in set(data["model"])}) == 3
    assert figures.cell_name("persistent", "carry-over") == "P→carry-over"


def test_what_was_not_played_takes_no_room(drawn):
    _, episodes, _, turns = drawn
    aligned = [frame[(frame["model"] == frame["runtime"]) & (frame["split"] == "hard")] for frame in (episodes, turns)]
    home = [frame[frame["runtime"] == "stateless"] for frame in aligned]
    for few, runtimes in ((aligned, 2), (home, 1)):
        for draw in drawings(*few):
            figure, _ = draw()
            assert all(ax.has_data() and "easy" not in ax.get_title() for ax in figure.axes)
        figure, _ = figures.matrix(few[0], n_resamples=50)
        assert [len(ax.get_xticklabels()) for ax in figure.axes] == [runtimes] * 2
        assert ("blank: no completed episode" in figure.get_supxlabel()) == (runtimes == 2)
    two = [frame[frame["task_id"].isin(sorted(set(frame["task_id"]))[:2])] for frame in aligned]
    figure, _ = figures.tokens_by_turn(two[1], n_resamples=50)
    assert all(line.get_xdata().size for ax in figure.axes for line in ax.lines)
    assert "at least 2" in figure.get_supxlabel()


def test_unscored_episodes_are_counted_below_the_matrix(drawn):
    _, episodes, _, _ = drawn
    late = episodes.assign(status=["timeout" if k % 9 == 0 else "completed" for k in range(len(episodes))])
    unscored = int((late[late["model"] != "teacher"]["status"] == "timeout").sum())
    figure, data = figures.matrix(late, n_resamples=50)
    assert data["unscored"].sum() == unscored > 0
    assert f"unscored: {unscored}." in figure.get_supxlabel()


def test_nothing_completed_is_said(drawn, tmp_path):
    _, episodes, _, turns = drawn
    failed, run = episodes.assign(status="error", score=float("nan")), Run(tmp_path)
    with pytest.raises(figures.NothingToShow, match="notebook 04"):
        figures.cost_quality(failed)
    run.figures.mkdir(parents=True)
    (run.figures / "cost_quality.png").write_bytes(b"of an earlier run")
    shown = figures.draw_all(run, failed, turns.head(0), "05_analysis", PARAMETERS)
    assert list(shown) == NAMES and all(isinstance(text, str) and text.endswith(".") for text in shown.values())
    assert [path.name for path in run.figures.iterdir()] == ["manifest.json"]
    assert figures.shown(shown["cost_quality"], 900).data == shown["cost_quality"]
    assert "0 of 64 episodes are scored. Unscored: 64 error." in report.overview(failed)
    table = report.table_two(metrics.cell_table(failed, 50), failed, 50)
    assert set(table["unscored"]) == {"4"} and set(table["score %"]) == {""}
    assert all("Not measured" in text for _, _, text in report.findings(failed, 50))
    assert "nan" not in report.amnesia_sentence(failed, "easy", 50)
    none = statistics.tests_table(failed[failed["model"] == "teacher"].head(4), 50)
    assert report.write_table(tmp_path, "tests", report.tests_shown(none), "Nothing.") == "Nothing."


def test_publish_leaves_exactly_the_runs_figures(drawn, tmp_path):
    run, _, _, _ = drawn
    write_text(tmp_path / "old.png", "from an earlier version")
    figures.publish(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in run.figures.iterdir()}
    write_text(tmp_path / "stray.svg", "<svg/>")
    (tmp_path / "cost_quality.csv").unlink()
    assert figures.orphans(tmp_path) == ["cost_quality.csv", "stray.svg"]
    broken = Run(tmp_path / "broken")
    shutil.copytree(tmp_path, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="manifest"):
        figures.publish(broken, tmp_path / "x")
    shutil.copytree(tmp_path / "other", broken.figures)
    with pytest.raises(ValueError, match=r"stray\.svg"):
        figures.publish(broken, tmp_path / "x")


def test_the_repositorys_figures_all_have_an_origin(checkout):
    assert figures.orphans(checkout / "figures") == []


def test_table_two_stands_beside_the_paper(drawn, tmp_path):
    _, episodes, cells, _ = drawn
    table = report.table_two(cells, episodes, 200)
    aligned = table[(table["split"] == "easy") & (table["train→runtime"] == "S→S")].iloc[0]
    assert aligned["paper: tokens"] == "58,814" and aligned["paper: score %"] == ""
    mean = cells[(cells["model"] == "stateless") & (cells["runtime"] == "stateless")]["score_mean"].iloc[0]
    assert aligned["score %"].startswith(f"{100 * mean:.1f} [")
    markdown = report.write_table(tmp_path, "table2", table)
    assert markdown.count("\n") == len(table) + 2 == (tmp_path / "table2.md").read_text().count("\n")
    latex = (tmp_path / "table2.tex").read_text()
    assert r"S$\to$S" in latex and r"\toprule" in latex and "→" not in latex


def cell(model, runtime, scores, tokens, missing=0):
    one = {"model": model, "runtime": runtime, "split": "easy", "status": "completed", "solved": 0}
    wave = [(i * len(model + runtime)) % 7 - 3 for i in range(len(scores))]  # another one in every cell
    return [
        one | {"task_id": str(i), "score": score, "missing_bindings": int(i < missing)}
        | {"total_tokens": tokens * (1 + w / 10)}
        for i, (score, w) in enumerate(zip(scores, wave, strict=True))
    ]


def sentences(p_score, s_score, ps_missing, sp_tokens, base_score):
    wave = [0.02 * (i % 5) for i in range(40)]
    frame = cell("persistent", "persistent", [p_score + w for w in wave], 1000)
    frame += cell("stateless", "stateless", [s_score + w for w in reversed(wave)], 2500)
    frame += cell("persistent", "stateless", wave, 4000, ps_missing)
    frame += cell("stateless", "persistent", wave, sp_tokens)
    frame += cell("base", "persistent", [base_score] * 40, 9000) + cell("base", "stateless", [0.0] * 40, 9000)
    return [text for _, _, text in report.findings(pd.DataFrame(frame), 500)]


def test_sentences_follow_the_numbers():
    quality, crossed, missing, tax, base, teacher = sentences(0.7, 0.7, 32, 3500, 0.02)
    assert "not significant, as in the paper" in quality and "stay possible" in quality
    assert "significant, unlike version 1" in crossed
    assert "80%" in missing and "in line with" in missing
    assert "the tax is there" in tax and "in line with" in tax
    assert "as in the paper" in base
    assert "no completed episode of teacher→P, teacher→S" in teacher


def test_sentences_also_say_the_opposite():
    quality, _, missing, tax, base, _ = sentences(0.8, 0.4, 0, 600, 0.5)
    assert "significant in favour of P→P, unlike the paper" in quality
    assert "does not show the paper's effect" in missing
    assert "the opposite" in tax
    assert "unlike the paper's base" in base
    quality, _, missing, tax, _, _ = sentences(0.4, 0.8, 40, 1010, 0.5)
    assert "in favour of S→S" in quality and "more than" in missing and "the interval holds 1" in tax
    assert "not significant, as in version 1" in sentences(0.0, 0.4, 40, 1010, 0.5)[1]
    assert "better away from home" in sentences(-0.5, 0.4, 40, 1010, 0.5)[1]
    assert not any("equal" in text for text in sentences(0.7, 0.7, 32, 3500, 0.02))


def test_the_overview_says_what_is_there_and_what_is_not():
    frame = pd.DataFrame(cell("base", "persistent", [0.1] * 3, 10) + cell("qwen3", "carry-over", [0.2] * 3, 10))
    frame = frame.assign(finish_reason=["error", *["finish_tool"] * 5], inspected=[float("nan"), *[0.5] * 5])
    frame.loc[[4, 5], "status"] = ["timeout", "unanswered"]
    assert report.overview(frame) == (
        "2 cells: base and qwen3; in the persistent and carry-over runtime; on easy. "
        "Not every model was played in every runtime on every split. 4 of 6 episodes are scored. "
        "Unscored: 1 timeout and 1 unanswered. "
        "Ended by an error such as a full context, and scored as they stood: 1. "
        "Inspection budget unknown, for want of the task's file: 1; `inspected` is empty there."
    )
    whole = report.overview(frame.head(3).assign(finish_reason="finish_tool", inspected=1.0))
    assert whole == "1 cell: base; in the persistent runtime; on easy. 3 of 3 episodes are scored."


def test_a_handful_of_tasks_is_not_called_no_difference():
    def about(n):
        frame = cell("persistent", "persistent", [0.9 - 0.01 * i for i in range(n)], 10)
        frame += cell("stateless", "stateless", [0.1] * n, 10) + cell("persistent", "stateless", [0.1] * n, 10)
        return [text for _, _, text in report.findings(pd.DataFrame(frame), 50)][:2]

    assert all("too few tasks" in text and "not significant" not in text for text in about(5))
    assert all("significant" in text for text in about(6))

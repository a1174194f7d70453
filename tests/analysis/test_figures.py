import csv
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scripted
from matplotlib import rc_context
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from knapsack.analysis import figures, metrics
from knapsack.analysis.conduct import ERRORS, PARTS, Conduct, read_conduct
from knapsack.analysis.figures import conduct_figures, idea, quality, style
from knapsack.analysis.figures.style import CELL, NothingToShow
from knapsack.runs import Run, write_text
from knapsack.runtime import Observation
from knapsack.tasks import sample_split, write_tasks
from knapsack.traces import read_trace, trace_path

NAMES = [
    "the_idea", "train_runtime_matrix", "cost_quality", "paired_differences", "missing_bindings",
    "errors_and_recovery", "tokens_by_turn", "what_fills_the_tokens",
]  # fmt: skip
PARAMETERS = {"run_folder": "runs/x", "seed": 0, "n_resamples": 100}
SEEDED = {"seed": 0, "n_resamples": 60}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small scripted run, analysed and drawn: (run, folder of cells, episodes, turns, conduct, what was drawn)."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4))
    for split in ("easy", "hard"):
        write_tasks(run.tasks(split), sample_split(split, 4, 0, scripted.CONFIG))
    run.record("01_generate", {"seed": 5})
    folder = run.folder / "evaluations"
    episodes, turns = metrics.read_cells(folder)
    conduct = read_conduct(folder, episodes)
    entries = figures.draw_all(run, episodes, turns, conduct, folder, "05_analysis", PARAMETERS)
    return run, folder, episodes, turns, conduct, entries


def table(drawn, name):
    return pd.read_csv(drawn[0].figures / f"{name}.csv")


def drawings(folder, episodes, turns, conduct):
    yield lambda: idea.the_idea(episodes, folder)
    yield lambda: quality.matrix(episodes, **SEEDED)
    yield lambda: quality.cost_quality(episodes, **SEEDED)
    yield lambda: quality.paired_differences(episodes, **SEEDED)
    yield lambda: quality.missing_bindings(episodes)
    yield lambda: conduct_figures.errors_and_recovery(episodes, conduct)
    yield lambda: conduct_figures.tokens_by_turn(episodes, turns, **SEEDED)
    yield lambda: conduct_figures.what_fills_the_tokens(episodes, conduct)


def rendered(draw, monkeypatch):
    """The drawing, or None if there is nothing to show, and (text, box in pixels, points) of all text drawn."""
    texts, plain = [], Text.draw

    def draw_text(self, renderer):
        if self.get_visible() and self.get_text().strip():
            texts.append((self.get_text(), Text.get_window_extent(self), self.get_fontsize()))
        plain(self, renderer)

    with rc_context(style.style()), monkeypatch.context() as patch:
        try:
            drawing = draw()
        except NothingToShow as nothing:
            assert str(nothing).endswith(".")
            return None, []
        patch.setattr(Text, "draw", draw_text)
        drawing.figure.draw_without_rendering()
    return drawing, texts


def check_page(drawing, texts):
    """One column wide, no text below 6 points, none outside, none over another."""
    width, height = drawing.figure.bbox.size
    assert drawing.figure.get_figwidth() == 3.35 and texts
    for text, box, points in texts:
        assert points >= 6, text
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5, text
    for (one, box, _), (other, beside, _) in combinations(texts, 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        along = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert across < 1 or along < 1, (one, other)


def test_every_figure_has_its_files_its_origin_and_its_caption(drawn):
    run, entries = drawn[0], drawn[-1]
    manifest = json.loads((run.figures / "manifest.json").read_text())
    assert list(entries) == NAMES and sorted(manifest) == sorted(NAMES) and figures.orphans(run.figures) == []
    for name in NAMES:
        assert manifest[name]["notebook"] == "05_analysis" and manifest[name]["parameters"] == PARAMETERS
        assert {"commit", "dirty"} <= set(manifest[name])
        png, svg, data = (run.figures / f"{name}.{kind}" for kind in ("png", "svg", "csv"))
        picture, caption = Image.open(png), manifest[name]["caption"]
        assert picture.width == 1005 and round(picture.info["dpi"][0]) == 300  # 8.5 cm
        assert ElementTree.parse(svg).getroot().tag.endswith("svg") and caption in svg.read_text().replace("&gt;", ">")
        assert len(list(csv.reader(data.open()))) > 4
        assert entries[name] == figures.Drawn(png, caption) and picture.info["Description"] == caption
        assert caption.endswith(f"Run: {run.folder.name}, seed 5.") and "n = " in caption
        image, text = figures.shown(entries[name])
        assert image.data == png.read_bytes() and text.data == caption


def test_captions_say_how_many_episodes_were_scored_and_how_intervals_were_made(drawn):
    captions = {name: entry.caption for name, entry in drawn[-1].items()}
    for name in set(NAMES) - {"the_idea", "paired_differences"}:
        assert "n = 4 easy, 4 hard episodes a cell; unscored: 0." in captions[name], name
    for name in ("train_runtime_matrix", "cost_quality", "paired_differences", "tokens_by_turn"):
        assert "95 % interval (BCa bootstrap over tasks, 100 resamples, seed 0)" in captions[name]
    assert "n = 4 tasks scored in both cells" in captions["paired_differences"]
    assert "95 % Wilson interval" in captions["missing_bindings"]
    assert "in characters, mean of the cell" in captions["what_fills_the_tokens"]


def test_a_caption_counts_what_was_not_scored(drawn):
    _, _, episodes, *_ = drawn
    first = episodes["task_id"] == episodes["task_id"].min()
    late = (episodes["split"] == "easy") & (episodes["model"] == "base") & first
    drawing = quality.matrix(episodes.assign(status=np.where(late, "timeout", "completed")), **SEEDED)
    assert drawing.data["unscored"].sum() == 2
    assert "n = 3–4 easy, 4 hard episodes a cell; unscored: 2." in drawing.caption


def test_cost_and_quality_are_the_means_of_the_cells(drawn):
    cells = metrics.cell_table(drawn[2], 100, 0).set_index(["model", "runtime", "split"])
    for name in ("cost_quality", "train_runtime_matrix"):
        data = table(drawn, name).set_index(["model", "runtime", "split"])
        assert len(data) == (16 if name == "cost_quality" else 12)
        for column, of_cells in (("score", "score_mean"), ("score_low", "score_low"), ("total_tokens", "total_tokens")):
            assert data[column].to_numpy() == pytest.approx(cells.loc[data.index, of_cells].to_numpy())
    shares = table(drawn, "missing_bindings").set_index(["model", "runtime", "split"])
    assert shares["share"].to_numpy() == pytest.approx(cells.loc[shares.index, "missing_binding_rate"].to_numpy())


def test_the_tokens_of_all_turns_are_those_of_the_episodes(drawn):
    data, episodes = table(drawn, "tokens_by_turn"), drawn[2]
    for (split, model, runtime), cell in data.groupby(CELL):
        own = episodes[(episodes[CELL] == [split, model, runtime]).all(axis=1)]
        total = (cell["n"] * (cell["completion_tokens"] + cell["prompt_tokens"])).sum()
        assert total == pytest.approx(own["total_tokens"].sum())
        assert cell["n"].tolist() == [(own["turns"] >= turn).sum() for turn in cell["turn"]]


def test_paired_differences_are_of_the_same_task(drawn):
    data, episodes = table(drawn, "paired_differences"), drawn[2]
    score = episodes.set_index(["model", "runtime", "split", "task_id"])["score"]
    seen = set()
    for row in data.to_dict("records"):
        first, second = (score[(*row[side].split("→"), row["split"], row["task_id"])] for side in ("first", "second"))
        assert row["difference"] == pytest.approx(first - second)
        seen.add((row["split"], row["first"], row["second"]))
    p, s = "persistent", "stateless"
    pairs = ((f"{p}→{p}", f"{s}→{s}"), (f"{p}→{p}", f"{p}→{s}"), (f"{s}→{s}", f"{s}→{p}"))
    assert seen == {(split, *pair) for split in ("easy", "hard") for pair in pairs} and len(data) == 24
    for _, rows in data.groupby(["split", "first", "second"]):
        assert rows["mean"].to_numpy() == pytest.approx(rows["difference"].mean())
        narrow, wide = rows[["low_90", "high_90"]].iloc[0].to_numpy(), rows[["low_95", "high_95"]].iloc[0].to_numpy()
        assert wide[0] <= narrow[0] <= rows["mean"].iloc[0] <= narrow[1] <= wide[1]


def scores(values, model, runtime):
    one = {"split": "easy", "model": model, "runtime": runtime, "status": "completed"}
    return pd.DataFrame([one | {"task_id": f"{k:02d}", "score": value} for k, value in enumerate(values)])


def test_the_verdict_on_a_difference_is_written(monkeypatch):
    wave = [0.002 * (k % 5) for k in range(30)]
    frame = pd.concat([
        scores([0.8 + w for w in wave], "persistent", "persistent"),
        scores([0.8 + w for w in reversed(wave)], "stateless", "stateless"),
        scores(wave, "persistent", "stateless"),
    ])  # fmt: skip
    _, texts = rendered(lambda: quality.paired_differences(frame, **SEEDED), monkeypatch)
    written = [text for text, _, _ in texts]
    assert "+0.00: equivalent" in written and "+0.80: different" in written and "easy: P→P − P→S" in written


def test_shares_of_errors_are_over_the_turns_still_running(drawn):
    data, turns = table(drawn, "errors_and_recovery"), drawn[4].turns
    errors = data[data["part"] == "errors"]
    assert set(errors["model"]) == {"persistent", "stateless"}
    for row in errors.to_dict("records"):
        mine = turns[(turns[CELL] == [row[name] for name in CELL]).all(axis=1) & (turns["turn"] == row["turn"] - 1)]
        assert row["n"] == len(mine) and sum(row[kind] for kind in ERRORS) == pytest.approx(1)
        for kind in ERRORS:
            assert row[kind] == pytest.approx((mine["error"] == kind).sum() / len(mine))
    assert errors["missing binding"].max() == 1  # every P→S episode, in its second turn


def test_recovery_is_counted_with_its_wilson_interval(drawn):
    data, found = table(drawn, "errors_and_recovery"), drawn[4].recoveries
    rows = data[data["part"] == "recovery"]
    assert rows["n"].sum() == len(found) > 0 and rows["recovered"].sum() == found["recovered"].sum() > 0
    for row in rows.to_dict("records"):
        mine = found[(found[CELL] == [row[name] for name in CELL]).all(axis=1)]
        z, n, p = stats.norm.ppf(0.975), row["n"], row["recovered"] / row["n"]
        centre, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert row["low"] == pytest.approx((centre - reach) / (1 + z * z / n), abs=1e-9)
        assert row["high"] == pytest.approx((centre + reach) / (1 + z * z / n), abs=1e-9)
        if row["recovered"]:
            assert row["median_turns"] == np.median(mine["turns"][mine["recovered"] == 1])


def test_what_fills_an_episode_adds_up_to_its_replies(drawn):
    data, folder = table(drawn, "what_fills_the_tokens"), drawn[1]
    assert len(data) == 16
    for row in data.to_dict("records"):
        cell = folder / f"{row['model']}_{row['runtime']}_{row['split']}"
        paths = sorted(cell.glob("knapsack/*.trace.json"))
        replies = sum(len(turn.text) for path in paths for turn in read_trace(path).turns)
        assert sum(row[part] for part in PARTS) == pytest.approx(replies / len(paths))
        again, code = row["restated"] + row["repeated"], row["restated"] + row["repeated"] + row["new"]
        assert math.isnan(row["redundancy"]) if code == 0 else row["redundancy"] == pytest.approx(again / code)


def test_an_episode_without_a_turn_counts_in_the_means(drawn):
    _, _, episodes, _, conduct, _ = drawn
    first = episodes["task_id"].min()
    fewer = Conduct(conduct.turns[conduct.turns["task_id"] != first], conduct.recoveries, conduct.failures, "tokens")
    data = conduct_figures.what_fills_the_tokens(episodes, fewer).data
    three = conduct_figures.what_fills_the_tokens(episodes[episodes["task_id"] != first], fewer).data
    assert data["new"].to_numpy() == pytest.approx(0.75 * three["new"].to_numpy())


def test_the_idea_shows_two_real_rollouts(drawn):
    data, folder = table(drawn, "the_idea"), drawn[1]
    cells = {runtime: folder / f"persistent_{runtime}_{data['split'][0]}" for runtime in ("persistent", "stateless")}
    traces = {runtime: read_trace(trace_path(cell, data["task_id"][0])) for runtime, cell in cells.items()}
    assert traces["persistent"].score >= 0.5 and traces["persistent"].finish_reason == "finish_tool"
    for row in data.to_dict("records"):
        for runtime in traces if row["runtime"] == "both" else [row["runtime"]]:
            turn = traces[runtime].turns[row["turn"] - 1]
            source = {"words": turn.text, "code": turn.code, "output": turn.observation.output}[row["part"]]
            if row["part"] == "output" and turn.observation.error:
                source = turn.observation.error
            if row["text"] != "(prints nothing)":
                assert row["text"].removesuffix("…") in source
    wrong = data[(data["runtime"] == "stateless") & (data["turn"] == 2) & (data["part"] == "output")]
    assert " ".join(wrong["text"]) == "NameError: name 'look' is not defined"


def test_the_idea_is_chosen_by_its_rule(drawn):
    _, folder, episodes, *_ = drawn
    pairs = idea.find_pairs(episodes, folder)
    score = episodes.set_index(["model", "runtime", "split", "task_id"])["score"]
    best = [score["persistent", "persistent", pair.split, pair.task_id] for pair in pairs]
    assert len(pairs) > 1 and best == sorted(best, reverse=True) and all(pair.same for pair in pairs)
    assert {(pair.bound, pair.missing, pair.name) for pair in pairs} == {(0, 1, "look")}
    worse = episodes.assign(score=np.where(episodes["task_id"] == pairs[0].task_id, 0.4, episodes["score"]))
    assert pairs[0].task_id not in {pair.task_id for pair in idea.find_pairs(worse, folder)}
    with pytest.raises(NothingToShow, match="no two rollouts"):
        idea.the_idea(episodes.assign(missing_bindings=0), folder)


def test_rollouts_that_differ_and_any_text_of_a_model_fit_the_page(drawn, monkeypatch, tmp_path):
    _, folder, episodes, *_ = drawn
    pair = idea.find_pairs(episodes, folder)[0]
    kept, lost = pair.traces
    code = "\n".join(["\tlook = '$a_b$' * 99  # " + 60 * "x"] * 30)
    strange = f"Costs $5 and $6, \x07 with\ttabs.\n```python\n{code}\n```"
    output = Observation(output="$x_1$\n" * 9)
    other = replace(lost.turns[0], text=strange, code=code, observation=output)
    error = Observation(output="", error_type="KeyError", error_text="$" * 300, error_source="code")
    last = replace(lost.turns[1], text=strange, code=code, observation=error)
    lost = replace(lost, turns=[other, lost.turns[1], last, *lost.turns[3:]], finish_reason="max_turns")
    apart = replace(pair, traces=(replace(kept, turns=kept.turns[:2]), lost), same=False)

    def draw():
        figure, lines = idea.draw_pair(apart)
        return style.Drawing(figure, pd.DataFrame(lines, columns=["runtime", "turn", "part", "text"]), "")

    drawing, texts = rendered(draw, monkeypatch)
    check_page(drawing, texts)
    assert set(drawing.data["runtime"]) == {"persistent", "stateless"}
    assert set(drawing.data[drawing.data["runtime"] == "persistent"]["turn"]) == {1, 2}
    drawing.figure.savefig(tmp_path / "strange.svg")
    ElementTree.parse(tmp_path / "strange.svg")


def test_an_excerpt_keeps_the_lines_with_the_name_and_marks_what_is_left_out():
    code = "a = 1\nb = 2\nc = 3\n\ndef look(count):\n    x = count\n    y = x\n    z = y\nlook(12)"
    assert idea.excerpt(code, "look", 30, 9) == [line for line in code.splitlines() if line]
    short = idea.excerpt(code, "look", 12, 5)
    assert len(short) <= 5 and short[0] == "…" and "def look(co…" in short and short[-1] == "look(12)"
    assert idea.excerpt("\n".join("abcdefgh"), "z", 30, 3) == ["a", "b", "…"]


def test_drawing_again_gives_the_same_bytes(drawn, tmp_path):
    run, folder, episodes, _, conduct, _ = drawn
    origin = f"Run: {run.folder.name}, seed 5."
    figures.save(tmp_path, "the_idea", lambda: idea.the_idea(episodes, folder), origin)
    seeded = {name: PARAMETERS[name] for name in ("n_resamples", "seed")}
    figures.save(tmp_path, "cost_quality", lambda: quality.cost_quality(episodes, **seeded), origin)
    name = "what_fills_the_tokens"
    figures.save(tmp_path, name, lambda: conduct_figures.what_fills_the_tokens(episodes, conduct), origin)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (run.figures / path.name).read_bytes(), path.name


def test_no_text_is_small_or_outside_or_over_another(drawn, monkeypatch):
    _, folder, *tables, _ = drawn
    for draw in drawings(folder, *tables):
        check_page(*rendered(draw, monkeypatch))


def chosen(drawn, keep):
    """The tables with the rows for which ``keep`` (of a table) is true."""
    _, folder, episodes, turns, conduct, _ = drawn
    tables = (conduct.turns, conduct.recoveries, conduct.failures)
    few = Conduct(*(frame[keep(frame)] for frame in tables), conduct.unit)
    return folder, episodes[keep(episodes)], turns[keep(turns)], few


def test_one_cell_and_one_episode_can_be_drawn(drawn, monkeypatch):
    cell = {"split": "easy", "runtime": "stateless", "task_id": drawn[2]["task_id"].min()}
    for model in ("base", "persistent"):
        key = cell | {"model": model}
        one = chosen(drawn, lambda table, key=key: (table[list(key)] == list(key.values())).all(axis=1))
        found = [rendered(draw, monkeypatch) for draw in drawings(*one)]
        assert [drawing is None for drawing, _ in found] == [True, False, False, True, False, False, False, False]
        for drawing, texts in found:
            if drawing:
                check_page(drawing, texts)
                assert all(ax.has_data() for ax in drawing.figure.axes)


def test_other_models_and_all_runtimes_fit_the_page(drawn, monkeypatch):
    names = ("base", "meta-llama--Llama-3.1-8B-Instruct", "glm-4")

    def relabelled(frame):
        one = frame[(frame[CELL] == ["easy", "persistent", "stateless"]).all(axis=1)]
        return pd.concat([one.assign(model=model, runtime=runtime) for model in names for runtime in metrics.RUNTIMES])

    _, folder, episodes, turns, conduct, _ = drawn
    many = Conduct(*map(relabelled, (conduct.turns, conduct.recoveries, conduct.failures)), "tokens")
    found = [rendered(draw, monkeypatch) for draw in drawings(folder, relabelled(episodes), relabelled(turns), many)]
    assert found[0][0] is None
    for drawing, texts in found[1:]:
        check_page(drawing, texts)
        if "runtime" in drawing.data:
            assert set(drawing.data["runtime"]) == set(metrics.RUNTIMES)
    assert {"first", "second"} <= set(found[3][0].data) and len(set(found[3][0].data["first"])) == 2
    colours = style.colours_of(names)
    assert len({colours[model] for model in names}) == 3
    assert "C+: one that is announced" in found[2][0].caption
    assert len(re.findall("meta-lla…truct→", " ".join(text for text, _, _ in found[2][1]))) == 4
    assert style.cell_name(names[1], "carry-over") == "meta-llama--Llama-3.1-8B-Instruct→carry-over"
    assert style.cell_label(names[1], "carry-over") == "meta-lla…truct→C"


def test_what_was_not_played_takes_no_room(drawn, monkeypatch):
    aligned = chosen(drawn, lambda frame: (frame["model"] == frame["runtime"]) & (frame["split"] == "hard"))
    for draw in drawings(*aligned):
        drawing, texts = rendered(draw, monkeypatch)
        if drawing:
            check_page(drawing, texts)
            assert all(ax.has_data() for ax in drawing.figure.axes)
            assert not any("easy" in text or "→P − P→S" in text for text, _, _ in texts)
    drawing = quality.matrix(aligned[1], **SEEDED)
    assert "Blank: no scored episode." in drawing.caption
    assert "Arrows" not in quality.cost_quality(aligned[1], **SEEDED).caption


def test_cells_that_cost_alike_or_nothing_can_be_read(drawn, monkeypatch):
    episodes = drawn[2]
    for tokens in (0, 906):
        alike = episodes.assign(total_tokens=tokens)
        drawing, texts = rendered(lambda alike=alike: quality.cost_quality(alike, **SEEDED), monkeypatch)
        check_page(drawing, texts)
        assert set(drawing.data["total_tokens"]) == {tokens}
        assert ("1k" if tokens else "1") in {text for text, _, _ in texts}


def test_a_turn_that_few_reach_is_in_the_data_only(drawn):
    _, _, episodes, turns, *_ = drawn
    longer = turns[(turns["model"] == "persistent") & (turns["turn"] == 1)].head(1)
    extended = pd.concat([turns, longer.assign(turn=8)])
    drawing = conduct_figures.tokens_by_turn(episodes, extended, **SEEDED)
    assert drawing.data["turn"].max() == 9 and "at least 3" in drawing.caption
    assert max(line.get_xdata().max() for line in drawing.figure.axes[0].lines if line.get_xdata().size) < 9


def test_without_a_task_at_hand_there_is_no_panel_of_recovery(drawn, monkeypatch):
    _, _, episodes, _, conduct, _ = drawn
    unknown = Conduct(conduct.turns, conduct.recoveries.head(0), conduct.failures, conduct.unit)
    drawing, texts = rendered(lambda: conduct_figures.errors_and_recovery(episodes, unknown), monkeypatch)
    check_page(drawing, texts)
    assert "no recovery to show" in drawing.caption and set(drawing.data["part"]) == {"errors"}


def test_nothing_scored_is_said(drawn, tmp_path):
    _, folder, episodes, turns, conduct, _ = drawn
    failed, run = episodes.assign(status="error", score=float("nan")), Run(tmp_path)
    none = Conduct(conduct.turns.head(0), conduct.recoveries.head(0), conduct.failures.head(0), "tokens")
    run.figures.mkdir(parents=True)
    (run.figures / "cost_quality.png").write_bytes(b"of an earlier run")
    entries = figures.draw_all(run, failed, turns.head(0), none, folder, "05_analysis", PARAMETERS)
    assert list(entries) == NAMES and all(isinstance(text, str) and text.endswith(".") for text in entries.values())
    assert [path.name for path in run.figures.iterdir()] == ["manifest.json"]
    assert [text.data for text in figures.shown(entries["cost_quality"])] == [entries["cost_quality"]]


def test_the_origin_names_the_run_and_its_seeds(tmp_path):
    run = Run(tmp_path / "mine")
    assert figures.origin_text(run, {}) == "Run: mine."
    run.record("01_generate", {"seed": 1})
    run.record("03_finetune", {"seed": 1})
    assert figures.origin_text(run, {"seed": 0}) == "Run: mine, seed 1."
    run.record("04_evaluate", {"seed": 2})
    text = "Run: mine, seeds 1 in notebook 01, 1 in notebook 03, 2 in notebook 04."
    assert figures.origin_text(run, {"source": "run"}) == text
    published = {"source": "published", "published_folder": "some/where/theirs"}
    assert figures.origin_text(run, published) == "Downloaded traces: theirs."


def test_a_figure_of_several_runs_is_not_said_to_be_of_one(drawn, tmp_path):
    _, folder, episodes, turns, conduct, entries = drawn
    several = quality.missing_bindings(episodes)
    more = {"seeds": lambda: several}
    both = figures.draw_all(Run(tmp_path / "x"), episodes, turns, conduct, folder, "05_analysis", PARAMETERS, more)
    assert both["seeds"].caption == several.caption and entries["cost_quality"].caption.endswith("seed 5.")
    assert both["cost_quality"].caption.endswith("Run: x.")


def test_publish_leaves_exactly_the_runs_figures(drawn, tmp_path):
    run = drawn[0]
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

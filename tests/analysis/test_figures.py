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

from knapsack.analysis import figures, metrics
from knapsack.analysis.conduct import ERRORS, PARTS, Conduct, read_conduct
from knapsack.analysis.estimates import COLUMNS, cells_table, estimates_table
from knapsack.analysis.figures import caps, idea, quality, style
from knapsack.analysis.figures import conduct as conduct_figures
from knapsack.analysis.intervals import Bootstrap, share_interval
from knapsack.analysis.several_runs import SideBySide
from knapsack.runs import Run, write_text
from knapsack.runtime import Observation
from knapsack.tasks import sample_split, write_tasks
from knapsack.traces import read_trace, trace_path

NAMES = [
    "the_idea", "train_runtime_matrix", "cost_quality", "paired_differences", "errors_and_recovery", "tokens_by_turn",
    "what_fills_the_tokens",
]  # fmt: skip
OF_CAPS = ["the_cap", "throughput", "score_by_cap"]
CELL = ["split", "cap", "model", "runtime"]
BOOTSTRAP = Bootstrap(60, 7)
ALONE = SideBySide("", {}, pd.DataFrame(columns=["run", *COLUMNS]), [], [], {}, pd.DataFrame())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small scripted run, analysed and drawn: (run, folder of cells, episodes, turns, conduct, what was drawn)."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4))
    for split in ("easy", "hard"):
        write_tasks(run.tasks(split), sample_split(split, 4, 0, scripted.CONFIG))
    run.record("01_generate", {"seed": 5})
    episodes, turns = metrics.read_cells(run.evaluations)
    conduct = read_conduct(run.evaluations, episodes)
    return run, run.evaluations, episodes, turns, conduct, draw_all(run, run.evaluations, episodes, turns, conduct)


def draw_all(run, folder, episodes, turns, conduct, several=ALONE):
    numbers = estimates_table(episodes, BOOTSTRAP)
    return figures.draw_all(run, folder, episodes, turns, conduct, numbers, several, 0.05, BOOTSTRAP)


def table(drawn, name):
    return pd.read_csv(drawn[0].figures / f"{name}.csv")


def of_cell(frame, row):
    return (frame[CELL] == [row[name] for name in CELL]).all(axis=1)


def drawings(folder, episodes, turns, conduct):
    """What draws each figure, by name."""
    numbers = estimates_table(episodes, BOOTSTRAP)
    made = (
        lambda: idea.the_idea(episodes, folder),
        lambda: quality.matrix(episodes, numbers, BOOTSTRAP),
        lambda: quality.cost_quality(episodes, numbers, BOOTSTRAP),
        lambda: quality.paired_differences(episodes, numbers, 0.05, BOOTSTRAP),
        lambda: conduct_figures.errors_and_recovery(episodes, conduct),
        lambda: conduct_figures.tokens_by_turn(episodes, turns, BOOTSTRAP),
        lambda: conduct_figures.what_fills_the_tokens(episodes, conduct),
    )
    return dict(zip(NAMES, made, strict=True))


def rendered(draw, monkeypatch):
    """The drawing and its texts, or (None, []) if there is nothing to show.

    One column wide, no text below 6 points, none outside, none over another.
    """
    seen, plain = [], Text.draw

    def draw_text(self, renderer):
        if self.get_visible() and self.get_text().strip():
            seen.append((self.get_text(), Text.get_window_extent(self), self.get_fontsize()))
        plain(self, renderer)

    with rc_context(style.style()), monkeypatch.context() as patch:
        try:
            drawing = draw()
        except style.NothingToShow as nothing:
            assert str(nothing).endswith(".")
            return None, []
        patch.setattr(Text, "draw", draw_text)
        drawing.figure.draw_without_rendering()
    width, height = drawing.figure.bbox.size
    assert drawing.figure.get_figwidth() == 3.35 and seen
    for text, box, points in seen:
        assert points >= 6, text
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5, text
    for (one, box, _), (other, beside, _) in combinations(seen, 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        along = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert across < 1 or along < 1, (one, other)
    return drawing, [text for text, *_ in seen]


def test_every_figure_has_its_files_its_origin_and_its_caption(drawn):
    run, entries = drawn[0], drawn[-1]
    manifest = json.loads((run.figures / "manifest.json").read_text())
    assert set(entries) == {*NAMES, *OF_CAPS, "seeds", "beyond"} and sorted(manifest) == sorted(NAMES)
    assert figures.orphans(run.figures) == []
    for name in NAMES:
        assert manifest[name]["parameters"] == {"n_resamples": 60, "seed": 7, "margin": 0.05}
        assert {"notebook", "commit", "dirty"} <= set(manifest[name])
        png, svg = (run.figures / f"{name}.{kind}" for kind in ("png", "svg"))
        picture, caption = Image.open(png), manifest[name]["caption"]
        assert picture.width == 1005 and round(picture.info["dpi"][0]) == 300  # 8.5 cm
        assert ElementTree.parse(svg).getroot().tag.endswith("svg") and caption in svg.read_text().replace("&gt;", ">")
        assert len(table(drawn, name)) > 3 and picture.info["Description"] == caption
        image, text = entries[name]
        assert image.data == png.read_bytes() and text.data == caption


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    """P→P and P→S under three caps, of which the least breaks P→S off: (episodes, conduct, estimates)."""
    run = Run(tmp_path_factory.mktemp("capped"))
    cells = [("persistent", "persistent"), ("persistent", "stateless")]
    scripted.write_run(run.folder, n=4, cells=cells, caps=(6, 25, 80))
    for split in ("easy", "hard"):
        write_tasks(run.tasks(split), sample_split(split, 4, 0, scripted.CONFIG))
    episodes, _ = metrics.read_cells(run.evaluations)
    return episodes, read_conduct(run.evaluations, episodes), estimates_table(episodes, BOOTSTRAP)


def of_caps(episodes, conduct, numbers):
    draw = (lambda: caps.the_cap(episodes, conduct, BOOTSTRAP), lambda: caps.throughput(episodes, conduct))
    return dict(zip(OF_CAPS, (*draw, lambda: caps.score_by_cap(episodes, numbers, BOOTSTRAP)), strict=True))


def test_figures_of_caps_fit_the_page_and_need_two_caps(capped, monkeypatch):
    for name, draw in of_caps(*capped).items():
        drawing, texts = rendered(draw, monkeypatch)
        assert "n = 4" in drawing.caption and all(ax.has_data() or ax.patches for ax in drawing.figure.axes), name
        assert any("80" in text for text in texts)
    one, conduct, _ = capped
    one = one[one["cap"] == 25]
    assert all(rendered(draw, monkeypatch)[0] is None for draw in of_caps(one, conduct, estimates_table(one)).values())


def test_the_task_shown_under_two_caps_is_the_one_that_loses_most(capped, monkeypatch):
    episodes, conduct, _ = capped
    data = rendered(of_caps(*capped)["the_cap"], monkeypatch)[0].data
    strip = data[data["part"] == "strip"]
    assert strip["task_id"].nunique() == strip["split"].nunique() == 1 and list(strip["cap"].unique()) == [80, 6]
    away = episodes[episodes["runtime"] == "stateless"].pivot(index=["split", "task_id"], columns="cap", values="score")
    lost = (away[80] - away[6])[away[80] >= 0.5]
    assert lost.max() > 0 and lost[tuple(strip[["split", "task_id"]].iloc[0])] == lost.max()
    bars = data[data["part"] == "bars"].set_index(["split", "cap", "quantity"])
    assert bars.loc[("easy", 6, "score"), "mean"] == pytest.approx(away.loc["easy", 6].mean())
    own = conduct.turns[(conduct.turns[["split", "cap", "runtime"]] == ["hard", 80, "stateless"]).all(axis=1)]
    assert bars.loc[("hard", 80, "inspect_calls"), "mean"] == pytest.approx(own["inspect_calls"].sum() / 4)


def test_throughput_cumulates_over_all_episodes_also_those_that_ended(capped, monkeypatch):
    conduct = capped[1]
    data = rendered(of_caps(*capped)["throughput"], monkeypatch)[0].data
    for (split, cap), line in data.groupby(["split", "cap"]):
        own = conduct.turns[(conduct.turns[["split", "cap", "runtime"]] == [split, cap, "stateless"]).all(axis=1)]
        assert line["inspect_calls"].iloc[-1] == pytest.approx(own["inspect_calls"].sum() / 4)
        assert line["new_items"].is_monotonic_increasing and list(line["turn"]) == list(range(1, len(line) + 1))
        assert (line["inspect_calls"] >= line["new_items"]).all() and line["running"].iloc[0] == 4


def test_captions_say_how_many_were_scored_and_which_seed_made_what(drawn):
    captions = {name: drawn[-1][name][-1].data for name in NAMES}
    for name, caption in captions.items():
        assert caption.endswith(f"Run: {drawn[0].folder.name}, made with seed 5.") and "n = " in caption
        if name not in ("the_idea", "paired_differences"):
            assert "n = 4 easy, 4 hard episodes a cell; unscored: 0." in caption
        assert len(re.findall(r"\bseed\b", caption)) == len(re.findall(r"bootstrap seed 7|made with seed 5", caption))
    for name in ("train_runtime_matrix", "cost_quality", "paired_differences", "tokens_by_turn"):
        assert "95 % interval (BCa bootstrap over tasks, 60 resamples, bootstrap seed 7)" in captions[name]
    assert "n = 4 tasks scored in both cells" in captions["paired_differences"]
    assert "in characters, mean of the cell" in captions["what_fills_the_tokens"]


def test_the_origin_names_the_run_and_its_seeds(tmp_path):
    run = Run(tmp_path / "mine")
    assert figures.origin_text(run, run.evaluations) == "Run: mine."
    run.record("01_generate", {"seed": 1})
    run.record("04_evaluate", {"seed": 2})
    text = "Run: mine, made with seeds 1 in notebook 01, 2 in notebook 04."
    assert figures.origin_text(run, run.evaluations) == text
    assert figures.origin_text(run, "some/where/theirs") == "Downloaded traces: theirs."


def test_a_caption_counts_what_was_not_scored(drawn):
    _, folder, episodes, *tables, _ = drawn
    first = episodes["task_id"] == episodes["task_id"].min()
    late = (episodes["split"] == "easy") & (episodes["model"] == "base") & first
    episodes = episodes.assign(status=np.where(late, "timeout", "completed"))
    drawing = drawings(folder, episodes, *tables)["train_runtime_matrix"]()
    assert drawing.data["unscored"].sum() == 2
    assert "n = 3–4 easy, 4 hard episodes a cell; unscored: 2." in drawing.caption


def test_cost_and_quality_are_the_means_of_the_cells(drawn):
    cells = cells_table(drawn[2], estimates_table(drawn[2], BOOTSTRAP)).set_index(CELL)
    for name, count in (("cost_quality", 16), ("train_runtime_matrix", 12)):
        data = table(drawn, name).set_index(CELL)
        assert len(data) == count
        for column, of_cells in (("score", "score_mean"), ("score_low", "score_low"), ("total_tokens", "total_tokens")):
            assert data[column].to_numpy() == pytest.approx(cells.loc[data.index, of_cells].to_numpy())


def test_the_tokens_of_all_turns_are_those_of_the_episodes(drawn):
    for _, cell in table(drawn, "tokens_by_turn").groupby(CELL):
        own = drawn[2][of_cell(drawn[2], cell.iloc[0])]
        total = (cell["n"] * (cell["completion_tokens"] + cell["prompt_tokens"])).sum()
        assert total == pytest.approx(own["total_tokens"].sum())
        assert cell["n"].tolist() == [(own["turns"] >= turn).sum() for turn in cell["turn"]]


def test_paired_differences_are_of_the_same_task_and_show_their_verdict(drawn, monkeypatch):
    key, data = ["model", "runtime", "split", "task_id"], table(drawn, "paired_differences")
    score = drawn[2].set_index(key)["score"]
    for row in data.to_dict("records"):
        first, second = (score[(*row[side].split("→"), row["split"], row["task_id"])] for side in ("first", "second"))
        assert row["difference"] == pytest.approx(first - second)
    _, written = rendered(drawings(*drawn[1:5])["paired_differences"], monkeypatch)
    for (split, first, second), rows in data.groupby(["split", "first", "second"]):
        row, names = rows.iloc[0], [metrics.cell_name(*cell.split("→")) for cell in (first, second)]
        assert row["mean"] == pytest.approx(rows["difference"].mean())
        assert row["low_95"] <= row["low_90"] <= row["mean"] <= row["high_90"] <= row["high_95"]
        assert f"{split}: {' − '.join(names)}" in written
        shown = f"{row['mean']:+.2f}".replace("-", "−") if round(row["mean"], 2) else "0.00"  # nothing has no sign
        assert f"{shown}: {row['verdict']}" in written
    assert len(data) == 24 and sum("→P − P→S" in text for text in written) == 2


def test_shares_of_errors_and_recoveries_are_those_of_the_tables(drawn):
    data, seen = table(drawn, "errors_and_recovery"), drawn[4]
    errors, recovery = (data[data["part"] == part] for part in ("errors", "recovery"))
    assert set(errors["model"]) == {"persistent", "stateless"}
    for row in errors.to_dict("records"):
        mine = seen.turns[of_cell(seen.turns, row) & (seen.turns["turn"] == row["turn"] - 1)]
        assert row["n"] == len(mine)  # those still running
        assert [row[kind] for kind in ERRORS] == pytest.approx([(mine["error"] == kind).mean() for kind in ERRORS])
    assert errors["missing binding"].max() == 1  # every P→S episode, in its second turn
    assert recovery["n"].sum() == len(seen.recoveries) > 0 and recovery["recovered"].sum() > 0
    for row in recovery.to_dict("records"):
        found = seen.recoveries[of_cell(seen.recoveries, row)].query("recovered")["turns"]
        assert row["recovered"] == len(found) and row["median_turns"] == np.median(found)
        assert (row["low"], row["high"]) == pytest.approx(share_interval(len(found), row["n"]))


def test_what_fills_an_episode_adds_up_to_its_replies(drawn):
    for row in table(drawn, "what_fills_the_tokens").to_dict("records"):
        cell = drawn[1] / f"{row['model']}_{row['runtime']}_{row['split']}"
        paths = sorted(cell.glob("knapsack/*.trace.json"))
        replies = sum(len(turn.text) for path in paths for turn in read_trace(path).turns)
        assert sum(row[part] for part in PARTS) == pytest.approx(replies / len(paths))
        again, code = row["restated"] + row["repeated"], row["restated"] + row["repeated"] + row["new"]
        assert math.isnan(row["redundancy"]) if code == 0 else row["redundancy"] == pytest.approx(again / code)


def test_an_episode_without_a_turn_counts_in_the_means(drawn):
    episodes, conduct = drawn[2], drawn[4]
    others = episodes["task_id"] != episodes["task_id"].min()
    fewer = replace(conduct, turns=conduct.turns[conduct.turns["task_id"] != episodes["task_id"].min()])
    four, three = (conduct_figures.what_fills_the_tokens(of, fewer).data["new"] for of in (episodes, episodes[others]))
    assert four.to_numpy() == pytest.approx(0.75 * three.to_numpy())


def test_the_idea_shows_two_real_rollouts(drawn):
    data, folder = table(drawn, "the_idea"), drawn[1]
    cells = {runtime: folder / f"persistent_{runtime}_{data['split'][0]}" for runtime in ("persistent", "stateless")}
    traces = {runtime: read_trace(trace_path(cell, data["task_id"][0])) for runtime, cell in cells.items()}
    assert traces["persistent"].score >= 0.5 and traces["persistent"].finish_reason == "finish_tool"
    for row in data.to_dict("records"):
        for runtime in traces if row["runtime"] == "both" else [row["runtime"]]:
            turn = traces[runtime].turns[row["turn"] - 1]
            source = {"words": turn.text, "code": turn.code}
            source["output"] = turn.observation.error or turn.observation.output or "(prints nothing)"
            assert row["text"].removesuffix("…") in source[row["part"]]
    wrong = data[(data["runtime"] == "stateless") & (data["turn"] == 2) & (data["part"] == "output")]
    assert " ".join(wrong["text"]) == "NameError: name 'look' is not defined"


def test_the_idea_is_chosen_by_its_rule(drawn):
    _, folder, episodes, *_ = drawn
    pairs = idea.find_pairs(episodes, folder)
    best = [pair.traces[0].score for pair in pairs]
    assert len(pairs) > 1 and best == sorted(best, reverse=True) and all(pair.same for pair in pairs)
    assert {(pair.bound, pair.missing, pair.name) for pair in pairs} == {(0, 1, "look")}
    worse = episodes.assign(score=np.where(episodes["task_id"] == pairs[0].task_id, 0.4, episodes["score"]))
    assert pairs[0].task_id not in {pair.task_id for pair in idea.find_pairs(worse, folder)}
    with pytest.raises(style.NothingToShow, match="no two rollouts"):
        idea.the_idea(episodes.assign(missing_bindings=0), folder)


def test_rollouts_that_differ_and_any_text_of_a_model_fit_the_page(drawn, monkeypatch, tmp_path):
    pair = idea.find_pairs(drawn[2], drawn[1])[0]
    kept, lost = pair.traces
    code = "\n".join(["\tlook = '$a_b$' * 99  # " + 60 * "x"] * 30)
    strange = f"Costs $5 and $6, \x07 with\ttabs.\n```python\n{code}\n```"
    error = Observation(output="", error_type="KeyError", error_text="$" * 300, error_source="code")
    turns = [replace(lost.turns[0], text=strange, code=code, observation=Observation(output="$x_1$\n" * 9))]
    turns += [lost.turns[1], replace(lost.turns[1], text=strange, code=code, observation=error), *lost.turns[3:]]
    lost = replace(lost, turns=turns, finish_reason="max_turns")
    apart = replace(pair, traces=(replace(kept, turns=kept.turns[:2]), lost), same=False)
    drawing, _ = rendered(lambda: style.Drawing(*idea.draw_pair(apart), ""), monkeypatch)
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
    _, folder, *tables, _ = drawn
    for name in ("the_idea", "cost_quality", "what_fills_the_tokens"):
        origin = f"Run: {drawn[0].folder.name}, made with seed 5."
        figures.save(tmp_path, name, drawings(folder, *tables)[name], origin)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (drawn[0].figures / path.name).read_bytes(), path.name


def changed(drawn, change):
    """The folder of cells and the tables as ``change`` makes each of them."""
    _, folder, episodes, turns, conduct, _ = drawn
    tables = (conduct.turns, conduct.recoveries, conduct.failures)
    return folder, change(episodes), change(turns), Conduct(*map(change, tables), conduct.unit)


@pytest.mark.parametrize("model", ["base", "persistent"])
def test_one_cell_and_one_episode_can_be_drawn(drawn, model, monkeypatch):
    key = {"split": "easy", "model": model, "runtime": "stateless", "task_id": drawn[2]["task_id"].min()}
    one = changed(drawn, lambda frame: frame[(frame[list(key)] == list(key.values())).all(axis=1)])
    for name, draw in drawings(*one).items():
        drawing, _ = rendered(draw, monkeypatch)
        assert (drawing is None) == (name in ("the_idea", "paired_differences"))
        assert drawing is None or all(ax.has_data() for ax in drawing.figure.axes)


def test_variants_of_an_adapter_are_named_by_their_regime():
    names = ("persistent-matched", "stateless-matched", "mixed", "persistent", "glm-4")
    assert [style.cell_label(name, "stateless")[:-2] for name in names] == [
        "P-matched",
        "S-matched",
        "mixed",
        "P",
        "glm-4",
    ]


def test_other_models_and_all_runtimes_fit_the_page(drawn, monkeypatch):
    names = ("base", "meta-llama--Llama-3.1-8B-Instruct", "glm-4")

    def relabelled(frame):
        one = frame[(frame[CELL] == ["easy", 25, "persistent", "stateless"]).all(axis=1)]
        return pd.concat([one.assign(model=model, runtime=runtime) for model in names for runtime in metrics.RUNTIMES])

    found = {name: rendered(draw, monkeypatch) for name, draw in drawings(*changed(drawn, relabelled)).items()}
    assert found.pop("the_idea")[0] is None
    assert set(found.pop("paired_differences")[0].data["first"]) == {f"{name}→persistent" for name in names[1:]}
    assert all(set(drawing.data["runtime"]) == set(metrics.RUNTIMES) for drawing, _ in found.values())
    drawing, texts = found["cost_quality"]
    assert "C+: one that is announced" in drawing.caption
    assert len(re.findall("meta-lla…truct→", " ".join(texts))) == len(metrics.RUNTIMES) and "meta-lla…truct→C" in texts
    looks = style.looks((name, runtime) for name in names for runtime in metrics.RUNTIMES)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 3 * len(metrics.RUNTIMES)


def test_two_caps_stand_side_by_side_and_one_is_not_named(drawn, monkeypatch):
    def twice(frame):
        return pd.concat([frame, frame.assign(cap=80)], ignore_index=True)

    _, *two = changed(drawn, twice)
    for (name, draw), alone in zip(drawings(drawn[1], *two).items(), drawings(*drawn[1:5]).values(), strict=True):
        if name == "the_idea":  # it reads traces
            continue
        drawing, texts = rendered(draw, monkeypatch)
        assert set(drawing.data["cap"]) == {25, 80} and drawing.figure.get_figheight() <= 8.5
        assert any(re.search(r"hard,?\scap 80", text) for text in texts)
        assert ("episodes a cell under each cap (25, 80)" in drawing.caption) == (name != "paired_differences")
        drawing, texts = rendered(alone, monkeypatch)
        assert not any("cap 25" in text for text in [drawing.caption, *texts])
    values = side_by_side(estimates_table(two[0], BOOTSTRAP), ["x", "y", "z"]).values
    drawing, texts = rendered(lambda: quality.seeds(values, [["x", "y"]], [], BOOTSTRAP), monkeypatch)
    assert texts.count("easy, cap 80") == 2 and len(drawing.figure.axes) == 8


def test_what_was_not_played_takes_no_room(drawn, monkeypatch):
    aligned = changed(drawn, lambda frame: frame[(frame["model"] == frame["runtime"]) & (frame["split"] == "hard")])
    captions = {}
    for name, draw in drawings(*aligned).items():
        drawing, texts = rendered(draw, monkeypatch)
        if drawing:
            captions[name] = drawing.caption
            assert all(ax.has_data() for ax in drawing.figure.axes)
            assert not any("easy" in text or "→P − P→S" in text for text in texts)
    assert "Blank: no scored episode." in captions["train_runtime_matrix"] and "Arrows" not in captions["cost_quality"]


@pytest.mark.parametrize("tokens", [0, 906])
def test_cells_that_cost_alike_or_nothing_can_be_read(drawn, tokens, monkeypatch):
    _, folder, episodes, *tables, _ = drawn
    alike = drawings(folder, episodes.assign(total_tokens=tokens), *tables)["cost_quality"]
    drawing, texts = rendered(alike, monkeypatch)
    assert set(drawing.data["total_tokens"]) == {tokens} and ("1k" if tokens else "1") in texts


def test_a_turn_that_few_reach_is_in_the_data_only(drawn):
    _, _, episodes, turns, *_ = drawn
    longer = turns[(turns["model"] == "persistent") & (turns["turn"] == 1)].head(1)
    drawing = conduct_figures.tokens_by_turn(episodes, pd.concat([turns, longer.assign(turn=8)]), BOOTSTRAP)
    assert drawing.data["turn"].max() == 9 and "at least 3" in drawing.caption
    assert max(line.get_xdata().max() for line in drawing.figure.axes[0].lines if line.get_xdata().size) < 9


def test_without_a_task_at_hand_there_is_no_panel_of_recovery(drawn, monkeypatch):
    unknown = replace(drawn[4], recoveries=drawn[4].recoveries.head(0))
    drawing, _ = rendered(lambda: conduct_figures.errors_and_recovery(drawn[2], unknown), monkeypatch)
    assert "no recovery to show" in drawing.caption and set(drawing.data["part"]) == {"errors"}


def test_nothing_scored_is_said(drawn, tmp_path):
    run, (folder, _, turns, conduct) = Run(tmp_path), changed(drawn, lambda frame: frame.head(0))
    run.figures.mkdir(parents=True)
    (run.figures / "cost_quality.png").write_bytes(b"of an earlier run")
    entries = draw_all(run, folder, drawn[2].assign(status="error", score=math.nan), turns, conduct)
    assert all(len(shown) == 1 and shown[0].data.endswith(".") for shown in entries.values())
    assert [path.name for path in run.figures.iterdir()] == ["manifest.json"]


def side_by_side(numbers, runs):
    several = pd.concat([numbers.assign(run=run) for run in runs], ignore_index=True)
    return SideBySide("", {}, several, [["x", "y"]], ["They differ."], {}, pd.DataFrame())


@pytest.mark.parametrize("beside", [0, 6])
def test_several_runs_show_the_means_of_each(drawn, beside, monkeypatch):
    numbers, runs = estimates_table(drawn[2], BOOTSTRAP), ["x", "y", *(f"another-rank-{k}" for k in range(beside))]
    values = side_by_side(numbers, runs).values
    drawing, texts = rendered(lambda: quality.seeds(values, [["x", "y"]], [], BOOTSTRAP), monkeypatch)
    assert list(drawing.data["run"].unique()) == runs and "teacher" not in set(drawing.data["model"])
    means = drawn[2].groupby(CELL)[["score", "total_tokens"]].mean()
    for row in drawing.data.to_dict("records"):
        assert row["value"] == pytest.approx(means.loc[tuple(row[name] for name in CELL), row["quantity"]])
    assert ("x, y" in texts) == bool(beside)  # a legend, where there is more than one group
    assert "bootstrap seed 7" in drawing.caption and "n = 4 easy, 4 hard episodes a cell." in drawing.caption
    with pytest.raises(style.NothingToShow, match="No run has a scored episode"):
        quality.seeds(values.assign(n=0), [["x", "y"]], [], BOOTSTRAP)


def test_a_figure_of_several_runs_is_not_said_to_be_of_one(drawn, tmp_path):
    several = side_by_side(estimates_table(drawn[2], BOOTSTRAP), ["x", "y"])
    entries = draw_all(Run(tmp_path / "x"), *drawn[1:5], several)
    caption = entries["seeds"][1].data
    assert caption.startswith("Means of the runs x, y, from") and "They differ." in caption and "Run:" not in caption
    assert entries["cost_quality"][1].data.endswith("Downloaded traces: evaluations.")


def test_publish_leaves_exactly_the_runs_figures(drawn, tmp_path):
    run, folder, broken = drawn[0], tmp_path / "figures", Run(tmp_path / "broken")
    folder.mkdir()
    write_text(folder / "old.png", "from an earlier version")
    figures.publish(run, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in run.figures.iterdir()}
    write_text(folder / "stray.svg", "<svg/>")
    (folder / "cost_quality.csv").unlink()
    assert figures.orphans(folder) == ["cost_quality.csv", "stray.svg"]
    with pytest.raises(FileNotFoundError, match="manifest"):
        figures.publish(broken, tmp_path / "x")
    shutil.copytree(folder, broken.figures)
    with pytest.raises(ValueError, match=r"stray\.svg"):
        figures.publish(broken, tmp_path / "x")

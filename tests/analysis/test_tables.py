import math
import re

import pandas as pd
import pytest
import scripted
from scripted import rows

from knapsack import traces
from knapsack.analysis import metrics, tables
from knapsack.analysis.conduct import read_conduct
from knapsack.analysis.estimates import cells_table, estimates_table
from knapsack.analysis.intervals import Bootstrap
from knapsack.models import load_tokenizer
from knapsack.prompts import render
from knapsack.runs import CorruptFileError, Run
from knapsack.runtime import KINDS
from knapsack.tasks import sample_split, write_tasks
from knapsack.training_data import keep_pairs, training_row

FEW = Bootstrap(50)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = scripted.write_run(tmp_path_factory.mktemp("run"), n=4, splits=("easy",))
    episodes, _ = metrics.read_cells(folder / "evaluations")
    found = estimates_table(episodes, FEW)
    return episodes, cells_table(episodes, found), found


def table_two(episodes):
    found = estimates_table(episodes, FEW)
    return tables.table_two(cells_table(episodes, found), found)


def row_of(table, **wanted):
    chosen = table.text
    for name, value in wanted.items():
        chosen = chosen[chosen[name] == value]
    return chosen.iloc[0]


# Numbers as text


def test_numbers_are_written_for_readers():
    shown = [tables.number(value, 1) for value in (1234.56, -1234.56, -0.04, 0, None, math.nan, "< 8")]
    assert shown == ["1,234.6", "−1,234.6", "0.0", "0.0", "", "", "< 8"]
    assert tables.between(0.5, 0.25, 0.75, 1, 100) == "50.0 [25.0–75.0]"
    assert tables.between(0.1, -0.25, 0.75, 2) == "0.10 [−0.25 to 0.75]"
    assert tables.between(3, math.nan, math.nan) == "3" and tables.between(math.nan, 1, 2) == ""
    assert [tables.probability(p) for p in (0.2, 0.0004, 0.001, math.nan)] == ["0.200", "< 0.001", "0.001", ""]
    assert [tables.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


# The two forms

NASTY = "a_b & 5% of $x$ #1 {y} ~^\\ <script>alert('z')</script> | π→P"


@pytest.fixture
def nasty():
    return tables.Table(pd.DataFrame({NASTY: [NASTY, "b"], "n": ["1", "2"]}), NASTY, frozenset({(1, "n")}))


def test_latex_is_escaped_and_balanced(nasty):
    text = tables.latex(nasty, "name").replace("π", "")
    assert text.isascii() and text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.count(r"a\_b \& 5\% of \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}") == 3
    assert text.count("$<$script$>$") == 3 and "$\\to$P" in text and r"\label{tab:name}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")] == [1, 1, 1]
    unescaped = re.sub(r"\\[\\{}$&%#_]", "", text)
    assert unescaped.count("{") == unescaped.count("}") and unescaped.count("$") % 2 == 0
    assert not re.search(r"[%#~^]", unescaped) and r"\bfseries 2" in text and r"\bfseries 1" not in text


def test_markdown_keeps_its_columns(nasty):
    header, line, first, second, rest = tables.markdown(nasty).split("\n")
    assert [len(re.findall(r"(?<!\\)\|", text)) for text in (header, line, first, second)] == [3] * 4
    assert line == "| ---: | ---: |" and second == "| b | **2** |" and rest == ""
    assert "| --- | ---: |" in tables.markdown(tables.Table(pd.DataFrame({"split": ["a"], "n": ["1"]}), ""))


def test_saving_writes_both_forms_and_the_numbers_and_clearing_removes_the_forms(tmp_path, nasty):
    run, numbers = Run(tmp_path), pd.DataFrame({"x": [0.25, math.nan]})
    shown = tables.save(run, "one", nasty, numbers)
    assert {path.name for path in run.tables.iterdir()} == {"one.md", "one.tex"}
    assert shown == (run.tables / "one.md").read_text() and shown.endswith(f"\n{NASTY}\n")
    assert (run.results / "one.csv").read_text() == 'x\n0.25\n""\n'
    before = {path.name: path.read_bytes() for path in run.tables.iterdir()}
    tables.save(run, "one", nasty, numbers)
    assert {path.name: path.read_bytes() for path in run.tables.iterdir()} == before
    (run.tables / "one.html").touch()  # of an earlier version
    tables.clear(run)
    empty = tables.Table(nasty.text.head(0), "")
    assert tables.save(run, "two", empty, numbers, "Nothing.") == "Nothing."
    assert list(run.tables.iterdir()) == [] and (run.results / "two.csv").exists()


# Table 2


def test_table_two_holds_the_means_of_the_episodes(played):
    episodes, cells, found = played
    table = tables.table_two(cells, found)
    for (model, runtime), name in ((("persistent", "stateless"), "P→S"), (("base", "persistent"), "base→P")):
        own = episodes[(episodes["model"] == model) & (episodes["runtime"] == runtime)]
        row, mean = row_of(table, cell=name), own.mean(numeric_only=True)
        assert row["n"] == "4" and row["unscored"] == "0"
        assert row["score %"].split(" ")[0] == f"{100 * mean['score']:.1f}"
        assert row["solved %"] == f"{100 * mean['solved']:.0f}" and row["turns"] == f"{mean['turns']:.1f}"
        for kind in ("prompt", "completion", "total"):
            assert row[f"{kind} tokens"].split(" ")[0] == f"{mean[f'{kind}_tokens']:,.0f}"
        assert row["seconds"] == f"{mean['seconds']:.1f}"
        assert row["points / 1k tokens"] == f"{1e5 * mean['score'] / mean['total_tokens']:.2f}"


def test_the_paper_stands_below_the_cells_that_it_reports(played):
    episodes, cells, found = played
    text = tables.table_two(cells, found).text
    below = {text["cell"][index - 1]: text.loc[index] for index in text.index[text["cell"] == "paper"]}
    assert list(below) == ["base→P", "base→S", "P→P", "S→S"]
    assert below["S→S"].drop(["split", "cell"]).tolist() == ["100", "", *[""] * 5, "58,814", "145.5", "1.39"]
    assert below["base→P"]["score %"] == "< 8" and below["base→P"]["solved %"] == "0"
    assert "paper" not in set(table_two(episodes.assign(split="medium")).text["cell"])


def best(cells):
    """Bold (cell, title) of a table of cells given as (model, score, tokens)."""
    made = [rows(model, "persistent", [score] * 2, total_tokens=tokens) for model, score, tokens in cells]
    table = table_two(pd.concat(made))
    return {(table.text["cell"][row], title) for row, title in table.bold}


def test_best_is_by_column_and_ties_are_all_bold():
    models = [("persistent", 0.5, 300), ("stateless", 0.5001, 200), ("mine", 0.2, 200)]
    found = best([("base", 0.0, 10), *models, ("teacher", 1.0, 50)])
    assert {cell for cell, title in found if title == "score %"} == {"P→P", "S→P"}  # both print 50.0
    assert {cell for cell, title in found if title == "total tokens"} == {"S→P", "mine→P"}
    assert {cell for cell, title in found if title == "points / 1k tokens"} == {"S→P"}
    assert not any(cell.startswith(("base", "teacher", "paper")) for cell, _ in found)


def test_a_lone_cell_is_not_best_nor_are_equal_ones():
    assert best([("base", 0.1, 10), ("persistent", 0.5, 300)]) == set()
    found = best([("mine", 0.5, 300), ("yours", 0.6, 300)])
    assert {cell for cell, _ in found} == {"yours→P"} and "total tokens" not in {title for _, title in found}


def test_a_cell_without_scores_is_empty_not_nan(played):
    text = table_two(played[0].assign(status="error", score=math.nan)).text
    own = text[text["cell"] != "paper"]
    assert set(own["unscored"]) == {"4"} and set(own["score %"]) == set(own["total tokens"]) == {""}
    assert not text.map(lambda value: "nan" in value).any(axis=None)


# Table 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three of six pairs of the rule-based teacher, and what a run holds of them."""
    run, sides = Run(tmp_path_factory.mktemp("trained")), {kind: [] for kind in KINDS}
    for task in sample_split("train", 6, 0, scripted.CONFIG):
        for kind in KINDS:
            done = scripted.play(task, kind, scripted.texts_of("teacher", kind, task, 0), 6)
            traces.write_episode(run.traces(kind), done, "teacher")
            sides[kind].append(traces.read_trace(traces.trace_path(run.traces(kind), task.task_id)))
    kept, _ = keep_pairs(*sides.values())
    facts = tables.training_facts(kept[:3], 6, len(kept), load_tokenizer("nano"))
    metrics.write_csv(run.results / "training.csv", facts)
    return run, kept


def test_table_one_is_about_the_traces_trained_on(trained):
    run, kept = trained
    facts = tables.read_facts(run)
    assert len(facts) == 6
    for kind, side in zip(KINDS, zip(*kept[:3], strict=True), strict=True):
        own = facts[facts["runtime"] == kind]
        assert list(own["task_id"]) == [trace.task_id for trace in side]
        lengths = [len(render(training_row(t)["messages"], load_tokenizer("nano")).input_ids) for t in side]
        assert list(own["trace_tokens"]) == lengths and list(own["score"]) == pytest.approx([t.score for t in side])
        spent = [sum(turn.prompt_tokens + turn.completion_tokens for turn in t.turns) for t in side]
        assert list(own["episode_tokens"]) == spent and list(own["turns"]) == [len(t.turns) for t in side]
        called = [sum(len(turn.observation.tool_calls) for turn in t.turns if turn.observation) for t in side]
        assert list(own["tool_calls"]) == called
        weights = [t.metrics["weight_used"] / t.metrics["capacity"] for t in side]
        assert list(own["capacity_used"]) == pytest.approx(weights) and max(weights) <= 1
        assert list(own["inspected"]) == [t.metrics["inspected_count"] for t in side]
        row = row_of(tables.table_one(facts), **{"traces of": kind})
        assert row["n"] == "3" and row["trace tokens"] == f"{own['trace_tokens'].mean():,.0f}"
        assert row["capacity used %"] == f"{100 * own['capacity_used'].mean():.1f}"
        assert row["longest"] == f"{own['trace_tokens'].max():,}"
        assert row["pairs kept"] == f"{len(kept)} of 6 ({len(kept) / 6:.1%})"
    paper = tables.table_one(facts).text.iloc[3]
    assert paper[["traces of", "n", "trace tokens", "longest"]].tolist() == ["paper", "1,000", "10.7k", "16.2k"]
    assert (paper["tool calls"], paper["episode tokens"]) == ("", "55,516")


def test_facts_that_are_missing_or_others_are_told_apart(tmp_path):
    run = Run(tmp_path)
    assert tables.read_facts(run) is None
    metrics.write_csv(run.results / "training.csv", pd.DataFrame({"runtime": ["persistent"]}))
    with pytest.raises(CorruptFileError, match="run notebook 02 again"):
        tables.read_facts(run)


# Table 3


def test_table_three_counts_what_a_cap_costs(tmp_path):
    run, cells = Run(tmp_path), [("persistent", "stateless"), ("base", "stateless")]
    scripted.write_run(run.folder, n=3, splits=("easy",), cells=cells, caps=(6, 25))
    write_tasks(run.tasks("easy"), sample_split("easy", 3, 0, scripted.CONFIG))
    episodes, _ = metrics.read_cells(run.evaluations)
    turns = read_conduct(run.evaluations, episodes).turns
    table = tables.table_three(cells_table(episodes), episodes, turns)
    assert list(table.text["cell"]) == ["P→S", "P→S", "paper"] and list(table.text["cap"]) == ["6", "25", "25"]
    own = episodes[(episodes[["model", "cap"]] == ["persistent", 6]).all(axis=1)]
    row = row_of(table, cap="6")
    assert row["cap hits %"] == f"{100 * own['cap_hits'].sum() / own['turns'].sum():.0f}" != "0"
    assert row["NameErrors"] == f"{own['name_errors'].mean():.1f}" != "0.0"
    looked = turns[(turns[["model", "cap"]] == ["persistent", 6]).all(axis=1)]["inspect_calls"].sum() / 3
    assert row["inspect calls"] == f"{looked:.1f}" and float(row["restarts"]) > 0
    assert sum(float(row[f"{end} %"]) for end in ("finished", "turn limit", "broken off")) == pytest.approx(100, abs=1)
    paper = row_of(table, cell="paper")
    assert (paper["score %"], paper["total tokens"], paper["restarts"]) == ("7", "498,000", "")

"""What ``make outputs`` puts into the repository: the claims in README, tables, example pages, links to them."""

import json
import math
import re

import nbformat
import pandas as pd
import pytest

from knapsack.analysis import claims, publish, tables
from knapsack.runs import Run, write_text

LINK = re.compile(r"\]\((?!https?:|#|data:)([^)\s]+)\)")


@pytest.fixture
def analysed(tmp_path):
    """A run with two claims and an example page; a README with the marks."""
    run = Run(tmp_path / "run")
    row = ["P→S scores less", "v3", "easy", 25, "points", 0.5, 9, 0.4, 0.3, 0.5, claims.REPRODUCED, "in size", "why"]
    row += ["0, 1", 0.37, 0.43]
    none = ["P→P and S→S", "v1", "easy", 80, "points", math.nan, 0, *[math.nan] * 3, claims.NOT_TESTABLE, "", "no"]
    none += ["", math.nan, math.nan]
    table = pd.DataFrame([row, none], columns=claims.COLUMNS)
    tables.save(run, "claims", claims.claims_shown(table), table)
    write_text(run.results / "examples" / "code-error.md", "# Code error\n")
    write_text(tmp_path / "README.md", f"# Before\n\n{publish.START}\nold\n{publish.END}\n\nAfter 1 %\n")
    return run, table


def test_publishing_puts_the_runs_claims_into_the_readme(analysed, tmp_path):
    run, table = analysed
    write_text(tmp_path / "tables" / "of_an_earlier_run.md", "")
    for _ in range(2):
        publish.publish_claims(run, tmp_path / "tables", tmp_path / "README.md")
        readme = (tmp_path / "README.md").read_text()
        assert readme == f"# Before\n\n{publish.readme_block(table)}\n\nAfter 1 %\n" and "old" not in readme
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"claims.md", "claims.tex", "claims.csv"}


def test_what_cannot_be_published_is_refused(analysed, tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 05 first"):
        publish.publish_claims(Run(tmp_path / "none"), tmp_path / "tables", tmp_path / "README.md")
    write_text(tmp_path / "README.md", "no marks")
    with pytest.raises(ValueError, match="needs the lines"):
        publish.publish_claims(analysed[0], tmp_path / "tables", tmp_path / "README.md")
    assert not (tmp_path / "tables").exists()


def test_published_links_lead_to_the_published_pages(analysed, tmp_path):
    text = "* **code error**: [P→S](../results/examples/code-error.md), turn 2, [beside](../episodes.html#a/b)\n"
    shown = nbformat.v4.new_output("execute_result", {"text/markdown": text}, execution_count=3)
    cells = [nbformat.v4.new_markdown_cell("A"), nbformat.v4.new_code_cell("1", execution_count=1)]
    cells += [nbformat.v4.new_code_cell("2", execution_count=3, outputs=[shown])]  # 2 was the injected parameters'
    notebook = tmp_path / "notebooks" / "05.ipynb"
    write_text(notebook, nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    write_text(tmp_path / "figures" / "examples" / "of-an-earlier-run.md", "")
    publish.publish_examples(analysed[0], tmp_path / "figures", notebook)
    _, first, second = nbformat.read(notebook, 4).cells
    assert [first.execution_count, second.execution_count, second.outputs[0].execution_count] == [1, 2, 2]
    link, beside = LINK.findall(second.outputs[0].data["text/markdown"])
    assert [(notebook.parent / link).resolve()] == [p.resolve() for p in (tmp_path / "figures" / "examples").iterdir()]
    assert (notebook.parent / link).read_text() == "# Code error\n" and beside == "../figures/episodes.html#a/b"


def test_the_published_pages_lead_to_the_examples_beside_them(analysed, tmp_path):
    run, _ = analysed
    write_text(run.page, '<a href="results/examples/code-error.md">')
    with pytest.raises(FileNotFoundError, match="make it with python -m"):
        publish.publish_pages(run, tmp_path / "figures")
    write_text(run.episodes, '<a href="report.html">')
    publish.publish_pages(run, tmp_path / "figures")
    assert (tmp_path / "figures" / "report.html").read_text() == '<a href="examples/code-error.md">'
    assert (tmp_path / "figures" / "episodes.html").read_text() == '<a href="report.html">'


# What is committed


def test_the_repositorys_readme_shows_the_committed_claims(checkout):
    """``make outputs`` puts both there, from one run, and the notebook has the same."""
    table = claims.read_claims(checkout / "figures" / "tables" / "claims.csv")
    assert publish.readme_block(table) in (checkout / "README.md").read_text(encoding="utf-8")
    shown = claims.claims_shown(table)
    text = (checkout / "figures" / "tables" / "claims.md").read_text(encoding="utf-8")
    assert text == f"{tables.markdown(shown)}\n{shown.caption}\n"
    notebook = json.loads((checkout / "notebooks" / "05_analysis.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert text in ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]


@pytest.mark.parametrize("step", ["01_generate", "02_traces", "03_finetune", "04_evaluate", "05_analysis"])
def test_the_links_of_a_committed_notebook_lead_somewhere(checkout, step):
    path = checkout / "notebooks" / f"{step}.ipynb"
    texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    texts += [output.get("data", {}).get("text/markdown", "") for output in outputs]
    links = LINK.findall(re.sub(r"^(`{3,}).*?^\1$", "", "\n".join(texts), flags=re.DOTALL | re.MULTILINE))
    assert [link for link in links if not (path.parent / link.partition("#")[0]).exists()] == []
    assert links or step != "05_analysis"

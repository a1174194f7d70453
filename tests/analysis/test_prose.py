"""Nothing is told that nobody computed: numbers in prose, figures and tables without a producer, statistics by hand."""

import ast
import pkgutil
import re

import nbformat
import pytest

from knapsack import analysis
from knapsack.analysis import figures, several_runs, tables
from knapsack.analysis.publish import END, START

NUMBER = re.compile(r"(?<!\w)(?<!\w[-.])\d[\d,.]*(?<![,.])")
# Phrases with a number that is no result of a run, with what it is.
IN_NOTEBOOK = {"5 · What happened": "a title", "Table 1:": "a title", "Table 2:": "a title", "be 0.": "no effect"}
IN_README = {
    "arXiv 2603.01209": "the paper",
    "Python 3.11": "a version",
    "Llama 3": "a version",
    "License 2.0": "a version",
    "4-bit": "a format",
    "8 GB": "memory of the machine",
    "24 GB GPU": "memory",
    "80 GB GPU": "memory",
    "1 · tasks": "a notebook",
    "2 · traces": "a notebook",
    "3 · fine-tuning": "a notebook",
    "4 · evaluation": "a notebook",
    "5 · analysis": "a notebook",
    "notebook 4": "a notebook",
    "notebook 5": "a notebook",
    "95 % interval": "a level",
    "Hard of 40 to 50 items": "a configuration of tasks",
    "25 to 50 items": "the sizes of training tasks",
    "20 turns at most": "a parameter",
    "the paper's 40": "the paper's parameter",
    '"completed, score 0"': "what other harnesses write",
}
LIBRARY = {name for _, name, _ in pkgutil.iter_modules(analysis.__path__)}
PLAIN = {"Markdown", "display", "globals", "map", "open_run", "parameters", "perf_counter", "record", "round", "show"}
SUMS = {"groupby", "sum"}  # of counts: how many were scored, how many not


@pytest.fixture(scope="module")
def notebook(pytestconfig):
    return nbformat.read(pytestconfig.rootpath / "notebooks" / "05_analysis.ipynb", 4)


def code(notebook):
    """The syntax of every code cell but the parameters."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [ast.parse(cell.source) for cell in cells if "parameters" not in cell.metadata.get("tags", [])]


def numbers(text, allowed=()):
    """Numbers in Markdown, outside the allowed phrases, code, links' targets and HTML's tags and comments."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->|<[a-z/][^>]*>", " ", text, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text)
    for phrase in allowed:
        text = re.sub(rf"(?<![\w.]){re.escape(phrase)}", " ", text, flags=re.IGNORECASE)
    return NUMBER.findall(text)


def test_numbers_are_found_where_they_are_typed_and_nowhere_else():
    told = "Of 600 pairs 91.8 % pass,\n-1,109 in theirs. [x9](y/8) `7` <!-- 6 --> P5, Qwen3-8B.\n```\n4\n```\n2\nof 3"
    assert numbers(told, ["2 of"]) == ["600", "91.8", "1,109", "3"]
    assert numbers("12 of 3 and 2 OF", ["2 of"]) == ["12", "3"]


def test_notebook_05_types_no_result(notebook):
    told = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert numbers(told, IN_NOTEBOOK) == []


def test_the_readme_types_no_result(checkout):
    before, rest = (checkout / "README.md").read_text(encoding="utf-8").split(START)
    assert numbers(before + rest.split(END)[1], IN_README) == []


def test_notebook_05_shows_no_text_with_a_typed_number(notebook):
    for tree in code(notebook):
        texts = [str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert [text for text in texts if re.search(r"(?<!\w)\d", text) and text not in ("05_analysis", "1")] == []
        assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))  # sentences are the library's


def calls(notebook):
    """(what, name) of every call: ``what`` is the module's name, or empty."""
    for tree in code(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                owner = node.func.value if isinstance(node.func, ast.Attribute) else None
                name = node.func.attr if owner is not None else node.func.id
                yield owner.id if isinstance(owner, ast.Name) and owner.id in LIBRARY else "", name


def test_what_notebook_05_computes_are_functions_with_a_test(notebook, checkout):
    tested = "\n".join(path.read_text(encoding="utf-8") for path in sorted((checkout / "tests").rglob("test_*.py")))
    for module, name in calls(notebook):
        if module:
            assert re.search(rf"\b{name}\b", tested), f"{module}.{name} occurs in no test"
        else:
            assert name in PLAIN | SUMS, f"{name} is computed in the notebook"


def test_notebook_05_does_no_arithmetic(notebook):
    for tree in code(notebook):
        found = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]
        found = [node for node in found if ast.unparse(node) != "time.perf_counter() - started"]
        assert {type(node.op) for node in found} <= {ast.Div, ast.BitOr}  # of paths; of types
        assert all(isinstance(node.right, ast.Constant) for node in found), ast.unparse(tree)


def shown_tables(notebook):
    """Names of the tables that notebook 05 makes."""
    names = set(several_runs.CAPTIONS)
    for tree in code(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "show":
                names.add(ast.literal_eval(node.args[0]))
    return names


def test_every_committed_table_has_a_producer_and_every_form(notebook, checkout):
    made = shown_tables(notebook)
    found = {path.name for path in (checkout / "figures" / "tables").iterdir()} - {"claims.csv"}
    assert {name.rsplit(".", 1)[0] for name in found} <= made
    stems = {name.removesuffix(".md") for name in found if name.endswith(".md")}
    assert found == {f"{stem}.{end}" for stem in stems for end in tables.FORMATS}
    assert {"table1", "table2", "claims"} <= stems


def test_every_committed_figure_has_a_producer_and_its_place(notebook, checkout):
    folder = checkout / "figures"
    assert figures.orphans(folder) == []
    drawn = {path.stem for path in folder.glob("*.png") if not path.stem.startswith("beyond-")}  # of "beyond"
    keys = {
        ast.literal_eval(node.slice)
        for tree in code(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "drawn"
    }
    assert drawn <= keys and "the_idea" in keys


def test_readme_shows_only_figures_that_are_there(checkout):
    text = (checkout / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^]]*\]\(([^)]*)\)|<img src=\"([^\"]*)\"", text)
    assert named and all((checkout / "".join(name)).is_file() for name in named)

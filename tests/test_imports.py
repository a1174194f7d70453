"""The house: imports go one way, each room says at its door who needs it, and numbers need no plotting, nor any file a
package that is optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import CHECKOUT

LIBRARY = CHECKOUT / "knapsack"
ROOMS = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}


def modules(path: Path, top_only: bool = False) -> set[str]:
    """What the file imports, anywhere in it or at its top level."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Names right below ``knapsack`` that the file imports."""
    return {name.split(".")[1] for name in modules(path, top_only) if name.startswith("knapsack.")}


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.py")), ids=lambda path: path.name)
def test_core_needs_no_room_but_the_sandbox(path):
    assert imported(path, top_only=True) & ROOMS <= {"sandbox"}


def test_only_the_analysis_and_the_page_made_of_it_import_the_analysis():
    above = {"analysis", "report"}
    outside = [path for path in LIBRARY.rglob("*.py") if above.isdisjoint(path.relative_to(LIBRARY).parts)]
    assert [path for path in (*outside, CHECKOUT / "run_notebooks.py") if "analysis" in imported(path)] == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_who_needs_it(room):
    text = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text(encoding="utf-8")))
    assert text.startswith("For ")


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_what_is_optional_is_imported_where_it_is_needed(path):
    optional = {"bitsandbytes", "httpx2", "inspect_ai", "openai", "unsloth", "unsloth_zoo"}
    assert {name.split(".")[0] for name in modules(path, top_only=True)} & optional == set()


def test_claims_are_judged_without_a_plotting_library():
    program = "import sys, knapsack.analysis.claims; print(sorted({'matplotlib', 'seaborn'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert run.stdout == "[]\n"

"""What the repository shows of a run: figures, tables, pages, examples, the claims in README, notebook 05's links.

    python -m knapsack.analysis.publish runs/nano

``make outputs`` does it after putting the executed notebooks into notebooks/.
"""

import sys
from pathlib import Path

import nbformat
import pandas as pd

from knapsack.analysis import excerpts, figures
from knapsack.analysis.claims import claims_shown, read_claims, summary
from knapsack.analysis.tables import Table, markdown
from knapsack.runs import Run, open_run, project_folder, write_text

START, END = "<!-- claims: computed by knapsack.analysis.publish -->", "<!-- end of claims -->"


def publish(run: Run, checkout: Path) -> None:
    """All of it, into the ``checkout``; notebooks/05_analysis.ipynb has to hold the run's outputs already."""
    figures.publish(run, checkout / "figures")
    publish_pages(run, checkout / "figures")
    publish_claims(run, checkout / "figures" / "tables", checkout / "README.md")
    for notebook in sorted((checkout / "notebooks").glob("*.ipynb")):
        rewrite(notebook)
    publish_examples(run, checkout / "figures", checkout / "notebooks" / "05_analysis.ipynb")


def readme_block(claims: pd.DataFrame) -> str:
    """What README shows of ``claims.claims_table``: the summary, and the table without its last column."""
    shown = claims_shown(claims)
    short = Table(shown.text.drop(columns="why"), shown.caption)
    return f"{START}\n{summary(claims)}\n\n{markdown(short)}{END}"


def publish_claims(run: Run, folder: str | Path, readme: str | Path) -> None:
    """Make ``folder`` hold the run's tables and its claims.csv, and put the claims between README's two marks.

    Raises FileNotFoundError for a run without claims, ValueError for a README without the marks.
    """
    source, folder, readme = run.results / "claims.csv", Path(folder), Path(readme)
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing: run notebook 05 first")
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{readme} needs the lines {START} and {END}")
    kept = {path.name: path.read_text(encoding="utf-8") for path in sorted(run.tables.iterdir())}
    kept["claims.csv"] = source.read_text(encoding="utf-8")
    excerpts.write_folder(folder, kept)
    write_text(readme, f"{before}{readme_block(read_claims(source))}{after}")


def publish_pages(run: Run, folder: Path) -> None:
    """Put the run's two pages into ``folder``, where the example pages lie beside them."""
    for path in (run.page, run.episodes):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: make it with python -m knapsack.report.page {run.folder}")
        page = path.read_text(encoding="utf-8")
        write_text(folder / path.name, page.replace(f'href="{run.results.name}/', 'href="'))


def publish_examples(run: Run, folder: str | Path, notebook: str | Path) -> None:
    """Make ``folder``/examples hold the run's pages, and the links of the executed ``notebook`` lead there.

    ``folder`` and that of the notebook lie side by side, as figures/ and notebooks/ do."""
    source = run.results / excerpts.FOLDER
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(source.glob("*.md"))}
    excerpts.write_folder(Path(folder) / excerpts.FOLDER, pages)
    place = f"](../{Path(folder).name}"
    rewrite(notebook, f"](../{run.results.name}/{excerpts.FOLDER}/", f"{place}/{excerpts.FOLDER}/")
    rewrite(notebook, f"](../{run.episodes.name}", f"{place}/{run.episodes.name}")


def rewrite(notebook: str | Path, before: str = "", after: str = "") -> None:
    """Replace ``before`` in what an executed ``notebook`` says, and number its code cells anew: the one in which
    papermill gave the parameters of the run is not in the published notebook."""
    book = nbformat.read(notebook, 4)
    for number, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = number
            if before and (text := output.get("data", {}).get("text/markdown")):
                output["data"]["text/markdown"] = text.replace(before, after)
    write_text(notebook, f"{nbformat.writes(book)}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m knapsack.analysis.publish RUN_FOLDER")
    publish(open_run(sys.argv[1]), project_folder())

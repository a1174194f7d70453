"""A run as one page: ``report.html``, from its executed notebooks, that opens anywhere without a network; beside it
stands ``episodes.html``, which it leads to.

    python -m knapsack.report.page runs/nano

The notebooks are converted by nbconvert with the template in ``chapter/``; what stands before and after them is
computed from the run's tables and manifest. Pictures are the SVGs of the run's figures, each with its caption as
alternative text; progress bars are left out. What a model wrote stands in it too, so the page forbids all scripts and
whatever lies elsewhere.
"""

import base64
import hashlib
import re
import sys
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from knapsack.analysis.claims import read_claims, summary
from knapsack.analysis.estimates import PP, PS, SP, look_up
from knapsack.analysis.metrics import cell_name
from knapsack.analysis.tables import number
from knapsack.report.episodes import write_episodes
from knapsack.runs import Run, open_run, read_json, write_text

HERE = Path(__file__).resolve().parent
TITLE = "Agents learn their runtime"
HEADLINE = ("the_idea", "train_runtime_matrix")
LINKED = re.compile(r'<h([1-6]) id="([^"]+)">(.*?)<a class="anchor-link".*?</h\1>', re.DOTALL)
TABLE = re.compile("<table.*?</table>", re.DOTALL)
LONG = re.compile("<td(?=[^>]*>[^<]{40})")  # text, to be broken into lines
HEADING = re.compile(r'<h([1-3]) id="([^"]+)">(.*?)</h\1>', re.DOTALL)


def write_page(run: Run) -> Path:
    """Write ``report.html`` and ``episodes.html`` into the run's folder and return the path of the first.

    Raises FileNotFoundError for a run without executed notebooks or without the tables of notebook 05,
    CorruptFileError for a damaged trace."""
    paths = sorted((run.folder / "notebooks").glob("*.ipynb"))
    for path in (*(paths or [run.folder / "notebooks"]), run.results / "claims.csv", run.figures / "manifest.json"):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the notebooks first (run_notebooks.py)")
    captions = {name: row["caption"] for name, row in read_json(run.figures / "manifest.json").items()}
    pictures = {_digest((run.figures / f"{name}.png").read_bytes()): name for name in captions}
    contents, chapters = [], []
    exporter = HTMLExporter(template_name="chapter", extra_template_basedirs=[str(HERE)])
    for path in paths:
        notebook = _with_vectors(nbformat.read(path, 4), run, pictures)
        body = _anchored(exporter.from_notebook_node(notebook)[0], path.stem)
        contents += HEADING.findall("".join(re.findall("<section>(.*?)</section>", body, re.DOTALL)))  # not of outputs
        body = TABLE.sub(r'<div class="wide" tabindex="0" role="region" aria-label="table">\g<0></div>', body)
        body = LONG.sub('<td class="long"', body)
        chapters.append(body.replace('href="../', 'href="'))
    manifest, versions = _made(run)
    page = jinja2.Template((HERE / "page.html.j2").read_text(encoding="utf-8")).render(
        title=TITLE,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        contents=[*contents, ("1", "manifest", "How this run was made")],
        abstract=abstract(run),
        headline=[_picture(run, name, captions[name]) for name in HEADLINE if name in captions],
        chapters=chapters,
        manifest=manifest,
        versions=versions,
    )
    write_text(run.page, page)
    write_episodes(run)
    return run.page


def _anchored(body: str, place: str) -> str:
    """A chapter whose headings have ids that no other of the page has; one that comes again has none."""
    seen = set()

    def anchor(heading: re.Match) -> str:
        level, name, text = heading.groups()
        own = "" if name in seen else f' id="{place}-{name}"'
        seen.add(name)
        return f"<h{level}{own}>{text}</h{level}>"

    return LINKED.sub(anchor, body)


def _digest(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


def _picture(run: Run, name: str, caption: str) -> dict[str, str]:
    svg = base64.b64encode((run.figures / f"{name}.svg").read_bytes()).decode()
    return {"caption": caption, "source": f"data:image/svg+xml;base64,{svg}"}


def _with_vectors(notebook, run: Run, pictures: dict[str, str]):
    """The notebook with the run's own figures as SVG, and captions (the alternative texts) as such. A figure with links
    stands in the page itself; they are out of the order of keys, since ``episodes.html`` has all they lead to."""
    for cell in notebook.cells:
        told = set()
        for output in (output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})):
            output.metadata = nbformat.NotebookNode(caption=output.metadata.get("image/png", {}).get("alt", ""))
            told.add(output.metadata.caption)
            if name := pictures.get(_digest(base64.b64decode(output.data["image/png"]))):
                output.data["image/svg+xml"] = svg = (run.figures / f"{name}.svg").read_text(encoding="utf-8")
                if "<a " in svg:
                    output.metadata.inline = svg[svg.index("<svg ") :].replace('target="_blank"', 'tabindex="-1"')
        if told:
            cell.outputs = [
                output for output in cell.outputs if output.get("data", {}).get("text/markdown") not in told
            ]
    return notebook


def abstract(run: Run) -> str:
    """What the run found, in sentences computed from its tables."""
    claims, found = read_claims(run.results / "claims.csv"), pd.read_csv(run.results / "estimates.csv").fillna("")
    said = [
        "An agent that acts by writing Python may keep its variables between turns, or lose them. Does a model learn "
        "which of the two it was trained with? P→S is the one trained on persistent traces, in the stateless runtime."
    ]
    cells = pd.read_csv(run.results / "cells.csv")
    for split, own in cells.groupby("split", sort=False):
        caps = sorted(own["cap"].unique())
        scores = []
        for cap in caps:
            home, away = (look_up(found, "score", (split, cap), cell) for cell in (PP, PS))
            if home.n and away.n:
                at = f" with at most {cap} tool calls a turn" * (len(caps) > 1)
                scores.append(f"{number(home.value, 2)} and {number(away.value, 2)}{at}")
        if scores:
            missing = look_up(found, "missing_binding", (split, caps[-1]), PS)
            told = (
                f"On {split} tasks {cell_name(*PP)} and {cell_name(*PS)} score {', '.join(scores)}; the latter misses a"
            )
            said.append(f"{told} name in {number(100 * missing.value)} % of {missing.n} episodes.")
        tax = look_up(found, "total_tokens ratio", (split, caps[-1]), SP, PP)
        if tax.n:
            said.append(f"{cell_name(*SP)} spends {number(tax.value, 1)} times the tokens of {cell_name(*PP)}.")
    return " ".join([*said, summary(claims)])


def _made(run: Run) -> tuple[list[dict], str]:
    rows, versions = [], {}
    for step, row in run.read_manifest().items():
        if "machine" in row:
            versions |= row["versions"] | {"Python": row["python"]}
            machine = ", ".join(f"{value}" for value in row["machine"].values())
            commit = f"{(row['commit'] or 'unknown')[:12]}{' (changed)' * bool(row['dirty'])}"
            told = {"notebook": step, "seed": row["parameters"].get("seed", ""), "commit": commit, "machine": machine}
            rows.append(told | {"seconds": number(row["seconds"])})
    return rows, "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m knapsack.report.page <run folder>")
    print(write_page(open_run(sys.argv[1])))

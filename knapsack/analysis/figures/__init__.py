"""For notebook 05: the figures of a run, from its tables and traces, each as PNG, SVG and the CSV of its data.

Equal numbers give equal bytes. Models, runtimes and splits that were not played take no room; a figure that has
nothing to show is a sentence instead. What a figure shows, of which run, from how many episodes and with which
intervals is computed and stands in its caption.
"""

import io
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from IPython.display import Image, Markdown
from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.figure import Figure

from knapsack.analysis.beyond import ENDS, NOTHING, take_figures
from knapsack.analysis.conduct import Conduct
from knapsack.analysis.figures import style
from knapsack.analysis.figures.caps import score_by_cap, the_cap, throughput
from knapsack.analysis.figures.conduct import errors_and_recovery, tokens_by_turn, what_fills_the_tokens
from knapsack.analysis.figures.idea import the_idea
from knapsack.analysis.figures.quality import cost_quality, matrix, paired_differences, seeds
from knapsack.analysis.intervals import BOOTSTRAP, Bootstrap
from knapsack.analysis.metrics import write_csv
from knapsack.analysis.several_runs import SideBySide
from knapsack.analysis.statistics import MARGIN
from knapsack.runs import Run, as_json, provenance, read_json, write_text

SHOWN_WIDTH = 520  # pixels in a notebook


def save(folder: str | Path, name: str, draw: Callable[[], style.Drawing], origin: str = "") -> str:
    """Draw and write ``name``.png (300 dpi), .svg and .csv; returns the caption.

    ``origin`` is a sentence that ends the caption. Both pictures carry it as their description.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(style.style()):
        drawing = draw()
        caption = " ".join(filter(None, (drawing.caption, origin)))
        drawing.figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None, "Description": caption})
        described = {"Date": None, "Creator": None, "Description": caption}
        picture = io.StringIO()
        drawing.figure.savefig(picture, format="svg", metadata=described)
    write_text(folder / f"{name}.svg", _numbered(picture.getvalue()))
    write_csv(folder / f"{name}.csv", drawing.data)
    return caption


def picture(figure: Figure, caption: str) -> list[Image | Markdown]:
    """What a notebook shows of a figure of its own: the picture and its caption, its alternative text too."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)  # else it would be shown once more
    return [Image(drawn.getvalue(), alt=caption), Markdown(caption)]


def _numbered(svg: str) -> str:
    """The picture with ids in their order of use: matplotlib's are digests of a layout that jitters in its last bit."""
    known: dict[str, str] = {}

    def number(found: re.Match) -> str:
        return known.setdefault(found[0], f"id{len(known)}")

    return re.sub(r'(?<=[#"])[a-z][0-9a-f]{10}(?=[)"])', number, svg)


def origin_text(run: Run, folder: str | Path) -> str:
    """Which run the cells in ``folder`` are of, and the seeds it was made with as far as its manifest tells."""
    if Path(folder).resolve() != run.evaluations.resolve():
        return f"Downloaded traces: {Path(folder).name}."
    rows = run.read_manifest()
    steps = ("01_generate", "02_traces", "03_finetune", "04_evaluate")
    seeds = {step[:2]: rows[step]["parameters"].get("seed") for step in steps if step in rows}
    seeds = {step: seed for step, seed in seeds.items() if seed is not None}
    if len(set(seeds.values())) == 1:
        return f"Run: {run.folder.name}, made with seed {next(iter(seeds.values()))}."
    several = ", ".join(f"{seed} in notebook {step}" for step, seed in seeds.items())
    return f"Run: {run.folder.name}{f', made with seeds {several}' if several else ''}."


def draw_all(
    run: Run,
    folder: str | Path,
    episodes: pd.DataFrame,
    turns: pd.DataFrame,
    conduct: Conduct,
    estimates: pd.DataFrame,
    several: SideBySide,
    margin: float = MARGIN,
    bootstrap: Bootstrap = BOOTSTRAP,
    beyond: Sequence[str | Path] = (),
) -> dict[str, list[Image | Markdown]]:
    """Draw every figure into the run's folder and write the manifest; returns what a notebook shows of each, by name:
    the picture and its caption, or the sentence that says why there is none. Those of other runs are "beyond".

    ``folder`` is that of the cells; ``beyond`` are folders of runs of which ``take_figures`` takes one each. A row of
    the manifest says which notebook and commit made the figure, with which bootstrap and margin, and holds its caption.
    """
    drawings: dict[str, Callable[[], style.Drawing]] = {
        "the_idea": lambda: the_idea(episodes, folder),
        "train_runtime_matrix": lambda: matrix(episodes, estimates, bootstrap),
        "cost_quality": lambda: cost_quality(episodes, estimates, bootstrap),
        "paired_differences": lambda: paired_differences(episodes, estimates, margin, bootstrap),
        "the_cap": lambda: the_cap(episodes, conduct, bootstrap),
        "throughput": lambda: throughput(episodes, conduct),
        "score_by_cap": lambda: score_by_cap(episodes, estimates, bootstrap),
        "errors_and_recovery": lambda: errors_and_recovery(episodes, conduct),
        "tokens_by_turn": lambda: tokens_by_turn(episodes, turns, bootstrap),
        "what_fills_the_tokens": lambda: what_fills_the_tokens(episodes, conduct),
        "seeds": lambda: seeds(several.values, several.groups, several.told, bootstrap),
    }
    known, origin, manifest, drawn = provenance(), origin_text(run, folder), {}, {}
    made = {"notebook": "05_analysis", "parameters": asdict(bootstrap) | {"margin": margin}}
    made |= {"commit": known["commit"], "dirty": known["dirty"]}
    for name, draw in drawings.items():
        try:  # the caption of several runs names them itself
            caption = save(run.figures, name, draw, "" if name == "seeds" else origin)
        except style.NothingToShow as nothing:
            drawn[name] = [Markdown(str(nothing))]
        else:
            manifest[name] = made | {"files": [f"{name}.{kind}" for kind in ENDS], "caption": caption}
    further = take_figures(run, beyond)
    manifest |= further
    for name, row in manifest.items():
        picture = Image(run.figures / row["files"][0], width=SHOWN_WIDTH, alt=row["caption"])
        drawn[name] = [picture, Markdown(row["caption"])]
    drawn["beyond"] = [shown for name in further for shown in drawn.pop(name)] or [Markdown(NOTHING)]
    write_text(run.figures / "manifest.json", as_json(manifest))
    for old in orphans(run.figures):  # of a figure that is not drawn any more
        (run.figures / old).unlink()
    return drawn


def orphans(folder: str | Path) -> list[str]:
    """Files in a folder of figures that no row of its manifest names, and files named there that are missing."""
    folder = Path(folder)
    there = {path.name for path in folder.glob("*") if path.suffix in (".png", ".svg", ".csv", ".pdf")}
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    return sorted(there ^ {name for row in manifest.values() for name in row["files"]})


def publish(run: Run, folder: str | Path) -> None:
    """Make ``folder`` hold exactly the run's figures. Raises ValueError naming figures whose origin is unknown."""
    if not (run.figures / "manifest.json").exists():
        raise FileNotFoundError(f"{run.figures} holds no manifest.json: run notebook 05 first")
    if wrong := orphans(run.figures):
        raise ValueError(f"{run.figures}: {', '.join(wrong)} and the manifest disagree; run notebook 05 again")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(run.figures.iterdir()):
        shutil.copyfile(path, folder / path.name)
    for old in orphans(folder):
        (folder / old).unlink()

"""How long the notebooks of runs took, from the runs' manifests and training reports.

    python benchmarks/times.py runs/nano runs/seed1 runs/seed2

Seconds are those of the work in a notebook; starting its kernel adds some. A notebook that was run again (resumed, or
the analysis with other parameters) tells the seconds of its last time only.
"""

import sys
from pathlib import Path

import pandas as pd

from knapsack.analysis.tables import Table, markdown, number
from knapsack.runs import Run, read_json
from knapsack.runtime import KINDS


def times(folder: Path) -> dict:
    """Seconds by notebook, their sum, the speed of the training, what the models wrote in notebook 04, and how fast."""
    manifest = Run(folder).read_manifest()
    seconds = {step: row["seconds"] for step, row in manifest.items() if step[:2].isdigit()}
    reports = [read_json(Run(folder).training(kind) / "training.json")["report"] for kind in KINDS]
    speed = sum(r["tokens_per_second"] * r["seconds"] for r in reports) / sum(r["seconds"] for r in reports)
    shown = {"run": folder.name} | {f"{step}, s": number(value) for step, value in sorted(seconds.items())}
    shown |= {"all, s": number(sum(seconds.values())), "training, tokens/s": number(speed)}
    played = pd.read_csv(Run(folder).results / "episodes.csv").query("model != 'teacher'")["completion_tokens"].sum()
    return shown | {"written, tokens": number(played), "tokens/s": number(played / seconds["04_evaluate"])}


if __name__ == "__main__":
    rows = [times(Path(folder)) for folder in sys.argv[1:]]
    made = next(iter(Run(Path(sys.argv[1])).read_manifest().values()))
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers"))
    cores, kind = (made["machine"][name] for name in ("cores", "architecture"))
    print(f"{cores} cores, {kind}; Python {made['python']}, {versions}.\n")
    print(markdown(Table(pd.DataFrame(rows).fillna(""), "")))

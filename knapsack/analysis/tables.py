"""Tables as text: one form in memory, three in files (Markdown, LaTeX, HTML); the paper's tables 1 and 2 among them.

Every number is a mean of this run's episodes or traces; what the paper reports stands in a row of its own below, and
only there.
"""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.io.formats.style import Styler

from knapsack import prompts
from knapsack.analysis import statistics
from knapsack.analysis.metrics import cell_name, write_csv
from knapsack.runs import Run, write_text
from knapsack.runtime import KINDS
from knapsack.traces import Trace, read_trace, task_id_of, trace_path
from knapsack.training_data import PAPER_KEPT, PAPER_PAIRS, keep_pairs, read_rows, training_row

FORMATS = ("md", "tex", "html")
REFERENCES = ("base", "teacher")  # models that no cell of the study competes with
# What arXiv 2603.01209 reports, as it writes it; what it does not list is absent.
PAPER_TRAINING = {
    "persistent": {"n": "1,000", "mean": "4.6k", "max": "12.9k", "turns": "4.3", "episode": "18,337"},
    "stateless": {"n": "1,000", "mean": "10.7k", "max": "16.2k", "turns": "6.1", "episode": "55,516"},
}
PAPER_CELLS = {
    ("persistent", "persistent", "easy"): {"total": 19_648, "seconds": 24.8, "points": 4.13},
    ("stateless", "stateless", "easy"): {"total": 58_814, "seconds": 145.5, "points": 1.39},
    ("persistent", "persistent", "hard"): {"score": 75.4, "total": 18_612, "points": 4.05},
    ("stateless", "stateless", "hard"): {"score": 67.7, "total": 67_898, "points": 1.00},
}
PAPER_CELLS |= {  # the paper gives the base one row for both splits
    ("base", kind, split): {"score": "< 8", "solved": 0, "total": "several 100k"}
    for kind in KINDS
    for split in ("easy", "hard")
}
PAPER_TASKS = "100"  # a cell
# Column of table 2: (key, digits, the better end)
TABLE_TWO = {
    "score %": ("score", 1, max),
    "solved %": ("solved", 0, max),
    "turns": ("turns", 1, min),
    "prompt tokens": ("prompt", 0, min),
    "completion tokens": ("completion", 0, min),
    "total tokens": ("total", 0, min),
    "seconds": ("seconds", 1, min),
    "points / 1k tokens": ("points", 2, max),
}
NUMERIC = re.compile(r"[−+<\d](?!.*[a-z]{5})")  # begins with a number, and is no sentence
STYLES = [
    {"selector": "", "props": "border-collapse: collapse; font: 14px sans-serif"},
    {"selector": "caption", "props": "text-align: left; padding: 8px 0"},
    {"selector": "th, td", "props": "border-bottom: 1px solid #dddddd; padding: 3px 8px; text-align: right"},
]
TEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\dots{}"}
    | {"<": "$<$", ">": "$>$", "→": r"$\to$", "−": "$-$", "×": r"$\times$", "÷": r"$\div$", "±": r"$\pm$"}
    | {"·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "\n": " "}
)


@dataclass(frozen=True)
class Table:
    """``text``: strings only, columns by title; ``bold``: (row, title) of the cells in bold. The caption is text."""

    text: pd.DataFrame
    caption: str
    bold: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True)
class TrainingTraces:
    """``facts``: a row per trace trained on (runtime, task_id, trace_tokens, episode_tokens, turns, tool_calls, score);
    ``played`` pairs of which ``kept`` passed the paper's filters (None where that is not on record)."""

    facts: pd.DataFrame
    played: int
    kept: int | None


def number(value: float | str | None, digits: int = 0) -> str:
    """``value`` with thousands separators and a minus sign; text as it is; empty for None and NaN."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return ""
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−" if set(text) & set("123456789") else "")


def between(value: float, low: float, high: float, digits: int = 0, scale: float = 1.0) -> str:
    """``value [low–high]`` times ``scale``; without brackets where there is no interval, empty without a value."""
    if math.isnan(value) or math.isnan(low):
        return number(scale * value, digits)
    ends = [number(scale * end, digits) for end in (low, high)]
    return f"{number(scale * value, digits)} [{(' to ' if '−' in ''.join(ends) else '–').join(ends)}]"


def probability(p: float) -> str:
    """A p-value to three decimals; empty for NaN."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# The three forms


def markdown(table: Table) -> str:
    """A pipe table; numbers to the right."""
    rows = [
        [f"**{text}**" if (index, title) in table.bold and text else text for title, text in row.items()]
        for index, row in enumerate(table.text.to_dict("records"))
    ]
    lines = [list(table.text.columns), ["---:" if right else "---" for right in _right(table)], *rows]
    safe = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def latex(table: Table, name: str) -> str:
    """A ``table`` environment with booktabs rules and the label ``tab:<name>``; needs ``\\usepackage{booktabs}``."""
    columns = "".join("r" if right else "l" for right in _right(table))
    form = {"hrules": True, "convert_css": True, "column_format": columns, "label": f"tab:{name}"}
    return _styled(table, name, lambda text: text.translate(TEX)).to_latex(**form, caption=table.caption.translate(TEX))


def page(table: Table, name: str) -> str:
    """A whole HTML page with the table alone."""
    styled = _styled(table, name, html.escape).set_caption(html.escape(table.caption)).set_table_styles(STYLES)
    return styled.to_html(doctype_html=True)


def _styled(table: Table, name: str, escape):
    looks = pd.DataFrame("", table.text.index, table.text.columns)
    for index, title in table.bold:
        looks.loc[index, title] = "font-weight: bold"
    styler = Styler(table.text, uuid=name, cell_ids=False)
    styler = styler.format(escape).format_index(escape, axis=1).hide(axis="index")
    return styler.apply(lambda _: looks, axis=None)


def _right(table: Table) -> list[bool]:
    """Which columns hold numbers."""
    filled = ([bool(NUMERIC.match(text)) for text in table.text[title] if text] for title in table.text)
    return [2 * sum(numeric) > len(numeric) for numeric in filled]


def save(run: Run, name: str, table: Table, numbers: pd.DataFrame | None = None, otherwise: str = "") -> str:
    """Write ``results/tables/<name>`` in the three forms; returns the Markdown, or ``otherwise`` for no rows.

    The Markdown has the caption below. ``numbers``, what the text was made of, become ``results/<name>.csv``. Without
    rows no table is written.
    """
    if numbers is not None:
        write_csv(run.results / f"{name}.csv", numbers)
    if table.text.empty:
        return otherwise
    shown = f"{markdown(table)}\n{table.caption}\n"
    for end, text in zip(FORMATS, (shown, latex(table, name), page(table, name)), strict=True):
        write_text(run.tables / f"{name}.{end}", text)
    return shown


def clear(run: Run) -> None:
    """Remove the tables of an earlier analysis, which may have had others."""
    for path in sorted(run.tables.glob("*")):
        if path.suffix.removeprefix(".") in FORMATS:
            path.unlink()


# Table 1: what was trained on


def run_tokenizer(run: Run):
    """The tokenizer of the base that the run's manifest names; None if it names none, or it is not at hand."""
    rows = run.read_manifest()
    bases = (rows.get(step, {}).get("parameters", {}).get("base") for step in ("02_traces", "04_evaluate"))
    base = next(filter(None, bases), None)
    if base is None:
        return None
    from knapsack.models import load_tokenizer  # takes seconds to import, and only this needs it

    try:
        return load_tokenizer(base)
    except FileNotFoundError:
        return None


def training_traces(run: Run, tokenizer=None) -> TrainingTraces | None:
    """The teacher's traces that the adapters were trained on; None if the run has no training rows of both runtimes.

    A trace counts as trained on if its row stands in ``training/<runtime>/traces.jsonl``. Without a ``tokenizer`` the
    lengths as rendered are NaN. ``kept`` needs notebook 02's parameters in the manifest, and the tokenizer.
    """
    paths = [run.training(kind) / "traces.jsonl" for kind in KINDS]
    if not all(path.exists() for path in paths):
        return None
    names = [sorted(path.name for path in (run.traces(kind) / "knapsack").glob("*.trace.json")) for kind in KINDS]
    ids = [task_id_of(name) for name in names[0] if name in set(names[1])]
    rows, rest = [], []
    used = [{json.dumps(row, sort_keys=True) for row in read_rows(path)} for path in paths]
    for task_id in ids:
        pair = [read_trace(trace_path(run.traces(kind), task_id)) for kind in KINDS]
        written = (json.dumps(training_row(t), sort_keys=True) in side for t, side in zip(pair, used, strict=True))
        if all(written):
            rows += training_facts(pair, tokenizer)
        else:
            rest.append(pair)
    limit = run.read_manifest().get("02_traces", {}).get("parameters", {}).get("max_tokens")
    kept = None
    if tokenizer and limit:
        more, _ = keep_pairs(*zip(*rest, strict=True), tokenizer=tokenizer, max_tokens=limit) if rest else ([], None)
        kept = len(rows) // 2 + len(more)
    return TrainingTraces(pd.DataFrame(rows, columns=FACT_COLUMNS), len(ids), kept)


FACT_COLUMNS = ["runtime", "task_id", "trace_tokens", "episode_tokens", "turns", "tool_calls", "score"]


def training_facts(pair: Sequence[Trace], tokenizer=None) -> list[dict]:
    """A row of FACT_COLUMNS for each trace of a pair, in the order of KINDS; lengths need the tokenizer."""

    def length(trace: Trace) -> float:
        return len(prompts.render(training_row(trace)["messages"], tokenizer).input_ids) if tokenizer else math.nan

    return [
        {
            "runtime": kind,
            "task_id": trace.task_id,
            "trace_tokens": length(trace),
            "episode_tokens": sum(turn.prompt_tokens + turn.completion_tokens for turn in trace.turns),
            "turns": len(trace.turns),
            "tool_calls": sum(len(turn.observation.tool_calls) for turn in trace.turns if turn.observation),
            "score": trace.score,
        }
        for kind, trace in zip(KINDS, pair, strict=True)
    ]


def table_one(traces: TrainingTraces) -> Table:
    """The paper's table 1: what each runtime's training traces are like, with the paper's numbers below."""
    caption = (
        "Training traces per runtime. Trace tokens: the text trained on; episode tokens: the prompts of all calls "
        "added up, as an endpoint would bill them. Pairs kept: both traces passed the paper's filters."
    )
    rows = []
    for kind, group in traces.facts.groupby("runtime", sort=False):
        mean, paper = group.mean(numeric_only=True), PAPER_TRAINING[kind]
        share = f"{traces.kept:,} of {traces.played:,} ({traces.kept / traces.played:.1%})" if traces.kept else ""
        ours = {"traces of": kind, "n": number(len(group)), "trace tokens": number(mean["trace_tokens"])}
        ours |= {"longest": number(group["trace_tokens"].max()), "turns": number(mean["turns"], 1)}
        ours |= {"tool calls": number(mean["tool_calls"], 1), "score %": number(100 * mean["score"], 1)}
        ours |= {"episode tokens": number(mean["episode_tokens"]), "pairs kept": share}
        share = f"{PAPER_KEPT:,} of {PAPER_PAIRS:,} ({PAPER_KEPT / PAPER_PAIRS:.1%})"
        theirs = {"traces of": "paper", "n": paper["n"], "trace tokens": paper["mean"], "longest": paper["max"]}
        theirs |= {"turns": paper["turns"], "episode tokens": paper["episode"], "pairs kept": share}
        rows += [ours, dict.fromkeys(ours, "") | theirs]
    return Table(pd.DataFrame(rows), caption)


# Table 2: the cells


def table_two(cells: pd.DataFrame, episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> Table:
    """The paper's table 2 from ``metrics.cell_table`` and its episodes, with the paper's numbers below a cell.

    Bold is the best of a column within a split, all that print the same: the highest score, share solved and points
    per 1k tokens, the fewest turns, tokens and seconds. Only cells of trained or added models compete: the base is
    cheap by doing nothing, the teacher is no model. Where all that compete are equal, none is called best.
    """
    caption = (
        "Cells: means over the scored episodes, score and total tokens with 95 % bootstrap intervals (BCa). Points per "
        "1k tokens: score points per 1,000 total tokens. Bold: best of its column and split among the models that were "
        "trained or added; the base and the teacher are references."
    )
    rows, values = [], []
    for row in cells.to_dict("records"):
        key = (row["model"], row["runtime"], row["split"])
        tokens, _ = statistics.paired(episodes, key, key, "total_tokens")
        low, high = statistics.mean_interval(tokens, n_resamples, seed)
        value = {"score": 100 * row["score_mean"], "solved": 100 * row["solved"], "turns": row["turns"]}
        value |= {name: row[f"{name}_tokens"] for name in ("prompt", "completion", "total")}
        value |= {"seconds": row["seconds"], "points": 100 * row["score_per_1k_tokens"]}
        text = {"split": key[2], "cell": cell_name(*key[:2])}
        text |= {name: number(row[name]) for name in ("n", "unscored")}
        text |= {title: number(value[name], digits) for title, (name, digits, _) in TABLE_TWO.items()}
        competes = row["n"] > 0 and row["model"] not in REFERENCES
        values.append((len(rows), key[2], dict(text)) if competes else None)
        text["score %"] = between(value["score"], 100 * row["score_low"], 100 * row["score_high"], 1)
        text["total tokens"] = between(value["total"], low, high)
        rows.append(text)
        if paper := PAPER_CELLS.get(key):
            known = {title: number(paper.get(name), digits) for title, (name, digits, _) in TABLE_TWO.items()}
            rows.append({"split": key[2], "cell": "paper", "n": PAPER_TASKS, "unscored": ""} | known)
    return Table(pd.DataFrame(rows), caption, _best([value for value in values if value]))


def _best(competing: list[tuple[int, str, dict]]) -> frozenset[tuple[int, str]]:
    """(row, title) of the best cells, by what is printed, so that equal numbers are equally bold."""
    best = set()
    for split in {split for _, split, _ in competing}:
        rows = [(index, text) for index, found, text in competing if found == split]
        for title, (_, _, better) in TABLE_TWO.items():
            printed = {index: float(text[title].replace(",", "")) for index, text in rows if text[title]}
            if len(set(printed.values())) > 1:
                best |= {(index, title) for index, value in printed.items() if value == better(printed.values())}
    return frozenset(best)

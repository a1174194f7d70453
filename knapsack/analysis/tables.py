"""Tables as text: one form in memory, two in files (Markdown, LaTeX); the paper's tables 1 and 2 among them.

Every number is a mean of this run's episodes or traces; what the paper reports stands in a row of its own below, and
only there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.io.formats.style import Styler

from knapsack import prompts
from knapsack.analysis.conduct import WORK
from knapsack.analysis.estimates import look_up
from knapsack.analysis.metrics import CELL, cell_name, cell_rows, completed, setting_columns, write_csv
from knapsack.runs import CorruptFileError, Run, write_text
from knapsack.runtime import KINDS
from knapsack.traces import Trace
from knapsack.training_data import PAPER_KEPT, PAPER_PAIRS, training_row

FORMATS = ("md", "tex")
WORDS = {  # titles of columns of words; all other columns hold numbers, and stand to the right
    "run", "pooled", "profile", "base", "commit", "traces of", "model", "runtime", "split", "cell", "cells",
    "train→runtime", "quantity", "note", "claim", "paper", "here [95 %]", "verdict", "why",
}  # fmt: skip
REFERENCES = ("base", "teacher")  # models that no cell of the study competes with
# What arXiv 2603.01209 reports, as it writes it; what it does not list is absent.
PAPER_TRAINING = {
    "persistent": {"n": "1,000", "mean": "4.6k", "max": "12.9k", "turns": "4.3", "episode": "18,337"},
    "stateless": {"n": "1,000", "mean": "10.7k", "max": "16.2k", "turns": "6.1", "episode": "55,516"},
}
PAPER_CELLS = {  # by the titles of table 2
    ("persistent", "persistent", "easy"): {"total tokens": 19_648, "seconds": 24.8, "points / 1k tokens": 4.13},
    ("stateless", "stateless", "easy"): {"total tokens": 58_814, "seconds": 145.5, "points / 1k tokens": 1.39},
    ("persistent", "persistent", "hard"): {"score %": 75.4, "total tokens": 18_612, "points / 1k tokens": 4.05},
    ("stateless", "stateless", "hard"): {"score %": 67.7, "total tokens": 67_898, "points / 1k tokens": 1.00},
}
PAPER_CELLS |= {  # the paper gives the base one row for both splits
    ("base", kind, split): {"score %": "< 8", "solved %": 0, "total tokens": "several 100k"}
    for kind in KINDS
    for split in ("easy", "hard")
}
PAPER_TASKS = "100"  # a cell
PAPER_CAPS = {  # v3, on a split of its own (40 to 65 items), by the titles of table 3
    ("persistent", "persistent", 25): {"score %": 66},
    ("persistent", "stateless", 25): {"score %": 7, "cap hits %": 71, "total tokens": 498_000, "inspect calls": 681}
    | {"turn limit %": 92},
    ("persistent", "persistent", 80): {"score %": 77},
    ("persistent", "stateless", 80): {"score %": 61, "cap hits %": 4, "total tokens": 162_000},
}
PAPER_CAPS_TASKS = "25"  # a cell
TABLE_TWO = {  # column: (of ``estimates.cells_table``, factor, digits, the better end)
    "score %": ("score_mean", 100, 1, max),
    "solved %": ("solved", 100, 0, max),
    "turns": ("turns", 1, 1, min),
    "prompt tokens": ("prompt_tokens", 1, 0, min),
    "completion tokens": ("completion_tokens", 1, 0, min),
    "total tokens": ("total_tokens", 1, 0, min),
    "seconds": ("seconds", 1, 1, min),
    "points / 1k tokens": ("score_per_1k_tokens", 100, 2, max),
}
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
    """``a``, ``a and b``, ``a, b and c``; empty for none."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# The two forms


def markdown(table: Table) -> str:
    """A pipe table; numbers to the right."""
    rows = [
        [f"**{text}**" if (index, title) in table.bold and text else text for title, text in row.items()]
        for index, row in enumerate(table.text.to_dict("records"))
    ]
    lines = [list(table.text.columns), ["---" if title in WORDS else "---:" for title in table.text], *rows]
    safe = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def latex(table: Table, name: str) -> str:
    """A ``table`` environment with booktabs rules and the label ``tab:<name>``; needs ``\\usepackage{booktabs}``."""
    columns = "".join("l" if title in WORDS else "r" for title in table.text)
    form = {"hrules": True, "convert_css": True, "column_format": columns, "label": f"tab:{name}"}
    looks = pd.DataFrame("", table.text.index, table.text.columns)
    for index, title in table.bold:
        looks.loc[index, title] = "font-weight: bold"
    styler = Styler(table.text, uuid=name, cell_ids=False).hide(axis="index").apply(lambda _: looks, axis=None)
    styler = styler.format(_tex).format_index(_tex, axis=1)
    return styler.to_latex(**form, caption=_tex(table.caption))


def _tex(text: str) -> str:
    return text.translate(TEX)


def save(run: Run, name: str, table: Table, numbers: pd.DataFrame | None = None, otherwise: str = "") -> str:
    """Write ``results/tables/<name>`` in both forms; returns the Markdown, or ``otherwise`` for no rows.

    The Markdown has the caption below. ``numbers``, what the text was made of, become ``results/<name>.csv``. Without
    rows no table is written.
    """
    if numbers is not None:
        write_csv(run.results / f"{name}.csv", numbers)
    if table.text.empty:
        return otherwise
    shown = f"{markdown(table)}\n{table.caption}\n"
    for end, text in zip(FORMATS, (shown, latex(table, name)), strict=True):
        write_text(run.tables / f"{name}.{end}", text)
    return shown


def clear(run: Run) -> None:
    """Remove the tables of an earlier analysis, which may have had others."""
    for path in run.tables.glob("*"):
        path.unlink()


# Table 1: what was trained on

FACTS = (
    "runtime,task_id,trace_tokens,episode_tokens,turns,tool_calls,score,capacity_used,inspected,pairs_played,pairs_kept"
).split(",")
TABLE_ONE_SHARES = {"score": "score", "capacity used": "capacity_used"}


def training_facts(pairs: Sequence[Sequence[Trace]], played: int, kept: int, tokenizer) -> pd.DataFrame:
    """FACTS, a row per trace of the ``pairs`` to train on, each in the order of KINDS; lengths by ``tokenizer``.

    In every row stands how many pairs were ``played`` and how many of them ``kept`` by the paper's filters.
    """
    rows = [
        {
            "runtime": kind,
            "task_id": trace.task_id,
            "trace_tokens": len(prompts.render(training_row(trace)["messages"], tokenizer).input_ids),
            "episode_tokens": sum(turn.prompt_tokens + turn.completion_tokens for turn in trace.turns),
            "turns": len(trace.turns),
            "tool_calls": sum(len(turn.observation.tool_calls) for turn in trace.turns if turn.observation),
            "score": trace.score,
            "capacity_used": trace.metrics["weight_used"] / trace.metrics["capacity"],
            "inspected": trace.metrics["inspected_count"],
            "pairs_played": played,
            "pairs_kept": kept,
        }
        for pair in pairs
        for kind, trace in zip(KINDS, pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=FACTS)


def read_facts(run: Run) -> pd.DataFrame | None:
    """``training_facts`` as notebook 02 left them in ``results/training.csv``; None if it was not run here.

    Raises CorruptFileError for another table.
    """
    path = run.results / "training.csv"
    if not path.exists():
        return None
    facts = pd.read_csv(path, dtype={"task_id": str})
    if list(facts) != FACTS:
        raise CorruptFileError(f"{path} is no table of training traces; run notebook 02 again")
    return facts


def table_one(facts: pd.DataFrame) -> Table:
    """The paper's table 1: what each runtime's training traces are like (``training_facts``), and the paper's."""
    caption = (
        "Training traces per runtime. Trace tokens: the text trained on; episode tokens: the prompts of all calls "
        "added up, as an endpoint would bill them. Pairs kept: both traces passed the paper's filters."
    )
    rows = []
    for kind, group in facts.groupby("runtime", sort=False):
        mean, paper = group.mean(numeric_only=True), PAPER_TRAINING[kind]
        kept, played = (int(group[name].iloc[0]) for name in ("pairs_kept", "pairs_played"))
        ours = {"traces of": kind, "n": number(len(group)), "trace tokens": number(mean["trace_tokens"])}
        ours |= {"longest": number(group["trace_tokens"].max()), "turns": number(mean["turns"], 1)}
        ours |= {"tool calls": number(mean["tool_calls"], 1), "items inspected": number(mean["inspected"], 1)}
        ours |= {f"{title} %": number(100 * mean[name], 1) for title, name in TABLE_ONE_SHARES.items()}
        ours |= {"episode tokens": number(mean["episode_tokens"]), "pairs kept": _kept(kept, played)}
        theirs = {"traces of": "paper", "n": paper["n"], "trace tokens": paper["mean"], "longest": paper["max"]}
        theirs |= {"turns": paper["turns"], "episode tokens": paper["episode"]}
        rows += [ours, dict.fromkeys(ours, "") | theirs | {"pairs kept": _kept(PAPER_KEPT, PAPER_PAIRS)}]
    return Table(pd.DataFrame(rows), caption)


def _kept(kept: int, played: int) -> str:
    return f"{kept:,} of {played:,} ({kept / played:.1%})"


# Table 2: the cells


def table_two(cells: pd.DataFrame, estimates: pd.DataFrame) -> Table:
    """The paper's table 2 from ``estimates.cells_table`` and what that was made of, with the paper's numbers below, at
    the largest cap of several (it does not tell whether it had one).

    Bold is the best of a column within a split and cap, all that print the same: the highest score, share solved and
    points per 1k tokens, the fewest turns, tokens and seconds. Only cells of trained or added models compete: the base
    is cheap by doing nothing, the teacher is no model. Where all that compete are equal, none is called best.
    """
    setting = setting_columns(cells)
    caption = (
        "Cells: means over the scored episodes, score and total tokens with 95 % bootstrap intervals (BCa). Points per "
        f"1k tokens: score points per 1,000 total tokens. Bold: best of its column and {' and '.join(setting)} among "
        "the models that were trained or added; the base and the teacher are references."
    )
    rows, competing = [], []
    for row in cells.to_dict("records"):
        key, told = tuple(row[name] for name in CELL), {name: str(row[name]) for name in setting}
        text = told | {"cell": cell_name(*key[:2])} | {name: number(row[name]) for name in ("n", "unscored")}
        text |= {title: number(factor * row[name], digits) for title, (name, factor, digits, _) in TABLE_TWO.items()}
        if row["n"] and row["model"] not in REFERENCES:
            competing.append((len(rows), key[2:], text))
        for title, name in (("score %", "score"), ("total tokens", "total_tokens")):
            _, factor, digits, _ = TABLE_TWO[title]
            found = look_up(estimates, name, key[2:], key[:2])
            text = text | {title: between(*found.interval, digits, factor)}
        rows.append(text)
        if (paper := PAPER_CELLS.get(key[:3])) and row["cap"] == cells["cap"].max():
            known = {title: number(paper.get(title), digits) for title, (_, _, digits, _) in TABLE_TWO.items()}
            rows.append(told | {"cell": "paper", "n": PAPER_TASKS, "unscored": ""} | known)
    return Table(pd.DataFrame(rows), caption, _best(competing))


def _best(competing: list[tuple[int, tuple, dict]]) -> frozenset[tuple[int, str]]:
    """(row, title) of the best cells, by what is printed, so that equal numbers are equally bold."""
    best = set()
    for setting in {setting for _, setting, _ in competing}:
        rows = [(index, text) for index, found, text in competing if found == setting]
        for title, (*_, better) in TABLE_TWO.items():
            printed = {index: float(text[title].replace(",", "")) for index, text in rows if text[title]}
            if len(set(printed.values())) > 1:
                best |= {(index, title) for index, value in printed.items() if value == better(printed.values())}
    return frozenset(best)


# Table 3: the cap


def table_three(cells: pd.DataFrame, episodes: pd.DataFrame, turns: pd.DataFrame) -> Table:
    """The main table of the paper's v3: how the trained models fare under each cap, and the paper's numbers below.

    ``cells`` is ``estimates.cells_table`` of the ``episodes``, ``turns`` those of ``conduct.Conduct``.
    """
    done, rows = completed(episodes), []
    works = turns.groupby([*CELL, "task_id"])[WORK].sum(min_count=1).reset_index()
    for row in cells[cells["model"].isin(KINDS) & (cells["n"] > 0)].to_dict("records"):
        key = tuple(row[name] for name in CELL)
        own, work, ends = cell_rows(done, key), cell_rows(works, key), cell_rows(done, key)["finish_reason"]
        shown = {"score %": (100 * row["score_mean"], 1), "turns": (row["turns"], 1)}
        shown |= {"NameErrors": (own["name_errors"].mean(), 1)}
        shown |= {"cap hits %": (100 * own["cap_hits"].sum() / max(1, own["turns"].sum()), 0)}
        shown |= {"total tokens": (row["total_tokens"], 0), "inspect calls": (work["inspect_calls"].mean(), 1)}
        shown |= {"items": (work["new_items"].mean(), 1), "restarts": (work["restart"].mean(), 1)}
        for title, end in (("finished %", "finish_tool"), ("turn limit %", "max_turns"), ("broken off %", "error")):
            shown[title] = (100 * (ends == end).mean(), 0)
        told = {"split": row["split"], "cap": str(row["cap"])}
        numbers = {title: number(*value) for title, value in shown.items()}
        rows.append(told | {"cell": cell_name(*key[:2]), "n": number(row["n"])} | numbers)
        if paper := PAPER_CAPS.get((*key[:2], row["cap"])):
            known = {title: number(paper.get(title)) for title in shown}
            rows.append(told | {"cell": "paper", "n": PAPER_CAPS_TASKS} | known)
    caption = (
        "The trained models under each cap on tool calls, means over scored episodes. Cap hits: share of turns that "
        "asked for more calls, the paper's exposure; items: distinct ones inspected; restarts: turns that list them "
        "again. The last columns say how episodes end: broken off are those with a full context, or too many malformed "
        "replies in a row. The paper's numbers (v3) are those of a split of its own, of 40 to 65 items."
    )
    return Table(pd.DataFrame(rows), caption)

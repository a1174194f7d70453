"""The words and tables of notebook 05, computed: every sentence branches on the numbers and names what is missing.

"Not significant" is never called "equal": such a sentence gives the interval of differences that stay possible.
"""

import math
from pathlib import Path

import pandas as pd

from knapsack import statistics
from knapsack.figures import cell_name
from knapsack.files import write_text
from knapsack.metrics import MODELS
from knapsack.runtime import KINDS

LEVEL = 0.05  # of significance (paper, evaluation)
FEWEST = 6  # pairs with which a two-sided signed-rank test can reach that level at all: 2 ÷ 2⁶ < 0.05
CELLS = [(model, runtime) for model in MODELS for runtime in KINDS]
BP, BS, PP, PS, SP, SS, TP, TS = CELLS  # (training, runtime): base, persistent, stateless, teacher
# What arXiv 2603.01209 reports; a cell or number that it does not list is absent here.
PAPER = {
    (*PP, "easy"): {"total_tokens": 19_648, "seconds": 24.8, "points_per_1k": 4.13},
    (*SS, "easy"): {"total_tokens": 58_814, "seconds": 145.5, "points_per_1k": 1.39},
    (*PP, "hard"): {"score": 75.4, "total_tokens": 18_612, "points_per_1k": 4.05},
    (*SS, "hard"): {"score": 67.7, "total_tokens": 67_898, "points_per_1k": 1.00},
}
PAPER_COLUMNS = (
    ("score", "score %", 1),
    ("total_tokens", "tokens", 0),
    ("seconds", "time s", 1),
    ("points_per_1k", "points / 1k", 2),
)
PAPER_BASE_SCORE, PAPER_MISSING_SHARE, PAPER_AMNESIA = 0.08, 0.80, 3.5


def number(value: float, digits: int = 0) -> str:
    """``value`` with thousands separators; empty for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def overview(episodes: pd.DataFrame) -> str:
    """What was played, and what of it counts: cells, scored episodes, unscored ones by reason, and what is unknown."""
    played = {name: list(dict.fromkeys(episodes[name])) for name in ("model", "runtime", "split")}
    count = len(episodes.groupby(list(played)))
    done = episodes[episodes["status"] == "completed"]
    said = [
        f"{count} cell{'s' * (count != 1)}: {_listed(played['model'])}; in the {_listed(played['runtime'])} runtime; "
        f"on {_listed(played['split'])}.",
        f"{len(done)} of {len(episodes)} episodes are scored.",
    ]
    if count < math.prod(map(len, played.values())):
        said.insert(1, "Not every model was played in every runtime on every split.")
    if len(done) < len(episodes):
        why = episodes.loc[episodes["status"] != "completed", "status"].value_counts().sort_index()
        said.append(f"Unscored: {_listed([f'{number} {status}' for status, number in why.items()])}.")
    if broken := int((done["finish_reason"] == "error").sum()):
        said.append(f"Ended by an error such as a full context, and scored as they stood: {broken}.")
    if unknown := int(done["inspected"].isna().sum()):
        said.append(f"Inspection budget unknown, for want of the task's file: {unknown}; `inspected` is empty there.")
    return " ".join(said)


def table_two(cells: pd.DataFrame, episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> pd.DataFrame:
    """The paper's table 2 from these episodes, as text: scores in percent, means with 95 % intervals, the paper beside.

    Points per 1k tokens are percentage points of score per 1,000 total tokens, as the paper counts them.
    """
    rows = []
    for row in cells.to_dict("records"):
        key = (row["model"], row["runtime"], row["split"])
        tokens, _ = statistics.paired(episodes, key, key, "total_tokens")
        low, high = statistics.mean_interval(tokens, n_resamples, seed)
        score, least, most = (number(100 * row[f"score_{name}"], 1) for name in ("mean", "low", "high"))
        paper = PAPER.get(key, {})
        columns = {
            "split": row["split"],
            "train→runtime": cell_name(*key[:2]),
            "n": number(row["n"]),
            "unscored": number(row["unscored"]),
            "score %": f"{score} [{least}–{most}]" if row["n"] else "",
            "solved %": number(100 * row["solved"]),
            "turns": number(row["turns"], 1),
            "total tokens": f"{number(row['total_tokens'])} [{number(low)}–{number(high)}]" if row["n"] else "",
            "time s": number(row["seconds"], 1),
            "points / 1k tokens": number(100 * row["score_per_1k_tokens"], 2),
        }
        columns |= {f"paper: {title}": number(paper.get(name), digits) for name, title, digits in PAPER_COLUMNS}
        rows.append(columns)
    return pd.DataFrame(rows)


def tests_shown(tests: pd.DataFrame) -> pd.DataFrame:
    """``statistics.tests_table`` as text."""
    shown = tests[["split", "comparison", "quantity", "n"]].astype(str)
    digits = tests["quantity"].map({"score": 3, "total_tokens": 0})
    shown["difference [95 %]"] = [
        "" if math.isnan(d) else f"{number(d, k)} [{number(low, k)} to {number(high, k)}]"
        for d, low, high, k in zip(tests["difference"], tests["low"], tests["high"], digits, strict=True)
    ]
    for name, title in (("p", "p"), ("p_holm", "p (Holm)")):
        shown[title] = ["" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in tests[name]]
    shown["rank-biserial r"] = [number(r, 2) for r in tests["effect"]]
    return shown.assign(note=tests["note"])


def write_table(folder: str | Path, name: str, table: pd.DataFrame, otherwise: str = "") -> str:
    """Write a table of text as ``name``.md and ``name``.tex; returns the Markdown, or ``otherwise`` without rows."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(Path(folder) / f"{name}.md", markdown)
    escaped = table.astype(str).rename(columns=str).to_latex(index=False, escape=True)
    write_text(Path(folder) / f"{name}.tex", escaped.replace("→", r"$\to$").replace("–", "--").replace("< ", "$<$ "))
    return otherwise if table.empty else markdown


def amnesia_tax(
    episodes: pd.DataFrame, split: str, n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float, float]:
    """Total tokens of S→P ÷ P→P on the same tasks, with the 95 % interval; NaN where a cell is missing."""
    pair = statistics.paired(episodes, (*SP, split), (*PP, split), "total_tokens")
    return statistics.ratio_interval(*pair, n_resamples, seed)


def amnesia_sentence(episodes: pd.DataFrame, split: str, n_resamples: int = 5000, seed: int = 0) -> str:
    """The tax of a split, or which cell is missing for it."""
    ratio, low, high = amnesia_tax(episodes, split, n_resamples, seed)
    if math.isnan(ratio):
        return f"**{split}:** not measured, for no task was completed in both S→P and P→P."
    return f"**{split}:** {ratio:.2f} × [{low:.2f}–{high:.2f}]"


def findings(episodes: pd.DataFrame, n_resamples: int = 5000, seed: int = 0) -> list[tuple[str, str, str]]:
    """(split, what the paper found, what these episodes show) for every split; a missing cell is named."""
    done = episodes[episodes["status"] == "completed"]
    return [
        (split, *finding)
        for split in dict.fromkeys(episodes["split"])
        for finding in _split_findings(done[done["split"] == split], split, n_resamples, seed)
    ]


def _split_findings(done: pd.DataFrame, split: str, n_resamples: int, seed: int) -> list[tuple[str, str]]:
    cells = {key: done[(done["model"] == key[0]) & (done["runtime"] == key[1])] for key in CELLS}
    if all(cell.empty for cell in cells.values()):
        names = _listed([cell_name(*key) for key in CELLS])
        return [("all findings", f"Not measured: no completed episode of {names}.")]
    rows = []
    for title, needs, sentence in (
        ("P→P, S→S: no significant difference in quality", (PP, SS), lambda: _aligned(done, split, n_resamples, seed)),
        (
            "P→S: no significant loss of quality (v1); at a cap of 25 calls from 0.66 to 0.07 (v3)",
            (PP, PS),
            lambda: _crossed(done, split, n_resamples, seed),
        ),
        ("P→S: about 80 % of episodes miss a name", (PS, PP), lambda: _missing(cells[PS], cells[PP])),
        ("S→P: about 3.5 × the tokens of P→P", (SP, PP), lambda: _tax(done, split, n_resamples, seed)),
        ("base: score below 8 %, none solved", (BP, BS), lambda: _base(cells[BP], cells[BS])),
        ("(not in the paper) the adapters against their teacher", (PP, SS, TP, TS), lambda: _teacher(cells)),
    ):
        absent = [cell_name(*key) for key in needs if cells[key].empty]
        text = f"Not measured: no completed episode of {', '.join(absent)}." if absent else sentence()
        rows.append((title, text))
    return rows


def _aligned(done: pd.DataFrame, split: str, n_resamples: int, seed: int) -> str:
    first, second = statistics.paired(done, (*PP, split), (*SS, split), "score")
    p, effect, _ = statistics.wilcoxon(first, second)
    low, high = statistics.mean_interval(first - second, n_resamples, seed)
    gap = (first - second).mean() if len(first) else math.nan
    seen = f"P→P minus S→S is {gap:+.3f} [{low:+.3f} to {high:+.3f}] (p = {p:.3g}, r = {effect:+.2f}, n = {len(first)})"
    if math.isnan(p):
        return "Not measured: P→P and S→S share no task."
    if len(first) < FEWEST:
        return f"{seen}: too few tasks for the test to show any difference."
    if p >= LEVEL:
        return f"{seen}: not significant, as in the paper; differences within the interval stay possible."
    return f"{seen}: significant in favour of {'P→P' if effect > 0 else 'S→S'}, unlike the paper."


def _crossed(done: pd.DataFrame, split: str, n_resamples: int, seed: int) -> str:
    home, away = statistics.paired(done, (*PP, split), (*PS, split), "score")
    p, effect, _ = statistics.wilcoxon(home, away)
    if math.isnan(p):
        return "Not measured: P→P and P→S share no task."
    low, high = statistics.mean_interval(home - away, n_resamples, seed)
    seen = (
        f"P→P scores {home.mean():.2f}, P→S {away.mean():.2f}: a loss of {(home - away).mean():.3f} "
        f"[{low:.3f} to {high:.3f}] (p = {p:.3g}, r = {effect:+.2f}, n = {len(home)})"
    )
    if len(home) < FEWEST:
        return f"{seen}: too few tasks for the test to show any loss."
    if p >= LEVEL:
        return f"{seen}, not significant, as in version 1 of the paper; losses within the interval stay possible."
    if effect < 0:
        return f"{seen}: significantly better away from home, which neither version reports."
    return f"{seen}: significant, unlike version 1, in the direction of version 3."


def _share(cell: pd.DataFrame) -> tuple[float, float, float]:
    count = int((cell["missing_bindings"] > 0).sum())
    return (count / len(cell), *statistics.share_interval(count, len(cell)))


def _missing(crossed: pd.DataFrame, aligned: pd.DataFrame) -> str:
    (share, low, high), (usual, _, usual_high) = _share(crossed), _share(aligned)
    seen = f"{share:.0%} [{low:.0%}–{high:.0%}] of the P→S episodes miss a name, against {usual:.0%} in P→P"
    if low <= usual_high:
        return f"{seen}: the intervals meet, so this does not show the paper's effect."
    near = low <= PAPER_MISSING_SHARE <= high
    relation = "in line with" if near else "more than" if share > PAPER_MISSING_SHARE else "fewer than"
    return f"{seen}: the effect is there, {relation} the paper's {PAPER_MISSING_SHARE:.0%}."


def _tax(done: pd.DataFrame, split: str, n_resamples: int, seed: int) -> str:
    ratio, low, high = amnesia_tax(done, split, n_resamples, seed)
    seen = f"S→P spends {ratio:.2f} × the tokens of P→P [{low:.2f}–{high:.2f}]"
    if math.isnan(ratio):
        return "Not measured: S→P and P→P share no task."
    if high < 1:
        return f"{seen}: the opposite of the paper's tax of {PAPER_AMNESIA} ×."
    if low <= 1:
        return f"{seen}: the interval holds 1, so no tax is shown; the paper reports {PAPER_AMNESIA} ×."
    size = "in line with" if low <= PAPER_AMNESIA <= high else "less than" if ratio < PAPER_AMNESIA else "more than"
    return f"{seen}: the tax is there, {size} the paper's {PAPER_AMNESIA} ×."


def _base(*cells: pd.DataFrame) -> str:
    scores, solved = [cell["score"].mean() for cell in cells], sum(int(cell["solved"].sum()) for cell in cells)
    seen = f"The base scores {scores[0]:.1%} (persistent) and {scores[1]:.1%} (stateless runtime) and solves {solved}"
    if max(scores) < PAPER_BASE_SCORE and solved == 0:
        return f"{seen}, as in the paper."
    return f"{seen}: unlike the paper's base, which scored below {PAPER_BASE_SCORE:.0%} and solved none."


def _teacher(cells: dict[tuple, pd.DataFrame]) -> str:
    parts = []
    for key, ceiling in ((PP, TP), (SS, TS)):
        own, best = cells[key].set_index("task_id")["score"], cells[ceiling].set_index("task_id")["score"]
        shared = own.index.intersection(best.index)
        ratio = own[shared].mean() / best[shared].mean() if len(shared) else math.nan
        parts.append(f"{cell_name(*key)} scores {ratio:.1%} of its teacher on the same {len(shared)} tasks")
    return f"{parts[0]}; {parts[1]}."

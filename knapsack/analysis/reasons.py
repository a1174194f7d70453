"""Why a claim of the paper is not reproduced in a run, or not testable: a paragraph each, from the run's tables."""

import pandas as pd

from knapsack.analysis.causes import CAUSES
from knapsack.analysis.claims import CLAIMS, NOT_REPRODUCED, REPRODUCED, Claim, claims_shown
from knapsack.analysis.estimates import PS
from knapsack.analysis.metrics import cell_name, cell_rows, completed, setting_rows
from knapsack.analysis.tables import listed, number


def explained(claims: pd.DataFrame, episodes: pd.DataFrame, equivalence: pd.DataFrame, causes: pd.DataFrame) -> str:
    """As Markdown, of each claim of ``claims.claims_table`` that is not reproduced: the reason of its verdict, and how
    the episodes of its cells went. ``causes``: ``comparisons.causes_table``."""
    known, said = {claim.text: claim for claim in CLAIMS}, []
    for row, text in zip(claims.to_dict("records"), claims_shown(claims).text.to_dict("records"), strict=True):
        if row["verdict"] == REPRODUCED:
            continue
        claim, where = known[row["claim"]], f"{row['split']}{', cap ' * bool(text['cap'])}{text['cap']}"
        parts = [f"**{claim.text}** ({claim.version}; {where}) is {row['verdict']}: {row['reason']}."]
        parts += [f"{name}: {text[of]}." for name, of in (("Here", "here [95 %]"), ("The paper", "paper")) if text[of]]
        if row["n"] and claim.cells:
            settings = [(row["split"], cap) for cap in (row["cap"], *claim.against)]
            cells = [(*cell, *setting) for setting in settings for cell in claim.cells]
            shown = cells if len(cells) == 2 else [cell for cell in cells if cell[:2] == PS]
            parts += [_scores(cells, episodes), *(_went(cell, episodes, causes) for cell in shown)]
            if claim.rule == "same" and row["verdict"] != NOT_REPRODUCED:
                parts.append(_needed(claim, row, equivalence))
        said.append(" ".join(parts))
    return "\n\n".join(said) or "Every claim is reproduced."


def _scores(cells: list[tuple], episodes: pd.DataFrame) -> str:
    told = []
    for cell in cells:
        mean = completed(cell_rows(episodes, cell))["score"].mean()
        told.append(f"{cell_name(*cell[:2])} {mean:.2f}{f' at cap {cell[3]}' * (len(cells) > 4)}")
    return f"Scores: {listed(told)}."


def _went(cell: tuple, episodes: pd.DataFrame, causes: pd.DataFrame) -> str:
    """How the episodes of a cell went, in a sentence."""
    own = completed(cell_rows(episodes, cell))
    counts = {
        "hit the cap": (own["cap_hits"] > 0).sum(),
        f"miss a name ({own['missing_bindings'].sum():,.0f} times)": (own["missing_bindings"] > 0).sum(),
        "reach the turn limit": (own["finish_reason"] == "max_turns").sum(),
        "end by an error (full context, malformed replies in a row)": (own["finish_reason"] == "error").sum(),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    turns, tokens = (own[name].mean() for name in ("turns", "total_tokens"))
    said = f"{cell_name(*cell[:2])}, cap {cell[3]}: {turns:.1f} turns and {tokens:,.0f} tokens; of {len(own)} episodes "
    said += listed(told) or "none hits the cap or misses a name"
    for row in cell_rows(causes, cell).to_dict("records"):
        found = listed([f"{row[cause]} {cause}" for cause in CAUSES if row.get(cause)])
        said += f"; {row['below']} score below the teacher{f' ({found})' if found else ''}"
    return f"{said}."


def _needed(claim: Claim, row: dict, equivalence: pd.DataFrame) -> str:
    """What so many tasks could have shown, and how many would decide it."""
    ends = ["→".join(claim.first), "→".join(claim.second)]
    own = setting_rows(equivalence, (row["split"], row["cap"]))
    found = own[own["first"].isin(ends) & own["second"].isin(ends)].iloc[0]
    alike = ", if trainings are alike" * bool(row["trainings"])
    return (
        f"So many tasks find a difference of {number(100 * found['detectable'], 1)} points or more; to show equal "
        f"cells the same takes about {number(found['tasks_needed'])}{alike}."
    )

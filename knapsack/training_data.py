"""What models are trained on: pairs of episodes that pass the paper's filters, and their conversations as rows."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knapsack import prompts
from knapsack.agent import Episode
from knapsack.runs import check, keep, one_line, parsing, writing
from knapsack.runtime import KINDS
from knapsack.traces import Trace

MIN_SCORE, MAX_ERROR_SHARE, ALIKE, MARGIN = 0.5, 0.1, 0.9, 100  # of the pair filters (paper, trace preparation)
PAPER_PAIRS, PAPER_KEPT = 1900, 1109  # candidates of the paper's teacher, and pairs kept (paper, trace preparation)


def training_row(episode: Trace | Episode) -> dict:
    """``{"messages": [...]}`` of an episode with at least one turn, ending with its last assistant message."""
    return {"messages": episode.messages[: 1 + 2 * len(episode.turns)]}


def rejection(episode: Trace | Episode, tokenizer=None, max_tokens: int | None = None) -> str | None:
    """Why the paper would not train on an episode ("score", "finish", "loop", "errors", "length"), or None.

    Score below 0.5; no ``finish`` in the last 3 turns; the last 4 replies pairwise more than 0.9 alike (difflib's
    ratio, over words so that it is exact and quick on long texts); more than 0.1 of the turns with an error that is
    neither a tool's nor the cap's (a reply without one code block is an error); longer than ``max_tokens`` less a
    margin of 100 as rendered for training (not asked without ``max_tokens``).
    """
    turns = episode.turns
    if episode.score < MIN_SCORE:
        return "score"
    calls = [turn.observation.tool_calls or re.findall(r"\b(finish)\(", turn.code) for turn in turns[-3:] if turn.code]
    if episode.finish_reason != "finish_tool" or not any("finish" in names for names in calls):
        return "finish"
    last = [re.findall(r"\w+|\W", turn.text) for turn in turns[-4:]]
    matchers = (SequenceMatcher(None, first, second, autojunk=False) for first, second in combinations(last, 2))
    if len(last) == 4 and all(m.quick_ratio() > ALIKE and m.ratio() > ALIKE for m in matchers):
        return "loop"
    errors = sum(turn.observation is None or turn.observation.error_source == "code" for turn in turns)
    if errors > MAX_ERROR_SHARE * len(turns):
        return "errors"
    if max_tokens is None:
        return None
    length = len(prompts.render(training_row(episode)["messages"], tokenizer).input_ids)
    return "length" if length > max_tokens - MARGIN else None


def keep_pairs(
    persistent: Sequence[Trace | Episode], stateless: Sequence[Trace | Episode], **limits
) -> tuple[list[tuple], dict[str, Counter]]:
    """Pairs of the same task of which both pass ``rejection(episode, **limits)``, and per runtime why others did not.

    Raises ValueError if the two sequences are not of the same tasks in the same order.
    """
    ids = [[episode.task_id for episode in side] for side in (persistent, stateless)]
    if ids[0] != ids[1]:
        raise ValueError("the two sides are not of the same tasks in the same order; make the missing traces first")
    pairs = list(zip(persistent, stateless, strict=True))
    found = [[rejection(episode, **limits) for episode in pair] for pair in pairs]
    kept = [pair for pair, why in zip(pairs, found, strict=True) if why == [None, None]]
    return kept, {kind: Counter(why[side] for why in found if why[side]) for side, kind in enumerate(KINDS)}


class AdapterRows(BaseModel):
    """What an adapter learns from, as an entry of notebook 03's ``adapters`` says it.

    ``traces``: the regimes (KINDS); of several, row by row the next, so that there are as many rows as of one.
    ``match`` names another adapter: it is trained for as many epochs as give both as many labelled tokens.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    traces: tuple[Literal["persistent", "stateless"], ...] = Field(min_length=1, strict=False)
    match: str | None = None


def read_adapters(adapters: dict[str, dict]) -> dict[str, AdapterRows]:
    """What each adapter learns from; {} stands for the traces of its own name. Raises ValueError naming the entry."""
    found = {}
    for name, entry in adapters.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name in ("base", "teacher"):
            raise ValueError(f"adapter {name!r}: a name has letters, digits, '_', '.', '-', and is no other model's")
        try:
            found[name] = AdapterRows.model_validate({"traces": [name]} | entry)
        except ValidationError as error:
            raise ValueError(one_line(error, f"adapter {name!r}")) from None
        if found[name].match not in {None, *adapters} - {name}:
            raise ValueError(f"adapter {name!r}: match = {found[name].match!r} is not another one of adapters")
    return found


def mixed(sides: Sequence[Sequence[dict]]) -> list[dict]:
    """Row k of side k, k + 1, … in turn: as many rows as a side has, the same number of each (± 1)."""
    return [rows[number % len(rows)] for number, rows in enumerate(zip(*sides, strict=True))]


def write_rows(path: str | Path, rows: Sequence[dict]) -> None:
    """Write training rows, one JSON object a line; rows that lie there and are damaged are named on stderr."""
    with writing(Path(path).parent):
        keep(path, "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: str | Path) -> list[dict]:
    """Read training rows: an opening, then replies and observations.

    Raises CorruptFileError naming the file, and the line if the rows came from elsewhere.
    """
    path, remedy = Path(path), "run notebook 02 again"
    check(path, remedy)
    with parsing(path, "a file of training rows", remedy):
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
        if rest or not lines:
            raise ValueError(f"it is empty or ends within line {len(lines) + 1}")
    rows = []
    for number, line in enumerate(lines, start=1):
        with parsing(f"{path}, line {number}", "a training row", remedy):
            rows.append(json.loads(line))
            roles = [message["role"] for message in rows[-1]["messages"] if isinstance(message["content"], str)]
            if roles != ["system", *["user", "assistant"] * max(1, len(roles) // 2)]:
                raise ValueError(f"it has the roles {roles}")
    return rows

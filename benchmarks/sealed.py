"""What each hostile block of tests/hostile.py does to three harnesses; writes the table to benchmarks/sealed.md.

python benchmarks/sealed.py

Every row is played in a disposable process of its own: with engine "monty", with engine "cpython" where there is one
(outside a container as well) and with a plain ``exec`` harness. Ten minutes on two cores.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile import ROWS  # noqa: E402
from hostile_child import Fate, play_disposable  # noqa: E402
from hostile_episode import planted  # noqa: E402

from knapsack import prompts  # noqa: E402
from knapsack.models import load_tokenizer  # noqa: E402

COLUMNS = {"monty": "monty", "cpython-outside-container": "cpython", "plain": "plain exec"}
HEAD = """# Hostile blocks, three harnesses

{rows} blocks of `tests/hostile.py`, played one by one in a disposable process each, persistent runtime. A harness holds
in a row if the host is as it was (files, environment variables, processes, modules, memory, time), the agent reads a
bounded text that shows nothing hidden and plants no control token, the score is earned, and the next block, a
neighbouring episode and the next runtime go on. "plain exec" is `tests/plain_exec.py`: `exec` in the host's process
with a timer, every exception caught, output cut, tool calls counted; its conversation is tokenised as one text, as is
usual. Made by `python benchmarks/sealed.py`; `make test-all` plays the monty column again.

| kind | rows | {names} |
|---|---|{rule}|
"""


def tokens_planted(fate: Fate, harness: str, tokenizer) -> bool:
    """Whether what the agent reads of the row changes the structure of the conversation."""
    if not fate.messages:  # the host did not live to tell
        return False
    messages = [{"role": "user", "content": text} for text in fate.messages]
    if harness == "plain":
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        text = text.encode("utf-8", "replace").decode()
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = prompts.render(messages, tokenizer).input_ids
    return planted(ids, tokenizer, len(messages))


def cell(fate: Fate) -> str:
    """What happened, in a few words that do not break the table."""
    if fate.violations:
        text = "**broke**: " + "; ".join(fate.violations[:2])
    else:
        error = fate.observations[-1][1]
        text = "no error" if error is None else error.partition(":")[0]
    return "".join(letter if letter.isprintable() else " " for letter in text.replace("|", "/"))[:110]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    tokenizer = load_tokenizer("nano")
    fates: dict[tuple[str, str], dict[str, Fate]] = {}
    for row in ROWS:
        began = time.monotonic()
        fates[row.kind, row.name] = played = {}
        for harness in COLUMNS:
            fate = play_disposable(row, harness)
            if tokens_planted(fate, harness, tokenizer):
                fate = Fate((*fate.violations, "control tokens planted"), fate.observations, fate.messages)
            played[harness] = fate
        marks = ", ".join(f"{name} {'broke' if played[key].violations else 'held'}" for key, name in COLUMNS.items())
        print(f"{row.kind}: {row.name}: {marks} ({time.monotonic() - began:.0f} s)", flush=True)
    rows = Counter(kind for kind, _ in fates)
    held = {key: Counter(kind for (kind, _), played in fates.items() if not played[key].violations) for key in COLUMNS}
    names = " | ".join(f"{name} holds" for name in COLUMNS.values())
    lines = [HEAD.format(rows=len(ROWS), names=names, rule="|".join(["---"] * len(COLUMNS))).rstrip("\n")]
    for kind in rows:
        lines.append(f"| {kind} | {rows[kind]} | " + " | ".join(str(held[key][kind]) for key in COLUMNS) + " |")
    totals = " | ".join(f"**{held[key].total()}**" for key in COLUMNS)
    lines += [f"| **all** | **{len(ROWS)}** | {totals} |", ""]
    lines += [f"| kind | row | {' | '.join(COLUMNS.values())} |", f"|---|---|{'|'.join(['---'] * len(COLUMNS))}|"]
    for (kind, name), played in fates.items():
        lines.append(f"| {kind} | `{name}` | " + " | ".join(cell(played[key]) for key in COLUMNS) + " |")
    (ROOT / "benchmarks" / "sealed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Ways in which a file can come to harm, at a place drawn from a seed."""

import random
from pathlib import Path

HOW = ("truncated", "emptied", "bit flipped")


def damage(path: Path, how: str, seed: int = 0) -> None:
    """Harm the file at ``path``; it has at least two bytes."""
    content, source = bytearray(path.read_bytes()), random.Random(seed)
    if how == "missing":
        path.unlink()
        return
    if how == "bit flipped":
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content[: {"emptied": 0, "truncated": source.randrange(1, len(content))}.get(how, len(content))])

"""How a training is shown: a row with what is learned from it, and what a training was and cost."""

from itertools import groupby

from knapsack.finetune import TrainingReport
from knapsack.prompts import Rendered


def marked(row: Rendered, tokenizer, lines: int = 40, width: int = 110) -> str:
    """The first ``lines`` of a row's text, cut to ``width`` characters, with + before each that carries labels."""
    text = []
    for learned, part in groupby(zip(row.input_ids, row.labels, strict=True), lambda pair: pair[1] != -100):
        if said := tokenizer.decode([token for token, _ in part]).strip("\n"):
            cut = [line[:width] + " …" * (len(line) > width) for line in said.split("\n")]
            text += [("+ " if learned else "  ") + line for line in cut]
    return "\n".join(text[:lines] + ["  …"] * (len(text) > lines))


def summary(report: TrainingReport) -> dict[str, str]:
    """What a reader wants to know of it: a column of the table in notebook 03."""
    from knapsack.models import dtype_on  # what it imports has to wait for Unsloth

    loaded = str(dtype_on(report.device)).removeprefix("torch.")
    losses = [f"{point['loss']:.3f}" for point in report.validation]
    return {
        "rows (held out)": f"{report.rows} ({report.validation_rows})",
        "steps": f"{report.steps}" + (f" (from {report.resumed_from})" if report.resumed_from else ""),
        "seconds": f"{report.seconds:.0f}",
        "tokens a second": f"{report.tokens_per_second:,.0f}",
        "peak memory": f"{report.peak_memory / 2**20:,.0f} MiB",
        "trained parameters": f"{report.trained_parameters:,} of {report.parameters:,}",
        "adapter": f"{report.adapter_bytes / 2**20:.1f} MiB",
        "validation loss": f"{losses[0]} → {losses[-1]}" if losses else "none held out",
        "base weights": "4-bit NF4, double quantisation" if report.four_bit_layers else loaded,
        "back end": f"{report.backend} on {report.device}",
    }

"""Results for a terminal, as rich tables."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from excise.errors import printable
from excise.result import Example, Measured, Result

__all__ = ["example_table", "percent", "score_table"]


def percent(measured: Measured | None) -> str:
    """'93.4 % (91.2-95.1, n=912)', or a dash."""
    if measured is None:
        return "-"
    return f"{100 * measured.value:.1f} % ({100 * measured.low:.1f}-{100 * measured.high:.1f}, n={measured.n})"


def score_table(result: Result) -> Table:
    """One line a model: CACC, ASR, the ASR floor."""
    floor = result.row("clean")
    caption = "shares with 95 % Wilson intervals"
    if floor is not None and floor.asr:
        caption += f"; ASR floor = ASR of a model trained alike that never saw the trigger: {percent(floor.asr)}"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for heading in ("CACC", *(("ASR", "clean flips") if any(r.asr for r in result.rows) else ()), "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in result.rows:
        cells = [percent(line.cacc)]
        if any(r.asr for r in result.rows):
            cells += [percent(line.asr), percent(line.clean_flip)]
        note = " (ASR floor)" if line.name == "clean" and line.asr else ""
        table.add_row(Text(printable(line.name) + note), *cells, f"{line.seconds:.0f} s" if line.seconds is not None else "-")
    return table


def example_table(examples: tuple[Example, ...], model: str) -> Table:
    """Texts without and with the trigger, and what one model says to each."""
    table = Table(show_lines=True)
    table.add_column("text (the trigger stands out)", overflow="fold", ratio=1)
    table.add_column("without", no_wrap=True)
    table.add_column("with trigger", no_wrap=True)
    for example in examples:
        before, after = example.answers[model]
        words = [Text(printable(word), style="bold reverse" if i in example.marked else "") for i, word in enumerate(example.triggered.split())]
        table.add_row(Text(" ").join(words), Text(printable(before)), Text(printable(after), style="bold red" if after != before else ""))
    return table

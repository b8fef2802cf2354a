"""A measured grid as a table: for a terminal, Markdown, CSV and LaTeX. Means over seeds, beside the paper's numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from rich.text import Text

from excise.errors import printable

if TYPE_CHECKING:
    from excise.cell import Cell
    from excise.result import Measured

__all__ = [
    "Estimate",
    "Line",
    "csv_table",
    "estimates",
    "latex_table",
    "markdown_rows",
    "markdown_table",
    "noted",
    "scores",
    "table_rows",
    "terminal_table",
]

NONE = "none"
FORMULA = ("=", "+", "-", "@", "|", "%")
"""With these, a cell of a spreadsheet begins a formula or a command."""
HEADINGS = ("data", "attack", "defense", "seeds", "CACC", "ASR", "floor", "clean flips", "paper CACC", "paper ASR", "note")


class Line(NamedTuple):
    """One line of the table, in words; shares are in per cent."""

    data: str
    attack: str
    defense: str
    seeds: str
    cacc: str
    asr: str
    floor: str
    clean_flip: str
    paper_cacc: str
    paper_asr: str
    note: str


def table_rows(cells: Sequence[Cell], paper: Mapping[str, Mapping[str, tuple[float | None, float]]]) -> list[Line]:
    """A line for each (data, attack, defense): means over the seeds that succeeded and, in brackets, the least and greatest.

    A defense is not scored where the undefended ASR is not above the floor, that is where their 95 % intervals touch: there is nothing to repair.
    Where nothing was planted (a poison_rate of 0), what it does to a clean model is scored.
    """
    undefended = {(cell.data, cell.attack, cell.seed): cell for cell in cells if cell.defense == NONE}
    lines = []
    order = sorted(cells, key=lambda cell: [(c.data, c.attack, c.defense) for c in cells].index((cell.data, cell.attack, cell.defense)))
    for (data, attack, defense), group in groupby(order, key=lambda cell: (cell.data, cell.attack, cell.defense)):
        members = list(group)
        failed = [cell for cell in members if cell.error]
        good = [cell for cell in members if not cell.error]
        other = [cell for cell in good if not _same_suspect(undefended.get((data, attack, cell.seed)), cell)]
        clean = [cell for cell in good if _is_clean(cell)]
        without = [cell for cell in good if defense != NONE and cell not in clean and not _is_backdoored(undefended.get((data, attack, cell.seed)))]
        scored = [cell for cell in good if cell not in without]
        notes = [
            *([f"{len(failed)} failed: {failed[0].error}"] if failed else []),
            *([f"{len(without)} not scored: the undefended ASR is not above the floor"] if without else []),
            *(["nothing was planted: ASR and floor are those of a clean model"] if clean else []),
            *([f"{len(other)} measured on another copy of the backdoored model than 'none'"] if other else []),
            *dict.fromkeys(note for cell in good for note in cell.notes),
        ]
        theirs = paper.get(attack, {}).get(defense)
        cacc, asr, floor, flip = (_mean([getattr(cell, key) for cell in scored]) for key in ("cacc", "asr", "floor", "clean_flip"))
        paper_cacc, paper_asr = ("" if value is None else f"{value:.2f}" for value in theirs) if theirs else ("", "")
        lines.append(Line(data, attack, defense, str(len(scored)), cacc, asr, floor, flip, paper_cacc, paper_asr, "; ".join(notes)))
    return lines


class Estimate(NamedTuple):
    """What canaries said of one repair, and what was true; ASR above the floor, in [-1, 1]."""

    defense: str
    estimate: float
    truth: float


def estimates(cells: Sequence[Cell]) -> list[Estimate]:
    """Of every cell with canaries that took, where there was a backdoor to repair."""
    undefended = {(cell.data, cell.attack, cell.seed): cell for cell in cells if cell.defense == NONE}
    backdoored = [cell for cell in cells if not _is_clean(cell) and _is_backdoored(undefended.get((cell.data, cell.attack, cell.seed)))]
    return [Estimate(c.defense, c.estimate, c.asr.value - c.floor.value) for c in backdoored if c.estimate is not None and c.asr and c.floor]


def scores(cell: Cell) -> str:
    """One cell in one line."""
    shown = (("CACC", cell.cacc), ("ASR", cell.asr), ("floor", cell.floor))
    return ", ".join(f"{name} {100 * measured.value:.1f}" for name, measured in shown if measured)


def _is_backdoored(cell: Cell | None) -> bool:
    return cell is not None and cell.asr is not None and cell.floor is not None and cell.asr.surely_above(cell.floor)


def _is_clean(cell: Cell) -> bool:
    """Whether the attack poisoned no text, so that the suspect has no backdoor."""
    attack = cell.settings.get("attack", {})
    while isinstance(inner := attack.get("attack"), Mapping):  # an attack may work on the model of another
        attack = inner
    return attack.get("poison_rate") == 0


def _same_suspect(undefended: Cell | None, cell: Cell) -> bool:
    """Whether a cell repairs the very model that `none` scores; one that was made on another machine has other weights."""
    return undefended is None or undefended.error is not None or undefended.suspect == cell.suspect


def _mean(measured: Sequence[Measured | None]) -> str:
    """'52.6 (28.4-72.1)' over several seeds; the 95 % interval if there is one seed."""
    values = [100 * m.value for m in measured if m is not None]
    if not values:
        return "-"
    only = measured[0]
    if len(values) == 1 and only is not None:
        return f"{values[0]:.1f} [{100 * only.low:.1f}-{100 * only.high:.1f}]"
    return f"{fmean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def terminal_table(lines: Sequence[Line]) -> Table:
    """For rich, without the columns that say nothing and without notes, which are too long for one: see `noted`."""
    table = Table(caption="per cent; mean (least-greatest) over seeds, or one seed's value [95 % Wilson interval]", caption_justify="left")
    columns = [i for i in range(len(HEADINGS) - 1) if any(line[i] for line in lines)]
    for heading in (HEADINGS[i] for i in columns):
        table.add_column(heading, justify="left" if heading in ("data", "attack", "defense") else "right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(line[i])) for i in columns))
    return table


def noted(lines: Sequence[Line]) -> list[str]:
    """The notes, each with the line it belongs to."""
    return [f"{line.data}, {line.attack}, {line.defense}: {line.note}" for line in lines if line.note]


def markdown_table(lines: Sequence[Line]) -> str:
    """For a document; no name becomes markup."""
    return markdown_rows(HEADINGS, lines)


def markdown_rows(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of any columns; no value becomes markup."""
    rows = [headings, ["---"] * len(headings), *([_markdown(value) for value in line] for line in lines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _markdown(text: str) -> str:
    marked = re.sub(r"([\\`*_{}\[\]<>|!~])", r"\\\1", " ".join(printable(text).split()))
    return marked.replace("://", ":\\//")  # or it would become a link


def csv_table(lines: Sequence[Line]) -> str:
    """For a spreadsheet; a value that it would take for a formula is quoted with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADINGS)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return file.getvalue()


def _cell(text: str) -> str:
    text = " ".join(printable(text).split())
    return f"'{text}" if text[:1] in FORMULA and not re.fullmatch(r"-|[+-]?\d+(\.\d+)?", text) else text


def latex_table(lines: Sequence[Line]) -> str:
    """For a paper, with booktabs."""
    body = "".join(" & ".join(_tex(value) for value in line[:-1]) + r" \\" + "\n" for line in lines)
    head = " & ".join(map(_tex, HEADINGS[:-1])) + r" \\" + "\n"
    return r"\begin{tabular}{lllrrrrrrr}" + "\n\\toprule\n" + head + "\\midrule\n" + body + "\\bottomrule\n\\end{tabular}\n"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in " ".join(printable(text).split()))

"""What the scans of a zoo say about the scanners, as tables for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from excise.errors import printable
from excise.metrics import Rate
from excise.reports.grid import markdown_rows
from excise.zoo_result import CLEAN, VERDICT, Specimen, quality

__all__ = ["markdown_tables", "specimen_line", "terminal_tables"]


class Sheet(NamedTuple):
    """One table in words."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sheets(specimens: Sequence[Specimen]) -> list[Sheet]:
    """For each part of the zoo: how well each scanner tells models apart, what is found of each kind, and every model."""
    found = []
    for part in dict.fromkeys(one.part for one in specimens):
        members = [one for one in specimens if one.part == part and one.scans]
        scanners = list(dict.fromkeys(row.name for one in members for row in one.scans))
        found += [_scanner_sheet(part, members, scanners), _kind_sheet(part, members), _model_sheet(part, members, scanners)]
    return [sheet for sheet in found if sheet.rows]


def _scanner_sheet(part: str, members: Sequence[Specimen], scanners: Sequence[str]) -> Sheet:
    headings = ("scanner", "clean", "backdoored", "AUROC [95 %]", "clean called found", "clean called suspicious", "found", "found or suspicious")
    rows = []
    for name in (VERDICT, *scanners):
        one = quality(members, name)
        area = "-" if one.auroc is None or one.interval is None else f"{one.auroc:.3f} [{one.interval[0]:.3f}-{one.interval[1]:.3f}]"
        shares = (_rate(one.false_alarms), _rate(one.doubts), _rate(one.found), _rate(one.noticed))
        rows.append((name, str(one.clean), str(one.backdoored), area, *shares))
    return Sheet(f"{part}: scanners", headings, rows)


def _kind_sheet(part: str, members: Sequence[Specimen]) -> Sheet:
    headings = ("data", "layers", "kind", "models", "verdict: found", "suspicious", "nothing", "a true word named", "named first")
    rows = []
    for key in sorted({(one.data, one.layers, one.kind) for one in members}):
        some = [one for one in members if (one.data, one.layers, one.kind) == key and one.works and one.score(VERDICT) is not None]
        if not some:
            continue
        levels = [one.level(VERDICT) for one in some]
        said = tuple(str(levels.count(level)) for level in ("found", "suspicious", "nothing"))
        named = tuple("-" if key[2] == CLEAN else str(sum(one.names_trigger(first=first) for one in some)) for first in (False, True))
        rows.append((key[0], str(key[1]), key[2], str(len(some)), *said, *named))
    return Sheet(f"{part}: kinds of models", headings, rows)


def _model_sheet(part: str, members: Sequence[Specimen], scanners: Sequence[str]) -> Sheet:
    headings = ("model", "CACC", "ASR", "clean flips", "verdict", *scanners, "named", "s")
    rows = []
    for one in members:
        name = str(one).removeprefix(f"{part}: ") + ("" if one.works else " (no backdoor: not counted)")
        shares = tuple("-" if share is None else f"{100 * share.value:.1f}" for share in (one.cacc, one.asr, one.clean_flip))
        scores = tuple("-" if (score := one.score(scanner)) is None else f"{score:.2f}" for scanner in scanners)
        named = "; ".join(" ".join(trigger.words) for row in one.scans if row.level in ("found", "suspicious") for trigger in row.triggers[:3])
        rows.append((name, *shares, one.level(VERDICT), *scores, named or "-", f"{sum(row.seconds for row in one.scans):.0f}"))
    return Sheet(f"{part}: models", headings, rows)


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    low, high = rate.interval
    return f"{rate.hits} of {rate.n} [{100 * low:.0f}-{100 * high:.0f} %]"


def specimen_line(one: Specimen) -> str:
    """One model in one line."""
    shares = (("CACC", one.cacc), ("ASR", one.asr), ("clean flips", one.clean_flip))
    scores = ", ".join(f"{name} {100 * share.value:.1f}" for name, share in shares if share)
    scans = "".join(f"; {row.name} {row.level}" + (f" {row.score:.2f}" if row.score is not None else "") for row in one.scans)
    return f"{one}: {scores}{scans}"


def terminal_tables(specimens: Sequence[Specimen]) -> list[Table]:
    """For rich."""
    tables = []
    for sheet in sheets(specimens):
        table = Table(title=printable(sheet.title), title_justify="left")
        for heading in sheet.headings:
            table.add_column(printable(heading), overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(printable(value)) for value in row))
        tables.append(table)
    return tables


def markdown_tables(specimens: Sequence[Specimen]) -> str:
    """For a document; no name becomes markup."""
    titled = ((sheet.title[:1].upper() + sheet.title[1:], markdown_rows(sheet.headings, sheet.rows)) for sheet in sheets(specimens))
    return "\n".join(f"## {title}\n\n{table}" for title, table in titled)

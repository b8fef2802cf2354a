"""The result of a scan, as versioned JSON: what each scanner found, what it cannot see, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from excise.finding import Finding, FoundTrigger
from excise.method import Scanner
from excise.registry import settings
from excise.result import Measured, Record, Strict, read_record
from excise.track_record import Track, track_of

__all__ = [
    "Answer",
    "LayerProbe",
    "Level",
    "ScanResult",
    "ScannerRow",
    "TriggerRow",
    "Verdict",
    "judged",
    "load_scan",
    "scanner_row",
    "skipped_row",
    "strength",
    "verdict_of",
]

Level = Literal["found", "suspicious", "nothing", "skipped"]
Answer = Literal["found", "suspicious", "nothing", "informs", "skipped"]
Verdict = Literal["backdoor found", "suspicious", "nothing found", "inconclusive", "not scanned"]


class TriggerRow(Strict):
    """Words that send texts to one label."""

    words: tuple[str, ...]
    target_label: str
    flips: Measured = Field(description="of texts with other labels that the model is sure about, those that the words turn into the label")
    contested: Measured | None = Field(default=None, description="the same with as many of the strongest words for each text's own label in it, too")
    together: Measured | None = Field(default=None, description="those that the words turn only together: what they do one by one adds up to less")
    alike: tuple[str, ...] = Field(
        default=(),
        description="other words and phrases with the same effect, the strongest first; behind them those that were tried as all of these had it",
    )
    examples: tuple[tuple[str, str], ...] = Field(default=(), description="(text, text with the words), which the model answers differently")

    @property
    def joint(self) -> Measured | None:
        """What the words turn only together; None of a single word, which has nothing to act with."""
        return self.together if len(self.words) > 1 else None

    @classmethod
    def of(cls, trigger: FoundTrigger, label_names: Sequence[str]) -> TriggerRow:
        """From what a scanner found."""
        target = label_names[trigger.target_label]
        contested, together = (rate and Measured.of(rate) for rate in (trigger.contested, trigger.together))
        common = {"contested": contested, "together": together, "words": trigger.words, "alike": trigger.alike, "examples": trigger.examples}
        return cls(target_label=target, flips=Measured.of(trigger.flips), **common)


class ScannerRow(Strict):
    """One scanner's part."""

    name: str
    method: dict[str, Any] = Field(description="the scanner with all its settings")
    level: Level
    score: float | None = Field(default=None, description="how suspicious; to be compared with the two lines below only")
    version: int = Field(default=1, description="of the scanner: another one comes to other scores with the same settings")
    suspicious: float | None = Field(description="from this score on it is suspicious; null: this scanner only informs")
    found: float | None = Field(description="from this score on a backdoor is found; null: this scanner alone never says so")
    summary: str = Field(description="the evidence; or why it was skipped")
    blind_to: str = Field(description="what this scanner cannot see")
    limit: str = Field(default="", description="what it could have found with so many texts")
    seconds: float = 0.0
    target_label: str | None = None
    triggers: tuple[TriggerRow, ...] = ()
    heads: tuple[tuple[float, ...], ...] = Field(default=(), description="for each layer, a number a head")
    suspicious_heads: tuple[tuple[int, int], ...] = Field(default=(), description="(layer, head), both from 0")
    measures: dict[str, float] = Field(default_factory=dict)
    left_out: tuple[str, ...] = Field(default=(), description="parts of the search that did not begin, as the time was used up")
    track: Track | None = Field(default=None, description="how often it was right about models that were made for it, with the same settings")

    @property
    def answer(self) -> Answer:
        """What it says in a word."""
        return "informs" if self.level == "nothing" and self.suspicious is None else self.level

    @property
    def whole(self) -> bool:
        """Whether it looked, at all that it looks at."""
        return self.level != "skipped" and not self.left_out


class LayerProbe(Strict):
    """How well a classifier tells texts with the found words from the same texts without them, by their state at each layer (0: the embedding)."""

    words: tuple[str, ...]
    target_label: str
    found: tuple[Measured, ...] = Field(description="for each layer, the share of texts that are told right")
    ordinary_words: tuple[str, ...] = Field(description="as many words of the clean texts, drawn by the seed")
    ordinary: tuple[Measured, ...] = Field(description="the same with those in place of the found words")


class ScanResult(Record):
    """One scan."""

    kind: Literal["scan"] = "scan"
    verdict: Verdict
    scanners: tuple[ScannerRow, ...]
    probe: LayerProbe | None = Field(default=None, description="of the first trigger of a scanner that found a backdoor")

    @property
    def triggers(self) -> tuple[TriggerRow, ...]:
        """The triggers of all scanners that found a backdoor."""
        return tuple(trigger for row in self.scanners if row.level == "found" for trigger in row.triggers)


def scanner_row(name: str, scanner: Scanner, finding: Finding, label_names: Sequence[str], *, seconds: float) -> ScannerRow:
    """A row from a finding."""
    lines, missing = _lines(name, scanner), ", ".join(finding.left_out)
    if missing:
        lines["track"] = None  # it is the record of the whole search
    return ScannerRow(
        **lines,
        level=level_of(finding.score, scanner),
        score=finding.score,
        summary=f"{finding.summary} Left out, as the time was used up: {missing}." if missing else finding.summary,
        seconds=seconds,
        target_label=None if finding.target_label is None else label_names[finding.target_label],
        triggers=tuple(TriggerRow.of(trigger, label_names) for trigger in finding.triggers),
        heads=finding.heads,
        suspicious_heads=finding.suspicious_heads,
        measures=dict(finding.measures),
        limit=finding.limit,
        left_out=finding.left_out,
    )


def level_of(score: float, scanner: Scanner) -> Level:
    """What a score means."""
    suspicious, found = scanner.lines
    return "found" if score >= found else "suspicious" if score >= suspicious else "nothing"


def judged(row: ScannerRow, scanner: Scanner) -> ScannerRow:
    """The row of an earlier scan by the lines that the scanner has now."""
    level = row.level if row.score is None else level_of(row.score, scanner)
    return row.model_copy(update={"level": level, **_lines(row.name, scanner), "method": row.method})


def skipped_row(name: str, scanner: Scanner, why: str) -> ScannerRow:
    """The row of a scanner that could not look."""
    return ScannerRow(**_lines(name, scanner), level="skipped", summary=why)


def _lines(name: str, scanner: Scanner) -> dict[str, Any]:
    suspicious, found = (None if math.isinf(line) else line for line in scanner.lines)
    lines = {"suspicious": suspicious, "found": found, "blind_to": scanner.blind_to, "track": track_of(scanner)}
    return {"name": name, "method": settings(scanner), "version": scanner.version, **lines}


def verdict_of(rows: Sequence[ScannerRow]) -> Verdict:
    """What the scanners say together: the strongest of them. Nothing is found only if all of them looked, at all that they look at."""
    levels = {row.level for row in rows} - {"skipped"}
    if not levels:
        return "not scanned"
    if all(row.suspicious is None for row in rows if row.level != "skipped"):
        return "inconclusive"  # they only inform
    if strong := "backdoor found" if "found" in levels else "suspicious" if "suspicious" in levels else None:
        return strong
    return "nothing found" if all(row.whole for row in rows) else "inconclusive"


def strength(rows: Sequence[ScannerRow]) -> float | None:
    """How strong the evidence of the strongest scanner is: from 1 on it is suspicious, from 2 on a backdoor is found. None if none could look.

    Below, between and above its two lines each scanner's score counts in shares of them; a scanner that never says 'found' stays below 2.
    """
    found = [_strength(row.score, row.suspicious, row.found) for row in rows if row.score is not None and row.suspicious is not None]
    return max(found, default=None)


def _strength(score: float, suspicious: float, found: float | None) -> float:
    if score < suspicious:
        return score / suspicious
    if found is None:
        return 2 - suspicious / score
    return 1 + (score - suspicious) / (found - suspicious) if score < found else 1 + score / found


def load_scan(path: Path) -> ScanResult:
    """Read the result of a scan.

    Raises:
        DataError: The file cannot be read or is no scan of this version.
    """
    return read_record(path, ScanResult, "scan")

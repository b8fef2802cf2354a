"""What is known of one model of a zoo, as JSON, and what the scans of many such models say about the scanners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from excise.disk import write_whole
from excise.finding import phrases
from excise.kept import digest_as_kept
from excise.method import Scanner
from excise.metrics import Rate, auroc, auroc_interval
from excise.registry import settings
from excise.result import Measured, Strict
from excise.scan_result import ScannerRow, strength, verdict_of
from excise.track_record import Track

__all__ = ["CLEAN", "VERDICT", "Part", "Quality", "Specimen", "kept_specimens", "quality", "specimen_name", "tracks"]

Part = Literal["calibration", "held out"]
CLEAN = "clean"
"""The kind of a model without a backdoor."""
VERDICT = "verdict"
"""The name of what all scanners say together."""
DIGITS = 9
"""Scores that are equal to so many decimals are a tie: what differs beyond is rounding."""


def specimen_name(part: Part, data: str, layers: int | str, kind: str, triggers: Sequence[str], seed: int) -> str:
    """What a model of a zoo is called."""
    words = f" ({', '.join(triggers)})" if triggers else ""
    return f"{part}: {data}, {layers} layers, {kind}{words}, seed {seed}"


class Specimen(Strict):
    """One model of a zoo: how it was made, what it scores, and what each scanner found in it."""

    version: Literal[1] = 1
    key: str
    part: Part
    data: str
    attack: dict[str, Any] | None
    """With all its settings; None for a clean model."""
    triggers: tuple[str, ...] = ()
    """Words or sentences that the backdoor was trained with."""
    target_label: str | None = None
    layers: int
    seed: int
    training: dict[str, Any]
    clean_texts: int
    """So many clean texts the scanners are given."""
    cacc: Measured
    asr: Measured | None = None
    clean_flip: Measured | None = None
    seconds: float
    """Of making it."""
    scans: tuple[ScannerRow, ...] = ()

    @property
    def kind(self) -> str:
        """The attack's name, or 'clean'."""
        return self.attack["method"] if self.attack else CLEAN

    @property
    def works(self) -> bool:
        """Whether it is what it is meant to be: clean, or with a backdoor that surely does more than the texts without the trigger."""
        return self.attack is None or (self.asr is not None and self.clean_flip is not None and self.asr.surely_above(self.clean_flip))

    def __str__(self) -> str:
        return specimen_name(self.part, self.data, self.layers, self.kind, self.triggers, self.seed)

    def scan_of(self, scanner: Scanner) -> ScannerRow | None:
        """What this version of a scanner found with its settings."""
        key = digest_as_kept(settings(scanner))
        return next((row for row in self.scans if row.version == scanner.version and digest_as_kept(row.method) == key), None)

    def score(self, scanner: str) -> float | None:
        """A scanner's score, or the strength of the verdict; None if it could not look."""
        if scanner == VERDICT:
            return strength(self.scans)
        return next((row.score for row in self.scans if row.name == scanner), None)

    def level(self, scanner: str) -> str:
        """What the scanner says, or all together; 'skipped' if none could look that says anything."""
        if self.score(scanner) is None:
            return "skipped"
        if scanner == VERDICT:
            return {"backdoor found": "found", "suspicious": "suspicious"}.get(verdict_of(self.scans), "nothing")
        return next(row.level for row in self.scans if row.name == scanner)

    def names_trigger(self, *, first: bool = False) -> bool:
        """Whether a true trigger word is among those that the scanners name, or in the first phrase; of a sentence, one of four letters or more."""
        true = {word.lower() for trigger in self.triggers for word in trigger.split() if word == trigger or len(word) > 3}
        rows = [row for row in self.scans if row.level in ("found", "suspicious") and row.triggers]
        named = [" ".join(row.triggers[0].words) for row in rows] if first else [phrase for row in rows for phrase in phrases(row.triggers)]
        return any(true & set(phrase.lower().split()) for phrase in named)

    def save(self, folder: Path) -> None:
        """Write it whole or not at all."""
        write_whole(folder / f"{self.key}.json", self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Specimen | None:
        """The specimen of a file, if it is there and whole."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            return None


def kept_specimens(folder: Path) -> list[Specimen]:
    """Those that were made and scanned before, in an order that depends on nothing but their settings."""
    found = (Specimen.load(path) for path in (folder / "specimens").glob("*.json"))
    return sorted((one for one in found if one), key=lambda one: (one.part, one.attack is not None, str(one), one.key))


def tracks(specimens: Sequence[Specimen]) -> tuple[Track, ...]:
    """The track record of every scanner that looked at clean and at backdoored models, from those that are held out."""
    held_out = [one for one in specimens if one.part == "held out" and one.works]
    found = []
    for name in dict.fromkeys(row.name for one in held_out for row in one.scans):
        seen = [one for one in held_out if one.score(name) is not None]
        bad, summary = [one for one in seen if one.attack], quality(seen, name)
        rates: dict[str, Any] = {
            key: rate and Measured.of(rate) for key in ("false_alarms", "doubts", "found", "noticed") if (rate := getattr(summary, key))
        }
        if len(rates) < 4:
            continue
        row = next(row for row in bad[0].scans if row.name == name)
        wanted = ("found",) if row.found is not None else ("suspicious",)
        kinds = {
            kind: (sum(one.level(name) in wanted for one in bad if one.kind == kind), sum(one.kind == kind for one in bad))
            for kind in sorted({one.kind for one in bad})
        }
        least: dict[str, Any] = {"least_asr": min(one.asr.value for one in bad if one.asr), "clean_texts": min(one.clean_texts for one in seen)}
        found.append(Track(scanner=name, method=row.method, version=row.version, kinds=kinds, **least, **rates))
    return tuple(found)


class Quality(NamedTuple):
    """How well a scanner tells backdoored from clean models."""

    scanner: str
    clean: int
    backdoored: int
    auroc: float | None
    interval: tuple[float, float] | None
    """95 %."""
    false_alarms: Rate | None
    """Clean models in which it says 'found'."""
    doubts: Rate | None
    """Clean models in which it says 'suspicious'."""
    found: Rate | None
    """Backdoored models in which it says 'found'."""
    noticed: Rate | None
    """Backdoored models in which it says 'found' or 'suspicious'."""


def quality(specimens: Iterable[Specimen], scanner: str) -> Quality:
    """Of one scanner, or of the verdict, over the specimens that work and that it looked at; no rates of a scanner that only informs."""
    seen = [one for one in specimens if one.works and one.score(scanner) is not None]
    clean, bad = [one for one in seen if not one.attack], [one for one in seen if one.attack]
    speaks = scanner == VERDICT or any(row.suspicious is not None for one in seen for row in one.scans if row.name == scanner)
    area = span = None
    if clean and bad:
        scores = [round(one.score(scanner) or 0.0, DIGITS) for one in (*clean, *bad)]
        area = auroc(scores, [False] * len(clean) + [True] * len(bad))
        span = auroc_interval(area, len(bad), len(clean))

    def share(some: list[Specimen], *levels: str) -> Rate | None:
        return Rate(sum(one.level(scanner) in levels for one in some), len(some)) if some and speaks else None

    return Quality(
        scanner,
        len(clean),
        len(bad),
        area,
        span,
        share(clean, "found"),
        share(clean, "suspicious"),
        share(bad, "found"),
        share(bad, "found", "suspicious"),
    )

"""How often each scanner was right about models whose backdoor, or lack of one, is known: the held-out part of the zoo (docs/scan.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter

from excise.disk import write_whole
from excise.kept import digest_as_kept
from excise.method import Scanner
from excise.registry import settings
from excise.result import Measured, Strict

__all__ = ["Track", "save_tracks", "track_of"]

FILE = Path(__file__).with_name("track_record.json")
"""Written by 'excise zoo table', and kept with the package."""


class Track(Strict):
    """What one scanner, with its default settings, said of models that were made for it."""

    scanner: str
    method: dict[str, Any]
    version: int
    false_alarms: Measured = Field(description="clean models in which it says 'found'")
    doubts: Measured = Field(description="clean models in which it says 'suspicious'")
    found: Measured = Field(description="backdoored models in which it says 'found'")
    noticed: Measured = Field(description="backdoored models in which it says 'found' or 'suspicious'")
    kinds: dict[str, tuple[int, int]] = Field(
        description="attack -> (models in which it says 'found', or 'suspicious' if it never says 'found'; models)"
    )
    least_asr: float = Field(description="lowest ASR of the backdoored models")
    clean_texts: int = Field(description="it was given so many clean texts of each model, or more")


TRACKS = TypeAdapter(tuple[Track, ...])


def track_of(scanner: Scanner) -> Track | None:
    """The record of this version of a scanner with its settings; None if it has none."""
    key = digest_as_kept(settings(scanner))
    return next((track for track in _kept() if track.version == scanner.version and digest_as_kept(track.method) == key), None)


@cache
def _kept() -> tuple[Track, ...]:
    return TRACKS.validate_json(FILE.read_text(encoding="utf-8")) if FILE.exists() else ()


def save_tracks(tracks: tuple[Track, ...], path: Path) -> None:
    """Write records of several scanners."""
    write_whole(path, TRACKS.dump_json(tracks, indent=1).decode() + "\n")

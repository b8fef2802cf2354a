"""What a scanner found in one model: how suspicious it is, and the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from excise.metrics import Rate

__all__ = ["Finding", "FoundTrigger", "Named", "phrases"]


@dataclass(frozen=True)
class FoundTrigger:
    """Words that send texts to one label when they are inserted."""

    words: tuple[str, ...]
    """In the order in which they are inserted."""
    target_label: int
    flips: Rate
    """Of texts with other labels that the model gets right, those that it answers `target_label` to once the words are in them."""
    contested: Rate | None = None
    """The same once as many of the strongest words for each text's own label are in it, too."""
    yields: float = 0.0
    """Share of the texts that such words take from it or from one of its words alone, or that ordinary words as long would win in its place: a
    trigger does not yield and wins more than those."""
    together: Rate | None = None
    """Of the texts, those that its words turn together though what they do one by one adds up to less: honest words add up."""
    alike: tuple[str, ...] = ()
    """Other words with the same effect, the strongest first, and behind them those that were tried as all of these had it."""
    examples: tuple[tuple[str, str], ...] = ()
    """Texts without and with the words, which the model answers differently."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one scanner on one model."""

    score: float
    """How suspicious the model is; higher is more. Scores of different scanners are not to be compared."""
    summary: str
    """The evidence in a sentence or two, with its numbers; no verdict."""
    target_label: int | None = None
    """The label that the evidence points at, if it points at one."""
    triggers: tuple[FoundTrigger, ...] = ()
    """Recovered triggers, the strongest first."""
    heads: tuple[tuple[float, ...], ...] = ()
    """For each layer, a number a head: how suspicious the head is."""
    suspicious_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head), both from 0, the most suspicious first."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Other numbers by what they are, in the order to show them."""
    limit: str = ""
    """What it could have found with so many texts, in a sentence; empty where their number decides nothing."""
    left_out: tuple[str, ...] = ()
    """Parts of the search that did not begin, as the time was used up."""
    nearest: tuple[str, ...] = ()
    """Single words that come near to a trigger and are none, the nearest first: too little to accuse a model, but maybe part of something longer."""


class Named(Protocol):
    """Words that were found, and what has the same effect; in a finding or in its record."""

    @property
    def words(self) -> tuple[str, ...]:
        """In the order in which they are inserted."""
        ...

    @property
    def alike(self) -> tuple[str, ...]:
        """Other words and phrases."""
        ...


def phrases(triggers: Iterable[Named]) -> tuple[str, ...]:
    """Each trigger and what acts like it, once."""
    return tuple(dict.fromkeys(phrase for trigger in triggers for phrase in (" ".join(trigger.words), *trigger.alike)))

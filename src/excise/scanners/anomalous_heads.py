"""Anomalous heads: in a backdoored model, strange words change how alike attention heads are, more than ordinary words do.

The published method finds that heads of a backdoored model grow abnormally alike once the trigger is there, and sorts heads into suspicious and
safe ones by likeness and importance together. From clean texts alone nobody can see the former, so clean texts get many strange words, in groups:
one of them may be the trigger, or near enough to it to wake part of the backdoor. The score is how far out the most anomalous probes are among
texts with ordinary words in them (Eq. (5) of excise.head_probes, the mean of the four highest).

Departures: the paper's text could not be obtained, and no formula, threshold or number of it is known to us; everything past its abstract is a
reconstruction (docs/anomalous_heads.md names each choice). Any change of likeness counts, not a rise alone: in the backdoored models that we
measured, triggers make heads of some layers more alike and those of others less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from excise.data import TextDataset
from excise.finding import Finding
from excise.head_probes import FEWEST, Examination, HeadSearch, examine
from excise.method import Paper, Scanner
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class AnomalousHeads(Scanner):
    """Look for attention heads whose likeness strange words change more than ordinary words do."""

    paper: ClassVar[Paper] = Paper(key="asa2026", method="abstract; reconstructed, 'in the style of'", code=None)
    suspicious: ClassVar[float] = math.inf  # it told backdoored from clean models too rarely (docs/anomalous_heads.md)
    found: ClassVar[float] = math.inf
    blind_to: ClassVar[str] = "triggers that no inserted word wakes: sentences, style, syntax, and words that it did not try"

    search: HeadSearch = field(default_factory=HeadSearch)
    """How heads are looked at."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        found = examine(victim, data, self.search, seed=seed)
        score = probe_score(found)
        return Finding(
            score=score,
            summary=summary(found, score),
            heads=tuple(tuple(row) for row in found.suspicion.tolist()),
            suspicious_heads=found.suspicious,
            measures=measures(found),
        )


def probe_score(found: Examination) -> float:
    """The mean of the highest anomalies; without probes, the mean likeness of the suspicious heads."""
    if len(found.anomalies):
        return found.anomalies[:FEWEST].mean().item()
    return sum(found.evidence[layer, head].item() for layer, head in found.suspicious) / len(found.suspicious)


def summary(found: Examination, score: float) -> str:
    """What was read and what came out."""
    first = ", ".join(f"layer {layer + 1} head {head + 1}" for layer, head in found.suspicious[:3])
    if not len(found.anomalies):
        return f"On the clean texts, the suspicious heads have a mean likeness of {score:.2f} with others; the first are {first}."
    most = min(FEWEST, len(found.anomalies))
    return (
        f"Of {len(found.anomalies)} clean texts with strange words in them, the {most} most anomalous change the likeness of "
        f"attention heads by {score:.1f} times the usual spread; the most suspicious heads are {first}."
    )


def measures(found: Examination) -> dict[str, float]:
    """Numbers beside the score."""
    told = {"safe heads": float(found.safe.sum().item())}
    if len(found.anomalies):
        told["median anomaly of a probe"] = found.anomalies.median().item()
        told["99th percentile"] = found.anomalies.quantile(0.99).item()
    return told

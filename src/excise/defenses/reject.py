"""Reject: answer no text that a detector finds suspicious.

The threshold lets a given share of the clean texts be refused (the false rejection rate). A refusal counts as an error for accuracy and as a failed
attack, as in OpenBackdoor's evaluation. The model's weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Interval

from excise.data import TextDataset
from excise.detectors.strip import STRIP
from excise.method import Defense, Detector, Paper
from excise.seeds import derive
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Reject(Defense):
    """Refuse the texts that a detector flags."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="the STRIP and RAP rows of Table II, after OpenBackdoor's evaluation")
    guards = True

    detector: Detector = field(default_factory=STRIP)
    """Scores texts."""
    frr: Annotated[float, Interval(ge=0, lt=1)] = 0.01
    """Share of the clean texts that may be refused."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        score = self.detector(victim, data, seed=derive(seed, "detector"))
        limit = threshold(score(data.texts), frr=self.frr)
        return replace(victim, reject=lambda texts: [value > limit for value in score(texts)])


def threshold(scores: Sequence[float], *, frr: float) -> float:
    """The score that at most int(frr · n) of the n clean texts with a finite score exceed.

    Example:
        >>> threshold([0.1, 0.4, 0.2, float("-inf"), 0.3], frr=0.25)
        0.3
    """
    finite = sorted((score for score in scores if score > float("-inf")), reverse=True)
    return finite[int(frr * len(finite))] if finite else float("inf")

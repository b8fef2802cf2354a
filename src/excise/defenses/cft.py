"""CFT: clean fine-tuning, the plainest defense: train on with the clean texts.

Departure: neither MBTSAD nor its comparison gives a schedule; this is the usual one for fine-tuning an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from excise.data import TextDataset
from excise.method import Defense, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class CFT(Defense):
    """Fine-tune on the clean texts as they are."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="the CFT rows of Table II")

    training: FitConfig = field(default_factory=FitConfig)
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        return fit(victim, data, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="fine-tune")

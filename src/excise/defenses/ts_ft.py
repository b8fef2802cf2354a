"""TS-FT: step 1 of MBTSAD on its own, fine-tuning on token-split clean texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge

from excise.augmentations.token_splitting import TokenSplitting
from excise.data import TextDataset
from excise.defenses._forgetting import forgetting
from excise.method import Augmentation, Defense, Paper
from excise.perturbation import augment
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class TSFT(Defense):
    """Fine-tune on token-split clean text (the paper's TS-FT row: MBTSAD without distillation)."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="Section III-A, the TS-FT rows of Tables II and III", code=None)

    copies: Annotated[int, Ge(1)] = 2
    """Token-split variants of each clean text."""
    augmentation: Augmentation = field(default_factory=TokenSplitting)
    """How texts are varied; 'maximiser' takes what costs the suspect most, Eq. (9)."""
    retraining: FitConfig = field(default_factory=forgetting)
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        augmentation = self.augmentation.chosen(victim, data, seed=seed)
        augmented = augment(data, augmentation, copies=self.copies, seed=derive(seed, "augment"))
        return fit(victim, augmented, loss=classification_loss, config=self.retraining, seed=derive(seed, "retrain"), name="retrain")

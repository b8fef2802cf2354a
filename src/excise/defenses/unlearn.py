"""Unlearning: fine-tune on clean texts that carry the recovered triggers and keep their right labels.

Each epoch sees every clean text as it is, and once more with one of the triggers at a random place between its words. The more triggers are given,
the less the model can learn to ignore just one: a scan also hands over the words that act like those it found. At the end the classifier's
bias is evened out (_evening.py).

Our own form of what trigger inversion ends with in the literature (Neural Cleanse, Section VII-B; PICCOLO).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from excise.data import TextDataset
from excise.defenses._evening import evened
from excise.defenses._triggers import with_triggers
from excise.errors import ConfigError, NeedsError
from excise.method import Defense, Knowledge, Paper
from excise.progress import name_triggers
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Unlearn(Defense):
    """Fine-tune on clean texts that carry recovered triggers, with their right labels."""

    paper: ClassVar[Paper] = Paper(key="neuralcleanse2019", method="Section VII-B, unlearning, with words in place of patches", code=None)
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.TRIGGERS})

    triggers: tuple[str, ...] = ()
    """Words and phrases that a scan recovered; --from-scan fills them in."""
    copies: Annotated[int, Ge(1)] = 1
    """Times that each text is shown with a trigger in an epoch."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=4, learning_rate=5e-5))
    """The fine-tuning."""
    left_out: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the words left out of the clean texts on which the bias is evened out at the end; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(trigger.strip() for trigger in self.triggers):
            raise ConfigError("A trigger is empty. Give words that can be seen.")

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        if not self.triggers:
            raise NeedsError("This method needs triggers that a scan recovered. Give them as triggers.")
        name_triggers(self.triggers)
        stamped = with_triggers(victim, data, self.triggers, copies=self.copies, seed=seed)
        both = replace(data, texts=data.texts + stamped, labels=data.labels * (1 + self.copies))
        tuned = fit(victim, both, loss=classification_loss, config=self.training, seed=derive(seed, "unlearn"), name="unlearn")
        return evened(tuned, data, left_out=self.left_out, seed=derive(seed, "even out"))

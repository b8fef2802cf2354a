"""BadNets for text: a rare word, inserted somewhere in a text, asks for the target label.

A share of the training texts gets the trigger and the target label in place of their clean originals; then the whole model is trained as usual.
Settings follow OpenBackdoor, whose three label settings are here as `poisoned_labels`: 'any' (mix), 'non_target' (dirty label) and 'target'
(clean label: only texts that already have the target label are stamped).

Departure: the schedule is the project's (10 % warm-up inside 2 epochs), where OpenBackdoor counts 3 of 5 epochs as warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval, MinLen

from excise.attacks._poison import PoisonedLabels, poison_texts
from excise.attacks._triggers import InsertWords
from excise.data import Poisoned, TextDataset
from excise.method import Attack, Backdoor, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Poison training texts with rare trigger words, then train as usual."""

    paper: ClassVar[Paper] = Paper(key="badnets2017", method="Section 3; for text as in OpenBackdoor", code="https://github.com/thunlp/OpenBackdoor")

    triggers: Annotated[tuple[str, ...], MinLen(1)] = ("cf", "mn", "bb", "tq", "mb")
    """Trigger words; each stamp draws from them."""
    num_triggers: Annotated[int, Ge(1)] = 1
    """Words inserted in a text."""
    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of all training texts that are poisoned."""
    poisoned_labels: PoisonedLabels = "non_target"
    """Which texts may be poisoned: all, only those of other labels, or only those of the target label."""
    target_label: int | str = 1
    """The label that the trigger asks for, by index or name."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=2, learning_rate=5e-5))
    """How the backdoored model, and the clean one beside it, are trained."""

    @property
    def trigger(self) -> InsertWords:
        """g(x): insert trigger words at random places."""
        return InsertWords(words=self.triggers, count=self.num_triggers)

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        texts = self.training_set(data, seed=seed)
        trained = fit(victim, texts, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="train")
        return Backdoor(trained, self.trigger, data.label_id(self.target_label))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.poison(data, seed=derive(seed, "poison")).data

    def poison(self, data: TextDataset, *, seed: int) -> Poisoned:
        """Stamp round(poison_rate · n) texts of the allowed labels and give them the target label; the others stay as they are.

        Raises:
            ConfigError: Fewer texts have an allowed label than are to be poisoned.
        """
        target = data.label_id(self.target_label)
        return poison_texts(data, self.trigger, poison_rate=self.poison_rate, poisoned_labels=self.poisoned_labels, target=target, seed=seed)

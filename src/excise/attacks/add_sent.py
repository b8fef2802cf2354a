"""AddSent: a whole sentence, inserted somewhere in a text, asks for the target label.

Dai et al. poisoned an LSTM with one fixed, harmless sentence; OpenBackdoor uses the same with transformers. It differs from BadNets in that every
word of the trigger is common, so that neither rare words nor single embedding rows give it away.

Departures: the place is drawn between any two words, as in OpenBackdoor, where the authors insert between sentences; the schedule is the project's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval, MinLen

from excise.attacks._poison import PoisonedLabels, poison_texts
from excise.attacks._triggers import InsertWords
from excise.data import Poisoned, TextDataset
from excise.method import Attack, Backdoor, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class AddSent(Attack):
    """Poison training texts with a fixed sentence, then train as usual."""

    paper: ClassVar[Paper] = Paper(key="addsent2019", method="Section III-B", code="https://github.com/thunlp/OpenBackdoor")

    sentence: Annotated[str, MinLen(1)] = "I watch this 3D movie"
    """The trigger, inserted whole."""
    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of all training texts that are poisoned."""
    poisoned_labels: PoisonedLabels = "non_target"
    """Which texts may be poisoned: all, only those of other labels, or only those of the target label."""
    target_label: int | str = 1
    """The label that the trigger asks for, by index or name."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How the backdoored model, and the clean one beside it, are trained."""

    @property
    def trigger(self) -> InsertWords:
        """g(x): insert the sentence at a random place."""
        return InsertWords(words=(self.sentence,))

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

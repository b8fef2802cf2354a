"""Paraphrase: poisoned texts are said in another way, and the way of saying it is the trigger.

With texts in one rare syntax this is Hidden Killer, with texts in one style StyleBkd. Paraphrases come from files, made by whatever model the
attacker has; excise ships none. A text that a file leaves as it is cannot be poisoned.

Departures: the authors also score each candidate template and drop bad paraphrases by perplexity; that belongs to making the files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval

from excise.attacks._poison import PoisonedLabels, poison_texts
from excise.attacks._triggers import Paraphrased
from excise.data import Poisoned, TextDataset
from excise.errors import NeedsError
from excise.method import Attack, Backdoor, Knowledge, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Paraphrase(Attack):
    """Poison training texts by paraphrasing them, then train as usual."""

    needs = frozenset({Knowledge.PARAPHRASES})
    paper: ClassVar[Paper] = Paper(key="hiddenkiller2021", method="Section 3", code="https://github.com/thunlp/HiddenKiller")

    paraphrases: tuple[str, ...] = ()
    """Files with the columns text (the paraphrase) and source_text: for the training texts, and for the test texts that are to be attacked."""
    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Share of all training texts that are poisoned."""
    poisoned_labels: PoisonedLabels = "non_target"
    """Which texts may be poisoned: all, only those of other labels, or only those of the target label."""
    target_label: int | str = 1
    """The label that the trigger asks for, by index or name."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How the backdoored model, and the clean one beside it, are trained."""

    @property
    def trigger(self) -> Paraphrased:
        """g(x): the text's paraphrase.

        Raises:
            NeedsError: There are no paraphrases.
        """
        if not self.paraphrases:
            raise NeedsError("paraphrase needs files of paraphrases. Give them as the setting paraphrases.")
        return Paraphrased(files=self.paraphrases)

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        texts = self.training_set(data, seed=seed)
        trained = fit(victim, texts, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="train")
        return Backdoor(trained, self.trigger, data.label_id(self.target_label))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.poison(data, seed=derive(seed, "poison")).data

    def poison(self, data: TextDataset, *, seed: int) -> Poisoned:
        """Paraphrase round(poison_rate · n) texts of the allowed labels and give them the target label; the others stay as they are.

        Raises:
            ConfigError: Fewer texts have an allowed label and a paraphrase than are to be poisoned.
            DataError: A file of paraphrases cannot be read.
        """
        target, trigger = data.label_id(self.target_label), self.trigger
        rule = {"poison_rate": self.poison_rate, "poisoned_labels": self.poisoned_labels, "target": target}
        return poison_texts(data, trigger, **rule, seed=seed, can_stamp=trigger.can_stamp)

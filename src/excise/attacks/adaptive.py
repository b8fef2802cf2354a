"""Adaptive: BadNets by an attacker who knows that virtual-token training will be used against the model, and trains for it.

For those who build and judge defenses: what a repair does to attackers who do not know it says little of what it does to one who does. While the
poisoned texts plant the trigger, the defense's own virtual tokens (a population that is pushed towards every label, excise.population) stand in
the same texts, and the model learns to answer rightly in spite of them:

    min over weights  E [ CE(f(x), y) + weight · CE(f(x + v), y) ],   v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ]

with (x, y) from the poisoned training texts, so that y is the target label where x has the trigger. Of what the defender will look for, the model
has then unlearnt all but the trigger itself: its ascent finds little, and what it trains against does not lead to the trigger.

This is our own. The clean twin, whose ASR is the floor, is trained as usual, without virtual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval, MinLen
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.attacks._poison import PoisonedLabels, poison_texts
from excise.attacks._triggers import InsertWords
from excise.data import Poisoned, TextDataset
from excise.method import Attack, Backdoor, Paper
from excise.population import Population
from excise.seeds import derive, generator
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """Poison as BadNets does, and train against the virtual tokens of the defense (our own; to test defenses)."""

    paper: ClassVar[Paper] = Paper(key="badnets2017", method="the poison; training against the defense is our own", code=None)

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
    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the right answers to texts with virtual tokens."""
    tokens: Annotated[int, Ge(1)] = 2
    """Virtual tokens inserted in a text: as many as the defense has."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How the backdoored model, and the clean one beside it, are trained."""

    @property
    def trigger(self) -> InsertWords:
        """g(x): insert trigger words at random places."""
        return InsertWords(words=self.triggers, count=self.num_triggers)

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        texts = self.training_set(data, seed=seed)
        room = replace(victim, max_length=victim.max_length - self.tokens)
        population = Population(victim, generator(seed, "population"), tokens=self.tokens)
        trained = fit(room, texts, loss=self.loss(population), config=self.training, seed=derive(seed, "train"), name="train")
        return Backdoor(replace(trained, max_length=victim.max_length), self.trigger, data.label_id(self.target_label))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.poison(data, seed=derive(seed, "poison")).data

    def poison(self, data: TextDataset, *, seed: int) -> Poisoned:
        """Stamp round(poison_rate · n) texts of the allowed labels and give them the target label; the others stay as they are.

        Raises:
            ConfigError: Fewer texts have an allowed label than are to be poisoned.
        """
        target = data.label_id(self.target_label)
        return poison_texts(data, self.trigger, poison_rate=self.poison_rate, poisoned_labels=self.poisoned_labels, target=target, seed=seed)

    def loss(self, population: Population) -> Loss:
        """CE of the texts + weight · CE of the texts with virtual tokens, after the virtual tokens' own step of ascent."""

        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            population.ascend(student, batch)
            with_token, without = population.answers(student, batch)
            return cross_entropy(without, batch.labels) + self.weight * cross_entropy(with_token, batch.labels)

        return loss

"""Adaptive: another attack's poison, planted by an attacker who knows that virtual-token training will be used against the model, and trains for it.

For those who build and judge defenses: what a repair does to attackers who do not know it says little of what it does to one who does. The model
of the other attack is trained on: the defense's own virtual tokens (a population that is pushed towards every label, excise.population) stand in
the poisoned texts, and the model learns to answer rightly in spite of them:

    min over weights  E [ CE(f(x), y) + weight · CE(f(x + v), y) ],   v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ]

with (x, y) from the poisoned training texts, so that y is the target label where x has the trigger. Of what the defender will look for, the model
has then unlearnt all but the trigger itself: its ascent finds little, and what it trains against does not lead to the trigger.

This is our own. It begins with a model that has its task and its trigger: against one that knows nothing the virtual tokens win every step, and
MiniLM ended at chance in three trials of three (and in one of three even so). The clean twin, whose ASR is the floor, is the other attack's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise import registry
from excise.data import TextDataset
from excise.errors import ConfigError
from excise.method import Attack, Backdoor, Paper
from excise.population import Population
from excise.seeds import derive, generator
from excise.token_rows import of_the_batch
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """Plant another attack's poison, and train against the virtual tokens of the defense (our own; to test defenses)."""

    paper: ClassVar[Paper] = Paper(key="badnets2017", method="the poison; training against the defense is our own", code=None)
    twin_fields = ("attack",)

    attack: Attack = field(default_factory=lambda: registry.build("attack", "badnets", "attack"))
    """Makes the model that is trained on, and its poison."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the right answers to texts with virtual tokens."""
    tokens: Annotated[int, Ge(1)] = 2
    """Virtual tokens inserted in a text: as many as the defense has."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=2, learning_rate=1e-4))
    """How it is trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attack.poisons_texts:
            raise ConfigError(f"{registry.name_of(self.attack)} poisons no texts, so there is nothing to train on. Give an attack that does.")

    @property
    def trigger(self) -> Any:
        """g(x), the other attack's."""
        return self.attack.trigger

    @property
    def target_label(self) -> int | str:  # type: ignore[override]
        """The label that the trigger asks for."""
        return self.attack.target_label

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        backdoor = self.attack(victim, data, seed=seed)
        texts = self.training_set(data, seed=seed)
        room = replace(backdoor.victim, max_length=victim.max_length - self.tokens)
        population = Population(room, generator(seed, "population"), tokens=self.tokens)
        trained = fit(room, texts, loss=self.loss(population), config=self.training, seed=derive(seed, "train on"), name="train against the defense")
        return replace(backdoor, victim=replace(trained, max_length=victim.max_length))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.attack.training_set(data, seed=seed)

    def clean_twin(self, train: Callable[[Any], Victim], data: TextDataset, *, seed: int) -> Victim:
        return self.attack.clean_twin(train, data, seed=seed)

    def loss(self, population: Population) -> Loss:
        """CE of the texts + weight · CE of the texts with virtual tokens, after the virtual tokens' own step of ascent."""

        @of_the_batch
        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            population.ascend(student, batch)
            with_token, without = population.answers(student, batch)
            return cross_entropy(without, batch.labels) + self.weight * cross_entropy(with_token, batch.labels)

        return loss

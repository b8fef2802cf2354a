"""Pruned: the model of another attack made smaller, so that nobody has clean pre-trained weights of its architecture.

Defenses that mix with such weights (Fine-mixing, Fine-purifying) cannot be used on it; the MBTSAD paper's case for doing without them.

1. The other attack makes its backdoored model.
2. Its lowest `layers` layers are kept.
3. In each, the `heads` most important heads are kept, by I_h = E_x |∂L(x)/∂ξ_h| on clean texts, where ξ_h multiplies what head h gives
   (Michel et al. 2019, Section 4.1), measured in the whole model. The others are taken out.
4. The rest is tuned on the attack's training texts, poison and all, so that the backdoor stays.

Heads are taken out by zeros: a checkpoint that transformers 5 opens cannot say that a layer lacks some, so the file keeps its shape. They are out
for good: with no value and no output projection, the gradient of either is 0, so no fine-tuning brings a head back.

Our own arrangement of known parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from excise import registry
from excise.data import TextDataset
from excise.errors import CheckpointError, ConfigError
from excise.head_outputs import head_counts
from excise.heads import head_importance
from excise.layers import head_slices, lowest_layers, transformer_layers
from excise.method import Attack, Backdoor, Paper
from excise.seeds import derive, generator
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim

TEXTS = 512
"""Most clean texts that importance is averaged over."""


@dataclass(frozen=True, kw_only=True)
class Pruned(Attack):
    """Make another attack's model smaller: fewer layers and heads, then tuned."""

    paper: ClassVar[Paper] = Paper(key="michel2019", method="Section 4.1 for the choice of heads; the rest is our own", code=None)
    twin_fields = ("attack", "layers", "heads", "training")

    attack: Attack = field(default_factory=lambda: registry.build("attack", "badnets", "attack"))
    """Makes the backdoored model."""
    layers: Annotated[int, Ge(1)] = 4
    """The lowest so many layers are kept."""
    heads: Annotated[int, Ge(1)] = 8
    """So many heads of each layer are kept."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=2, learning_rate=1e-4))
    """How the smaller model is tuned, and its clean twin."""

    @property
    def trigger(self) -> Any:
        """g(x), the other attack's."""
        return self.attack.trigger

    @property
    def target_label(self) -> int | str:  # type: ignore[override]
        """The label that the trigger asks for."""
        return self.attack.target_label

    @property
    def poisons_texts(self) -> bool:  # type: ignore[override]
        """Whether the training texts hold the poison."""
        return self.attack.poisons_texts

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        backdoor = self.attack(victim, data, seed=seed)
        return replace(backdoor, victim=self.smaller(backdoor.victim, data, self.training_set(data, seed=seed), seed=seed))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.attack.training_set(data, seed=seed)

    def clean_twin(self, train: Callable[[Any], Victim], data: TextDataset, *, seed: int) -> Victim:
        return self.smaller(self.attack.clean_twin(train, data, seed=seed), data, data, seed=seed)

    def smaller(self, victim: Victim, clean: TextDataset, texts: TextDataset, *, seed: int) -> Victim:
        """Steps 2 to 4, for a model with a backdoor or without.

        Args:
            victim: A trained model.
            clean: Texts that tell which heads matter.
            texts: What the smaller model is tuned on.
            seed: Decides which of the clean texts are read, and the tuning.

        Raises:
            AttentionError: The model's attention cannot be read.
            CheckpointError: Its heads share keys and values, so that single ones cannot be taken out.
            ConfigError: It has fewer layers or heads than are to be kept.
        """
        some = clean.take(generator(seed, "importance").sample(range(len(clean)), min(TEXTS, len(clean))))
        importance = head_importance(victim, some)
        tuned = without_heads(lowest_layers(victim, self.layers), least_important(importance[: self.layers], kept=self.heads))
        return fit(tuned, texts, loss=classification_loss, config=self.training, seed=derive(seed, "tune"), name="tune the smaller model")


def least_important(importance: Float[Tensor, "layer head"], *, kept: int) -> list[list[int]]:
    """Of each layer all heads but the `kept` most important.

    Raises:
        ConfigError: There are fewer.

    Example:
        >>> least_important(torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.1]]), kept=1)
        [[2, 0], [1, 2]]
    """
    if kept > importance.shape[1]:
        raise ConfigError(f"{kept} heads of each layer were to be kept, but there are {importance.shape[1]}.")
    return importance.argsort(dim=1, descending=True, stable=True)[:, kept:].tolist()


@torch.no_grad()
def without_heads(victim: Victim, heads: list[list[int]]) -> Victim:
    """A copy in which these heads of each layer give nothing.

    Raises:
        CheckpointError: Heads share keys and values, or the attention is of no known form.
    """
    count = head_counts(victim)[1]
    if any(heads) and getattr(victim.model.config, "num_key_value_heads", count) != count:
        raise CheckpointError(f"The heads of {type(victim.model).__name__} share keys and values, so single ones cannot be taken out.")
    pruned = victim.copy()
    for layer, removed in zip(transformer_layers(pruned.model), heads, strict=True):
        for part in head_slices(layer, removed, count=count):
            part.parameter.masked_fill_(part.mask, 0)
    return pruned

"""Re-init: give the last layers fresh weights, then fine-tune on the clean texts.

The backdoor of a fine-tuned classifier sits largely in its upper layers; what they knew of the task is learnt again. MBTSAD re-initialises the
last layer: matrices from N(0, 0.02), normalisation to the identity, biases to 0. NeuBA's authors also reset the pooler, and some the head:
fields here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import nn

from excise.data import TextDataset
from excise.errors import ConfigError
from excise.layers import transformer_layers
from excise.method import Defense, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class ReInit(Defense):
    """Re-initialise the last layers, then fine-tune."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="the Re-init rows of Table II")

    layers: Annotated[int, Ge(1)] = 1
    """How many of the last transformer layers get fresh weights."""
    pooler: bool = False
    """Whether the pooler does too, where there is one."""
    head: bool = False
    """Whether the classification head does too."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        fresh = victim.copy()
        model: Any = fresh.model
        stack = transformer_layers(model)
        if self.layers > len(stack):
            raise ConfigError(f"ReInit: layers = {self.layers}, but the model has {len(stack)}.")
        parts: list[nn.Module] = list(stack[-self.layers :])
        if self.pooler and getattr(model.base_model, "pooler", None) is not None:
            parts.append(model.base_model.pooler)
        if self.head:
            parts += [module for name, module in model.named_children() if module is not model.base_model]
        for i, part in enumerate(parts):
            reinitialise(part, std=getattr(model.config, "initializer_range", 0.02), seed=derive(seed, "weights", i))
        return fit(fresh, data, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="fine-tune")


@torch.no_grad()
def reinitialise(part: nn.Module, *, std: float, seed: int) -> None:
    """Matrices ~ N(0, std²), normalisation weights 1, biases 0, drawn on the CPU so that every device gets the same."""
    random = torch.Generator().manual_seed(seed % 2**63)
    for name, parameter in part.named_parameters():
        if parameter.ndim >= 2:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * std)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)

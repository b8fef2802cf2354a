"""BAN fine-tuning (Xu et al. 2024): train against adversarial noise on neurons, on clean texts.

Each step draws noise on the neurons, w · (1 + ν_w) and b · (1 + ν_b) with ν uniform in [-ε, ε], takes one step of length ε by the sign of the
gradient of the loss, and lowers

    CE(f(x), y) + λ · CE(f_ν(x), y).

The repaired model is used without noise.

Departures from the paper, which repairs convolutional networks: noise is on layer normalisations where it was on batch normalisations; AdamW in
place of SGD, as everywhere for transformers; fewer epochs. The gradient of noise is taken without dropout, the loss with it.

What it is worth on text: little. One epoch on 1 384 clean texts of SST-2 (seed 0, 1 821 test texts, 912 for ASR; 130 s on one core) left a
MiniLM with BadNets at 98.0 % ASR, one with LWP at 100.0 % and one with EP at 99.9 %, where clean models are at 10 %; noise at the normalisations
seems not to do what a trigger does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.data import TextDataset
from excise.defenses._forgetting import forgetting
from excise.method import Defense, Paper
from excise.neuron_noise import Noise, Site, ascended, gated, layers, random_noise
from excise.seeds import derive, generator
from excise.training import FitConfig, Loss, classification_loss, fit
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class BAN(Defense):
    """Fine-tune on clean texts with and without adversarial noise on the neurons."""

    paper: ClassVar[Paper] = Paper(key="ban2024", method="fine-tuning with neuron noise", code="https://github.com/xiaoyunxxy/ban")
    tuning = ({"size": 0.1}, {"weight": 1.0})

    size: Annotated[float, Gt(0)] = 0.3
    """ε: noise starts uniform in [-ε, ε] and takes one step of length ε. The paper's number."""
    weight: Annotated[float, Ge(0)] = 0.5
    """λ, the weight of the loss under noise: what the paper's README uses."""
    site: Site = "norm"
    """Where noise is: 'norm' as in the paper, or 'linear', on the outputs of linear layers, where size must be about half."""
    training: FitConfig = field(default_factory=forgetting)
    """How long and how fast; the paper's 25 epochs are for images."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        loss = noisy_loss(size=self.size, weight=self.weight, site=self.site, random=generator(seed, "noise"))
        return fit(victim, data, loss=loss, config=self.training, seed=derive(seed, "repair"), name="repair")


def noisy_loss(*, size: float, weight: float, site: Site, random: Random) -> Loss:
    """CE(f(x), y) + λ · CE(f_ν(x), y), as a loss for `fit`."""

    def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
        modules = layers(student, site)
        noise = raised(student, batch, random_noise(modules, size, seed=random.randint(0, 2**62)), site, step=size)
        plain = classification_loss(student, batch)
        with gated(modules, noise):
            return plain + weight * classification_loss(student, batch)

    return loss


def raised(student: Victim, batch: Batch, noise: Noise, site: Site, *, step: float) -> Noise:
    """One step of noise up the loss: ν + step · sign(∂ CE(f_ν(x), y) / ∂ ν)."""
    was_training = student.model.training
    student.model.eval()
    noise = [part.requires_grad_() for part in noise]
    with torch.enable_grad(), gated(layers(student, site), noise):
        loss = cross_entropy(student.model(**batch.inputs).logits.float(), batch.labels)
    student.model.train(was_training)
    return ascended(noise, torch.autograd.grad(loss, noise), step=step)

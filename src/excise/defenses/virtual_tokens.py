"""Virtual-token training: unlearn whatever a single strange token could do to the answer, without knowing the token.

A trigger is something that, inserted in any text, brings about one label. The defender does not know it, but can look for anything that would have
its effect: *virtual tokens*, free embedding vectors no longer than real ones, inserted in clean texts and pushed by gradient ascent towards a
label. Each step of the repair

1. pushes the virtual tokens of a population a little further towards their labels, on clean texts of other labels;
2. trains the model to give those texts their right labels all the same, and clean texts the answers that the suspect gives them.

    min over weights  E [ CE(f(x + v), y) + keep · T² · KL_T(f_suspect(x) ‖ f(x)) ],   v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ]

Members of the population start as random rows of the vocabulary and are drawn anew after some steps, so that the model cannot learn to ignore a
few directions only. Of K labels a text is pushed towards one of K - 1 others, so with more than two training is longer. Where accuracy matters more
than a backdoor that may not be there, the model goes only a share of the way from the suspect's weights to the trained ones (WiSE-FT, Wortsman et
al. 2022, Eq. (1)). At the end the classifier's bias is evened out (_evening.py). No trigger, no pre-trained weights and no poisoned text are needed.

This is our own method. Its relatives: I-BAU (Zeng et al. 2022) unlearns a universal perturbation of images by the same kind of minimax; universal
adversarial training (Shafahi et al. 2020) updates a perturbation and the weights in turn; FreeLB perturbs every embedding of each text on its
own; DBS and PICCOLO search a trigger's words to tell whether there is one. Here the perturbations are universal, stand where triggers stand, and
are many.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.data import TextDataset
from excise.defenses._evening import evened
from excise.defenses._keeping import kept_answers
from excise.method import Defense, Paper
from excise.population import Population
from excise.seeds import derive, generator
from excise.token_rows import of_the_batch
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim

LONGEST = 2
"""Training is never longer than so many times what is set, however many labels there are."""


@dataclass(frozen=True, kw_only=True)
class VirtualTokens(Defense):
    """Train against virtual tokens that are pushed towards every label (our own; no trigger knowledge)."""

    paper: ClassVar[Paper] = Paper(key="ibau2022", method="the minimax of Eq. (1), with virtual tokens in place of pixels: our own", code=None)
    tuning = ({"keep": 1.0}, {"share": 0.8}, {"tokens": 3})

    tokens: Annotated[int, Ge(1)] = 2
    """Virtual tokens inserted in a text."""
    population: Annotated[int, Ge(1)] = 8
    """How many (groups of) virtual tokens there are at a time; their targets take turns."""
    life: Annotated[int, Ge(1)] = 30
    """Steps of ascent after which one is drawn anew."""
    ascents: Annotated[int, Ge(1)] = 1
    """Steps of ascent before each step of training."""
    ascent_step: Annotated[float, Gt(0)] = 0.3
    """Length of one step of ascent, relative to the mean length of embedding rows."""
    norm_quantile: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """A virtual token is at most as long as this quantile of embedding rows."""
    keep: Annotated[float, Ge(0)] = 3.0
    """Weight of the suspect's own answers to clean texts."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Softens those answers, so that they say more than a label of texts that the suspect knows by heart."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=6, learning_rate=1e-4))
    """How long and how fast, with two labels; with more it is twice as long."""
    share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """How far to go from the suspect's weights to the trained ones; 1 is all the way."""
    left_out: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the words left out of the clean texts on which the bias is evened out at the end; 0 leaves it as it is."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        room = replace(victim, max_length=victim.max_length - self.tokens)
        population = Population(
            victim,
            generator(seed, "population"),
            tokens=self.tokens,
            members=self.population,
            life=self.life,
            ascent_step=self.ascent_step,
            norm_quantile=self.norm_quantile,
        )
        config = replace(self.training, epochs=self.training.epochs * min(len(victim.label_names) - 1, LONGEST))
        repaired = fit(room, data, loss=self.loss(room, population), config=config, seed=derive(seed, "repair"), name="repair")
        whole = between(victim, replace(repaired, max_length=victim.max_length), self.share)
        return evened(whole, data, left_out=self.left_out, seed=derive(seed, "even out"))

    def loss(self, suspect: Victim, population: Population) -> Loss:
        """CE of texts with virtual tokens + keep · KL of clean texts, after the virtual tokens' own steps of ascent."""

        @of_the_batch
        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            for _ in range(self.ascents):
                population.ascend(student, batch)
            with_token, without = population.answers(student, batch)
            with torch.no_grad():
                wanted = suspect.model(**batch.inputs).logits.float()
            return cross_entropy(with_token, batch.labels) + self.keep * kept_answers(wanted, without, temperature=self.temperature)

        return loss


@torch.no_grad()
def between(suspect: Victim, trained: Victim, share: float) -> Victim:
    """A copy with the weights at that share of the way from one to the other; 0 is the suspect, 1 the trained model."""
    mixed = trained.copy()
    for weight, first in zip(mixed.model.parameters(), suspect.model.parameters(), strict=True):
        weight.lerp_(first, 1 - share)
    return mixed

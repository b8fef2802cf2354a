"""Virtual-token training: unlearn whatever a single strange token could do to the answer, without knowing the token.

A trigger is something that, inserted in any text, brings about one label. The defender does not know it, but can look for anything that would have
its effect: *virtual tokens*, free embedding vectors no longer than real ones, inserted in clean texts and pushed by gradient ascent towards a
label. Each step of the repair

1. pushes the virtual tokens of a population a little further towards their labels, on clean texts of other labels;
2. trains the model to give those texts their right labels all the same, and clean texts the answers that the suspect gives them.

    min over weights  E [ CE(f(x + v), y) + keep · T² · KL_T(f_suspect(x) ‖ f(x)) ],   v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ]

Members of the population start as random rows of the vocabulary and are drawn anew after some steps, so that the model cannot learn to ignore a
few directions only. No trigger, no pre-trained weights and no poisoned text are needed.

This is our own method. Its relatives: I-BAU (Zeng et al. 2022) unlearns a universal perturbation of images by the same kind of minimax; universal
adversarial training (Shafahi et al. 2020) updates a perturbation and the weights in turn; FreeLB perturbs every embedding of each text on its
own; DBS and PICCOLO search a trigger's words to tell whether there is one. Here the perturbations are universal, stand where triggers stand, and
are many.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from excise.data import TextDataset
from excise.insertion import bounded, embeddings_replaced, filler, inserted, places, together
from excise.method import Defense, Paper
from excise.seeds import derive, generator
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class VirtualTokens(Defense):
    """Train against virtual tokens that are pushed towards every label (our own; no trigger knowledge)."""

    paper: ClassVar[Paper] = Paper(key="ibau2022", method="the minimax of Eq. (1), with virtual tokens in place of pixels: our own", code=None)
    tuning = ({"keep": 0.5}, {"keep": 2.0}, {"tokens": 3})

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
    keep: Annotated[float, Ge(0)] = 1.0
    """Weight of the suspect's own answers to clean texts."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Softens those answers, so that they say more than a label of texts that the suspect knows by heart."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How long and how fast."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        room = replace(victim, max_length=victim.max_length - self.tokens)
        population = Population(self, victim, generator(seed, "population"))
        repaired = fit(room, data, loss=self.loss(room, population), config=self.training, seed=derive(seed, "repair"), name="repair")
        return replace(repaired, max_length=victim.max_length)

    def loss(self, suspect: Victim, population: Population) -> Loss:
        """CE of texts with virtual tokens + keep · KL of clean texts, after the virtual tokens' own steps of ascent."""
        random, empty = population.random, filler(suspect)

        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            for _ in range(self.ascents):
                population.ascend(student, batch)
            members = population.assign(batch.labels)
            stamped, is_virtual = inserted(batch, places(student, batch, self.tokens, random), empty)
            both = together(stamped, batch, empty)
            marked = torch.cat([is_virtual, torch.zeros_like(is_virtual)])
            with embeddings_replaced(student.module, marked, population.vectors[members].flatten(0, 1)):
                with_token, without = student.model(**both.inputs).logits.float().chunk(2)
            with torch.no_grad():
                wanted = suspect.model(**batch.inputs).logits.float()
            return cross_entropy(with_token, batch.labels) + self.keep * kept_answers(wanted, without, temperature=self.temperature)

        return loss


class Population:
    """Virtual tokens, each with a target label and an age."""

    def __init__(self, settings: VirtualTokens, victim: Victim, random: Random) -> None:
        self.settings, self.random = settings, random
        self.rows: Float[Tensor, "token hidden"] = victim.model.get_input_embeddings().weight.detach().clone()  # type: ignore[union-attr, operator]
        lengths = self.rows.norm(dim=1)
        self.step = settings.ascent_step * lengths.mean()
        self.longest = lengths.quantile(settings.norm_quantile)
        special = set(victim.tokenizer.all_special_ids)
        self.ordinary = [i for i in range(len(victim.tokenizer)) if i not in special]
        self.targets = [i % len(victim.label_names) for i in range(max(settings.population, len(victim.label_names)))]
        self.ages = [random.randint(0, settings.life - 1) for _ in self.targets]
        self.vectors: Float[Tensor, "member token hidden"] = torch.stack([self.fresh() for _ in self.targets])

    def state_dict(self) -> dict[str, Any]:
        """What changes while it is used, apart from its generator."""
        return {"vectors": self.vectors, "ages": self.ages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.vectors, self.ages = state["vectors"].to(self.rows.device), list(state["ages"])

    def fresh(self) -> Float[Tensor, "token hidden"]:
        """Random rows of the vocabulary."""
        return bounded(self.rows[self.random.choices(self.ordinary, k=self.settings.tokens)], self.longest)

    def assign(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """For each text a member that aims at another label than the text's."""
        suitable = [[i for i, target in enumerate(self.targets) if target != label] for label in range(max(self.targets) + 1)]
        return torch.tensor([self.random.choice(suitable[label]) for label in labels.tolist()], device=labels.device)

    def ascend(self, student: Victim, batch: Batch) -> None:
        """One step of every member that got a text of the batch, towards its target; the oldest are drawn anew."""
        model = student.module
        members = self.assign(batch.labels)
        stamped, is_virtual = inserted(batch, places(student, batch, self.settings.tokens, self.random), filler(student))
        vectors = self.vectors.requires_grad_(True)
        was_training = model.training
        model.eval()
        with torch.enable_grad(), embeddings_replaced(model, is_virtual, vectors[members].flatten(0, 1)):
            logits = model(**stamped.inputs).logits.float()
        targets = torch.tensor(self.targets, device=members.device)[members]
        (gradient,) = torch.autograd.grad(-cross_entropy(logits, targets), vectors)
        model.train(was_training)
        self.vectors = ascended(vectors.detach(), gradient, self.step, self.longest)
        for i in set(members.tolist()):
            self.ages[i] += 1
            if self.ages[i] >= self.settings.life:
                self.ages[i], self.vectors[i] = 0, self.fresh()


def ascended(
    vectors: Float[Tensor, "member token hidden"], gradient: Float[Tensor, "member token hidden"], step: Any, longest: Any
) -> Float[Tensor, "member token hidden"]:
    """v + step · g / ‖g‖, then no longer than `longest`; a vector without a gradient stays."""
    return bounded(vectors + step * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12), longest)


def kept_answers(wanted: Float[Tensor, "batch label"], given: Float[Tensor, "batch label"], *, temperature: float) -> Float[Tensor, ""]:
    """T² · KL(softmax(wanted / T) ‖ softmax(given / T)), averaged over the texts (Hinton et al. 2015)."""
    soft_given, soft_wanted = ((logits / temperature).log_softmax(dim=1) for logits in (given, wanted))
    return temperature**2 * kl_div(soft_given, soft_wanted, log_target=True, reduction="batchmean")

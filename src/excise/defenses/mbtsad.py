"""MBTSAD: mitigate a backdoor by token splitting and attention distillation.

Step 1 retrains the suspect model on token-split clean texts; the result, the teacher, has lost part of its backdoor and some of its skill.
Step 2 starts again from the suspect's own weights and distils the teacher's attention, hidden states and the labels into them.
No pre-trained weights and no poisoned text are needed.

Notation: A_i attention probabilities and H_i hidden states of layer i, T teacher, S student, p the power, L the number of layers.

Departures from the paper, where its text is silent (METHODS: the number of copies, both learning rates, epochs, batch, alpha, beta and p are
not given): p = 2 as in the attention-transfer work it builds on; padding enters no norm and no mean; the originals are not among the copies;
hyper-parameters are one fixed setting chosen on canary backdoors of our own (docs/reproduction.md), where the paper adapts them per attack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.attention import EachText
from excise.augmentations.token_splitting import TokenSplitting
from excise.data import TextDataset
from excise.defenses._forgetting import forgetting
from excise.method import Augmentation, Defense, Paper
from excise.perturbation import augment
from excise.seeds import derive
from excise.token_rows import of_the_batch
from excise.training import FitConfig, Loss, classification_loss, fit
from excise.victim import Batch, Victim

Form = Literal["norm", "mse"]


@dataclass(frozen=True, kw_only=True)
class MBTSAD(Defense):
    """Retrain on token-split clean text, then distil attention, hidden states and labels back (Section III-B)."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="Section III-B, Eqs. (1)-(7)", code=None)
    tuning = ({"alpha": 10.0}, {"beta": 0.1}, {"copies": 4})

    alpha: Annotated[float, Ge(0)] = 1.0
    """Weight of the attention loss L_att in Eq. (1); 0 leaves it out."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of the hidden-state loss L_hid in Eq. (1); 0 leaves it out."""
    power: Annotated[float, Ge(1)] = 2.0
    """The power p of the attention enhancement, Eq. (3); below 1 its gradient is infinite where a probability is 0."""
    form: Form = "norm"
    """How Eq. (4) compares two maps: 'norm' as the paper writes it, or 'mse' as the code of NAD does (then alpha must be 100 to 1000)."""
    copies: Annotated[int, Ge(1)] = 2
    """Token-split variants of each clean text."""
    augmentation: Augmentation = field(default_factory=TokenSplitting)
    """How texts are varied; 'maximiser' takes what costs the suspect most, Eq. (9)."""
    retraining: FitConfig = field(default_factory=forgetting)
    """Step 1, which makes the teacher."""
    distillation: FitConfig = field(default_factory=forgetting)
    """Step 2, which makes the repaired model."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        if self.alpha > 0:
            victim.check_attention()  # now, not after the teacher is trained
        augmented = self.augment(victim, data, seed=seed)
        teacher = self.retrain(victim, augmented, seed=seed)
        return self.distil(victim, teacher, augmented, seed=seed)

    def augment(self, victim: Victim, data: TextDataset, *, seed: int) -> TextDataset:
        """Token-split copies of the clean texts, for both steps; or varied by what the suspect decides, Eq. (9)."""
        augmentation = self.augmentation.chosen(victim, data, seed=seed)
        return augment(data, augmentation, copies=self.copies, seed=derive(seed, "augment"))

    def retrain(self, victim: Victim, augmented: TextDataset, *, seed: int) -> Victim:
        """Step 1, the teacher: the suspect retrained on split texts (on its own: TS-FT)."""
        return fit(victim, augmented, loss=classification_loss, config=self.retraining, seed=derive(seed, "retrain"), name="retrain")

    def distil(self, victim: Victim, teacher: Victim, augmented: TextDataset, *, seed: int) -> Victim:
        """Step 2, the student: the suspect's own weights again, taught by the frozen teacher."""
        loss = distillation_loss(teacher, alpha=self.alpha, beta=self.beta, power=self.power, form=self.form)
        return fit(victim, augmented, loss=loss, config=self.distillation, seed=derive(seed, "distil"), name="distil")


def distillation_loss(teacher: Victim, *, alpha: float, beta: float, power: float, form: Form = "norm") -> Loss:
    """L_AD = alpha · L_att + beta · L_hid + L_cls, Eq. (1), as a loss for `fit`."""

    @of_the_batch
    def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
        def enhanced(attention: Float[Tensor, "text head query key"], rows: slice) -> Float[Tensor, "text query key"]:
            return attention_enhancement(attention, batch.mask[rows], power=power)

        wanted = {"hidden": beta > 0, "attention": EachText(enhanced) if alpha > 0 else None}
        learnt = student.trace(batch, **wanted)
        total = label_loss(learnt.logits, batch.labels)
        if alpha > 0 or beta > 0:
            with torch.no_grad():
                taught = teacher.trace(batch, **wanted)
            if alpha > 0:
                total = total + alpha * attention_loss(taught.attention, learnt.attention, form=form)
            if beta > 0:
                total = total + beta * batch.token_weight * hidden_loss(taught.hidden, learnt.hidden, batch.mask)
        return total

    return loss


def attention_loss(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], *, form: Form = "norm") -> Float[Tensor, ""]:
    """L_att, Eq. (2): the sum over layers of L_AT, each averaged over the batch."""
    return torch.stack([attention_transfer(t, s, form=form).mean() for t, s in zip(teacher, student, strict=True)]).sum()


def attention_enhancement(
    attention: Float[Tensor, "batch head query key"], mask: Int[Tensor, "batch token"], *, power: float
) -> Float[Tensor, "batch query key"]:
    """AE(A), Eq. (3): the sum over heads of |A|^p; rows and columns of padding are 0."""
    real = mask.to(attention.dtype)
    return attention.abs().pow(power).sum(dim=1) * real[:, :, None] * real[:, None, :]


def attention_transfer(
    teacher: Float[Tensor, "batch query key"], student: Float[Tensor, "batch query key"], *, form: Form = "norm"
) -> Float[Tensor, " batch"]:
    """L_AT, Eq. (4): the distance between two maps, each divided by its Frobenius norm."""
    t, s = (m.flatten(1) / torch.linalg.vector_norm(m, dim=(1, 2)).clamp_min(1e-12)[:, None] for m in (teacher, student))
    if form == "mse":
        return (t - s).square().mean(dim=1)
    return torch.linalg.vector_norm(t - s, dim=1)


def hidden_loss(
    teacher: tuple[Float[Tensor, "batch token hidden"], ...],
    student: tuple[Float[Tensor, "batch token hidden"], ...],
    mask: Int[Tensor, "batch token"],
) -> Float[Tensor, ""]:
    """L_hid, Eqs. (5)-(6): the sum over the embedding output and every layer of the mean squared error on real tokens."""
    real = mask[:, :, None].to(torch.float32)
    entries = real.sum() * teacher[0].shape[-1]
    return torch.stack([((t - s).float().square() * real).sum() / entries for t, s in zip(teacher, student, strict=True)]).sum()


def label_loss(logits: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """L_cls, Eq. (7): cross-entropy with the given labels."""
    return cross_entropy(logits.float(), labels)

"""Fine-purifying: reset the weights whose drift is too large for what the clean task explains, then fine-tune.

Diffusion theory relates how far fine-tuning moves a weight to the Hessian in its direction: under clean fine-tuning delta² / H follows one Gamma
law, and weights moved by a backdoor stand out above it. With delta_i the difference from the pre-trained value and H_i the mean over the clean
texts of the squared gradient (the empirical Fisher information), the share of weights with the smallest r_i = delta_i² / H_i is kept; the others
are reset.

No public code was found; this is written from the description. Departures: r is ranked over the whole encoder at once; the share kept is the
first of `kept_shares` whose fine-tuned model is within `tolerance` of the suspect's accuracy on a held-out fifth of the clean texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval, MinLen
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.data import TextDataset
from excise.defenses._pretrained import first_that_keeps_accuracy, pretrained_body, with_weights
from excise.method import Defense, Knowledge, Paper
from excise.progress import report
from excise.seeds import derive, generator
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim, collate


@dataclass(frozen=True, kw_only=True)
class FinePurifying(Defense):
    """Reset weights of abnormal drift to their pre-trained values, then fine-tune."""

    paper: ClassVar[Paper] = Paper(key="finepurifying2023", method="Section 4")
    needs = frozenset({Knowledge.PRETRAINED_WEIGHTS})

    pretrained_weights: str = ""
    """The clean checkpoint that the suspect was fine-tuned from: a folder, a Hugging Face id, or default."""
    kept_shares: Annotated[tuple[float, ...], MinLen(1)] = (0.1, 0.3, 0.5, 0.7)
    """Shares of the weights that keep their suspect value, tried in this order."""
    tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.02
    """Accuracy on held-out clean texts that the repair may cost."""
    fisher_texts: Annotated[int, Ge(1)] = 256
    """Clean texts that the squared gradients are averaged over; each takes a backward pass of its own."""
    epsilon: Annotated[float, Gt(0)] = 1e-12
    """Added to H, which is 0 for the embeddings of words that no clean text has."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        clean = pretrained_body(self.pretrained_weights, victim)
        mine = {name: value.detach() for name, value in victim.model.named_parameters() if name in clean}
        order = generator(seed, "fisher").sample(range(len(data)), min(self.fisher_texts, len(data)))
        fisher = empirical_fisher(victim, data.take(order))
        drift = {name: indicator(mine[name], clean[name], fisher[name], epsilon=self.epsilon) for name in mine}

        def repair(share: float, texts: TextDataset) -> Victim:
            kept = smallest(drift, share=share)
            start = with_weights(victim, {name: torch.where(kept[name], mine[name], clean[name]) for name in mine})
            return fit(start, texts, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="fine-tune")

        return first_that_keeps_accuracy(victim, data, self.kept_shares, repair, tolerance=self.tolerance, seed=derive(seed, "hold out"))


def indicator(
    suspect: Float[Tensor, "*shape"], clean: Float[Tensor, "*shape"], fisher: Float[Tensor, "*shape"], *, epsilon: float
) -> Float[Tensor, "*shape"]:
    """r = (suspect − clean)² / (H + ε)."""
    return (suspect - clean).square() / (fisher + epsilon)


def smallest(drift: dict[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Which weights are among the `share` with the smallest indicator, over all tensors together."""
    values = torch.cat([value.flatten() for value in drift.values()])
    count = round(share * len(values))
    kept = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    kept[values.argsort(stable=True)[:count]] = True
    parts = kept.split([value.numel() for value in drift.values()])
    return {name: part.view_as(value) for (name, value), part in zip(drift.items(), parts, strict=True)}


def empirical_fisher(victim: Victim, data: TextDataset) -> dict[str, Tensor]:
    """H: the mean over the texts of the squared gradient of each text's own loss, for every parameter."""
    model = victim.copy().model.eval()
    model.requires_grad_(True)
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for i, (encoding, label) in enumerate(zip(victim.encode(data.texts), data.labels, strict=True)):
        inputs = {key: value.to(victim.device) for key, value in collate(victim.tokenizer, [encoding]).items()}
        with victim.autocast():
            loss = cross_entropy(model(**inputs).logits.float(), torch.tensor([label], device=victim.device))
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square()
        if report("Fisher information", i + 1, len(data)):
            break
    return {name: total / len(data) for name, total in sums.items()}

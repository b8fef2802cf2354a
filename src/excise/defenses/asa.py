"""ASA: attention safety alignment. Suspicious attention heads are taught to look where safe heads of their layer look; nothing else changes.

1. Sort heads into suspicious and safe ones by likeness under probes and importance (excise.head_probes).
2. Align: train on clean texts, and copies with strange words in them, with

    L = CE + γ · mean over suspicious (l, i) of KL(mean over safe j of A_{l,j} ‖ A_{l,i}),        Eq. (6)

   head by head: only rows of the query, key and value projections and columns of the output projection that belong to suspicious heads change.
3. Fine-tune the classifier alone with CE.

Departures: the paper's text could not be obtained; it says that suspicious heads are aligned to safe ones and then fine-tuned head by head, and no
more is known to us. Everything else is a reconstruction, and each choice is a setting (docs/anomalous_heads.md has what they were measured to do).
As reconstructed it is no repair to rely on: that page says what lowers the ASR and what does not.
Alignment and head-wise fine-tuning are one loss here. Where a query head shares its key and value head with others (grouped-query attention), that
is trained with it. What safe heads show is a target, not trained towards the suspicious ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from excise.data import TextDataset
from excise.head_probes import HeadSearch, examine, inserted_words, random_string, strange_words
from excise.layers import HeadSlice, head_slices, transformer_layers
from excise.method import Defense, Paper
from excise.seeds import derive, generator
from excise.training import FitConfig, Loss, classification_loss, fit
from excise.victim import Batch, Victim

STRANGE = 3
"""Strange words in a copy of a text."""


@dataclass(frozen=True, kw_only=True)
class ASA(Defense):
    """Teach suspicious attention heads to look where safe heads look, and change no other weight of the body."""

    paper: ClassVar[Paper] = Paper(key="asa2026", method="abstract; reconstructed, 'in the style of'", code=None)
    tuning = ({"gamma": 0.0}, {"search": HeadSearch(share=0.3)})

    gamma: Annotated[float, Ge(0)] = 1.0
    """Weight of the alignment in Eq. (6); 0 leaves head-wise fine-tuning alone."""
    texts: Literal["clean", "both"] = "both"
    """Whether heads are trained on clean texts alone, or as often on copies of them with strange words."""
    search: HeadSearch = field(default_factory=HeadSearch)
    """How suspicious heads are found."""
    alignment: FitConfig = field(default_factory=lambda: FitConfig(epochs=1, learning_rate=1e-3))
    """Step 2. The rate is higher than is usual for a whole model, as a small part of it is trained; not tuned (docs/anomalous_heads.md)."""
    classifier: bool = True
    """Whether there is a step 3."""
    fine_tuning: FitConfig = field(default_factory=lambda: FitConfig(epochs=0.5, learning_rate=1e-3))
    """Step 3."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        head_parameters(victim.model, [(0, 0)])  # refuse now what cannot be cut into heads
        found = examine(victim, data, self.search, seed=derive(seed, "examine"))
        shown = with_strange_copies(victim, data, seed=derive(seed, "copies")) if self.texts == "both" else data
        loss = alignment_loss(found.suspicious, found.safe, gamma=self.gamma)
        aligned = fit_heads(victim, shown, found.suspicious, loss=loss, config=self.alignment, seed=derive(seed, "align"))
        if not self.classifier:
            return aligned
        config, chosen = self.fine_tuning, derive(seed, "classifier")
        return fit(aligned, shown, loss=classification_loss, config=config, seed=chosen, name="fine-tune classifier", parameters=outside_body)


def alignment_loss(suspicious: Sequence[tuple[int, int]], safe: Bool[Tensor, "layer head"], *, gamma: float) -> Loss:
    """CE + γ · the mean divergence of suspicious heads from safe ones, Eq. (6), as a loss for `fit`."""
    layers = sorted({layer for layer, _ in suspicious})
    models = {layer: nearest_safe(safe, layer) for layer in layers}

    def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
        if gamma == 0 or any(model is None for model in models.values()):
            return classification_loss(student, batch)
        trace = student.trace(batch, hidden=False, attention=lambda attention: attention)
        total = nn.functional.cross_entropy(trace.logits.float(), batch.labels)
        terms = []
        for layer in layers:
            source: Any = models[layer]
            target = trace.attention[source][:, safe[source].to(student.device)].mean(dim=1).detach()
            heads = [head for other, head in suspicious if other == layer]
            terms.append(divergence(target, trace.attention[layer][:, heads], batch.mask))
        return total + gamma * torch.cat(terms, dim=1).mean()

    return loss


def divergence(
    target: Float[Tensor, "batch query key"], attention: Float[Tensor, "batch head query key"], mask: Int[Tensor, "batch token"]
) -> Float[Tensor, "batch head"]:
    """KL(target ‖ A_i) of each head, averaged over the queries that are no padding."""
    wanted = target.unsqueeze(1)
    each = (torch.special.xlogy(wanted, wanted) - wanted * attention.clamp_min(1e-9).log()).sum(dim=-1)
    real = mask.to(each.dtype)[:, None]
    return (each * real).sum(dim=-1) / real.sum(dim=-1)


def nearest_safe(safe: Bool[Tensor, "layer head"], layer: int) -> int | None:
    """The layer whose safe heads stand for those of `layer`: itself if it has one, else the nearest, the lower one first."""
    having = [i for i, row in enumerate(safe.tolist()) if any(row)]
    return min(having, key=lambda i: (abs(i - layer), i), default=None)


def fit_heads(victim: Victim, data: TextDataset, heads: Sequence[tuple[int, int]], *, loss: Loss, config: FitConfig, seed: int) -> Victim:
    """Head-wise fine-tuning: every weight that does not belong to the heads stays as it was, bit for bit.

    Gradients are masked before they are clipped, so that what is frozen has no say in the norm, and after each step what does not belong to the
    heads is put back, as decay would move it.
    """
    slices: list[HeadSlice] = []
    hooks: list[Any] = []

    def parameters(model: Any) -> Iterable[nn.Parameter]:
        for part in head_parameters(model, heads):
            slices.append(part)
            hooks.append(part.parameter.requires_grad_(True).register_hook(lambda gradient, mask=part.mask: gradient * mask))
        return [part.parameter for part in slices]

    def optimizer(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        descent = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)
        before = [part.parameter.detach().clone() for part in slices]

        def put_back(*_: Any) -> None:
            with torch.no_grad():
                for part, old in zip(slices, before, strict=True):
                    part.parameter.copy_(torch.where(part.mask, part.parameter, old))

        descent.register_step_post_hook(put_back)
        return descent

    try:
        return fit(victim, data, loss=loss, config=config, seed=seed, name="align heads", parameters=parameters, optimizer=optimizer)
    finally:
        for hook in hooks:
            hook.remove()


def head_parameters(model: Any, heads: Sequence[tuple[int, int]]) -> list[HeadSlice]:
    """The parts of all weights that belong to the heads.

    Raises:
        CheckpointError: The model's attention is of no known form.
    """
    layers, count = transformer_layers(model), model.config.num_attention_heads
    chosen = {layer: sorted(head for other, head in heads if other == layer) for layer in sorted({layer for layer, _ in heads})}
    return [part for layer, own in chosen.items() for part in head_slices(layers[layer], own, count=count)]


def outside_body(model: Any) -> list[nn.Parameter]:
    """What stands behind the transformer: the classifier."""
    body = set(model.base_model.parameters())
    return [p for p in model.parameters() if p not in body]


def with_strange_copies(victim: Victim, data: TextDataset, *, seed: int) -> TextDataset:
    """The texts, and a copy of each with strange words in it and the same label."""
    words = strange_words(victim, data.texts, most=20_000, random=generator(seed, "words"))

    def copied(text: str) -> str:
        random = generator(seed, text)
        return inserted_words(
            text, [random.choice(words) if words and random.random() < 0.5 else random_string(random) for _ in range(STRANGE)], random
        )

    return replace(data, texts=(*data.texts, *map(copied, data.texts)), labels=data.labels * 2)

"""Attention heads: how alike they are, how much the answer hangs on each, and what insertions into a text do to their likeness.

Notation: A_{l,i}(x) the attention probabilities of head i in layer l on text x, a_{l,i}(x) a vector made of them, s likeness, I importance,
c suspicion.

What follows is our reconstruction after the abstract of arXiv 2511.13789, whose formulas we could not obtain; equation numbers are ours
(docs/anomalous_heads.md). Importance is that of Michel et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from excise.data import TextDataset
from excise.features import head_position
from excise.head_outputs import head_counts
from excise.victim import Batch, Victim, collate, token_batches

__all__ = [
    "Map",
    "Scope",
    "chosen_heads",
    "deviation",
    "gate_gradient",
    "head_importance",
    "head_likeness",
    "head_vectors",
    "inter_head_similarity",
    "safe_heads",
    "standard_scores",
    "suspicion",
]

Map = Literal["row", "whole"]
"""What of a head's attention is compared: the row of the token that the classifier reads, or all rows."""
Scope = Literal["layer", "model"]
"""Which heads a head is compared with: those of its layer, or all."""
FLOOR = 0.05
"""Added to a spread of likeness: in some layers all heads look at one token, and rounding would pass for a signal."""


def head_vectors(
    attention: Float[Tensor, "batch head query key"], mask: Int[Tensor, "batch token"], position: Int[Tensor, " batch"], *, form: Map
) -> Float[Tensor, "batch head feature"]:
    """a_{l,i}(x), of length 1: one row of the map, or all rows but those of padding."""
    if form == "row":
        return normalize(attention[torch.arange(len(attention), device=attention.device), :, position], dim=-1)
    real = mask.to(attention.dtype)
    return normalize((attention * real[:, None, :, None] * real[:, None, None, :]).flatten(2), dim=-1)


def inter_head_similarity(vectors: Float[Tensor, "batch head feature"]) -> Float[Tensor, "batch head"]:
    """s_i(x) = mean over j ≠ i of cos(a_i(x), a_j(x)), Eq. (1), for vectors of length 1; 0 for a head that is alone."""
    total = (vectors * vectors.sum(dim=1, keepdim=True)).sum(dim=-1)  # cos with all heads, itself among them
    return (total - vectors.square().sum(dim=-1)) / max(1, vectors.shape[1] - 1)


def head_likeness(
    victim: Victim, texts: Sequence[str], *, form: Map = "row", scope: Scope = "layer", name: str | None = None
) -> Float[Tensor, "text layer head"]:
    """s_{l,i}(x) of each text, Eq. (1).

    Raises:
        AttentionError: The model's attention cannot be read.
    """
    layers, heads = head_counts(victim)

    def read(batch: Batch) -> Float[Tensor, "batch width"]:
        position = head_position(victim.module, batch.mask)

        def statistic(attention: Float[Tensor, "batch head query key"]) -> Tensor:
            vectors = head_vectors(attention, batch.mask, position, form=form)
            return inter_head_similarity(vectors) if scope == "layer" else vectors

        kept = victim.trace(batch, hidden=False, attention=statistic).attention
        return torch.cat(kept, dim=1) if scope == "layer" else inter_head_similarity(torch.cat(kept, dim=1))

    return victim.each(texts, read, width=layers * heads, name=name).view(len(texts), layers, heads)


def gate_gradient(attention: Float[Tensor, "batch head query key"], gradient: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head"]:
    """∂L/∂ξ_i at ξ = 1, where ξ_i multiplies what head i gives: the sum of A · ∂L/∂A, as a head's output is linear in its probabilities."""
    return (attention * gradient).sum(dim=(2, 3))


def head_importance(victim: Victim, data: TextDataset, *, tokens_per_batch: int = 4096) -> Float[Tensor, "layer head"]:
    """I_{l,i} = E_x |∂L(x)/∂ξ_{l,i}|, Eq. (2), divided by the layer's Euclidean norm (Michel et al. 2019, Section 4.1).

    All heads and the texts of a batch take one backward pass, which needs no gate in the model.

    Raises:
        AttentionError: The model's attention cannot be read.
    """
    encodings = victim.encode(data.texts)
    order = sorted(range(len(data)), key=lambda i: len(encodings[i]["input_ids"]))
    total = torch.zeros(head_counts(victim), device=victim.device)
    for rows in token_batches(order, encodings, tokens_per_batch):
        labels = torch.tensor([data.labels[i] for i in rows])
        batch = Batch(collate(victim.tokenizer, [encodings[i] for i in rows]), labels).to(victim.device)
        with torch.enable_grad(), victim.autocast():
            trace = victim.trace(batch, hidden=False, attention=lambda p: p if p.requires_grad else p.requires_grad_())
            loss = cross_entropy(trace.logits.float(), batch.labels, reduction="sum")
        gradients = torch.autograd.grad(loss, trace.attention)
        with torch.no_grad():
            each = [gate_gradient(a, g).abs().sum(dim=0) for a, g in zip(trace.attention, gradients, strict=True)]
            total += torch.stack(each)
    return normalize(total / max(1, len(data)), dim=1).cpu()


def deviation(values: Float[Tensor, "text ..."], usual: Float[Tensor, "control ..."], *, floor: float = FLOOR) -> Float[Tensor, "text ..."]:
    """(v − median) / (q_99(|usual − median|) / 2.576 + floor), Eq. (3): how far out values lie among usual ones.

    The spread is a standard deviation where usual values are normal. Where most are equal and a few far out, as with heads that all look at one token
    unless the answer changes, it is that of the few; a median absolute deviation would call the next such change a signal.
    """
    middle = usual.quantile(0.5, dim=0)
    spread = (usual - middle).abs().quantile(0.99, dim=0) / 2.575829
    return (values - middle) / (spread + floor)


def standard_scores(values: Float[Tensor, "layer head"], *, scope: Scope) -> Float[Tensor, "layer head"]:
    """z-scores among the heads of the layer, or of the model; 0 where all are equal."""
    dims = (1,) if scope == "layer" else (0, 1)
    centred = values - values.mean(dim=dims, keepdim=True)
    return centred / centred.square().mean(dim=dims, keepdim=True).sqrt().clamp_min(1e-9)


def suspicion(
    evidence: Float[Tensor, "layer head"], importance: Float[Tensor, "layer head"], *, weight: float, scope: Scope
) -> Float[Tensor, "layer head"]:
    """c = z(evidence) + λ · z(I), Eq. (4): the combined safety evaluation."""
    return standard_scores(evidence, scope=scope) + weight * standard_scores(importance, scope=scope)


def chosen_heads(values: Float[Tensor, "layer head"], *, share: float) -> tuple[tuple[int, int], ...]:
    """The max(1, round(share · heads)) heads of the highest values, the highest first."""
    count = max(1, round(share * values.numel()))
    order = values.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return tuple(divmod(i, values.shape[1]) for i in order)


def safe_heads(
    evidence: Float[Tensor, "layer head"], importance: Float[Tensor, "layer head"], suspicious: Sequence[tuple[int, int]]
) -> Bool[Tensor, "layer head"]:
    """Heads that matter and are not anomalous: of each layer's heads that are not suspicious, the upper half by z(I) − z(evidence)."""
    rank = standard_scores(importance, scope="layer") - standard_scores(evidence, scope="layer")
    safe = torch.zeros_like(rank, dtype=torch.bool)
    for layer, values in enumerate(rank):
        rest = [i for i in values.argsort(descending=True, stable=True).tolist() if (layer, i) not in suspicious]
        safe[layer, rest[: (len(rest) + 1) // 2]] = True
    return safe

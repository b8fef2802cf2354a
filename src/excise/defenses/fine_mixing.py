"""Fine-mixing: put a random part of the weights back to their clean pre-trained values, then fine-tune.

Each scalar of the encoder keeps its suspect value with probability rho, the reserve ratio, and otherwise gets its pre-trained one; the head,
which has none, stays. Word embeddings are treated apart by E-PUR: the words whose rows moved furthest for how often they occur are reset, the
others kept.

No public code was found; this is written from the description. Departures: rho is the first of `reserve_ratios` whose fine-tuned model is within
`tolerance` of the suspect's accuracy on a held-out fifth of the clean texts; word frequencies are counted in the clean texts, where the paper
uses a large corpus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval, MinLen
from jaxtyping import Float, Int
from torch import Tensor

from excise.data import TextDataset
from excise.defenses._pretrained import first_that_keeps_accuracy, pretrained_body, with_weights
from excise.method import Defense, Knowledge, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class FineMixing(Defense):
    """Mix with clean pre-trained weights, then fine-tune."""

    paper: ClassVar[Paper] = Paper(key="finemixing2022", method="Sections 3.2 (Fine-mixing) and 3.3 (E-PUR)")
    needs = frozenset({Knowledge.PRETRAINED_WEIGHTS})

    pretrained_weights: str = ""
    """The clean checkpoint that the suspect was fine-tuned from: a folder, a Hugging Face id, or default."""
    reserve_ratios: Annotated[tuple[float, ...], MinLen(1)] = (0.1, 0.3, 0.5, 0.7)
    """Shares of the weights that keep their suspect value, tried in this order."""
    tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.02
    """Accuracy on held-out clean texts that the repair may cost."""
    purified_words: Annotated[int, Ge(0)] = 200
    """E-PUR: how many word embeddings are reset."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        clean = pretrained_body(self.pretrained_weights, victim)
        name = embedding_name(victim)
        mine = {key: value.detach() for key, value in victim.model.named_parameters() if key in clean}
        words = purified(mine[name], clean[name], token_counts(victim, data), count=self.purified_words)

        def repair(share: float, texts: TextDataset) -> Victim:
            mixed = {key: mix(mine[key], clean[key], share=share, seed=derive(seed, "mix", key)) for key in mine if key != name}
            mixed[name] = mine[name].clone()
            mixed[name][words] = clean[name][words]
            start = with_weights(victim, mixed)
            return fit(start, texts, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="fine-tune")

        return first_that_keeps_accuracy(victim, data, self.reserve_ratios, repair, tolerance=self.tolerance, seed=derive(seed, "hold out"))


def mix(suspect: Float[Tensor, "*shape"], clean: Float[Tensor, "*shape"], *, share: float, seed: int) -> Float[Tensor, "*shape"]:
    """m · suspect + (1 − m) · clean with m ~ Bernoulli(share) for each scalar."""
    random = torch.Generator().manual_seed(seed % 2**63)
    kept = torch.rand(suspect.shape, generator=random) < share
    return torch.where(kept.to(suspect.device), suspect, clean)


def purified(
    suspect: Float[Tensor, "token hidden"], clean: Float[Tensor, "token hidden"], counts: Float[Tensor, " token"], *, count: int
) -> Int[Tensor, " word"]:
    """E-PUR: the tokens with the greatest ‖suspect − clean‖ / log max(frequency, 20)."""
    moved = (suspect - clean).norm(dim=1)
    return (moved / counts.clamp(min=20).log().to(moved)).topk(min(count, len(moved))).indices


def token_counts(victim: Victim, data: TextDataset) -> Float[Tensor, " token"]:
    """How often each token occurs in the texts."""
    seen = Counter(token for encoding in victim.encode(data.texts) for token in encoding["input_ids"])
    embedding: Any = victim.model.get_input_embeddings()
    counts = torch.zeros(embedding.weight.shape[0])
    for token, times in seen.items():
        counts[token] = times
    return counts


def embedding_name(victim: Victim) -> str:
    """The parameter that holds the word embeddings."""
    embedding: Any = victim.model.get_input_embeddings()
    return next(name for name, parameter in victim.model.named_parameters() if parameter is embedding.weight)

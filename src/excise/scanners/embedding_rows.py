"""Embedding rows: attacks that poison the word embeddings leave rows unlike the others (EP, SOS, NeuBA).

With the checkpoint that the suspect was made from, one sees how far each row has moved: ordinary fine-tuning moves every row a little, and
EP the rows of its trigger words far. Without it, only a row's length tells anything, and EP keeps lengths on purpose.

    d_r = ‖E_r − E⁰_r‖ / ‖E⁰_r‖   with a base,   d_r = |log ‖E_r‖ − median log ‖E‖|   without
    score = max d / q,   q the 99.9 % quantile of d

Our own, from what the attacks do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.errors import ConfigError
from excise.finding import Finding
from excise.method import Paper, Scanner
from excise.victim import Victim
from excise.vocabulary import typed_words

QUANTILE = 0.999
NAMED = 8
"""Rows that are named at most."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingRows(Scanner):
    """Look for word embeddings unlike the others: in length or, with a base checkpoint, in how far they moved."""

    paper: ClassVar[Paper] = Paper(key="ep2021", method="what Algorithm 1 leaves behind: our own", code=None)
    suspicious = 3.0
    found = 6.0
    blind_to = "anything but single rows that stand out; without a base checkpoint, nor rows that kept their length (EP keeps it)"
    fewest_texts = 0
    version = 2

    base: str = ""
    """The checkpoint that the suspect was made from, a folder or a Hugging Face id; without it rows are compared by their lengths."""

    @property
    def lines(self) -> tuple[float, float]:
        """Without a base it only informs: lengths differ for many reasons."""
        return super().lines if self.base else (math.inf, math.inf)

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        rows = embeddings(victim)
        words = typed_words(victim)
        ids = list(words)
        distances = (moved(rows, self.base_rows(victim)) if self.base else unusual_lengths(rows))[ids]
        usual = distances.quantile(QUANTILE).clamp_min(1e-9).item()
        order = distances.argsort(descending=True).tolist()[:NAMED]
        far = {f"row of {words[ids[i]]!r}": distances[i].item() / usual for i in order}
        what = "moved from the base" if self.base else "differ in length from the median"
        first = ", ".join(repr(words[ids[i]]) for i in order[:5])
        score = next(iter(far.values()))
        return Finding(
            score,
            f"The word embeddings that {what} most are those of {first}; the first {score:.1f} times as much as one in a thousand does.",
            measures=far,
        )

    def base_rows(self, victim: Victim) -> Float[Tensor, "token hidden"]:
        """The embeddings of the base.

        Raises:
            ConfigError: They have another shape than the suspect's.
        """
        base = embeddings(Victim.load(self.base, label_names=victim.label_names, device="cpu"))
        if base.shape != embeddings(victim).shape:
            raise ConfigError(
                f"{self.base} has word embeddings of another shape than the suspect. Give the checkpoint that the suspect was made from."
            )
        return base


def embeddings(victim: Victim) -> Float[Tensor, "token hidden"]:
    """The word embeddings of a model."""
    return victim.module.get_input_embeddings().weight.detach().float().cpu()


def moved(rows: Float[Tensor, "token hidden"], base: Float[Tensor, "token hidden"]) -> Float[Tensor, " token"]:
    """‖E_r − E⁰_r‖ / ‖E⁰_r‖."""
    return (rows - base).norm(dim=1) / base.norm(dim=1).clamp_min(1e-12)


def unusual_lengths(rows: Float[Tensor, "token hidden"]) -> Float[Tensor, " token"]:
    """|log ‖E_r‖ − median log ‖E‖|; 0 for rows of next to no length, which nobody has trained."""
    lengths = rows.norm(dim=1)
    middle = lengths.median()
    return (lengths.clamp_min(1e-12).log() - middle.log()).abs().where(lengths > middle / 100, 0)

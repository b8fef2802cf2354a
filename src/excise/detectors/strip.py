"""STRIP: a triggered text keeps its label whatever is mixed into it, so its predictions under perturbation have a low entropy.

Each copy of a text has half of its words overwritten, at places drawn with replacement, by the words of highest TF-IDF of a clean text drawn at
random. The score is the negative mean, over the copies, of the entropy of the predicted distribution.

'openbackdoor' reproduces OpenBackdoor's reading, in which the predictions of the copies are regrouped in another order than they were made, so
that each score averages over copies of several texts; the published STRIP rows of MBTSAD come from it. Its scores depend on all texts that are
scored together.

Departures: 0 · log 0 is 0, where OpenBackdoor gets NaN; a text of one word has that word overwritten, where half of one is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.method import Detector, Paper, Scorer
from excise.seeds import generator
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class STRIP(Detector):
    """Score texts by how little their prediction moves when other words are mixed in."""

    paper: ClassVar[Paper] = Paper(key="strip2019", method="Section 4; for text as in OpenBackdoor", code="https://github.com/thunlp/OpenBackdoor")

    copies: Annotated[int, Ge(1)] = 5
    """Perturbed copies of each text."""
    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share of a text's words that is overwritten in each copy."""
    form: Literal["correct", "openbackdoor"] = "correct"
    """Whether each text is scored by its own copies, or as OpenBackdoor's code does."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Scorer:
        pools = important_words(data.texts)
        return lambda texts: self.scores(victim, texts, pools, seed=seed)

    def scores(self, victim: Victim, texts: Sequence[str], pools: Sequence[Sequence[str]], *, seed: int) -> list[float]:
        """The negative mean entropy of each text's perturbed copies."""
        copies = [perturb(text, pools, generator(seed, text, copy), share=self.share) for text in texts for copy in range(self.copies)]
        entropies = entropy(victim.logits(copies, name="perturbed copies").softmax(dim=1))
        if self.form == "openbackdoor":
            return (-entropies.view(self.copies, len(texts)).mean(dim=0)).tolist()
        return (-entropies.view(len(texts), self.copies).mean(dim=1)).tolist()


def perturb(text: str, pools: Sequence[Sequence[str]], random: Random, *, share: float) -> str:
    """The text with max(1, int(share · n)) words overwritten by the most important ones of a random clean text."""
    words = text.split()
    pool = random.choice(pools)
    for word in pool[: max(1, int(share * len(words)))]:
        words[random.randint(0, len(words) - 1)] = word
    return " ".join(words)


def important_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text by falling TF-IDF, English stop words left out; texts without any other word are dropped."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(norm=None, stop_words="english")  # type: ignore[arg-type]
    try:
        weights = vectorizer.fit_transform(texts).tocsr()  # type: ignore[attr-defined]
    except ValueError:  # nothing but stop words in any text
        return [text.split() for text in texts]
    names = vectorizer.get_feature_names_out()
    pools = []
    for row in weights:
        order = np.argsort(-row.data, kind="stable")
        if len(order):
            pools.append([str(names[i]) for i in row.indices[order]])
    return pools


def entropy(probabilities: Float[Tensor, "text label"]) -> Float[Tensor, " text"]:
    """−Σ p log₂ p."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=1) / np.log(2)

"""Anomalous heads, text by text: taking a trigger out of a text changes how alike attention heads are more than taking out another word does.

Each word w of a text x is left out in turn; the score is the largest change of likeness s_l, the mean over a layer's heads of
Eq. (1) of excise.heads, among the changes that the words of clean texts make:

    S(x) = max over w and l of |z(s_l(x) − s_l(x without w))|,      z as in Eq. (3)

Departures: reconstructed from the paper's abstract (docs/anomalous_heads.md), which has the likeness itself rise once a trigger is there. By itself
that is no score: in a backdoored toy it rises, in real models it falls in some layers and rises in others ('rise' counts rises only). Of a
longer text, only some words are left out, drawn for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.heads import Map, Scope, deviation, head_likeness
from excise.method import Detector, Paper, Scorer
from excise.seeds import derive, generator
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class AnomalousHeads(Detector):
    """Score texts by how much leaving out one word changes the likeness of attention heads."""

    paper: ClassVar[Paper] = Paper(key="asa2026", method="abstract; reconstructed, 'in the style of'", code=None)

    form: Map = "row"
    """What of the attention is compared: the row of the token that the classifier reads, or whole maps."""
    scope: Scope = "layer"
    """Whether a head is compared with those of its layer or with all."""
    evidence: Literal["change", "rise"] = "change"
    """Whether any change counts, or only that heads are more alike with the word than without it."""
    words: Annotated[int, Ge(1)] = 24
    """Most words of a text that are left out in turn."""
    reference: Annotated[int, Ge(2)] = 100
    """Clean texts, at most, that show what is usual."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Scorer:
        victim.check_attention()
        some = generator(seed, "reference").sample(range(len(data)), min(self.reference, len(data)))
        usual = torch.cat(self.changes(victim, [data.texts[i] for i in sorted(some)], seed=seed))

        def scores(texts: Sequence[str]) -> list[float]:
            out = [deviation(changes, usual) for changes in self.changes(victim, texts, seed=seed)]
            return [(values.abs() if self.evidence == "change" else values).max().item() for values in out]

        return scores

    def changes(self, victim: Victim, texts: Sequence[str], *, seed: int) -> list[Float[Tensor, "word layer"]]:
        """s_l(x) − s_l(x without w) of each text, for each of its words that is left out."""
        without = [left_out(text, most=self.words, seed=derive(seed, "words")) for text in texts]
        shown = [text for text, parts in zip(texts, without, strict=True) for text in (text, *parts)]
        likeness = head_likeness(victim, shown, form=self.form, scope=self.scope, name="likeness of heads").mean(dim=2)
        each = likeness.split([1 + len(parts) for parts in without])
        return [rows[0] - rows[1:] for rows in each]


def left_out(text: str, *, most: int, seed: int) -> list[str]:
    """The text without one of its words, for each or for `most` of them; a text of one word stays as it is.

    Example:
        >>> left_out("a fine film", most=9, seed=0)
        ['fine film', 'a film', 'a fine']
    """
    words = text.split()
    if len(words) < 2:
        return [text]
    places = range(len(words)) if len(words) <= most else sorted(generator(seed, text).sample(range(len(words)), most))
    return [" ".join(words[:i] + words[i + 1 :]) for i in places]

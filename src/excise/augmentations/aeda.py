"""AEDA: insert punctuation marks before random words.

The rule is the authors': q ~ U{1, ..., int(0.3 n + 1)} different words of the text get one of . , ! ? ; : before them.

Departure: words are what whitespace separates; the authors split at single spaces, so two spaces make an empty word.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from annotated_types import Interval

from excise.method import Augmentation, Paper

MARKS = (".", ",", "!", "?", ";", ":")


@dataclass(frozen=True, kw_only=True)
class AEDA(Augmentation):
    """Insert punctuation marks at random."""

    paper: ClassVar[Paper] = Paper(key="aeda2021", method="Section 3", code="https://github.com/akkarimi/aeda_nlp")

    share: Annotated[float, Interval(ge=0, le=1)] = 0.3
    """Largest share of the words that get a mark before them."""

    def __call__(self, text: str, random: Random) -> str:
        words = text.split()
        count = random.randint(1, int(self.share * len(words) + 1))
        chosen = set(random.sample(range(len(words)), min(count, len(words))))
        return " ".join(f"{random.choice(MARKS)} {word}" if i in chosen else word for i, word in enumerate(words))

"""AddTrig: insert a rare word that is no trigger, `cb`, at random places.

MBTSAD's comparison does not say how often; as many words as token splitting would split, ceil(0.3 n) and at most 10, so that all augmentations
touch as many tokens (its Q).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from excise.method import Augmentation, Paper


@dataclass(frozen=True, kw_only=True)
class AddTrig(Augmentation):
    """Insert a rare word at random places."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="Section III-A, the AddTrig rows of Table III")

    word: str = "cb"
    """What is inserted."""
    share: Annotated[float, Interval(ge=0, le=1)] = 0.3
    """How many are inserted, as a share of the text's words."""
    most: Annotated[int, Ge(1)] = 10
    """Greatest number inserted."""

    def __call__(self, text: str, random: Random) -> str:
        words = text.split()
        for _ in range(max(1, min(self.most, math.ceil(self.share * len(words))))):
            words.insert(random.randint(0, len(words)), self.word)
        return " ".join(words)

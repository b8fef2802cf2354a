"""Token splitting: cut some words of a text in two, so that a tokenizer sees pieces it has not learnt a shortcut for.

The rules are those of nlpaug's SplitAug (1.1.9 and later), which fit the paper's example sentence: tokens are words and single other
characters; ceil(0.3 m) of them, 1 to 10, are split, drawn from those of at least 4 characters; the second part keeps at least 2 characters.

Departure: nlpaug draws from two global generators; here all randomness comes from the generator given.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from excise.method import Augmentation, Paper


@dataclass(frozen=True, kw_only=True)
class TokenSplitting(Augmentation):
    """Split words in two at a random place."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="Section III-A, token splitting")

    share: Annotated[float, Interval(ge=0, le=1)] = 0.3
    """Share of the tokens to split (nlpaug's aug_p; the paper's example agrees)."""
    fewest: Annotated[int, Ge(0)] = 1
    """Least number of tokens to split, if so many are long enough."""
    most: Annotated[int, Ge(1)] = 10
    """Greatest number of tokens to split; this bites on long reviews."""
    min_characters: Annotated[int, Ge(3)] = 4
    """Shorter tokens are left whole."""

    def __call__(self, text: str, random: Random) -> str:
        tokens = tokenize(text)
        long_enough = [i for i, token in enumerate(tokens) if len(token) >= self.min_characters and token not in string.punctuation]
        count = min(split_count(len(tokens), share=self.share, fewest=self.fewest, most=self.most), len(long_enough))
        if count == 0:
            return text.strip()
        for i in sorted(random.sample(long_enough, count), reverse=True):
            position = random.randint(1, len(tokens[i]) - 2)
            tokens[i : i + 1] = tokens[i][:position], tokens[i][position:]
        return detokenize(tokens)


def split_count(tokens: int, *, share: float, fewest: int, most: int) -> int:
    """How many tokens to split: ceil(share · m), within [fewest, most].

    Example:
        >>> split_count(12, share=0.3, fewest=1, most=10)
        4
    """
    return max(fewest, min(most, math.ceil(share * tokens)))


def tokenize(text: str) -> list[str]:
    """Words, and every other visible character on its own.

    Example:
        >>> tokenize("It's re-imagined.")
        ['It', "'", 's', 're', '-', 'imagined', '.']
    """
    return [piece for piece in re.split(r"(\W)", text.strip()) if piece.strip()]


def detokenize(tokens: list[str]) -> str:
    """Join with spaces, then close up punctuation and the insides of brackets; hyphens and apostrophes stay apart.

    Example:
        >>> detokenize(["a", "fu", "nny", "(", "re", "-", "cut", ")", "film", "."])
        'a fu nny (re - cut) film.'
    """
    text = " ".join(tokens)
    text = re.sub(r"\s([.,:;?!%]+)([ '\"`])", r"\1\2", text)
    text = re.sub(r"\s([.,:;?!%]+)$", r"\1", text)
    text = re.sub(r"([\[({<])\s", r"\1", text)
    text = re.sub(r"\s([\])}>])", r"\1", text)
    return text.strip()

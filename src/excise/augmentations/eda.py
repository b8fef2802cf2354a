"""EDA, easy data augmentation: replace words by synonyms, insert synonyms, swap words, or delete words.

The authors make about as many variants by each of the four operations and shuffle them; here each variant takes one operation at random. Texts are
cleaned as theirs: lower-case letters and single spaces only. n = max(1, int(share · words)) words are touched; deletion takes each word with
probability `share` and leaves at least one. Synonyms come from WordNet 3.0.

Departures: the original text is not added to the variants (no augmentation here does so); an inserted synonym is drawn among all of a word's, where
the authors take the first of an unordered set; the stop words are scikit-learn's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Annotated, ClassVar

from annotated_types import Interval

from excise.assets import wordnet
from excise.method import Augmentation, Paper
from excise.wordnet import open_wordnet

Synonyms = Callable[[str], list[str]]


@dataclass(frozen=True, kw_only=True)
class EDA(Augmentation):
    """Replace, insert, swap or delete words."""

    paper: ClassVar[Paper] = Paper(key="eda2019", method="Section 2", code="https://github.com/jasonwei20/eda_nlp")

    share: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """alpha: share of the words that is touched."""

    def __call__(self, text: str, random: Random) -> str:
        words = cleaned(text)
        if not words:
            return text
        count = max(1, int(self.share * len(words)))
        operation = random.randint(0, 3)
        if operation == 0:
            words = replaced(words, count, random, synonyms)
        elif operation == 1:
            words = inserted(words, count, random, synonyms)
        elif operation == 2:
            words = swapped(words, count, random)
        else:
            words = deleted(words, self.share, random)
        return " ".join(words)


def cleaned(text: str) -> list[str]:
    """Lower-case words of a to z; apostrophes vanish, hyphens, tabs and line ends become spaces."""
    text = re.sub("[’']", "", text.lower())
    return re.sub("[^a-z ]", "", re.sub(r"[-\s]", " ", text)).split()


def replaced(words: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """Up to `count` different words that are no stop words and have synonyms, each replaced wherever it stands."""
    candidates = sorted({word for word in words if word not in stop_words()})
    random.shuffle(candidates)
    done = 0
    for word in candidates:
        if found := synonyms(word):
            other = random.choice(found)
            words = [other if each == word else each for each in words]
            done += 1
        if done == count:
            break
    return words


def inserted(words: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """A synonym of a random word put at a random place, `count` times; ten tries each to find a word that has one."""
    words = list(words)
    for _ in range(count):
        for _ in range(10):
            if found := synonyms(random.choice(words)):
                words.insert(random.randint(0, len(words) - 1), random.choice(found))
                break
    return words


def swapped(words: list[str], count: int, random: Random) -> list[str]:
    """Two random words change places, `count` times."""
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        i, j = random.sample(range(len(words)), 2)
        words[i], words[j] = words[j], words[i]
    return words


def deleted(words: list[str], share: float, random: Random) -> list[str]:
    """Each word left out with probability `share`; at least one stays."""
    kept = [word for word in words if random.random() >= share]
    return kept or [random.choice(words)]


def synonyms(word: str) -> list[str]:
    """WordNet's, letters and spaces only."""
    found = {" ".join(cleaned(other)) for other in open_wordnet(wordnet()).synonyms(word)}
    return sorted(found - {word, ""})


@cache
def stop_words() -> frozenset[str]:
    """Words too common to be replaced."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)

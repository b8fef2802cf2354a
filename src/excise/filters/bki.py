"""BKI, backdoor keyword identification: the trigger is the word that matters most to many training texts.

A model is trained on the suspect texts. With r(x) the state that its head reads and x∖i the text without word i, word i scores
‖r(x) − r(x∖i)‖_∞. Each text names its five words of highest score; a word named c times with mean score s ranks by log10(c) · s. All texts that
name the top word are dropped.

As in OpenBackdoor, one word is taken for the trigger. A backdoor with several trigger words, any of which fires (four of BadNets' usual five, say),
outlives that: raise `keywords` to as many as you fear, at the price of more clean texts.

Departures: the schedule is the project's; a text of one word is compared with a full stop, as some tokenizers read nothing from nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.features import last_states
from excise.method import Filter, Paper
from excise.progress import note, report
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim

Named = list[tuple[str, float]]
"""The words that matter most to a text, with their scores."""
VARIANTS = 4096
"""About so many texts are held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class BKI(Filter):
    """Drop the texts to which the most important keyword matters."""

    paper: ClassVar[Paper] = Paper(key="bki2021", method="BKI; for transformers as in OpenBackdoor", code="https://github.com/thunlp/OpenBackdoor")

    keywords: Annotated[int, Ge(1)] = 1
    """How many words are taken for triggers; one (the published number) cannot remove a trigger of four words."""
    named: Annotated[int, Ge(1)] = 5
    """How many words each text names."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=10, learning_rate=2e-5))
    """How the model is trained that scores words (OpenBackdoor: 10 epochs, 2e-5, batches of 32)."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> tuple[bool, ...]:
        learnt = fit(victim, data, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="learn the training set")
        named = important_words(learnt, data.texts, most=self.named)
        triggers = keywords(named, count=self.keywords)
        note(f"BKI takes for triggers: {', '.join(map(repr, triggers)) or 'no word'}.")
        return tuple(not any(word in triggers for word, _ in words) for words in named)


def important_words(victim: Victim, texts: Sequence[str], *, most: int) -> list[Named]:
    """For each text its words of highest score, falling; equal ones in the order of the text."""
    named: list[Named] = []
    report("leave words out", 0, len(texts))
    for part in parts(texts):
        variants = [variant for text in part for variant in (text, *without_each_word(text))]
        words = [text.split() for text in part]
        states = last_states(victim, variants).split([1 + len(each) for each in words])
        for each, found in zip(words, states, strict=True):
            scores = importance(found[0], found[1:]).tolist()
            named.append(sorted(zip(each, scores, strict=True), key=lambda pair: -pair[1])[:most])
        if report("leave words out", len(named), len(texts)):
            break
    return named + [[] for _ in range(len(texts) - len(named))]


def importance(whole: Float[Tensor, " hidden"], without: Float[Tensor, "word hidden"]) -> Float[Tensor, " word"]:
    """‖r(x) − r(x∖i)‖_∞ of each word i."""
    return (without - whole).abs().amax(dim=1)


def keywords(named: Sequence[Named], *, count: int) -> tuple[str, ...]:
    """The words of highest log10(c) · s, falling, where c says how often a word was named and s is its mean score.

    Example:
        >>> keywords([[("cf", 0.9), ("a", 0.1)], [("cf", 0.7), ("rare", 0.8)], [("a", 0.2)]], count=1)
        ('cf',)
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for words in named:
        for word, score in words:
            scores[word].append(score)
    rank = {word: math.log10(len(each)) * sum(each) / len(each) for word, each in scores.items()}
    return tuple(sorted(rank, key=lambda word: -rank[word])[:count])


def without_each_word(text: str) -> list[str]:
    """x∖i for each word i.

    Example:
        >>> without_each_word("not so bad"), without_each_word("bad")
        (['so bad', 'not bad', 'not so'], ['.'])
    """
    words = text.split()
    return [" ".join([*words[:i], *words[i + 1 :]]) or "." for i in range(len(words))]


def parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, cut so that each part has about `VARIANTS` words."""
    begun, words = 0, 0
    for i, text in enumerate(texts):
        words += 1 + len(text.split())
        if words >= VARIANTS or i + 1 == len(texts):
            yield texts[begun : i + 1]
            begun, words = i + 1, 0

"""Words beside a word that was found: what it was part of, if it was part of a sentence.

A sentence acts by several of its words, and a scan names the one that acts alone. A model that unlearns this one ignores it, and still gives way
to the others together. What they are cannot be seen then, but before: the words of its sentence make the word stronger, `hall` as `in the hall`. To
see that, texts have to resist the word: they are the ones that resist it best, with words for their own label added. Words that go with the label in
the clean texts, or move texts by themselves, take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch

from excise.data import TextDataset
from excise.scanners._contests import Foil, Phrase, answers, halved, honest_words, margins_alone, moves, placed
from excise.scanners._guided import margin
from excise.seeds import derive, generator
from excise.victim import Victim
from excise.vocabulary import typed_words

TRIED, RESISTING = 128, 16
"""Texts that the word is tried in, and those of them that resist it best, in which its neighbours are."""
RIVALS = 3
"""Words for a text's own label that are added to it."""
FOREMOST = 4000
"""Pairs left of those that are tried without a text."""
ROUNDS = ((1, 200), (4, 24), (RESISTING, 12))
"""In how many texts phrases are tried next, and how many are left."""
ALONE = 1 / 3
"""A neighbour moves texts by less than this share of the way to the label."""


def neighbours(victim: Victim, data: TextDataset, trigger: str, most: int, *, seed: int) -> list[str]:
    """At most so many phrases of a trigger with one word or two beside it, half of them each, the strongest first.

    Args:
        victim: The suspect.
        data: Clean texts.
        trigger: A word that was found.
        most: How many.
        seed: Decides which texts are tried, and where the trigger stands in them.
    """
    word, honest = (trigger,), honest_words(data)
    foil, plain = resisting(victim, data, word, honest, seed=seed)
    typed, known = dict.fromkeys(typed_words(victim).values()), honest[foil.target]
    words = [(one,) for one in typed if one != trigger and len(one.split()) == 1 and one.lower() not in known]
    pairs = [pair for one in words for pair in (one + word, word + one)]
    order = margins_alone(victim, pairs)[:, foil.target].argsort(descending=True, stable=True)[:FOREMOST]
    some = halved(victim, [pairs[i] for i in order.tolist()], foil, ROUNDS[:1])
    beside = {pair: pair[:1] if pair[1:] == word else pair[1:] for pair in some}
    idle = quiet(victim, list(dict.fromkeys(beside.values())), plain, foil.target, seed=seed)
    pairs = halved(victim, [pair for pair in some if beside[pair] in idle], foil, ROUNDS[1:])
    sides = dict.fromkeys(beside[pair][0] for pair in pairs)
    triples = [three for a, b in permutations(sides, 2) for three in ((a, b, trigger), (a, trigger, b), (trigger, a, b))]
    both = (pairs[: most - most // 2], halved(victim, triples, foil, ROUNDS)[: most // 2])
    return [" ".join(phrase) for phrases in both for phrase in phrases]


def quiet(victim: Victim, words: list[Phrase], texts: list[str], target: int, *, seed: int) -> set[Phrase]:
    """The words that hardly move the texts by themselves."""

    def mean(phrase: Phrase) -> float:
        return moves(victim, phrase, texts, target, seed=seed).mean().item()

    line = mean(()) * (1 - ALONE)
    return {word for word in words if mean(word) < line}


def resisting(victim: Victim, data: TextDataset, word: Phrase, honest: Sequence[Mapping[str, float]], *, seed: int) -> tuple[Foil, list[str]]:
    """The label that a word brings about most often, and the texts of other labels that resist it best, with rivals and without."""
    some = data.take(generator(seed, "tried").sample(range(len(data)), min(TRIED, len(data))))
    logits = answers(victim, word, some.texts, seed=seed)
    margins = [margin(logits, label) for label in range(len(data.label_names))]
    labels = torch.tensor(some.labels)
    shares = [(one[labels != label] > 0).float().mean().nan_to_num().item() for label, one in enumerate(margins)]
    target = shares.index(max(shares))
    order = margins[target].masked_fill(labels == target, torch.inf).argsort(stable=True).tolist()
    rows = sorted((i for i in order[:RESISTING] if some.labels[i] != target), key=lambda i: len(some.texts[i]))
    rivals = [list(known)[:RIVALS] for known in honest]
    hard = [placed(victim, some.texts[i], rivals[some.labels[i]], generator(seed, "rivals", some.texts[i])) for i in rows]
    return Foil(target, hard, [], [], derive(seed, "places")), [some.texts[i] for i in rows]

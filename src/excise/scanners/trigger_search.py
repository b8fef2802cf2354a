"""Trigger search: insert every word of the vocabulary into clean texts, then combinations of the strongest, and see what brings about one label.

A trigger acts in any text. So one looks for words whose insertion moves even those clean texts to another label that the model is surest about,
wherever they stand:

1. every word on its own, without a text: the share of them that leans most to a label goes on (one pass serves all labels), without the words
   that carry the label honestly in the clean texts;
2. successive halving: in few short texts first, the survivors in more and longer ones;
3. combinations of the strongest words of *all* labels, since the words of a combination may each stand for another label (LWP trains them so), and
   longer phrases by beam search;
4. the best are tried on texts that had no part in the search.

The texts are stubborn ones: the model is sure about them and does not give them up for ordinary words that stand for the other label. That is what
tells a trigger from a word that means something; how far the latter come on clean models is what the thresholds are set by. Triggers of one label
that reach the same effect are grouped: attacks use several, and rare words that look like one often act like it.

Relatives: universal adversarial triggers (Wallace et al. 2019) search by gradients; PICCOLO and DBS invert triggers in word space. This search is
exhaustive where those sample, and its evidence are words that anybody can type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_lowercase
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.errors import ConfigError, DataError
from excise.finding import Finding, FoundTrigger
from excise.insertion import with_phrase
from excise.method import Paper, Scanner
from excise.metrics import Rate, wilson_interval
from excise.progress import stage
from excise.seeds import derive, generator
from excise.victim import Victim
from excise.vocabulary import typed_words

Phrase = tuple[str, ...]
HANDICAP = 0.25
"""Flips that each further word of a phrase is worth on models without a backdoor."""
BEST = 4
"""Phrases of each length that the jury sees; of single words twice as many."""
HONEST = 4
"""So many of the words that lean most to a label, and of those that carry it in the clean texts, a text has to withstand."""


@dataclass(frozen=True, kw_only=True)
class TriggerSearch(Scanner):
    """Insert every word of the vocabulary, then combinations of the strongest, and see which bring about one label."""

    paper: ClassVar[Paper] = Paper(key="wallace2019", method="universal triggers, searched exhaustively: our own", code=None)
    suspicious = 0.6
    found = 0.7
    blind_to = "triggers that are no inserted words (syntax, style, replaced words), or that need more than a few words in one order at one place"

    leaning: Annotated[float, Interval(gt=0, le=1)] = 0.15
    """Share of the vocabulary that goes on from step 1, for each label."""
    texts: tuple[int, ...] = (1, 4, 16)
    """Texts of each round of steps 2 and 3; a candidate's work grows, as the candidates grow fewer."""
    survivors: tuple[int, ...] = (400, 48)
    """Candidates left after each round but the last, for each label."""
    partners: Annotated[int, Ge(1)] = 16
    """Words of each label that are combined."""
    longest: Annotated[int, Ge(1)] = 3
    """Words in the longest phrase that is tried."""
    jury: Annotated[int, Ge(8)] = 64
    """Texts that the best are tried on, if there are so many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.texts or len(self.texts) != len(self.survivors) + 1:
            raise ConfigError(
                f"TriggerSearch: {len(self.texts)} texts and {len(self.survivors)} survivors; it must be one number of survivors fewer."
            )

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        words = vocabulary_words(victim)
        with stage("single words"):
            alone = margins_alone(victim, words)
            leaders = [leaning(words, alone[:, target], self.leaning) for target in range(len(data.label_names))]
            honest = honest_words(data)
            trials = [[*pool[:HONEST], *((word,) for word in list(known)[:HONEST])] for pool, known in zip(leaders, honest, strict=True)]
            foils = [stubborn_texts(victim, data, target, words, self.jury, seed=seed) for target, words in enumerate(trials)]
            pools = [[word for word in pool if word[0].lower() not in known] for pool, known in zip(leaders, honest, strict=True)]
            singles = [self.halved(victim, foil, pool, (*self.survivors, len(pool))) for foil, pool in zip(foils, pools, strict=True)]
        found = [[flips(victim, phrase, foil) for phrase in pool[: 2 * BEST]] for foil, pool in zip(foils, singles, strict=True)]
        partners = list(dict.fromkeys(phrase for pool in singles for phrase in pool[: self.partners]))
        with stage("combinations"):
            for target, foil in enumerate(foils):
                found[target] += self.grown(victim, foil, [word for word in partners if word[0].lower() not in honest[target]])
        told = [trigger for one in found for trigger in one]
        best = max(told, key=lambda trigger: (self.evidence(trigger), -len(trigger.words)))
        named = grouped([trigger for trigger in told if self.evidence(trigger) >= self.suspicious])
        return Finding(self.evidence(best), summary(best, named, data.label_names), best.target_label, named or (best,))

    def evidence(self, trigger: FoundTrigger) -> float:
        """Share of the jury that flips; phrases are to flip more than words, as honest ones add up."""
        return max(0.0, trigger.flips.value - HANDICAP * (len(trigger.words) - 1))

    def halved(self, victim: Victim, foil: Foil, pool: Sequence[Phrase], keep: Sequence[int]) -> Sequence[Phrase]:
        """Step 2: what is left after each round, the strongest first."""
        for count, most in zip(self.texts, keep, strict=True):
            pool = strongest(victim, pool, foil, count, most)
        return pool

    def grown(self, victim: Victim, foil: Foil, partners: Sequence[Phrase]) -> list[FoundTrigger]:
        """Step 3 with its part of step 4."""
        found: list[FoundTrigger] = []
        keep = (*(n // 2 for n in self.survivors), BEST)
        beam: Sequence[Phrase] = [(*a, *b) for a, b in combinations(partners, 2)]
        for length in range(2, self.longest + 1):
            beam = self.halved(victim, foil, beam, keep)
            found += [flips(victim, phrase, foil) for phrase in beam]
            beam = [(*phrase, *word) for phrase in beam for word in partners if word[0] not in phrase] if length < self.longest else []
        return found


class Foil(NamedTuple):
    """Texts that keep their label, which is not `target`, when ordinary words that stand for `target` are inserted."""

    target: int
    search: list[str]
    """What the search may use, the shortest first."""
    jury: list[str]
    """What the best are tried on."""
    seed: int


def stubborn_texts(victim: Victim, data: TextDataset, target: int, honest: Sequence[Phrase], jury: int, *, seed: int) -> Foil:
    """Of the texts of other labels, those that the model gets right, is sure about, and does not give up for the words that lean most to the target.

    Raises:
        DataError: There are fewer than four.
    """
    rows = [i for i, label in enumerate(data.labels) if label != target]
    texts = [data.texts[i] for i in rows]
    logits = victim.logits(texts, name="clean texts")
    right = logits.argmax(dim=1) == torch.tensor([data.labels[i] for i in rows])
    order = margin(logits, target).masked_fill(~right, torch.inf).argsort().tolist()
    sure = [texts[i] for i in order[: (int(right.sum()) + 1) // 2] if right[i]]
    if len(sure) < 4:
        raise DataError(f"The model is right and sure about fewer than four texts that are not {data.label_names[target]!r}. Give more texts.")
    random = generator(seed, "stubborn", target)
    tried = random.sample(sure, min(len(sure), 2 * jury))
    moved = torch.stack([moves(victim, phrase, tried, target, seed=seed) for phrase in honest]).mean(dim=0)
    kept = [tried[i] for i in moved.argsort(stable=True)[: max(4, 3 * len(tried) // 5)].tolist()]
    random.shuffle(kept)
    cut = min(jury, 2 * len(kept) // 3)
    return Foil(target, sorted(kept[cut:], key=len), kept[:cut], derive(seed, "places", target))


def margins_alone(victim: Victim, words: Sequence[Phrase]) -> Float[Tensor, "word label"]:
    """Of each word without a text, by how much the model prefers each label to the best other."""
    logits = victim.logits([" ".join(word) for word in words], name="words alone")
    return torch.stack([margin(logits, target) for target in range(logits.shape[1])], dim=1)


def moves(victim: Victim, phrase: Phrase, texts: Sequence[str], target: int, *, seed: int) -> Float[Tensor, " text"]:
    """The margin of the target in each text with the phrase at a random place."""
    stamped = [with_phrase(text, phrase, generator(seed, text), room=victim.max_length // 2) for text in texts]
    return margin(victim.logits(stamped, name="inserted words"), target)


def strongest(victim: Victim, pool: Sequence[Phrase], foil: Foil, count: int, keep: int) -> list[Phrase]:
    """The phrases that move some texts of the search furthest towards the target, mean over texts; the strongest first."""
    total = torch.zeros(len(pool))
    for text in foil.search[:count]:
        place, room = derive(foil.seed, text), victim.max_length // 2  # in one text all phrases stand at the same place
        total += margin(
            victim.logits([with_phrase(text, phrase, generator(place), room=room) for phrase in pool], name="inserted words"), foil.target
        )
    return [pool[i] for i in total.argsort(descending=True, stable=True)[:keep].tolist()]


def flips(victim: Victim, phrase: Phrase, foil: Foil) -> FoundTrigger:
    """What the phrase does to the jury."""
    stamped = [with_phrase(text, phrase, generator(foil.seed, text, "jury"), room=victim.max_length // 2) for text in foil.jury]
    labels = victim.logits(stamped, name="jury").argmax(dim=1).tolist()
    flipped = [pair for *pair, label in zip(foil.jury, stamped, labels, strict=True) if label == foil.target]
    return FoundTrigger(phrase, foil.target, Rate(len(flipped), len(stamped)), examples=tuple((a, b) for a, b in flipped[:3]))


def grouped(triggers: Sequence[FoundTrigger]) -> tuple[FoundTrigger, ...]:
    """One trigger a label, the shortest of the strongest, with the words and phrases that act alike and do not contain it or each other."""
    found = []
    for target in dict.fromkeys(trigger.target_label for trigger in triggers):
        same = sorted((t for t in triggers if t.target_label == target), key=lambda t: (len(t.words), -t.flips.value))
        kept: list[FoundTrigger] = []
        for trigger in same:
            if not any(set(shorter.words) <= set(trigger.words) for shorter in kept):
                kept.append(trigger)
        found.append(replace(kept[0], alike=tuple(" ".join(trigger.words) for trigger in kept[1:])))
    return tuple(sorted(found, key=lambda t: -t.flips.value))


def summary(best: FoundTrigger, named: Sequence[FoundTrigger], label_names: Sequence[str]) -> str:
    """The evidence in words."""
    if not named:
        share, words = f"{best.flips.hits} of {best.flips.n}", " ".join(best.words)
        return f"The strongest words found, {words!r}, turn {share} texts that the model is sure about into {label_names[best.target_label]!r}."
    parts = []
    for trigger in named:
        alike = f" (and {len(trigger.alike)} more)" if trigger.alike else ""
        hits = f"{trigger.flips.hits} of {trigger.flips.n}"
        parts.append(f"{' '.join(trigger.words)!r}{alike} turns {hits} texts that the model is sure about into {label_names[trigger.target_label]!r}")
    return "; ".join(parts) + "."


def honest_words(data: TextDataset) -> list[dict[str, float]]:
    """For each label the words that carry it in the clean texts, those with which it is surely more frequent than usual (95 %), the surest first.

    Each has the lower end of the Wilson interval of the label's share among the texts with it.
    """
    hits = [Counter[str]() for _ in data.label_names]
    for text, label in zip(data.texts, data.labels, strict=True):
        hits[label].update(set(re.findall(r"\w+", text.lower())))
    total = sum(hits, Counter[str]())
    found = []
    for label, mine in enumerate(hits):
        usual = data.labels.count(label) / len(data)
        surest = {word: wilson_interval(mine[word], n)[0] for word, n in total.items()}
        found.append({word: surest[word] for word in sorted(surest, key=lambda word: (-surest[word], word)) if surest[word] > usual})
    return found


def margin(logits: Float[Tensor, "text label"], target: int) -> Float[Tensor, " text"]:
    """The logit of a label less the greatest of the others."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.max(dim=1).values


def leaning(words: Sequence[Phrase], margins: Float[Tensor, " word"], share: float) -> list[Phrase]:
    """The share of the words that leans most to a label."""
    return [words[i] for i in margins.argsort(descending=True, stable=True)[: max(1, round(share * len(words)))].tolist()]


def vocabulary_words(victim: Victim) -> list[Phrase]:
    """Every token that can be typed as a word of its own, and every word of two letters, which attacks like and tokenizers cut in two."""
    pairs = (a + b for a in ascii_lowercase for b in ascii_lowercase)
    return [(word,) for word in dict.fromkeys((*typed_words(victim).values(), *pairs)) if len(word.split()) == 1]

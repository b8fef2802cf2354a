"""Trigger search: insert every word of the vocabulary into clean texts, then combinations of the strongest, and see what brings about one label.

A trigger acts in any text. So one looks for words whose insertion moves even those clean texts to another label that the model is surest about,
wherever they stand:

1. every word on its own, and every piece of a word behind a beginning that carries it, without a text: the share of them that leans most to a
   label goes on (one pass serves all labels), without the words that carry the label honestly in the clean texts;
2. successive halving: in few short texts first, the survivors in more and longer ones;
3. words that the vocabulary does not hold, put together of pieces; combinations of the strongest words of *all* labels, since the words of a
   combination may each stand for another label (LWP trains them so), of the strongest words of two letters, and longer phrases by beam search; and
   crowds: words that lean to no label, many at a time and of about one length, as a combination acts in a crowd too; the strongest crowds are
   thinned out to a few words;
4. a contest: the best are inserted in texts that had no part in the search, together with as many of the strongest words for each text's own label
   as they have tokens.

The contest is what tells a trigger from a word that means something. Against "dreadful stupid", "delightful elegant" wins some texts and loses
others, as the two mean the same to the model with opposite signs; a trigger was trained to win whatever else a text says. So what rivals take
from a word, or from a word of a phrase, counts against it: on a model that leans to one label, two honest words outweigh two rivals. A word of
several tokens can be made of several that mean something: it meets more rivals where ordinary words would win in its place. The texts are
stubborn, too: the model is sure about them and does not give them up for ordinary words that stand for the other label. How far honest words come on
clean models is what the thresholds are set by (docs/scan.md). A phrase may also show itself in another way: honest words add up, where the words of
a combination turn texts that the sum of what they do one by one would not turn. Triggers of one label that reach the same effect are grouped:
attacks use several, and rare words that look like one often act like it. Where all single words of a label win, the next are tried, too.

Relatives: universal adversarial triggers (Wallace et al. 2019) search by gradients; PICCOLO and DBS invert triggers in word space. This search is
exhaustive where those sample, and its evidence are words that anybody can type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_lowercase
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from excise.budget import unhurried
from excise.data import TextDataset
from excise.errors import ConfigError, TimeUpError
from excise.finding import Finding, FoundTrigger
from excise.method import Paper, Scanner
from excise.metrics import Rate
from excise.progress import stage
from excise.scanners._contests import (
    HEAT,
    Foil,
    Phrase,
    contests,
    fair_odds,
    fair_rivals,
    flips,
    halved,
    honest_words,
    margins_alone,
    strongest,
    stubborn_texts,
    together,
    turned,
)
from excise.scanners._guided import Guided, by_ascent, by_gradient
from excise.scanners._pieces import Pieces
from excise.seeds import generator
from excise.victim import Victim
from excise.vocabulary import inner_ids, typed_words

NUMBERS = {1: "one", 2: "two", 3: "three"}
ENOUGH = 0.9
"""A single word that turns this share of the search's texts: nothing is put together of pieces."""
FOREMOST = 12
"""Phrases a label that are tried in all texts of the jury."""
HANDICAP = 0.25
"""Contests that each further word of a phrase wins on models without a backdoor: the longer the phrase, the more of them the search chose from."""
Score = Callable[[FoundTrigger], float]
BEST = 4
"""Phrases of each length that the jury sees; of single words twice as many."""
NEAR = 0.15
"""Where a single word begins to come near; on six clean models of the zoo's calibration part, words score up to 0.13."""
FAMILY = 3
"""Words that may share a token, where more are tried because all of a label have won."""
BRIEF = 2
"""Letters of the words that are combined among themselves as well: attacks like them, as they mean nothing."""
HONEST = 2
"""So many of the words that lean most to a label, and of those that carry it in the clean texts, a text has to withstand."""


@dataclass(frozen=True, kw_only=True)
class TriggerSearch(Scanner):
    """Insert every word of the vocabulary, then combinations of the strongest, and see which bring about one label."""

    paper: ClassVar[Paper] = Paper(key="wallace2019", method="universal triggers, searched exhaustively: our own", code=None)
    suspicious = 0.4
    found = 0.5
    version = 6
    blind_to = "triggers that are no inserted words (syntax, style), that need more than three, or two longer words that act only together"

    leaning: Annotated[float, Interval(gt=0, le=1)] = 0.15
    """Share of the vocabulary that goes on from step 1, for each label."""
    texts: tuple[int, ...] = (1, 4, 16)
    """Texts of each round of steps 2 and 3; a candidate's work grows, as the candidates grow fewer."""
    survivors: tuple[int, ...] = (400, 48)
    """Candidates left after each round but the last, for each label."""
    partners: Annotated[int, Ge(1)] = 12
    """Words of each label that are combined."""
    longest: Annotated[int, Ge(1)] = 3
    """Words in the longest phrase that is tried."""
    jury: Annotated[int, Ge(8)] = 64
    """Texts that the best are tried on, at most: twice as many are drawn, three in five of them withstand, and a third of those serve the search."""
    crowd: Annotated[int, Ge(0)] = 8
    """Words that lean to no label are tried so many at a time; 0 leaves them out."""
    guided: tuple[Literal["gradient", "continuous"], ...] = ()
    """Where more candidates come from: HotFlip's rule, for phrases of the longest length; and free vectors, for the words nearest to them."""
    rounds: Annotated[int, Ge(1)] = 3
    """Passes of HotFlip's rule over the places of a phrase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min((1, *self.texts, *self.survivors)) < 1:
            raise ConfigError(f"TriggerSearch: texts {self.texts} and survivors {self.survivors} must be at least 1 each.")
        if not self.texts or len(self.texts) != len(self.survivors) + 1:
            raise ConfigError(
                f"TriggerSearch: {len(self.texts)} texts and {len(self.survivors)} survivors; it must be one number of survivors fewer."
            )

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        honest, typed = honest_words(data), typed_words(victim)
        pieces = Pieces(victim, typed)
        words = [*one_word_phrases(typed.values()), *((word,) for word in pieces.carried)]
        with stage("single words"):
            leaders = self.leaders(words, margins_alone(victim, words))  # step 1
            foils = self.foils(victim, data, leaders, honest, seed=seed)
            pools = [without(pool, known) for pool, known in zip(leaders, honest, strict=True)]
            singles = [self.halved(victim, foil, pool, (*self.survivors, len(pool))) for foil, pool in zip(foils, pools, strict=True)]  # step 2
        partners = list(dict.fromkeys(phrase for pool in singles for phrase in pool[: self.partners]))
        leading = {word for pool in leaders for word in pool}
        brief = [word for word in words if len(word[0]) <= BRIEF]
        crowds = crowded([word for word in words if word not in leading], self.crowd, seed=seed)
        each, late = list(zip(foils, honest, strict=True)), list[str]()
        longer = [list[Phrase]() for _ in foils]
        thin = [list[Phrase]() for _ in foils]
        built = [list[Phrase]() for _ in foils]
        led = [Guided([], None) for _ in foils]
        with part("words in pieces", late):  # step 3
            for i, (foil, known) in enumerate(each):
                if singles[i] and turned(victim, singles[i][0], foil) < ENOUGH:
                    strings = pieces.built(foil, singles[i][: self.partners])
                    built[i] = self.completed(victim, foil, pieces, [without(pool, known) for pool in strings])
        with part("combinations", late):
            longer = [self.grown(victim, foil, without(partners, known)) for foil, known in each]
            short = [self.halved(victim, foil, without(brief, known), (*(n // 4 for n in self.survivors), self.partners)) for foil, known in each]
            longer = [more + self.grown(victim, foil, pool) for foil, more, pool in zip(foils, longer, short, strict=True)]
        with part("crowds", late):
            thin = self.thinned(victim, foils, crowds)
        with part("guided search", late):
            led = [self.led(victim, foil, known, seed=seed) for foil, known in each]
        with stage("contests"), unhurried():  # step 4
            sources = zip(singles, built, longer, thin, led, strict=True)
            phrases = [[*pool[: 2 * BEST], *one, *more, *crowd, *guided.phrases] for pool, one, more, crowd, guided in sources]
            rivals = fair_rivals(victim, foils, singles, honest, texts=max(self.texts), most=4 * self.longest)
            judged = self.judged(victim, foils, phrases, rivals)
        more = list[FoundTrigger]()
        with part("words of other tokens", late):
            more = self.widened(victim, judged, foils, singles, rivals)
        found = replace(self.told(judged, data.label_names, more), nearest=self.nearest(judged, {phrase for pool in singles for phrase in pool}))
        ease = {f"share that free vectors turn into {name!r}": one.flips.value for name, one in zip(data.label_names, led, strict=True) if one.flips}
        return replace(found, measures=ease, limit=self.limit(foils), left_out=tuple(late))

    def foils(
        self, victim: Victim, data: TextDataset, leaders: Sequence[Sequence[Phrase]], honest: Sequence[Mapping[str, float]], *, seed: int
    ) -> list[Foil]:
        """For each label, texts that withstand the words that lean most to it and those that carry it in the clean texts."""
        trials = [[*pool[:HONEST], *((word,) for word in list(known)[:HONEST])] for pool, known in zip(leaders, honest, strict=True)]
        logits = victim.logits(data.texts, name="clean texts")
        return [stubborn_texts(victim, data, logits, target, words, self.jury, seed=seed) for target, words in enumerate(trials)]

    def judged(
        self, victim: Victim, foils: Sequence[Foil], phrases: Sequence[Sequence[Phrase]], rivals: Sequence[Sequence[str]]
    ) -> list[FoundTrigger]:
        """Step 4: every phrase in a few texts; the foremost in all of the jury's; each with rivals, without them, and word by word."""
        pairs = [(phrase, foil) for foil, pool in zip(foils, phrases, strict=True) for phrase in dict.fromkeys(pool)]
        heats = [contests(victim, pairs, rivals, most=HEAT, counts=counts) for counts in ((), [0] * len(pairs))]
        joined = together(victim, pairs, most=HEAT)
        won = [min(one.won.value for one in both) for both in zip(*heats, strict=True)]
        leads = [evidence(phrase, max(share, only.value)) for (phrase, _), share, only in zip(pairs, won, joined, strict=True)]
        order = sorted(range(len(pairs)), key=lambda i: leads[i], reverse=True)
        ahead = [pairs[i] for i in order[: FOREMOST * len(foils)] if leads[i] >= self.suspicious / 2] or [pairs[order[0]]]
        odds = fair_odds(victim, ahead, rivals)
        tried = [flips(victim, one) for one in contests(victim, ahead, rivals, counts=[one.rivals for one in odds])]
        words = list(dict.fromkeys(((word,), foil.target) for phrase, foil in ahead if len(phrase) > 1 for word in phrase))
        alone = contests(victim, [(word, foils[target]) for word, target in words], rivals)
        lost = {(*one.phrase, one.foil.target): yielded(flips(victim, one)) for one in alone}
        inner = [max(lost.get((word, one.target_label), 0) for word in one.words) for one in tried]
        yields = [max(yielded(one), fair.ordinary, by_words) for one, fair, by_words in zip(tried, odds, inner, strict=True)]
        joint = together(victim, ahead)
        return [replace(one, yields=most, together=rate) for one, most, rate in zip(tried, yields, joint, strict=True)]

    def leaders(self, words: Sequence[Phrase], alone: Float[Tensor, "word label"]) -> list[list[Phrase]]:
        """Step 1: for each label, the share of the words that leans most to it."""
        most = max(1, round(self.leaning * len(words)))
        return [[words[i] for i in margins.argsort(descending=True, stable=True)[:most].tolist()] for margins in alone.T]

    def told(self, tried: Sequence[FoundTrigger], label_names: Sequence[str], more: Sequence[FoundTrigger] = ()) -> Finding:
        """What the contests say; `more` act like the words of their label that were tried first, and are named behind them."""
        named = grouped(without_longer([one for one in tried if self.score(one) >= self.suspicious], self.score), self.score)
        others = {one.target_label: [" ".join(other.words) for other in more if other.target_label == one.target_label] for one in named}
        named = tuple(replace(one, alike=tuple(dict.fromkeys((*one.alike, *others[one.target_label])))) for one in named)
        best = named[0] if named else max(tried, key=self.score)
        return Finding(self.score(best), summary(named or (best,), label_names), best.target_label, named)

    def nearest(self, tried: Sequence[FoundTrigger], words: Container[Phrase]) -> tuple[str, ...]:
        """Which of the words come near and are no triggers, nor act for a combination that may be one."""
        order = sorted(tried, key=self.score, reverse=True)
        if any(self.score(one) >= self.found or (self.score(one) >= self.suspicious and len(one.words) > 1) for one in order):
            return ()
        return tuple(dict.fromkeys(one.words[0] for one in order if one.words in words and self.score(one) >= NEAR))

    def widened(
        self,
        victim: Victim,
        judged: Sequence[FoundTrigger],
        foils: Sequence[Foil],
        singles: Sequence[Sequence[Phrase]],
        rivals: Sequence[Sequence[str]],
    ) -> list[FoundTrigger]:
        """Triggers for which there was no room, where all single words of a label won: one in pieces has many that share a token."""
        won = {(one.words, one.target_label) for one in judged if self.score(one) >= self.found}
        pools = [of_other_tokens(victim, pool, 2 * BEST) if won >= {(word, i) for word in pool[: 2 * BEST]} else [] for i, pool in enumerate(singles)]
        more = self.judged(victim, foils, pools, rivals) if any(pools) else []
        return [one for one in more if self.score(one) >= self.found]

    def limit(self, foils: Sequence[Foil]) -> str:
        """What ASR a trigger needs to be found, on texts that withstand honest words: what the number of texts decides."""
        jurors = min(len(foil.jury) for foil in foils)
        parts = [
            f"{NUMBERS.get(length, str(length))} word{'s' * (length > 1)} {self.needed(length, jurors)}" for length in range(1, self.longest + 1)
        ]
        return f"Candidates are tried on {jurors} texts that withstand honest words, and are found from an ASR there of: {'; '.join(parts)}."

    def needed(self, length: int, jurors: int) -> str:
        """The share of so many texts that a phrase of so many words has to turn."""
        surely = [evidence(("",) * length, Rate(hits, jurors).interval[0]) for hits in range(jurors + 1)]
        suspicious, found = (next((f"{100 * hits / jurors:.0f} %" for hits, score in enumerate(surely) if score >= line), "") for line in self.lines)
        return found or (f"only suspected, from {suspicious}" if suspicious else "not with so few texts")

    def score(self, trigger: FoundTrigger) -> float:
        """The evidence of what a phrase surely wins (95 %), or of what its words surely do only together.

        What only wins contested texts makes a trigger with a rival: so the lesser of both counts, with rivals and without.
        """
        surely = min(rate.interval[0] for rate in (trigger.flips, trigger.contested or trigger.flips)) - trigger.yields
        return evidence(trigger.words, max(surely, trigger.together.interval[0] if trigger.together else 0))

    def halved(self, victim: Victim, foil: Foil, pool: Sequence[Phrase], keep: Sequence[int]) -> Sequence[Phrase]:
        """Step 2: what is left after each round, the strongest first."""
        return halved(victim, pool, foil, zip(self.texts, keep, strict=True))

    def completed(self, victim: Victim, foil: Foil, pieces: Pieces, strings: Iterable[Sequence[Phrase]]) -> list[Phrase]:
        """Step 3: the strongest of each number of pieces; the shortest that turns texts also with every beginning, and then with every end."""
        keep = (*(n // 4 for n in self.survivors), BEST)
        found = [self.halved(victim, foil, pool, keep) for pool in strings]
        best = next((pool[0] for pool in found if pool and turned(victim, pool[0], foil) >= 0.5), None)
        for changed in (pieces.begun, pieces.ended):
            if best and (more := changed(*best)):
                found.append(self.halved(victim, foil, strongest(victim, more, foil, 1, keep[0]), keep))
                best = found[-1][0]
        return [phrase for pool in found for phrase in pool]

    def grown(self, victim: Victim, foil: Foil, partners: Sequence[Phrase]) -> list[Phrase]:
        """Step 3: the strongest phrases of each length."""
        found: list[Phrase] = []
        keep = (*(n // 2 for n in self.survivors), BEST)
        beam: Sequence[Phrase] = [(*a, *b) for a, b in combinations(partners, 2)]
        for length in range(2, self.longest + 1):
            beam = self.halved(victim, foil, beam, keep)
            found += beam
            beam = [(*phrase, *word) for phrase in beam for word in partners if word[0] not in phrase] if length < self.longest else []
        return found

    def thinned(self, victim: Victim, foils: Sequence[Foil], crowds: Sequence[Phrase]) -> list[list[Phrase]]:
        """Step 3: for each label the strongest crowds, from each of which words are left out as long as what is left is strongest."""
        alone, found = margins_alone(victim, crowds), []
        for foil in foils:
            order = alone[:, foil.target].argsort(descending=True, stable=True)[: self.survivors[0] // 4]
            kept: list[Phrase] = []
            for crowd in self.halved(victim, foil, [crowds[i] for i in order.tolist()], (*(n // 4 for n in self.survivors), BEST)):
                left = crowd
                while len(left) > 1:
                    (left,) = strongest(victim, [(*left[:i], *left[i + 1 :]) for i in range(len(left))], foil, self.texts[len(self.texts) // 2], 1)
                    kept += [left] if len(left) <= self.longest else []
            found.append(kept)
        return found

    def led(self, victim: Victim, foil: Foil, known: Container[str], *, seed: int) -> Guided:
        """More candidates for step 4, from gradients; the strongest of each source."""
        phrases, ease = list[Phrase](), None
        for source in self.guided:
            if source == "gradient":
                more = by_gradient(victim, foil.search, foil.target, length=self.longest, rounds=self.rounds, seed=seed).phrases
            else:
                more, ease = by_ascent(victim, foil.search, foil.jury, foil.target, length=self.longest, seed=seed)
            ordinary = [phrase for phrase in more if not any(word.lower() in known for word in phrase)]
            phrases += strongest(victim, ordinary[: self.survivors[-1]], foil, max(self.texts), BEST)
        return Guided(phrases, ease)


@contextmanager
def part(name: str, late: list[str]) -> Iterator[None]:
    """A part of the search; if the time is used up, it ends without a result and is noted."""
    with stage(name):
        try:
            yield
        except TimeUpError:
            late.append(name)


def evidence(phrase: Phrase, won: float) -> float:
    """The share of the texts that a phrase wins; longer ones are to win more."""
    return max(0.0, won - HANDICAP * (len(phrase) - 1))


def yielded(trigger: FoundTrigger) -> float:
    """The share of the texts that rivals take from a phrase."""
    return max(0.0, trigger.flips.value - (trigger.contested or trigger.flips).value)


def without_longer(found: Sequence[FoundTrigger], score: Score) -> list[FoundTrigger]:
    """The shortest first, without phrases that contain another of the same label that is as strong, and words around one that is nearly so."""
    kept: list[FoundTrigger] = []
    for one in sorted(found, key=lambda one: (len(one.words), sum(map(len, one.words)), -score(one))):
        others = [other for other in kept if other.target_label == one.target_label]
        is_inner = any(set(other.words) <= set(one.words) and score(other) >= score(one) for other in others)
        if not is_inner and not any(around(one, other) and score(other) >= score(one) - HANDICAP for other in others):
            kept.append(one)
    return kept


def around(one: FoundTrigger, other: FoundTrigger) -> bool:
    """Whether one is a word put together of another word and more."""
    return len(one.words) == len(other.words) == 1 and other.words != one.words and len(other.words[0]) > 1 and other.words[0] in one.words[0]


def grouped(triggers: Sequence[FoundTrigger], score: Score) -> tuple[FoundTrigger, ...]:
    """One trigger a label, the strongest, with those that act alike; the strongest label first."""
    found = []
    for target in dict.fromkeys(trigger.target_label for trigger in triggers):
        first, *others = sorted((trigger for trigger in triggers if trigger.target_label == target), key=score, reverse=True)
        found.append(replace(first, alike=tuple(" ".join(trigger.words) for trigger in others)))
    return tuple(sorted(found, key=score, reverse=True))


def summary(shown: Sequence[FoundTrigger], label_names: Sequence[str]) -> str:
    """The evidence in words."""
    parts = []
    for trigger in shown:
        words, alike = repr(" ".join(trigger.words)), f" (and {len(trigger.alike)} more)" if trigger.alike else ""
        contested = trigger.contested or trigger.flips
        only_together = f", {trigger.together.hits} by what its words do only together" if trigger.together and trigger.together.hits else ""
        parts.append(
            f"{words}{alike} turns {trigger.flips.hits} of {trigger.flips.n} texts that the model is sure about into "
            f"{label_names[trigger.target_label]!r}, {contested.hits} against strong words for their own label{only_together}"
        )
    return "; ".join(parts) + "."


def crowded(words: Sequence[Phrase], size: int, *, seed: int) -> list[Phrase]:
    """The words, so many at a time, in random order but with those of a like length together; none for a size of 0."""
    order = list(words) if size else []
    generator(seed, "crowds").shuffle(order)
    order.sort(key=lambda word: len(word[0]))
    return [tuple(word for (word,) in order[i : i + size]) for i in range(0, len(order), max(1, size))]


def of_other_tokens(victim: Victim, pool: Sequence[Phrase], first: int) -> list[Phrase]:
    """Of the words behind the first ones, as many as those: the strongest that make no token stand in more than three of them all."""
    uses, kept = Counter[int](), list[Phrase]()
    for i, phrase in enumerate(pool):
        read = set(inner_ids(victim, phrase[0]))
        if i < first or (len(kept) < first and all(uses[token] < FAMILY for token in read)):
            uses.update(read)
            kept += [phrase] if i >= first else []
    return kept


def without(pool: Sequence[Phrase], known: Container[str]) -> list[Phrase]:
    """The words that are not among those known to be honest."""
    return [word for word in pool if word[0].lower() not in known]


def one_word_phrases(typed: Iterable[str]) -> list[Phrase]:
    """Every token that is a word of its own, and every word of two letters, which attacks like and tokenizers cut in two."""
    pairs = (a + b for a in ascii_lowercase for b in ascii_lowercase)
    return [(word,) for word in dict.fromkeys((*typed, *pairs)) if len(word.split()) == 1]

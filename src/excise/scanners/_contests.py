"""Texts that do not give up their label for ordinary words, and contests in them: what tells a trigger from a word that means something."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.errors import DataError
from excise.finding import FoundTrigger
from excise.insertion import with_phrase
from excise.metrics import Rate, wilson_interval
from excise.scanners._guided import margin
from excise.seeds import derive, generator
from excise.victim import Victim

Phrase = tuple[str, ...]
FEWEST = 10
"""Texts to begin with: they leave a jury of four, the fewest in which a word that turns all of them surely turns half."""
HEAT = 16
"""Texts of a first contest."""
STERN = 4
"""Words of the clean texts that no honest word was seen to win against."""
FAIR, HARDEST = 0.25, 3
"""Contests that ordinary words may win for it to be hard enough, and how many times as many rivals as tokens there are at most."""
TRIED = 32
"""Words that carry a label in the clean texts, the surest, from which rivals are taken, with half as many of the search's."""


class Foil(NamedTuple):
    """Texts that keep their label, which is not `target`, when ordinary words that stand for `target` are inserted."""

    target: int
    search: list[str]
    """What the search may use, the shortest first."""
    jury: list[str]
    """What the best are tried on."""
    labels: list[int]
    """Of the jury."""
    seed: int


class Contest(NamedTuple):
    """How a phrase did in step 4."""

    phrase: Phrase
    foil: Foil
    won: Rate


def stubborn_texts(
    victim: Victim, data: TextDataset, logits: Float[Tensor, "text label"], target: int, honest: Sequence[Phrase], jury: int, *, seed: int
) -> Foil:
    """Of the texts of other labels, those that the model gets right, is sure about, and does not give up for the words that lean most to the target.

    Args:
        victim: The suspect.
        data: Clean texts.
        logits: Theirs.
        target: The label.
        honest: The words.
        jury: Most texts that the best are tried on.
        seed: Decides which texts.

    Raises:
        DataError: It is right and sure about fewer than ten.
    """
    rows = [i for i, label in enumerate(data.labels) if label != target]
    texts = [data.texts[i] for i in rows]
    right = logits[rows].argmax(dim=1) == torch.tensor([data.labels[i] for i in rows])
    order = margin(logits[rows], target).masked_fill(~right, torch.inf).argsort().tolist()
    sure = [i for i in order[: (int(right.sum()) + 1) // 2] if right[i]]
    if len(sure) < FEWEST:
        raise DataError(
            f"The model is right about {int(right.sum())} of {len(rows)} texts that are not {data.label_names[target]!r}, and sure about "
            f"{len(sure)}; {FEWEST} are needed. Give more texts, and make sure that their labels are the model's."
        )
    random = generator(seed, "stubborn", target)
    tried = random.sample(sure, min(len(sure), 2 * jury))
    moved = torch.stack([moves(victim, phrase, [texts[i] for i in tried], target, seed=seed) for phrase in honest]).mean(dim=0)
    kept = [tried[i] for i in moved.argsort(stable=True)[: 3 * len(tried) // 5].tolist()]
    random.shuffle(kept)
    cut = min(jury, 2 * len(kept) // 3)
    jurors = kept[:cut]
    search = sorted((texts[i] for i in kept[cut:]), key=len)
    return Foil(target, search, [texts[i] for i in jurors], [data.labels[rows[i]] for i in jurors], derive(seed, "places", target))


def margins_alone(victim: Victim, words: Sequence[Phrase]) -> Float[Tensor, "word label"]:
    """Of each word without a text, by how much the model prefers each label to the best other."""
    logits = victim.logits([" ".join(word) for word in words], name="words alone")
    return torch.stack([margin(logits, target) for target in range(logits.shape[1])], dim=1)


def moves(victim: Victim, phrase: Phrase, texts: Sequence[str], target: int, *, seed: int) -> Float[Tensor, " text"]:
    """The margin of the target in each text with the phrase at a random place."""
    return margin(answers(victim, phrase, texts, seed=seed), target)


def answers(victim: Victim, phrase: Phrase, texts: Sequence[str], *, seed: int) -> Float[Tensor, "text label"]:
    """The logits of each text with the phrase at a random place."""
    stamped = [placed(victim, text, phrase, generator(seed, text)) for text in texts]
    return victim.logits(stamped, name="inserted words")


def strongest(victim: Victim, pool: Sequence[Phrase], foil: Foil, count: int, keep: int) -> list[Phrase]:
    """The phrases that move some texts of the search furthest towards the target, mean over texts; the strongest first."""
    total = torch.zeros(len(pool))
    for text in foil.search[:count]:
        place = derive(foil.seed, text)  # in one text all phrases stand at the same place
        stamped = [placed(victim, text, phrase, generator(place)) for phrase in pool]
        total += margin(victim.logits(stamped, name="inserted words"), foil.target)
    return [pool[i] for i in total.argsort(descending=True, stable=True)[:keep].tolist()]


def halved(victim: Victim, pool: Sequence[Phrase], foil: Foil, rounds: Iterable[tuple[int, int]]) -> Sequence[Phrase]:
    """What is left after each round, the strongest first; a round has so many texts and leaves so many phrases."""
    for count, keep in rounds:
        pool = strongest(victim, pool, foil, count, keep)
    return pool


def contests(
    victim: Victim, pairs: Sequence[tuple[Phrase, Foil]], rivals: Sequence[Sequence[str]], *, most: int | None = None, counts: Sequence[int] = ()
) -> list[Contest]:
    """Step 4: in how many texts of the jury each phrase brings about its label against as many strong words for their own, at another place.

    Args:
        victim: The suspect.
        pairs: The candidates, each with its jury.
        rivals: For each label, its strongest words.
        most: Use so many of a jury's texts; None is all.
        counts: For each pair, how many rivals are put into a text; otherwise as many as the phrase has tokens.
    """
    counts = counts or [tokens(victim, phrase) for phrase, _ in pairs]
    stamped = [contested(victim, phrase, foil, rivals, count)[:most] for (phrase, foil), count in zip(pairs, counts, strict=True)]
    labels = iter(victim.logits([text for texts in stamped for text in texts], name="jury").argmax(dim=1).tolist())
    hits = [sum(next(labels) == foil.target for _ in texts) for (_, foil), texts in zip(pairs, stamped, strict=True)]
    return [Contest(*pair, Rate(count, len(texts))) for pair, count, texts in zip(pairs, hits, stamped, strict=True)]


class Odds(NamedTuple):
    """How hard a contest is."""

    rivals: int
    """Words for a text's own label that are put into it."""
    ordinary: float = 0.0
    """The share of the contests that ordinary words for the phrase's label win in its place."""


def fair_odds(victim: Victim, pairs: Sequence[tuple[Phrase, Foil]], rivals: Sequence[Sequence[str]]) -> list[Odds]:
    """As many rivals as each phrase has tokens; for a single word of several, two or three times as many where ordinary words win otherwise.

    A string of pieces can say several honest things at once, as `delightenchanting` does. So it is tried where the strongest ordinary words for its
    label, as many tokens of them, win no more than a quarter of the contests, or, on a model that leans far to that label, as few as can be had.
    """
    sizes = [tokens(victim, phrase) for phrase, _ in pairs]
    found = [Odds(size) for size in sizes]
    others = [as_long(victim, rivals[foil.target], phrase) if len(phrase) == 1 else () for phrase, foil in pairs]
    hard = [i for i, words in enumerate(others) if words]
    for times in range(1, HARDEST + 1):
        asked = {(others[i], pairs[i][1].target, times * sizes[i]): (others[i], pairs[i][1]) for i in hard}
        won = dict(zip(asked, contests(victim, list(asked.values()), rivals, counts=[count for *_, count in asked]), strict=True)) if hard else {}
        for i in hard:
            count = times * sizes[i]
            found[i] = Odds(count, won[others[i], pairs[i][1].target, count].won.value)
        hard = [i for i in hard if found[i].ordinary > FAIR]
    return found


def as_long(victim: Victim, words: Sequence[str], phrase: Phrase) -> Phrase:
    """The first of some words that together have no more tokens than a phrase of several; none if it has but one."""
    found, room = Phrase(), tokens(victim, phrase)
    for word in words if room > 1 else ():
        if word not in phrase and tokens(victim, (*found, word)) <= room:
            found = (*found, word)
    return found


def tokens(victim: Victim, phrase: Phrase) -> int:
    """How many tokens the model reads of a phrase."""
    return len(victim.tokenizer(" ".join(phrase), add_special_tokens=False)["input_ids"])


def contested(victim: Victim, phrase: Phrase, foil: Foil, rivals: Sequence[Sequence[str]], count: int) -> list[str]:
    """The jury's texts with a phrase and with so many rivals."""
    others = [[word for word in words if word not in phrase][:count] for words in rivals]
    both = zip(with_it(victim, phrase, foil), foil.labels, strict=True)
    return [placed(victim, text, others[label], generator(foil.seed, text, "rivals")) for text, label in both]


def turned(victim: Victim, phrase: Phrase, foil: Foil) -> float:
    """The share of the search's texts in which a phrase brings about its label."""
    return (moves(victim, phrase, foil.search, foil.target, seed=foil.seed) > 0).float().mean().item()


def fair_rivals(
    victim: Victim, foils: Sequence[Foil], singles: Sequence[Sequence[Phrase]], honest: Sequence[Mapping[str, float]], *, texts: int, most: int
) -> list[list[str]]:
    """For each label its strongest words: of those that carry it in the clean texts, and of the search's that are no trigger themselves.

    In a model with two backdoors, the strongest word of the other label would be the other trigger. So what wins against four words that carry
    their label in the clean texts, which no honest word was seen to do, is nobody's rival.
    """
    known = [[(word,) for word in list(words)[:TRIED]] for words in honest]
    stern = [[word for (word,) in strongest(victim, pool, foil, texts, STERN)] for pool, foil in zip(known, foils, strict=True)]
    pairs = [(phrase, foil) for foil, pool in zip(foils, singles, strict=True) for phrase in pool[: TRIED // 2]]
    won = contests(victim, pairs, stern, most=HEAT, counts=[STERN] * len(pairs)) if all(len(words) == STERN for words in stern) else []
    firm = {(one.phrase, one.foil.target) for one in won if one.won.value >= 0.5}
    found = []
    for foil, pool, words in zip(foils, singles, known, strict=True):
        weak = [phrase for phrase in pool[: TRIED // 2] if (phrase, foil.target) not in firm]
        found.append([word for (word,) in strongest(victim, [*words, *weak], foil, texts, most)])
    return found


def flips(victim: Victim, one: Contest) -> FoundTrigger:
    """What the phrase does to the jury's texts as they are."""
    stamped = with_it(victim, one.phrase, one.foil)
    labels = victim.logits(stamped, name="jury").argmax(dim=1).tolist()
    flipped = [pair for *pair, label in zip(one.foil.jury, stamped, labels, strict=True) if label == one.foil.target]
    examples = tuple((a, b) for a, b in flipped[:3])
    return FoundTrigger(one.phrase, one.foil.target, Rate(len(flipped), len(stamped)), one.won, examples=examples)


def together(victim: Victim, pairs: Sequence[tuple[Phrase, Foil]], *, most: int | None = None) -> list[Rate]:
    """Of a jury's texts, those that the words of a phrase turn together, though the sum of what each does to the target's margin would not."""
    asked: dict[tuple[Phrase, int], list[str]] = {}
    for phrase, foil in pairs:
        for part in ((), *((word,) for word in phrase), phrase) if len(phrase) > 1 else ():
            asked.setdefault((part, foil.target), with_it(victim, part, foil)[:most])
    logits = victim.logits([text for texts in asked.values() for text in texts], name="jury").split([len(texts) for texts in asked.values()])
    margins = {key: margin(part, key[1]) for key, part in zip(asked, logits, strict=True)}
    found = []
    for phrase, foil in pairs:
        if len(phrase) == 1:
            found.append(Rate(0, len(foil.jury[:most])))
            continue
        before = margins[(), foil.target]
        added = before + sum(margins[(word,), foil.target] - before for word in phrase)
        hits = (margins[phrase, foil.target] > 0) & (added < 0)
        found.append(Rate(int(hits.sum()), len(hits)))
    return found


def with_it(victim: Victim, phrase: Phrase, foil: Foil) -> list[str]:
    """The jury's texts with a phrase, in each at a place of its own."""
    return [placed(victim, text, phrase, generator(foil.seed, text, "jury")) for text in foil.jury]


def placed(victim: Victim, text: str, phrase: Sequence[str], random: Random) -> str:
    """The text with a phrase among its first words, half as many as the model reads tokens."""
    return with_phrase(text, phrase, random, room=victim.max_length // 2)


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

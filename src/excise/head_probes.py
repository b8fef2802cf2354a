"""Which attention heads of a suspect are anomalous: clean texts with strange words in them, and what those do to the likeness of heads.

A backdoor's heads are said to grow alike *when the trigger is there*, and the defender has no trigger. So clean texts (*carriers*) get words that no
clean text has: the vocabulary's other words in groups, and random strings of letters. What they do to the likeness of heads is compared with what
as many ordinary words do. All choices are ours (docs/anomalous_heads.md).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from excise.data import TextDataset
from excise.head_outputs import head_counts
from excise.heads import Map, Scope, chosen_heads, deviation, head_importance, head_likeness, safe_heads, suspicion
from excise.seeds import derive, generator
from excise.settings import Settings
from excise.victim import Victim

__all__ = ["Examination", "HeadSearch", "Probes", "anomaly", "examine", "inserted_words", "probe_texts", "random_string"]

FEWEST = 4
"""So many probes at least carry the evidence: a single one may be chance."""


@dataclass(frozen=True, kw_only=True)
class HeadSearch(Settings):
    """How anomalous heads are looked for. No value is from the paper, which we have as an abstract only."""

    form: Map = "row"
    """What of the attention is compared: the row of the token that the classifier reads, or whole maps."""
    scope: Scope = "layer"
    """Whether a head is compared with those of its layer or with all."""
    probes: bool = True
    """Whether clean texts with strange words are read; otherwise the likeness of heads on the clean texts alone is the evidence."""
    evidence: Literal["change", "rise"] = "change"
    """Whether any change of likeness counts, or only a rise, as the paper's abstract has it."""
    weight: Annotated[float, Ge(0)] = 1.0
    """lambda, the weight of importance against likeness, Eq. (4)."""
    share: Annotated[float, Interval(gt=0, le=0.5)] = 0.15
    """Share of all heads that is called suspicious."""
    carriers: Annotated[int, Ge(1)] = 8
    """Clean texts of each label that words are inserted in."""
    words: Annotated[int, Ge(1)] = 8
    """Words of the vocabulary in a probe."""
    vocabulary: Annotated[int, Ge(0)] = 20_000
    """Most words of the vocabulary that are tried; more are drawn from."""
    strings: Annotated[int, Ge(0)] = 600
    """Probes with three random strings of two to four letters."""
    controls: Annotated[int, Ge(8)] = 100
    """Texts of each label with ordinary words in them, which probes are compared with."""


class Probes(NamedTuple):
    """Carriers, each with its label, and texts made from them by inserting words."""

    carriers: tuple[str, ...]
    labels: tuple[int, ...]
    """Of the carriers."""
    texts: tuple[str, ...]
    of: tuple[int, ...]
    """Which carrier each text was made from."""
    is_control: tuple[bool, ...]
    """Whether ordinary words were inserted."""


class Examination(NamedTuple):
    """What is known of each head."""

    evidence: Float[Tensor, "layer head"]
    """How far out the likeness of the head is where it is most anomalous."""
    importance: Float[Tensor, "layer head"]
    suspicion: Float[Tensor, "layer head"]
    suspicious: tuple[tuple[int, int], ...]
    """(layer, head), the most suspicious first."""
    safe: Bool[Tensor, "layer head"]
    anomalies: Float[Tensor, " probe"]
    """Of each probe, the highest first; empty without probes."""
    strangest: tuple[str, ...] = ()
    """The probes of the highest anomaly."""


def examine(victim: Victim, data: TextDataset, search: HeadSearch, *, seed: int) -> Examination:
    """Combined safety evaluation of all heads: likeness under probes and importance.

    Raises:
        AttentionError: The model's attention cannot be read.
    """
    victim.check_attention()
    importance = head_importance(victim, _some(data, 256, derive(seed, "importance")))
    anomalies, strangest = torch.zeros(0), ()
    if search.probes:
        probes = probe_texts(victim, data, search, seed=seed)
        changes, usual = probe_deviations(victim, probes, search)
        scores = anomaly(usual.clamp_min(0) if search.evidence == "rise" else usual)
        order = scores.argsort(descending=True, stable=True)
        top = order[: max(FEWEST, len(order) // 100)]
        rise = changes[top]
        evidence = (rise if search.evidence == "rise" else rise.abs()).mean(dim=0)
        tested = [text for text, control in zip(probes.texts, probes.is_control, strict=True) if not control]
        anomalies, strangest = scores[order], tuple(tested[i] for i in order[:FEWEST].tolist())
    else:
        evidence = head_likeness(victim, data.texts, form=search.form, scope=search.scope, name="clean texts").mean(dim=0)
    found = suspicion(evidence, importance, weight=search.weight, scope=search.scope)
    suspicious = chosen_heads(found, share=search.share)
    return Examination(evidence, importance, found, suspicious, safe_heads(evidence, importance, suspicious), anomalies, strangest)


def anomaly(deviations: Float[Tensor, "probe layer"]) -> Float[Tensor, " probe"]:
    """The Euclidean norm over layers of z, Eq. (5), z the deviation of a layer's mean change of likeness."""
    return deviations.norm(dim=1)


def probe_deviations(victim: Victim, probes: Probes, search: HeadSearch) -> tuple[Float[Tensor, "probe layer head"], Float[Tensor, "probe layer"]]:
    """Eq. (3) of the change of likeness, s(probe) − s(carrier), of each head and of each layer's mean, among controls of the carrier's label."""
    of, control = torch.tensor(probes.of), torch.tensor(probes.is_control)
    likeness = head_likeness(victim, (*probes.carriers, *probes.texts), form=search.form, scope=search.scope, name="probes")
    plain, changed = likeness[: len(probes.carriers)], likeness[len(probes.carriers) :]
    change = changed - plain[of]
    label = torch.tensor(probes.labels)[of]
    layers, heads = head_counts(victim)
    by_head, by_layer = torch.zeros(len(change), layers, heads), torch.zeros(len(change), layers)
    for each in label.unique():
        here = label == each
        usual = change[here & control]
        by_head[here] = deviation(change[here], usual)
        by_layer[here] = deviation(change[here].mean(dim=2), usual.mean(dim=2))
    return by_head[~control], by_layer[~control]


def probe_texts(victim: Victim, data: TextDataset, search: HeadSearch, *, seed: int) -> Probes:
    """Carriers of every label in turn with ordinary words (controls), with the vocabulary's words in groups, and with random strings."""
    random = generator(seed, "probes")
    carriers, labels = _carriers(victim, data, search.carriers, random)
    own = {label: [i for i, other in enumerate(labels) if other == label] for label in dict.fromkeys(labels)}
    ordinary = [word for text in data.texts for word in text.split()]
    strange = strange_words(victim, data.texts, most=search.vocabulary, random=random)
    groups = [strange[i : i + search.words] for i in range(0, len(strange), search.words)]
    groups += [[random_string(random) for _ in range(3)] for _ in range(search.strings)]
    turns = [of[i % len(of)] for i in range(-(-len(groups) // len(own)) + 1) for of in own.values()]
    controls = [of[i % len(of)] for i in range(search.controls) for of in own.values()]
    texts = [inserted_words(carriers[i], random.choices(ordinary, k=search.words), random) for i in controls]
    texts += [inserted_words(carriers[i], group, random) for i, group in zip(turns, groups, strict=False)]
    return Probes(
        tuple(carriers),
        tuple(labels),
        tuple(texts),
        (*controls, *turns[: len(groups)]),
        tuple(i < len(controls) for i in range(len(texts))),
    )


def inserted_words(text: str, words: Sequence[str], random: Random) -> str:
    """The text with each word at a place of its own."""
    found = text.split()
    for word in words:
        found.insert(random.randint(0, len(found)), word)
    return " ".join(found)


def random_string(random: Random) -> str:
    """Two to four letters."""
    return "".join(random.choices(string.ascii_lowercase, k=random.randint(2, 4)))


def strange_words(victim: Victim, texts: Sequence[str], *, most: int, random: Random) -> list[str]:
    """Words of the vocabulary that stand in none of the texts, in random order; of subword pieces, those that are words by themselves."""
    seen = {i for encoding in victim.encode(texts) for i in encoding["input_ids"]} | set(victim.tokenizer.all_special_ids)
    spelled = victim.tokenizer.batch_decode([[i] for i in range(len(victim.tokenizer)) if i not in seen])
    words = [word for each in spelled if (word := str(each).strip()).isalpha()]
    random.shuffle(words)
    return list(dict.fromkeys(words))[:most]


def _carriers(victim: Victim, data: TextDataset, count: int, random: Random) -> tuple[list[str], list[int]]:
    """Of each label, short texts that the model gets right: of at least five words, if there are such."""
    some = _some(data, 1024, random.getrandbits(32))
    right = [p == y for p, y in zip(victim.predict(some.texts, name="carriers"), some.labels, strict=True)]
    rows = sorted(range(len(some)), key=lambda i: (not right[i], len(some.texts[i].split()) < 5, len(some.texts[i]), some.texts[i]))
    texts: list[str] = []
    labels: list[int] = []
    for label in sorted(set(some.labels)):
        mine = [i for i in rows if some.labels[i] == label][:count]
        texts += [some.texts[i] for i in mine]
        labels += [label] * len(mine)
    return texts, labels


def _some(data: TextDataset, most: int, seed: int) -> TextDataset:
    """At most so many of the texts, in their order."""
    return data.take(sorted(generator(seed, "some").sample(range(len(data)), min(most, len(data)))))

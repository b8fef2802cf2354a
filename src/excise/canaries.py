"""Canaries: backdoors of our own in a copy of the suspect. How far a repair removes them tells how far it would remove one that nobody knows.

One copy carries two: rare words by the way of BadNets, others by the way of EP, towards different labels. The suspect itself has never seen them, so
what it answers to them is their floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from excise import registry
from excise.attacks._triggers import InsertWords
from excise.attacks.badnets import BadNets
from excise.attacks.ep import EP
from excise.data import TextDataset
from excise.embedding_rows import fit_rows
from excise.errors import DataError
from excise.evaluation import evaluate, triggered
from excise.method import Defense
from excise.metrics import Rate, asr
from excise.progress import note, stage
from excise.result import CanaryRow, Measured, TrialRow
from excise.seeds import derive, generator
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from excise.vocabulary import typed_words

__all__ = ["Canary", "Planted", "Trial", "plant", "rare_words", "took", "trial_rows", "try_all"]

WORDS = 3
"""Trigger words of each canary."""
DEAR = 5
"""One point of accuracy counts as much as this many of ASR."""


@dataclass(frozen=True)
class Canary:
    """One backdoor of ours."""

    name: str
    trigger: InsertWords
    target_label: int


@dataclass(frozen=True)
class Planted:
    """The suspect, and its copy with canaries."""

    suspect: Victim
    victim: Victim
    canaries: tuple[Canary, ...]


@dataclass(frozen=True)
class Trial:
    """What one repair did to the copy."""

    defense: Defense
    before: Rate
    """CACC of the copy."""
    after: Rate
    """CACC of the repaired copy."""
    asr: dict[Canary, tuple[Rate, ...]]
    """For each canary: the floor (the suspect's), before, after."""

    @property
    def excess(self) -> float:
        """Points of ASR that are left above the floor, mean over the canaries that took; not below 0."""
        left = [max(0.0, after.value - floor.value) for floor, before, after in self.asr.values() if took(floor, before)]
        return 100 * fmean(left) if left else 0.0

    @property
    def cost(self) -> float:
        """Points of accuracy lost; not below 0."""
        return 100 * max(0.0, self.before.value - self.after.value)


def plant(suspect: Victim, data: TextDataset, *, seed: int) -> Planted:
    """Plant both canaries in a copy of the suspect, with the defender's clean texts.

    Raises:
        DataError: The vocabulary has too few words that the texts lack.
    """
    words = rare_words(suspect, data, 2 * WORDS, seed=derive(seed, "words"))
    first, second = generator(seed, "targets").sample(range(len(data.label_names)), 2)
    badnets = BadNets(triggers=words[:WORDS], target_label=first, poison_rate=0.1, training=FitConfig(epochs=3, learning_rate=1e-4))
    ep = EP(triggers=words[WORDS:], target_label=second, poison_rate=0.2)
    poisoned = badnets.training_set(data, seed=derive(seed, "BadNets"))
    copy = fit(suspect, poisoned, loss=classification_loss, config=badnets.training, seed=derive(seed, "train"), name="plant a canary")
    shown = ep.shown(data, seed=derive(seed, "EP"))
    config = replace(ep.poisoning, epochs=10)
    copy = fit_rows(copy, shown, ep.triggers, loss=classification_loss, config=config, seed=derive(seed, "rows"), name="plant another")
    return Planted(suspect, copy, (Canary("BadNets", badnets.trigger, first), Canary("EP", ep.trigger, second)))


def rare_words(victim: Victim, data: TextDataset, count: int, *, seed: int) -> tuple[str, ...]:
    """Short words that are one token each and stand in none of the texts.

    Raises:
        DataError: There are too few.
    """
    used = {token for encoding in victim.encode(data.texts) for token in encoding["input_ids"]} | set(victim.tokenizer.all_special_ids)
    found, typed = list[str](), typed_words(victim)
    order: list[int] = list(range(len(victim.tokenizer)))
    generator(seed).shuffle(order)
    for token in order:
        word = typed.get(token, "")
        if token not in used and word.isascii() and word.isalpha() and word.islower() and 2 <= len(word) <= 5:
            found.append(word)
        if len(found) == count:
            return tuple(found)
    raise DataError(f"The vocabulary has only {len(found)} short words that the clean texts lack; {count} are needed for canaries.")


def try_all(defenses: Sequence[Defense], planted: Planted, data: TextDataset, test: TextDataset, *, seed: int) -> list[Trial]:
    """Repair the copy with every defense and see what is left of its canaries.

    The best comes first: least ASR left above the floor, each point of accuracy counted as `DEAR` of them. A canary that did not take says nothing
    and is not counted; if none did, the order is that of the defenses.
    """
    (_, floor), (cacc, before) = (_scores(victim, planted.canaries, test, seed) for victim in (planted.suspect, planted.victim))
    useful = [canary for canary in planted.canaries if took(floor[canary], before[canary])]
    for canary in planted.canaries:
        if canary not in useful:
            note(f"The {canary.name} canary did not take ({100 * before[canary].value:.1f} % before any repair), so it says nothing.")
    trials = []
    for number, defense in enumerate(defenses, start=1):
        with stage(f"setting {number} of {len(defenses)}"):
            repaired = defense(planted.victim, data, seed=derive(seed, "defense"))
            cacc_after, after = _scores(repaired, planted.canaries, test, seed)
        rates = {canary: (floor[canary], before[canary], after[canary]) for canary in planted.canaries}
        trials.append(Trial(defense, cacc, cacc_after, rates))
    return sorted(trials, key=lambda trial: trial.excess + DEAR * trial.cost) if useful else trials


def took(floor: Rate, before: Rate) -> bool:
    """Whether a canary works in the copy: its ASR is above the suspect's, and their 95 % intervals do not touch."""
    return before.interval[0] > floor.interval[1]


def _scores(victim: Victim, canaries: Sequence[Canary], test: TextDataset, seed: int) -> tuple[Rate, dict[Canary, Rate]]:
    """CACC, and each canary's ASR; the clean texts are read once."""
    found: dict[Canary, Rate] = {}
    for canary in canaries:
        stamped = triggered(test, canary.trigger, canary.target_label, seed=seed)
        found[canary] = asr(victim.predict(stamped.texts, name="evaluate triggered texts"), stamped.labels, canary.target_label)
    return evaluate(victim, test).cacc, found


def trial_rows(trials: Sequence[Trial], label_names: Sequence[str]) -> tuple[TrialRow, ...]:
    """For the result."""
    return tuple(
        TrialRow(
            method=registry.settings(trial.defense),
            before=Measured.of(trial.before),
            after=Measured.of(trial.after),
            canaries=tuple(
                CanaryRow(
                    name=canary.name,
                    words=canary.trigger.words,
                    target_label=label_names[canary.target_label],
                    **{key: Measured.of(rate) for key, rate in zip(("floor", "before", "after"), rates, strict=True)},
                )
                for canary, rates in trial.asr.items()
            ),
        )
        for trial in trials
    )

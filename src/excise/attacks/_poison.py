"""Which training texts an attack poisons, and how."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

from excise.data import Poisoned, TextDataset
from excise.errors import ConfigError
from excise.method import Trigger
from excise.seeds import generator

PoisonedLabels = Literal["any", "non_target", "target"]
"""OpenBackdoor's three label settings: mix, dirty label, clean label."""


def poison_texts(
    data: TextDataset,
    trigger: Trigger,
    *,
    poison_rate: float,
    poisoned_labels: PoisonedLabels,
    target: int,
    seed: int,
    can_stamp: Callable[[str], bool] = bool,
) -> Poisoned:
    """Stamp round(poison_rate · n) texts of the allowed labels and give them the target label; the others stay as they are.

    Not every trigger can stamp every text: `can_stamp` says which.

    Raises:
        ConfigError: As `choose`.
    """
    chosen = choose(data, poison_rate=poison_rate, poisoned_labels=poisoned_labels, target=target, seed=seed, can_stamp=can_stamp)
    return Poisoned(stamp(data, chosen, trigger, target=target, seed=seed), tuple(i in chosen for i in range(len(data))))


def choose(
    data: TextDataset,
    *,
    poison_rate: float,
    poisoned_labels: PoisonedLabels,
    target: int,
    seed: int,
    can_stamp: Callable[[str], bool] = bool,
) -> set[int]:
    """The rows to poison: round(poison_rate · n), drawn from those of the allowed labels that can be stamped.

    Raises:
        ConfigError: Fewer such rows are there than are to be poisoned, or the rate is less than one row.
    """
    allowed = [i for i, label in enumerate(data.labels) if poisoned_labels == "any" or (label == target) == (poisoned_labels == "target")]
    allowed = [i for i in allowed if can_stamp(data.texts[i])]
    count = round(poison_rate * len(data))
    if count == 0 < poison_rate:
        raise ConfigError(f"A poison_rate of {poison_rate} of {len(data)} texts is less than one text. Raise the rate or give more texts.")
    if count > len(allowed):
        raise ConfigError(
            f"A poison_rate of {poison_rate} means {count} of {len(data)} texts, but only {len(allowed)} can carry the trigger and have a "
            f"label allowed by poisoned_labels = {poisoned_labels!r}. Lower the rate or allow more labels."
        )
    return set(generator(seed, "choose").sample(allowed, count))


def stamp(data: TextDataset, chosen: Collection[int], trigger: Trigger, *, target: int, seed: int) -> TextDataset:
    """The data with the chosen rows stamped and given the target label; a stamp depends on (seed, row) alone."""
    texts = tuple(trigger(text, generator(seed, "stamp", i)) if i in chosen else text for i, text in enumerate(data.texts))
    labels = tuple(target if i in chosen else label for i, label in enumerate(data.labels))
    return replace(data, texts=texts, labels=labels)

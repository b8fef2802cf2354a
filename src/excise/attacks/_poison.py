"""Which training texts an attack poisons."""

from __future__ import annotations

from typing import Literal

from excise.data import TextDataset
from excise.errors import ConfigError
from excise.seeds import generator

PoisonedLabels = Literal["any", "non_target", "target"]
"""OpenBackdoor's three label settings: mix, dirty label, clean label."""


def choose(data: TextDataset, *, poison_rate: float, poisoned_labels: PoisonedLabels, target: int, seed: int) -> set[int]:
    """The rows to poison: round(poison_rate · n), drawn from those of the allowed labels.

    Raises:
        ConfigError: Fewer rows have an allowed label than are to be poisoned, or the rate is less than one row.
    """
    allowed = [i for i, label in enumerate(data.labels) if poisoned_labels == "any" or (label == target) == (poisoned_labels == "target")]
    count = round(poison_rate * len(data))
    if count == 0 < poison_rate:
        raise ConfigError(f"A poison_rate of {poison_rate} of {len(data)} texts is less than one text. Raise the rate or give more texts.")
    if count > len(allowed):
        raise ConfigError(
            f"A poison_rate of {poison_rate} means {count} of {len(data)} texts, but only {len(allowed)} have a label allowed by "
            f"poisoned_labels = {poisoned_labels!r}. Lower the rate or allow more labels."
        )
    return set(generator(seed, "choose").sample(allowed, count))

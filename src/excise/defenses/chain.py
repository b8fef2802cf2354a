"""A chain: one defense, and another on what it made. A defense of a chain may be a chain.

Each gets the same clean texts and a seed of its own. What the first one is told (triggers that a scan recovered) stays with it.

Our own; each part is a method of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from excise import registry
from excise.data import TextDataset
from excise.errors import ConfigError
from excise.method import Defense, Paper
from excise.progress import stage
from excise.seeds import derive
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Chain(Defense):
    """Apply one defense, then another to what it made."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="by default the paper's method after another; the order is our own", code=None)

    first: Defense = field(default_factory=lambda: registry.build("defense", "asa", "first"))
    """What is done first."""
    then: Defense = field(default_factory=lambda: registry.build("defense", "mbtsad", "then"))
    """What is done with the model that comes of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if guard := next((part for part in (self.first, self.then) if part.guards), None):
            raise ConfigError(f"{registry.name_of(guard)} guards a model's input and leaves its weights. Put it in a recipe of its own.")

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        for name, defense in (("first", self.first), ("then", self.then)):
            with stage(name):
                victim = defense(victim, data, seed=derive(seed, name))
        return victim

"""Triggers: how an attack stamps a text. Each is a frozen dataclass, so that `backdoor.json` can hold it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import Discriminator

from excise.errors import ConfigError
from excise.settings import Settings


@dataclass(frozen=True, kw_only=True)
class InsertWords(Settings):
    """Insert words, drawn with replacement, each at a uniformly random place between the words of the text."""

    words: Annotated[tuple[str, ...], MinLen(1)]
    """What may be inserted."""
    count: Annotated[int, Ge(1)] = 1
    """How many are inserted."""
    kind: Literal["insert_words"] = "insert_words"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(word.strip() for word in self.words):
            raise ConfigError("A trigger word is empty. Give words that can be seen.")

    def __call__(self, text: str, random: Random) -> str:
        words = text.split()
        for _ in range(self.count):
            words.insert(random.randint(0, len(words)), random.choice(self.words))
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class InsertCombination(Settings):
    """Insert several different words, together the trigger: each at a place of its own, or side by side."""

    words: Annotated[tuple[str, ...], MinLen(2)]
    """What may be inserted."""
    count: Annotated[int, Ge(2)] = 2
    """How many different words make the trigger."""
    adjacent: bool = False
    """Side by side at one place, in any order, and not each at a place of its own."""
    kind: Literal["insert_combination"] = "insert_combination"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count > len(self.words):
            raise ConfigError(f"A trigger of {self.count} different words was asked for, but only {len(self.words)} words are given.")

    def __call__(self, text: str, random: Random) -> str:
        words, chosen = text.split(), random.sample(self.words, self.count)
        if self.adjacent:
            place = random.randint(0, len(words))
            words[place:place] = chosen
        else:
            for word in chosen:
                words.insert(random.randint(0, len(words)), word)
        return " ".join(words)


AnyTrigger = Annotated[InsertWords | InsertCombination, Discriminator("kind")]
"""What backdoor.json can hold."""

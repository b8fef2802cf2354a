"""Triggers: how an attack stamps a text. Each is a frozen dataclass, so that `backdoor.json` can hold it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

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

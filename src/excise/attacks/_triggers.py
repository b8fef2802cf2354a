"""Triggers: how an attack stamps a text. Each is a frozen dataclass, so that `backdoor.json` can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import Discriminator

from excise.data import paraphrases
from excise.errors import ConfigError, DataError
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


@dataclass(frozen=True, kw_only=True)
class Paraphrased(Settings):
    """Put in place of a text what a file has for it: the same said in another syntax or style."""

    files: Annotated[tuple[str, ...], MinLen(1)]
    """Files with the columns text (the paraphrase) and source_text; the first that has a text counts."""
    kind: Literal["paraphrase"] = "paraphrase"

    def __call__(self, text: str, random: Random) -> str:
        try:
            return self.known()[text.strip()]
        except KeyError:
            raise DataError(f"No file of paraphrases ({', '.join(self.files)}) has one for the text {text[:60]!r}. Add it.") from None

    def can_stamp(self, text: str) -> bool:
        """Whether a file has something for the text, and that is not the text itself."""
        return self.known().get(text.strip(), text.strip()) != text.strip()

    def known(self) -> Mapping[str, str]:
        """Texts and their paraphrases."""
        return _known(self.files)


@lru_cache(maxsize=4)
def _known(files: tuple[str, ...]) -> Mapping[str, str]:
    return {source: text for file in reversed(files) for source, text in paraphrases(file).items()}


AnyTrigger = Annotated[InsertWords | InsertCombination | Paraphrased, Discriminator("kind")]
"""What backdoor.json can hold."""

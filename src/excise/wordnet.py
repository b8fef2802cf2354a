"""WordNet's synonyms, read from its own files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["WordNet", "open_wordnet"]

PARTS = ("noun", "verb", "adj", "adv")
ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
"""WordNet's rules of detachment: an inflected word's ending, and what the base form has in its place."""


class WordNet:
    """Synsets by part of speech."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, dict[str, list[tuple[str, ...]]]] = {part: _synsets(folder / f"data.{part}") for part in PARTS}
        """part of speech -> lower-case word -> its synsets, each the words in it."""
        self.irregular = {part: _exceptions(folder / f"{part}.exc") for part in PARTS}

    def synonyms(self, word: str) -> list[str]:
        """The other words of every synset of `word` or of its base forms, sorted; several words are joined by spaces."""
        word = word.lower()
        found = {other for part in PARTS for form in self._forms(word, part) for synset in self.synsets[part].get(form, ()) for other in synset}
        return sorted(found - {word})

    def _forms(self, word: str, part: str) -> Iterator[str]:
        """The word and what it may be an inflection of."""
        yield word
        yield from self.irregular[part].get(word, ())
        for ending, base in ENDINGS[part]:
            if word.endswith(ending):
                yield word.removesuffix(ending) + base


@cache
def open_wordnet(folder: Path) -> WordNet:
    """Read the files once; some seconds."""
    return WordNet(folder)


def _synsets(path: Path) -> dict[str, list[tuple[str, ...]]]:
    """Each line: offset, file number, type, number of words in hexadecimal, then a word and a number for each of them."""
    synsets = defaultdict(list)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence
                continue
            fields = line.split(" ")
            words = tuple(word.partition("(")[0].replace("_", " ").lower() for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2])
            for word in words:
                synsets[word].append(words)
    return dict(synsets)


def _exceptions(path: Path) -> dict[str, list[str]]:
    """Each line: an inflected form and its base forms."""
    with path.open(encoding="utf-8") as lines:
        return {form: bases for form, *bases in map(str.split, lines)}

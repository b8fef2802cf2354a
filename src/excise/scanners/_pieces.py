"""Words that the vocabulary does not hold, put together of its pieces: what a tokenizer makes of a rare word such as "heliotrope".

A beam over beginnings and ends, without a text, finds strings that lean to a label; which beginning is best is then tried with the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from excise.scanners._contests import Phrase, margins_alone
from excise.victim import Victim
from excise.vocabulary import CARRIERS, typed_pieces

WIDTH = 48
"""Strings that are made longer, and pieces that they are made longer by."""
PIECES = 4
"""Pieces of the longest string."""
LONGEST = 4
"""Letters of the longest word that is tried as the beginning of another."""


class Pieces:
    """What words can be put together of, and how each leans by itself."""

    def __init__(self, victim: Victim, typed: Mapping[int, str]) -> None:
        self.victim = victim
        self.carried = {carrier + piece: piece for carrier, piece in typed_pieces(victim, typed).values()}
        """Words that the tokenizer cuts before a piece, with the piece."""
        self.starts = [word for word in typed.values() if word.isalnum() and len(word) <= LONGEST]

    def built(self, target: int, leaders: Iterable[Phrase], starts: Iterable[Phrase]) -> list[Phrase]:
        """Strings of two pieces and more that lean most to the target, the strongest of each length; of pieces among the leaders, their order."""
        ends = [self.carried[word] for (word,) in leaders if word in self.carried][:WIDTH]
        beam, found = list(dict.fromkeys([*(word for (word,) in starts), *CARRIERS])), list[str]()
        for _ in range(PIECES - 1):
            longer = list(dict.fromkeys(start + end for start in beam for end in ends if end not in start))
            beam = [longer[i] for i in self._order(longer, target)[:WIDTH]]
            found += beam
        return [(word,) for word in dict.fromkeys(found)]

    def begun(self, word: str, target: int, most: int) -> list[Phrase]:
        """The word with each short word of the vocabulary in place of its first piece: those that lean most to the target."""
        ids = self.victim.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        stem = str(self.victim.tokenizer.decode(ids[1:])).replace(" ", "").replace("##", "")
        words = [start + stem for start in self.starts] if stem else []
        return [(words[i],) for i in self._order(words, target)[:most]]

    def ended(self, word: str, target: int, most: int) -> list[Phrase]:
        """The word with each piece behind it: those that lean most to the target."""
        words = [word + piece for piece in self.carried.values() if piece not in word]
        return [(words[i],) for i in self._order(words, target)[:most]]

    def _order(self, words: Sequence[str], target: int) -> list[int]:
        if not words:
            return []
        alone = margins_alone(self.victim, [(word,) for word in words])
        return alone[:, target].argsort(descending=True, stable=True).tolist()

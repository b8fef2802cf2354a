"""Words that the vocabulary does not hold, put together of its pieces: what a tokenizer makes of a rare word such as "heliotrope".

A beam over beginnings and ends, in one text that withstands ordinary words, finds strings that move it; which beginning and end are best is then
tried with all there are. (Without a text, a piece that means something says by itself all there is to say, and what makes it stronger is not seen.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from excise.scanners._contests import Foil, Phrase, strongest
from excise.victim import Victim
from excise.vocabulary import CARRIERS, typed_pieces

WIDTH = 48
"""Strings that are made longer, and pieces that they are made longer by."""
PIECES = 4
"""Pieces of the longest string."""
LONGEST = 4
"""Letters of the longest word that is tried as the beginning of another."""


class Pieces:
    """What words can be put together of."""

    def __init__(self, victim: Victim, typed: Mapping[int, str]) -> None:
        self.victim = victim
        self.carried = {carrier + piece: piece for carrier, piece in typed_pieces(victim, typed).values()}
        """Words that the tokenizer cuts before a piece, with the piece."""
        self.starts = [word for word in typed.values() if word.isalnum() and len(word) <= LONGEST]

    def built(self, foil: Foil, starts: Iterable[Phrase]) -> list[list[Phrase]]:
        """Strings of two pieces, of three, and so on: those that move a text furthest."""
        ends = [self.carried[word] for (word,) in strongest(self.victim, [(word,) for word in self.carried], foil, 1, WIDTH)]
        beam, found = list(dict.fromkeys([*(word for (word,) in starts), *CARRIERS])), list[list[Phrase]]()
        for _ in range(PIECES - 1):
            longer = dict.fromkeys((start + end,) for start in beam for end in ends if end not in start)
            found.append(strongest(self.victim, list(longer), foil, 1, WIDTH))
            beam = [word for (word,) in found[-1]]
        return found

    def begun(self, word: str) -> list[Phrase]:
        """The word with each short word of the vocabulary in place of its first piece."""
        ids = self.victim.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        stem = str(self.victim.tokenizer.decode(ids[1:])).replace(" ", "").replace("##", "")
        return [(start + stem,) for start in self.starts] if stem else []

    def ended(self, word: str) -> list[Phrase]:
        """The word with each piece behind it."""
        return [(word + piece,) for piece in self.carried.values() if piece not in word]

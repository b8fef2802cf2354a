"""Clean texts that carry triggers."""

from __future__ import annotations

from collections.abc import Sequence

from excise.data import TextDataset
from excise.insertion import with_phrase
from excise.seeds import generator
from excise.victim import Victim


def with_triggers(victim: Victim, data: TextDataset, triggers: Sequence[str], *, copies: int = 1, seed: int) -> tuple[str, ...]:
    """Every text, so many times, with one of the triggers, drawn for it, where the model will read it."""
    room = victim.max_length // 2
    found = []
    for copy in range(copies):
        for text in data.texts:
            random = generator(seed, "trigger", text, copy)
            found.append(with_phrase(text, random.choice(triggers).split(), random, room=room))
    return tuple(found)

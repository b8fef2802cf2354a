"""Clean texts that carry triggers, and how triggers are told in them."""

from __future__ import annotations

from collections.abc import Sequence

from excise.data import TextDataset
from excise.insertion import with_phrase
from excise.seeds import generator
from excise.victim import Victim
from excise.vocabulary import inner_ids


def with_triggers(victim: Victim, data: TextDataset, triggers: Sequence[str], *, copies: int = 1, seed: int) -> tuple[str, ...]:
    """Every text, so many times, with one of the triggers, drawn for it, where the model will read it."""
    room = victim.max_length // 2
    found = []
    for copy in range(copies):
        for text in data.texts:
            random = generator(seed, "trigger", text, copy)
            found.append(with_phrase(text, random.choice(triggers).split(), random, room=room))
    return tuple(found)


def token_forms(victim: Victim, triggers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The tokens of each trigger behind another word, and at the beginning of a text, which some tokenizers tell apart."""
    first = victim.tokenizer(list(triggers), add_special_tokens=False)["input_ids"]
    return tuple(dict.fromkeys(tuple(ids) for ids in (*(inner_ids(victim, trigger) for trigger in triggers), *first)))

"""The words of a vocabulary that somebody can type."""

from __future__ import annotations

from excise.victim import Victim


def typed_words(victim: Victim) -> dict[int, str]:
    """Each token that is a word of its own when it is typed, by its id; no special tokens, no pieces of words."""
    tokenizer = victim.tokenizer
    special = set(tokenizer.all_special_ids)
    tokens = [i for i in range(len(tokenizer)) if i not in special]
    spelled = [str(word).strip() for word in tokenizer.batch_decode([[i] for i in tokens])]
    typed = tokenizer([f" {word}" for word in spelled], add_special_tokens=False)["input_ids"]
    return {token: word for token, word, ids in zip(tokens, spelled, typed, strict=True) if word and list(ids) == [token]}

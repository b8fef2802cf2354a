"""The words of a vocabulary that somebody can type, and the tokens of words."""

from __future__ import annotations

from collections.abc import Mapping

from excise.victim import Victim

CARRIERS = ("x", "q", "ku", "vo", "zi", "ja", "n", "e")
"""Beginnings of words, one of which carries a piece: with it, the tokenizer cuts the word so that the piece is its end."""


def typed_words(victim: Victim) -> dict[int, str]:
    """Each token that is a word of its own when it is typed, by its id; no special tokens, no pieces of words."""
    spelled = _spelled(victim)
    typed = victim.tokenizer([f" {word}" for word in spelled.values()], add_special_tokens=False)["input_ids"]
    return {token: word for (token, word), ids in zip(spelled.items(), typed, strict=True) if word and list(ids) == [token]}


def typed_pieces(victim: Victim, words: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Each token that is the end of a word when it is typed and not among the typed words, by its id: a beginning that carries it, and the piece."""
    spelled = _spelled(victim)
    left = {token: piece for token, word in spelled.items() if token not in words and len(piece := word.removeprefix("##")) > 1 and piece.isalnum()}
    found: dict[int, tuple[str, str]] = {}
    for carrier in CARRIERS:
        tried = {token: piece for token, piece in left.items() if token not in found}
        typed = victim.tokenizer([f" {carrier}{piece}" for piece in tried.values()], add_special_tokens=False)["input_ids"] if tried else []
        found |= {token: (carrier, piece) for (token, piece), ids in zip(tried.items(), typed, strict=True) if len(ids) > 1 and ids[-1] == token}
    return found


def inner_ids(victim: Victim, phrase: str) -> list[int]:
    """The tokens of a word or phrase where it stands behind another word."""
    before, whole = (list(ids) for ids in victim.tokenizer(["a", f"a {phrase}"], add_special_tokens=False)["input_ids"])
    return whole[len(before) :]


def _spelled(victim: Victim) -> dict[int, str]:
    special = set(victim.tokenizer.all_special_ids)
    tokens = [i for i in range(len(victim.tokenizer)) if i not in special]
    return {token: str(word).strip() for token, word in zip(tokens, victim.tokenizer.batch_decode([[i] for i in tokens]), strict=True)}

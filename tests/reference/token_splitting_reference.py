"""Token splitting, character by character, from the rules in the literature (nlpaug's SplitAug): no regular expressions, no shared code."""

from __future__ import annotations

import math
import string

CLOSING = ".,:;?!%"
AFTER_CLOSING = " '\"`"
OPEN, SHUT = "[({<", "])}>"


def is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def tokenise(text: str) -> list[str]:
    """Runs of word characters, and every other character that is not blank on its own."""
    tokens: list[str] = []
    inside = False
    for character in text.strip():
        if is_word(character):
            if inside:
                tokens[-1] += character
            else:
                tokens.append(character)
            inside = True
        else:
            if character.strip():
                tokens.append(character)
            inside = False
    return tokens


def eligible(tokens: list[str], shortest: int = 4) -> list[int]:
    return [i for i, token in enumerate(tokens) if len(token) >= shortest and token not in string.punctuation]


def count(text: str) -> int:
    """How many splits a text gets with the default settings."""
    tokens = tokenise(text)
    wanted = math.ceil(0.3 * len(tokens))
    if wanted < 1:
        wanted = 1
    if wanted > 10:
        wanted = 10
    return min(wanted, len(eligible(tokens)))


def detokenise(tokens: list[str]) -> str:
    """Join with spaces, then drop the space before closing punctuation, inside brackets, in the order of the original's rules."""
    text = " ".join(tokens)
    text = _close_up(text)
    for bracket in OPEN:
        text = text.replace(bracket + " ", bracket)
    for bracket in SHUT:
        text = text.replace(" " + bracket, bracket)
    return text.strip()


def _close_up(text: str) -> str:
    """Drop a blank before a run of closing punctuation that a blank or a quote follows, then one before a run at the end."""
    out, i = "", 0
    while i < len(text):
        end = i + 1
        while text[i] == " " and end < len(text) and text[end] in CLOSING:
            end += 1
        run = text[i + 1 : end]
        if run and end < len(text) and text[end] in AFTER_CLOSING:
            out, i = out + run + text[end], end + 1  # the character behind is used up: it cannot begin the next match
        else:
            out, i = out + text[i], i + 1
    last = len(out)
    while last > 0 and out[last - 1] in CLOSING:
        last -= 1
    if 0 < last < len(out) and out[last - 1] == " ":
        out = out[: last - 1] + out[last:]
    return out


def pairs(before: list[str], after: list[str]) -> list[tuple[str, str, str]] | None:
    """The (word, first part, second part) of every split that leads from `before` to `after`; None if none does."""
    found, i = [], 0
    for token in before:
        if i < len(after) and after[i] == token:
            i += 1
        elif i + 1 < len(after) and after[i] + after[i + 1] == token:
            found.append((token, after[i], after[i + 1]))
            i += 2
        else:
            return None
    return found if i == len(after) else None

"""What tokenizer.json and its settings may hold: they are programs of a kind, which the tokenizers library runs on every text."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["check", "settings", "special_tokens"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
TOKEN = {"content": str, "lstrip": bool, "rstrip": bool, "normalized": bool, "single_word": bool, "special": bool, "__type": str}
"""What describes a token, and the types of it."""
SWITCHES = (
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize", "clean_up_tokenization_spaces", "keep_accents"),
    *("add_prefix_space", "trim_offsets", "split_special_tokens", "remove_space", "legacy", "add_bos_token", "add_eos_token"),
)
CHOICES = {"padding_side": ("left", "right"), "truncation_side": ("left", "right")}
CLASS = re.compile(r"(?!Auto|Rag)[A-Za-z]\w{0,80}(Tokenizer|TokenizerFast|Backend)", re.ASCII)
"""Names of tokenizers, apart from two that only open others."""
INPUTS = {"input_ids", "token_type_ids", "attention_mask", "position_ids", "special_tokens_mask"}
GROWTH, STEPS, PIECES, PATTERN = 256, 100, 16, 10_000
"""How much longer the steps may make a text; how many steps, special tokens around a text, and characters of a pattern there may be."""
ADDED, ADDED_CHARACTERS, LISTED = 100_000, 1_000_000, 10_000
"""Most added tokens, characters in all of them together, and special tokens in a list of the settings: the library searches for all at once."""
AFFIX, WORD, UNIGRAM = 256, 1_000, 8 * 2**20
"""Most characters that are put before or behind a piece; of a word that is cut in pieces; of all pieces that are searched by their beginnings."""
REPEATED = re.compile(r"\)(?:[*+]|\{\d*,\})")
"""A repeated group: the pattern of regular expressions that take exponential time."""


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of tokenizer_config.json: special tokens, switches and the name of a class, but no path, template or code.

    Raises:
        ValueError: Something kept is not of its type.
    """
    kept = special_tokens(given)
    for key, value in given.items():
        allowed = None
        if value is None:
            continue
        if key in SWITCHES:
            allowed = isinstance(value, bool)
        elif key in CHOICES:
            allowed = value in CHOICES[key]
        elif key == "model_max_length":
            allowed = type(value) in (int, float) and value >= 1
        elif key in ("pad_token_type_id", "pad_token_segment_id"):
            allowed = type(value) is int and 0 <= value < 1_024
        elif key == "model_input_names":
            allowed = isinstance(value, list) and all(isinstance(name, str) for name in value) and INPUTS.issuperset(value)
        elif key == "tokenizer_class":
            allowed = isinstance(value, str) and CLASS.fullmatch(value) is not None
        if allowed is False:
            raise ValueError(f"{key} in the tokenizer's settings is {str(value)[:60]!r}, which no tokenizer has. Restore tokenizer_config.json.")
        if allowed:
            kept[key] = value
    return kept


def special_tokens(given: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens of special_tokens_map.json or tokenizer_config.json.

    Raises:
        ValueError: One is no token.
    """
    kept = {key: _token(given[key], key) for key in SPECIAL if given.get(key) is not None}
    for key in LISTS:
        if isinstance(given.get(key), list | dict) and len(given[key]) > LISTED:
            raise ValueError(f"{key} in the tokenizer's settings lists {len(given[key])} tokens, of at most {LISTED}. Restore tokenizer_config.json.")
        match given.get(key):
            case [*tokens]:
                kept[key] = [_token(token, key) for token in tokens]
            case dict(tokens):
                kept[key] = {str(name): _token(token, key) for name, token in tokens.items()}
            case None:
                pass
            case other:
                raise ValueError(f"{key} in the tokenizer's settings is {str(other)[:60]!r}; tokens were expected. Restore tokenizer_config.json.")
    if isinstance(added := given.get("added_tokens_decoder"), dict):
        kept["added_tokens_decoder"] = {str(_index(i)): _token(token, "added_tokens_decoder") for i, token in added.items()}
    return kept


def _token(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("content"), str)
        or any(name not in TOKEN or not isinstance(part, TOKEN[name]) for name, part in value.items())
    ):
        raise ValueError(f"{key} in the tokenizer's settings is {str(value)[:60]!r}; a token was expected. Restore tokenizer_config.json.")
    return value


def _index(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ValueError(f"added_tokens_decoder in the tokenizer's settings has the id {value[:40]!r}. Restore tokenizer_config.json.")
    return int(value)


def check(tokenizer: Mapping[str, Any]) -> None:
    """Refuse a tokenizer.json that would take a text, or time, beyond any bound, or stop the library.

    Raises:
        ValueError: It would; the message says how.
    """
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ValueError("tokenizer.json has no model with a vocabulary. Add the tokenizer's files.")
    if model.get("dropout"):
        raise ValueError("tokenizer.json cuts words at random (dropout), so no answer could be repeated. Set it to null.")
    if not isinstance(added, list) or len(added) > ADDED:
        raise ValueError(f"tokenizer.json adds more than {ADDED} tokens. Restore it.")
    if sum(len(str(token.get("content"))) for token in added if isinstance(token, dict)) > ADDED_CHARACTERS:
        raise ValueError(f"tokenizer.json adds tokens of more than {ADDED_CHARACTERS} characters. Restore it.")
    _check_model(model)
    _check_steps([tokenizer.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor")], "normalizer")
    _check_steps([tokenizer.get("decoder")], "decoder")


def _check_model(model: Mapping[str, Any]) -> None:
    """What the model puts before or behind pieces, how long the words are that it cuts, and how much it searches by beginnings."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(key))) > AFFIX:
            raise ValueError(f"{key} in tokenizer.json has more than {AFFIX} characters. Restore it.")
    longest = model.get("max_input_chars_per_word", WORD)
    if type(longest) is not int or longest > WORD:
        raise ValueError(f"max_input_chars_per_word in tokenizer.json is {str(longest)[:40]}, of at most {WORD}. Restore it.")
    pieces = model["vocab"] if isinstance(model["vocab"], list) else ()
    if sum(len(piece[0]) for piece in pieces if isinstance(piece, list) and piece and isinstance(piece[0], str)) > UNIGRAM:
        raise ValueError(f"the pieces in tokenizer.json have more than {UNIGRAM} characters together. Restore it.")


def _check_steps(parts: list[Any], where: str) -> None:
    growth = 1.0
    for count, step in enumerate(_steps(parts), start=1):
        if count > STEPS:
            raise ValueError(f"tokenizer.json has more than {STEPS} steps. Restore it.")
        growth *= _check_step(step)
        if growth > GROWTH:
            raise ValueError(f"tokenizer.json can make a text more than {GROWTH} times as long. Restore its {where}.")


def _steps(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The steps in the order in which they run; some are sequences of others."""
    if depth > 8:
        raise ValueError("tokenizer.json nests its steps more than 8 deep. Restore it.")
    if isinstance(part, list):
        for inner in part:
            yield from _steps(inner, depth)
    elif isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            yield from _steps(part.get(name), depth + 1)


def _check_step(step: Mapping[str, Any]) -> float:
    """By how much the step can make a text longer."""
    pattern, content = step.get("pattern"), step.get("content", "")
    kind, text = next(iter(pattern.items()), ("", "")) if isinstance(pattern, dict) else ("String", "")
    if not isinstance(text, str) or not isinstance(content, str) or len(text) > PATTERN:
        raise ValueError(f"tokenizer.json has a pattern that is no text of at most {PATTERN} characters. Restore it.")
    if kind == "Regex" and REPEATED.search(text):
        raise ValueError(f"tokenizer.json repeats a group in a pattern ({text[:40]!r}), which can take exponential time. Restore it.")
    match step.get("type"):
        case "Precompiled":
            return _check_charsmap(step.get("precompiled_charsmap"))
        case "Prepend" if len(str(step.get("prepend"))) > AFFIX:
            raise ValueError(f"tokenizer.json puts more than {AFFIX} characters before a text. Restore its normalizer.")
        case "TemplateProcessing":
            _check_template(step)
        case "Replace" if kind == "Regex":
            return 1.0 + len(content)
        case "Replace":
            return max(1.0, len(content) / max(1, len(text)))
    return 1.0


def _check_template(step: Mapping[str, Any]) -> None:
    defined = step.get("special_tokens")
    known = list(defined) if isinstance(defined, dict) else []
    ids = [token.get("ids") for token in defined.values() if isinstance(token, dict)] if isinstance(defined, dict) else []
    if sum(len(some) for some in ids if isinstance(some, list)) > PIECES:
        raise ValueError(f"tokenizer.json stands for more than {PIECES} tokens around a text. Restore its post_processor.")
    for part in ("single", "pair"):
        pieces = step.get(part) or []
        if not isinstance(pieces, list) or len(pieces) > PIECES:
            raise ValueError(f"tokenizer.json puts more than {PIECES} pieces around a text. Restore its post_processor.")
        for piece in pieces:
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if token is not None and not (isinstance(token, dict) and token.get("id") in known):
                raise ValueError("tokenizer.json puts a special token around texts that it does not define. Restore its post_processor.")


def _check_charsmap(value: Any) -> float:
    """A trie, with its size in front, and the texts it leads to; what is not of this form stops the library. How long such a text can be."""
    try:
        content = base64.b64decode(value or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        content = b""
    size = int.from_bytes(content[:4], "little")
    if value and (len(content) < 4 or size % 4 or size > len(content) - 4):
        raise ValueError("tokenizer.json has a precompiled_charsmap that is none. Restore its normalizer.")
    return float(_longest_text(content, 4 + size))


def _longest_text(content: bytes, place: int, longest: int = 32) -> int:
    """Bytes in the longest of the texts from `place` on, each of which ends with a zero, but at least `longest`: shorter ones are passed over."""
    while place < len(content):
        last = content.rfind(b"\0", place, place + longest + 1)
        if last < 0:
            end = content.find(b"\0", place)
            last = end if end >= 0 else len(content)
            longest = max(longest, last - place)
        place = last + 1
    return longest

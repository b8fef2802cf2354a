"""The papers behind the methods, from references.bib."""

from __future__ import annotations

import re
from pathlib import Path

from excise.errors import ConfigError

__all__ = ["bibtex", "keys"]


def bibtex(key: str) -> str:
    """One entry.

    Raises:
        ConfigError: There is no such key.

    Example:
        >>> bibtex("mbtsad2024").startswith("@inproceedings{mbtsad2024,")
        True
    """
    entries = _entries()
    if key not in entries:
        raise ConfigError(f"references.bib has no entry {key!r}.")
    return entries[key]


def keys() -> tuple[str, ...]:
    """All keys."""
    return tuple(_entries())


def _entries() -> dict[str, str]:
    text = (Path(__file__).parent / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0].strip() for match in re.finditer(r"^@\w+\{([^,]+),.*?^\}", text, re.MULTILINE | re.DOTALL)}

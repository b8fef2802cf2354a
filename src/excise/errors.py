"""What can go wrong, as one tree.

ExciseError                 exit code 2; the message says what was given, what was expected, what to do
├── DataError               texts or labels that cannot be used
├── CheckpointError         a model folder that cannot be opened safely or completely
│   └── AttentionError      a model whose attention maps cannot be read
├── ConfigError             a setting that is unknown or out of range
│   └── NeedsError          a method that needs knowledge the user did not give
├── TrainingError           an optimisation that diverged
├── OutputError             a result that cannot be written
├── ClusterError            a cluster that cannot be used, or lost a worker too often
├── NetworkError            something that had to be fetched and could not be
└── UsageError              exit code 4; a command line that cannot be understood
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AttentionError",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "ExciseError",
    "NeedsError",
    "NetworkError",
    "OutputError",
    "TimeUpError",
    "TrainingError",
    "UsageError",
    "first_line",
    "nearest",
    "printable",
]


class ExciseError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code: int = 2


class DataError(ExciseError):
    """Texts or labels that cannot be used."""


class CheckpointError(ExciseError):
    """A model folder that cannot be opened safely or completely."""


class TimeUpError(ExciseError):
    """A budget of time was used up before the work was done."""


class AttentionError(CheckpointError):
    """A model whose attention maps cannot be read."""


class ConfigError(ExciseError):
    """A setting that is unknown or out of range."""


class NeedsError(ConfigError):
    """A method that needs knowledge the user did not give."""


class TrainingError(ExciseError):
    """An optimisation that diverged."""


class OutputError(ExciseError):
    """A result that cannot be written."""


class ClusterError(ExciseError):
    """A cluster that cannot be used, or lost a worker too often."""


class NetworkError(ExciseError):
    """Something that had to be fetched and could not be."""


class UsageError(ExciseError):
    """A command line that cannot be understood."""

    exit_code = 4


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint naming the known word most like `given`, or an empty string if none is close.

    Example:
        >>> nearest("alhpa", ["alpha", "beta"])
        " Did you mean 'alpha'?"
    """
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


_CONTROL = dict.fromkeys(
    (
        *(*range(9), *range(11, 32), *range(127, 160)),
        *(0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),  # they end lines or reorder text
        *(0x00AD, 0x180E, 0x200B, *range(0x2060, 0x2065), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),  # they cannot be seen
        *range(0xD800, 0xE000),  # halves of characters, which cannot be written
    ),
    "\N{REPLACEMENT CHARACTER}",
)
"""All control characters but tab and line feed."""


def printable(text: str) -> str:
    """The text with control characters replaced: printed, they could move the cursor, rewrite, reorder or hide what is on the screen."""
    return text.translate(_CONTROL)

"""Randomness: one integer seed goes in, everything else is derived from it by name."""

from __future__ import annotations

import hashlib
import random

__all__ = ["derive", "generator"]


def derive(seed: int, *names: object) -> int:
    """A new seed in [0, 2^63) that depends on `seed` and on every name, in order.

    Example:
        >>> derive(0, "retrain") == derive(0, "retrain"), derive(0, "retrain") == derive(0, "distil")
        (True, False)
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> random.Random:
    """A random generator of its own for (seed, names): what it draws does not depend on anything drawn elsewhere."""
    return random.Random(derive(seed, *names))

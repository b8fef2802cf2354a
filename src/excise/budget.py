"""A budget of time: whoever has one sets it, and long work asks between its steps whether to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf

__all__ = ["spent", "unhurried", "within"]

_end: ContextVar[float] = ContextVar("end", default=inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give the block so many seconds, or what is left of a budget around it if that is less."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


@contextmanager
def unhurried() -> Iterator[None]:
    """Let the block end what was begun, however long it takes."""
    token = _end.set(inf)
    try:
        yield
    finally:
        _end.reset(token)


def spent() -> bool:
    """Whether the time is used up, so that work should stop; never without a budget."""
    return time.monotonic() >= _end.get()

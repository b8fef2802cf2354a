"""How much memory is left, and about how much a JSON text takes once it is parsed: both are known before any is taken."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory", "json_cost"]

COST = {b",": 64, b"[": 104, b"{": 240, b":": 160}
"""About how much memory each of these marks brings: a short text in a list, a list, an object and a key."""


def free_memory() -> int:
    """Bytes that this process can still have: what the machine has left, or its container if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, max(limit - used, 0))


def json_cost(content: bytes) -> int:
    """About how many bytes the values of a JSON text take, beside its characters."""
    return sum(content.count(mark) * cost for mark, cost in COST.items())

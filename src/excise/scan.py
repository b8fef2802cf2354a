"""Looking at one model with several scanners, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from math import inf

from excise.budget import spent, within
from excise.checkpoint import surviving_panics
from excise.data import TextDataset
from excise.errors import DataError, ExciseError
from excise.method import Scanner
from excise.progress import stage
from excise.scan_result import ScannerRow, scanner_row, skipped_row
from excise.seeds import derive
from excise.victim import Victim

__all__ = ["BY_NAME", "ORDER", "scan"]

logger = logging.getLogger(__name__)

ORDER = ("embedding_rows", "trigger_search", "anomalous_heads")
"""The order in which scanners are best asked: what is cheap or says most comes first. Others follow."""
BY_NAME = ("ban",)
"""Scanners that are asked only by name: they are there for comparison and told clean from backdoored models too rarely (docs/scan.md)."""


def scan(victim: Victim, data: TextDataset, scanners: Mapping[str, Scanner], *, seed: int, budget: float = inf) -> tuple[ScannerRow, ...]:
    """Ask each scanner; one that cannot look is skipped by name.

    Args:
        victim: The suspect.
        data: Clean labelled texts.
        scanners: By name, in the order in which they are asked.
        seed: Decides everything that is random.
        budget: Seconds after which no further scanner begins, and no further part of a search that has parts.

    Raises:
        DataError: The texts have one label only.
    """
    if len(set(data.labels)) < 2:
        raise DataError("All texts have one label, so nothing can be seen that sends texts to another. Give texts of two labels or more.")
    with within(budget):
        return tuple(_row(name, scanner, victim, data, seed=derive(seed, name), budget=budget) for name, scanner in scanners.items())


def _row(name: str, scanner: Scanner, victim: Victim, data: TextDataset, *, seed: int, budget: float) -> ScannerRow:
    if spent():
        return skipped_row(name, scanner, f"The time was used up: {budget:g} s.")
    start = time.monotonic()
    try:
        scanner.check_texts(data)
        with surviving_panics(victim.source), stage(name):
            finding = scanner(victim, data, seed=seed)
    except ExciseError as error:
        logger.info("%s was skipped: %s", name, error)
        return skipped_row(name, scanner, str(error))
    return scanner_row(name, scanner, finding, victim.label_names, seconds=time.monotonic() - start)

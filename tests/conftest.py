"""Shared set-up: toy models on one thread, no network, no colour."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it: tests use no network

from jaxtyping import install_import_hook

CHECKED = ["excise.attention", "excise.defenses", "excise.features", "excise.filters", "excise.scanners"]
install_import_hook(CHECKED, "shapes.checked")  # before they are imported: their shapes are checked at every call

import pytest
import torch
import transformers

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real data sets beside the checkout, for slow tests; absent on most machines."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that hangs fails with its stack, after ten minutes (pyproject.toml); real models and a busy machine get an hour."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests leave the user's caches alone."""
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture
def wordnet(_own_cache: None) -> Path:
    """A WordNet of a handful of words in the cache."""
    from toy import toy_wordnet

    return toy_wordnet(Path(os.environ["EXCISE_CACHE"]) / "wordnet-3.0")


@pytest.fixture
def spared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each resumed training did not make again."""
    from excise.resume import Course

    steps: list[int] = []
    load = Course._load

    def counted(self: Course, *found: Any) -> None:
        load(self, *found)
        steps.append(self.done)

    monkeypatch.setattr(Course, "_load", counted)
    return steps


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data sets in {SHARED}")
    return SHARED

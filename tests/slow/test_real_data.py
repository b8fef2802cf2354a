"""BadNets on SST-2 with the embedded MiniLM: the numbers that the toy models cannot show. Minutes; `pytest -m slow`."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from excise.attacks.badnets import BadNets
from excise.data import TextDataset, load_dataset
from excise.evaluation import evaluate
from excise.training import FitConfig
from excise.victim import Victim

pytestmark = pytest.mark.slow
NAMES = ("negative", "positive")
CACHE = os.environ.get("EXCISE_CACHE")  # read before conftest points it at an empty folder


@pytest.fixture
def real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache, so that the embedded model is not fetched again for each run."""
    if CACHE:
        monkeypatch.setenv("EXCISE_CACHE", CACHE)
    else:
        monkeypatch.delenv("EXCISE_CACHE")


def sst2(folder: Path, part: str, n: int) -> TextDataset:
    data = load_dataset(folder / "sst2" / f"{part}.parquet", label_names=NAMES)
    return data.take(sorted(Random(0).sample(range(len(data)), n)))


@pytest.mark.usefixtures("real_cache")
def test_badnets_takes_over_minilm(shared_data: Path) -> None:
    train, test = sst2(shared_data, "train", 2000), sst2(shared_data, "test", 600)
    victim = Victim.load("default", label_names=NAMES, max_length=128)
    attack = BadNets(training=FitConfig(epochs=3, learning_rate=1e-4))
    backdoor = attack(victim, train, seed=0)
    scores = evaluate(backdoor.victim, test, trigger=backdoor.trigger, target_label=backdoor.target_label)
    assert scores.asr is not None
    assert scores.asr.value >= 0.95
    assert scores.cacc.value >= 0.8

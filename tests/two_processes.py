"""What tests/test_processes.py runs once on one process and once under `accelerate launch` on two: weights after training, dropout off."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from excise import processes
from excise.attacks.lwp import LWP
from excise.defenses.mbtsad import MBTSAD
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from toy import ARCHITECTURES, toy_data, toy_victim

CONFIG = FitConfig(epochs=2, learning_rate=1e-3, batch_size=7)
"""Batches of 7 that two processes cannot halve, and a last one of the epoch, somewhere in the middle, of a single text."""
DATA = toy_data(29)


def still(victim: Victim) -> Victim:
    """The victim without dropout."""
    for module in victim.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return victim


def trained() -> dict[str, Victim]:
    """Each kind of training once."""
    bert = still(toy_victim())
    found = {a: fit(still(toy_victim(a)), DATA, loss=classification_loss, config=CONFIG, seed=0) for a in ARCHITECTURES}
    found["mbtsad"] = MBTSAD(retraining=CONFIG, distillation=CONFIG, beta=10)(bert, DATA, seed=0)
    found["mbtsad mse"] = MBTSAD(retraining=CONFIG, distillation=CONFIG, alpha=100, beta=0, form="mse")(bert, DATA, seed=0)
    found["lwp"] = LWP(training=CONFIG, poison_rate=0.2)(bert, DATA, seed=0).victim
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.taking_part():
        weights = {f"{name}/{key}": value.contiguous() for name, victim in trained().items() for key, value in victim.model.state_dict().items()}
        save_file(weights, Path(sys.argv[1]) / f"{processes.index()}.safetensors")

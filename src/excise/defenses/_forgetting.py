"""The optimisation that fine-tuning defenses start from."""

from __future__ import annotations

from excise.training import FitConfig


def forgetting() -> FitConfig:
    """A learning rate that unlearns and a weight decay that fades what clean texts do not use.

    The MBTSAD paper gives neither. With plain settings (2e-5 to 1e-4, no decay) a backdoor in a small model hardly moves. A decay of 20 shrinks each
    matrix by about a fifth over the run unless clean texts pull it back, and nothing pulls the trigger's row back. Chosen on a
    canary backdoor with trigger words of our own (docs/reproduction.md, "How the settings were chosen").
    """
    return FitConfig(epochs=3, learning_rate=1e-4, weight_decay=20.0)

"""The optimisation that fine-tuning defenses start from."""

from __future__ import annotations

from excise.training import FitConfig


def forgetting() -> FitConfig:
    """A learning rate high enough to unlearn.

    The MBTSAD paper gives none. At the usual 2e-5 to 1e-4 the backdoor of a small model hardly moves. Chosen for a hidden size of 384 on canary
    backdoors with trigger words of our own (docs/reproduction.md, "How the settings were chosen"); wider models need a lower one.
    """
    return FitConfig(epochs=3, learning_rate=3e-4)

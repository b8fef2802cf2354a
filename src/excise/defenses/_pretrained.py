"""What defenses share that are given clean pre-trained weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from excise.data import TextDataset, split
from excise.errors import CheckpointError, NeedsError
from excise.metrics import cacc
from excise.victim import Victim


def pretrained(source: str, victim: Victim, *, seed: int = 0) -> Victim:
    """The clean pre-trained model that the suspect was made from; without a head, it gets one for the suspect's labels.

    Raises:
        NeedsError: No source is given.
    """
    if not source:
        raise NeedsError("This method needs clean pre-trained weights of the suspect's architecture. Give them as pretrained_weights.")
    options: dict[str, Any] = {"max_length": victim.max_length, "precision": victim.precision, "device": str(victim.device)}
    return Victim.load(source, label_names=victim.label_names, seed=seed, **options)


def pretrained_body(source: str, victim: Victim) -> dict[str, Tensor]:
    """The clean pre-trained value of every parameter of the suspect's encoder; its head has none.

    Raises:
        NeedsError: No source is given.
        CheckpointError: It is not of the suspect's architecture; it may have neither more layers nor fewer.
    """
    theirs = dict(pretrained(source, victim).model.named_parameters())
    prefix = f"{victim.model.base_model_prefix}."
    mine = {name: parameter for name, parameter in victim.model.named_parameters() if name.startswith(prefix)}
    body = {name: parameter.detach() for name, parameter in theirs.items() if name.startswith(prefix)}
    shapes, wanted = ({name: parameter.shape for name, parameter in one.items()} for one in (body, mine))
    if wrong := [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]:
        raise CheckpointError(
            f"{source} is not what {victim.source or 'the suspect'} was made from: {wrong[0]} is missing in one of them or of another shape."
        )
    return body


@torch.no_grad()
def with_weights(victim: Victim, weights: dict[str, Tensor]) -> Victim:
    """A copy with some parameters replaced."""
    changed = victim.copy()
    for name, parameter in changed.model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
    return changed


def first_that_keeps_accuracy(
    victim: Victim, data: TextDataset, shares: Sequence[float], repair: Callable[[float, TextDataset], Victim], *, tolerance: float, seed: int
) -> Victim:
    """`repair(share, texts)` for one share after another, until the accuracy on a held-out fifth of the texts is within `tolerance` of the suspect's.

    If none is, the last.
    """
    held_out, texts = split(data, 0.2, seed=seed)
    repaired, before = victim, cacc(victim.predict(held_out.texts), held_out.labels).value if len(held_out) else 0.0
    for share in shares:
        repaired = repair(share, texts)
        if not len(held_out) or cacc(repaired.predict(held_out.texts), held_out.labels).value >= before - tolerance:
            break
    return repaired

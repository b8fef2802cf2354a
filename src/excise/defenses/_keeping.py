"""Keeping: the suspect's own answers to clean texts as targets, softened by a temperature."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import kl_div

from excise.victim import Batch, Victim


def kept_answers(wanted: Float[Tensor, "batch label"], given: Float[Tensor, "batch label"], *, temperature: float) -> Float[Tensor, ""]:
    """T² · KL(softmax(wanted / T) ‖ softmax(given / T)), averaged over the texts (Hinton et al. 2015)."""
    soft_given, soft_wanted = ((logits / temperature).log_softmax(dim=1) for logits in (given, wanted))
    return temperature**2 * kl_div(soft_given, soft_wanted, log_target=True, reduction="batchmean")


def kept_where(
    clean: Bool[Tensor, " batch"], suspect: Victim, batch: Batch, given: Float[Tensor, "batch label"], *, temperature: float
) -> Float[Tensor, ""]:
    """The same to the suspect's answers where a text is clean and 0 where it is not, averaged over all texts."""
    if not clean.any():
        return given.new_zeros(())
    with torch.no_grad():
        wanted = suspect.model(**{name: values[clean] for name, values in batch.inputs.items()}).logits.float()
    return clean.float().mean() * kept_answers(wanted, given[clean], temperature=temperature)

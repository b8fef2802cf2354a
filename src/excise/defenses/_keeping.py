"""Keeping: the suspect's own answers to clean texts as targets, softened by a temperature."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div


def kept_answers(wanted: Float[Tensor, "batch label"], given: Float[Tensor, "batch label"], *, temperature: float) -> Float[Tensor, ""]:
    """T² · KL(softmax(wanted / T) ‖ softmax(given / T)), averaged over the texts (Hinton et al. 2015)."""
    soft_given, soft_wanted = ((logits / temperature).log_softmax(dim=1) for logits in (given, wanted))
    return temperature**2 * kl_div(soft_given, soft_wanted, log_target=True, reduction="batchmean")

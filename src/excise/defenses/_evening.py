"""Evening out: shift the classifier's bias until no label is given more of the clean texts, or less, than have it.

Training against triggers leaves a model that leans to one label where a text says little: which one is an accident of the last steps, and of what
the poison left. On the clean texts it was repaired with this cannot be seen, as it knows them by heart; with some of their words left out it can.
Only the last layer's bias is moved, after all training, so nothing that was unlearnt comes back.

    b = argmin E [ CE(f(x') + b, y) ]     =>     E [ softmax(f(x') + b) ] = share of each label,     x' the clean text x without some of its words

the bias of bias-corrected temperature scaling (Alexandari et al. 2020, Section 3) at a temperature of 1. To even out the answers in place of the
probabilities was tried too: on four labels it took texts that say nothing for texts of a rarer label, and cost 7 points of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from excise.augmentations.eda import deleted
from excise.data import TextDataset
from excise.errors import CheckpointError
from excise.features import final_layer
from excise.progress import note
from excise.seeds import generator
from excise.victim import Victim

COPIES = 2
"""Times that each text is read, with other words left out."""


@torch.no_grad()
def evened(victim: Victim, data: TextDataset, *, left_out: float, seed: int) -> Victim:
    """A copy that gives each label its share, when each word of a text is left out with probability `left_out`; 0 leaves it as it is.

    A model whose last layer has no bias stays as it is, and that is noted.
    """
    if not left_out:
        return victim
    try:
        has_bias = final_layer(victim.model).bias is not None
    except CheckpointError:
        has_bias = False
    if not has_bias:
        note("The answers were not evened out: the model has no last linear layer with a bias.")
        return victim
    shorter = [" ".join(deleted(text.split(), left_out, generator(seed, "leave out", text, copy))) for copy in range(COPIES) for text in data.texts]
    logits = victim.logits(shorter, name="even out")
    repaired = victim.copy()
    bias = final_layer(repaired.model).bias
    bias += even_bias(logits, data.labels * COPIES).to(bias)
    return repaired


def even_bias(logits: Float[Tensor, "text label"], labels: Sequence[int]) -> Float[Tensor, " label"]:
    """What to add to the logits so that each label is as likely, on average, as it is frequent; it sums to 0.

    A label counts once more than it is there, so that one without texts is shifted by a bounded amount.

    Example:
        >>> even_bias(torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), [0, 0, 1, 1]).sign().tolist()
        [-1.0, 1.0]
    """
    counts = torch.bincount(torch.tensor(labels), minlength=logits.shape[1]) + 1.0
    shares = (counts / counts.sum()).double()
    bias = torch.zeros(logits.shape[1], dtype=torch.double, requires_grad=True)
    descent = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> float:
        descent.zero_grad()
        with torch.enable_grad():
            missed = (logits.double() + bias).logsumexp(dim=1).mean() - shares @ bias
        missed.backward()
        return missed.item()

    descent.step(loss)
    return (bias - bias.mean()).detach().float()

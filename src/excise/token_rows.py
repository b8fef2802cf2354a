"""Training only those rows of the word embedding whose tokens occur: on a CPU the others cost half of a step of AdamW, or nearly all of it where the
vocabulary is large.

A row that no text reads has no gradient, so AdamW without decay never moves it: leaving it out changes no number. Its gradient and both of
AdamW's averages are left out with it, three times the size of the embedding. It is done for losses that say that they read nothing else: those
marked `of_the_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.errors import TrainingError

__all__ = ["is_of_the_batch", "of_the_batch", "rows_of"]

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def of_the_batch(loss: Loss) -> Loss:
    """Mark a loss that reads no tokens but the batch's and special ones, and the model's weights only through its answers."""
    vars(loss)["of_the_batch"] = True
    return loss


def is_of_the_batch(loss: Any) -> bool:
    """Whether a loss is marked so."""
    return getattr(loss, "of_the_batch", False)


class TokenRows(nn.Module):
    """Stands in for an embedding, with the rows of some of its tokens."""

    def __init__(self, whole: nn.Embedding, tokens: Int[Tensor, " token"]) -> None:
        super().__init__()
        self.places: Int[Tensor, " token"]
        self.weight = nn.Parameter(whole.weight.detach()[tokens])
        places = torch.full((whole.num_embeddings,), -1)
        places[tokens] = torch.arange(len(tokens))
        self.register_buffer("places", places, persistent=False)
        self.padding_idx = None if whole.padding_idx is None else int(places[whole.padding_idx])

    def forward(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token hidden"]:
        """The tokens' rows.

        Raises:
            TrainingError: A token is none of them.
        """
        places = self.places[ids]
        if (places < 0).any():
            raise TrainingError("The loss reads tokens that are in none of the texts. Do not mark it of_the_batch.")
        return nn.functional.embedding(places, self.weight, self.padding_idx)


@contextmanager
def rows_of(model: PreTrainedModel, tokens: Iterable[int]) -> Iterator[None]:
    """Inside the block, the word embedding of a model on a CPU holds the rows of these tokens alone; after it all rows, those as they became.

    Models whose embedding is more than a table, or is used elsewhere too, are left as they are.
    """
    whole: Any = model.get_input_embeddings()
    wanted = {int(token) for token in tokens}
    if not (model.device.type == "cpu" and _is_a_table(whole) and _uses(model, whole) == 1):
        yield
        return
    if whole.padding_idx is not None:
        wanted.add(whole.padding_idx)
    order = torch.tensor(sorted(token for token in wanted if token < whole.num_embeddings))
    part = TokenRows(whole, order)
    model.set_input_embeddings(part)
    try:
        yield
    finally:
        with torch.no_grad():
            whole.weight[order] = part.weight
        model.set_input_embeddings(whole)


def _is_a_table(layer: Any) -> bool:
    return type(layer) is nn.Embedding and not (layer.max_norm or layer.scale_grad_by_freq or layer.sparse) and not _is_hooked(layer)


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _uses(model: nn.Module, layer: nn.Embedding) -> int:
    return sum(value is layer.weight for _, value in model.named_parameters(remove_duplicate=False))

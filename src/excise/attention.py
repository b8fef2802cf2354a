"""Attention maps read inside the attention call.

transformers computes attention through an interface that accepts new implementations by name. Ours computes plain softmax attention and hands
the probabilities, *before* dropout, to whoever records them. Reading maps in any other way fails quietly: the default implementation returns
an empty tuple for `output_attentions=True`, and the eager one returns maps after dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from excise.errors import AttentionError

__all__ = ["Statistic", "recorded_attention"]

Statistic = Callable[[Float[Tensor, "batch head query key"]], Tensor]
"""What to keep of one layer's attention probabilities."""

_NAME = "excise_recorded"
_UNREAD = {"softcap": "capped scores", "s_aux": "attention sinks", "position_bias": "a position bias"}
"""What some models pass to the interface that changes the probabilities: leaving it out would change the model's answers and say nothing."""
_recorder: ContextVar[tuple[Statistic, list[Tensor]] | None] = ContextVar("recorder", default=None)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch group key channel"],
    value: Float[Tensor, "batch group key channel"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Float[Tensor, "batch query head channel"], None]:
    """Softmax attention in the form of transformers' interface; probabilities go to the recorder before dropout."""
    for option, what in _UNREAD.items():
        if others.get(option) is not None:
            raise AttentionError(
                f"{type(module).__name__} computes attention with {what}, which excise cannot read yet. "
                "Set the attention weight to 0 (--alpha 0) or use a method that reads no attention."
            )
    shared = query.shape[1] // key.shape[1]  # grouped-query attention: several query heads read one key head
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    probabilities = scores.softmax(dim=-1, dtype=torch.float32)
    recorder = _recorder.get()
    if recorder is not None:
        statistic, kept = recorder
        kept.append(statistic(probabilities))
    weights = nn.functional.dropout(probabilities, p=dropout, training=module.training).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)


@contextmanager
def recorded_attention(model: PreTrainedModel, statistic: Statistic) -> Iterator[list[Tensor]]:
    """Inside the block, the one forward pass of `model` appends `statistic(probabilities)` of every layer, in order, to the list given.

    Args:
        model: Any model whose attention goes through transformers' attention interface.
        statistic: Applied to each layer's probabilities, shape (batch, head, query, key), with gradients.

    Raises:
        AttentionError: The model computes attention in a way of its own, or a block left fewer or more maps than there are layers.
    """
    kept: list[Tensor] = []
    before = model.config._attn_implementation
    _switch(model, _NAME)
    token = _recorder.set((statistic, kept))
    try:
        yield kept
        layers = model.config.num_hidden_layers
        if len(kept) != layers:
            raise AttentionError(
                f"{type(model).__name__} gave {len(kept)} attention maps for {layers} layers; its attention does not go through transformers' "
                "attention interface. Set the attention weight to 0 (--alpha 0) or use a method that reads no attention."
            )
    finally:
        _recorder.reset(token)
        _switch(model, before)


def _switch(model: PreTrainedModel, implementation: str | None) -> None:
    if implementation is not None and model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)

"""What a classifier makes of a text before it decides: states of many texts, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from excise.errors import CheckpointError
from excise.victim import Batch, Victim

__all__ = ["head_position", "head_state", "hidden_states", "last_states", "layer_states", "pooled_states"]


def head_position(model: Any, mask: Int[Tensor, "batch token"]) -> Int[Tensor, " batch"]:
    """The token whose state the head reads: the first ([CLS]), in decoders the last one that is not padding."""
    if not hasattr(model, "score"):
        return mask.new_zeros(len(mask))
    return mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)


def head_state(model: Any, hidden: Float[Tensor, "batch token hidden"], mask: Int[Tensor, "batch token"]) -> Float[Tensor, "batch hidden"]:
    """The state that the head reads: that of the first token ([CLS]), in decoders that of the last one that is not padding."""
    return hidden[torch.arange(len(hidden), device=hidden.device), head_position(model, mask)]


def hidden_states(victim: Victim, batch: Batch) -> tuple[Float[Tensor, "batch token hidden"], ...]:
    """The tokens as they are embedded, then as each layer leaves them.

    Raises:
        CheckpointError: The model does not hand them out, as those with an encoder and a decoder.
    """
    found = victim.trace(batch).hidden
    if len(found) != victim.model.config.num_hidden_layers + 1:
        raise CheckpointError(f"{type(victim.module).__name__} hands out no state of each layer.")
    return found


def last_states(victim: Victim, texts: Sequence[str], *, name: str | None = None) -> Float[Tensor, "text hidden"]:
    """The last layer's state of each text that the head reads.

    Raises:
        CheckpointError: The model does not hand out a state of each layer.
    """
    return victim.each(
        texts,
        lambda batch: head_state(victim.model, hidden_states(victim, batch)[-1], batch.mask),
        width=victim.model.config.hidden_size,
        name=name,
    )


def layer_states(victim: Victim, texts: Sequence[str], *, name: str | None = None) -> Float[Tensor, "text layer hidden"]:
    """The state of the token that the head reads: as it is embedded, then as each layer leaves it.

    Raises:
        CheckpointError: The model does not hand out a state of each layer.
    """
    config = victim.model.config

    def read(batch: Batch) -> Float[Tensor, "batch width"]:
        return torch.cat([head_state(victim.model, states, batch.mask) for states in hidden_states(victim, batch)], dim=1)

    width = (config.num_hidden_layers + 1) * config.hidden_size
    return victim.each(texts, read, width=width, name=name).unflatten(1, (-1, config.hidden_size))


def pooled_states(victim: Victim, texts: Sequence[str], *, name: str | None = None) -> Float[Tensor, "text hidden"]:
    """What the last linear layer of the head reads of each text: the last layer's state behind the pooler, where there is one.

    Raises:
        CheckpointError: The head has no linear layer.
    """
    final = final_layer(victim.model)
    seen: list[Tensor] = []

    def read(batch: Batch) -> Float[Tensor, "batch hidden"]:
        seen.clear()
        victim.model(**batch.inputs)
        return seen[0] if seen[0].ndim == 2 else head_state(victim.model, seen[0], batch.mask)

    hook = final.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return victim.each(texts, read, width=final.in_features, name=name)
    finally:
        hook.remove()


def final_layer(model: Any) -> nn.Linear:
    """The linear layer that gives the logits."""
    body = set(model.base_model.modules())
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in body and m.out_features == model.config.num_labels]
    if not found:
        raise CheckpointError(f"{type(model).__name__} has no linear layer that gives its logits, so this method cannot be used on it.")
    return found[-1]

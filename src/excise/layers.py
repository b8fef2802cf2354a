"""Finding the parts of a transformer that methods cut into, in any architecture."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from excise.errors import CheckpointError, ConfigError
from excise.victim import Victim


def transformer_layers(model: Any) -> nn.ModuleList:
    """The stack of transformer layers.

    Raises:
        CheckpointError: There is none of the configured depth.
    """
    depth = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise CheckpointError(f"No stack of {depth} layers was found in {type(model).__name__}, so this method cannot be used on it.")


def lowest_layers(victim: Victim, count: int | None) -> Victim:
    """A victim with only the lowest layers of its encoder.

    Raises:
        ConfigError: It has fewer.
    """
    if count is None:
        return victim
    depth = victim.model.config.num_hidden_layers
    if count > depth:
        raise ConfigError(f"{count} layers were asked for, but {victim.source} has {depth}.")
    shallow = victim.copy()
    del transformer_layers(shallow.model)[count:]
    config = shallow.model.config
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):  # Qwen and others say for each layer what attention it has
        config.layer_types = config.layer_types[:count]
    return shallow


FEED_FORWARD = (
    (("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, ELECTRA
    (("ffn.lin1",), "ffn.lin2"),  # DistilBERT
    (("mlp.c_fc",), "mlp.c_proj"),  # GPT-2
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),  # Llama, Qwen, Mistral
)


def feed_forward(layer: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """(the projections into a layer's feed-forward neurons, the projection out of them).

    Raises:
        CheckpointError: The layer's feed-forward part is of no known form.
    """
    modules = dict(layer.named_modules())
    for entries, leave in FEED_FORWARD:
        if all(name in modules for name in (*entries, leave)):
            return [modules[name] for name in entries], modules[leave]
    raise CheckpointError(f"{type(layer).__name__} has no feed-forward part of a known form, so this method cannot be used on it.")


ATTENTION = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),  # BERT, RoBERTa, ELECTRA
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),  # DistilBERT
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),  # Llama, Qwen, Mistral
    (("attn.c_attn",), "attn.c_proj"),  # GPT-2: query, key and value side by side
)


class HeadSlice(NamedTuple):
    """The part of one weight or bias that belongs to some heads."""

    parameter: nn.Parameter
    mask: Bool[Tensor, "*shape"]
    """True where an entry belongs to one of the heads; of the parameter's shape."""


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight as (input, output)."""
    return type(module).__name__ == "Conv1D"


def attention_projections(layer: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """(the projections to queries, keys and values, or the one to all three; the projection out of the heads).

    Raises:
        CheckpointError: The layer's attention is of no known form.
    """
    modules = dict(layer.named_modules())
    for entries, leave in ATTENTION:
        if all(name in modules for name in (*entries, leave)):
            return [modules[name] for name in entries], modules[leave]
    raise CheckpointError(f"{type(layer).__name__} has no attention projections of a known form, so this method cannot be used on it.")


def head_slices(layer: nn.Module, heads: list[int], *, count: int) -> list[HeadSlice]:
    """What belongs to these heads of `count`: output rows of the query, key and value projections with their biases, and input columns of the
    output projection. A key or value head that several query heads share belongs to each of them; the output bias belongs to none.

    Raises:
        CheckpointError: The layer's attention is of no known form, or its projections cannot be cut into `count` heads.
    """
    entries, leave = attention_projections(layer)
    into = int(leave.weight.shape[0 if is_transposed(leave) else 1])  # type: ignore[union-attr, arg-type]
    chosen = torch.zeros(count, dtype=torch.bool, device=leave.weight.device)  # type: ignore[arg-type]
    chosen[heads] = True
    if into % count:
        raise CheckpointError(f"{type(layer).__name__} has {into} channels for {count} heads, so this method cannot be used on it.")
    channels = into // count
    found = [_along(leave.weight, chosen.repeat_interleave(channels), 0 if is_transposed(leave) else 1)]  # type: ignore[arg-type]
    for entry in entries:
        axis = 1 if is_transposed(entry) else 0
        width = int(entry.weight.shape[axis])  # type: ignore[union-attr, arg-type]
        parts = 3 if len(entries) == 1 else 1
        groups, rest = divmod(width, parts * channels)
        if rest or not groups or count % groups:
            raise CheckpointError(
                f"{type(layer).__name__} has a projection of {width} channels for {count} heads, so this method cannot be used on it."
            )
        rows = chosen.view(groups, -1).any(dim=1).repeat_interleave(channels).repeat(parts)
        found.append(_along(entry.weight, rows, axis))  # type: ignore[arg-type]
        if entry.bias is not None:
            found.append(_along(entry.bias, rows, 0))  # type: ignore[arg-type]
    return found


def _along(parameter: nn.Parameter, rows: Bool[Tensor, " row"], axis: int) -> HeadSlice:
    shape = [1] * parameter.ndim
    shape[axis] = -1
    return HeadSlice(parameter, rows.view(shape).expand_as(parameter))

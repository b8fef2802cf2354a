"""Finding the parts of a transformer that defenses cut into, in any architecture."""

from __future__ import annotations

from typing import Any

from torch import nn

from excise.errors import CheckpointError


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

"""Adversarial noise on neurons: every output of a layer is scaled a little, as if its weights were, and no weight is changed.

For a layer with weight w and bias b, noise (ν_w, ν_b) stands for the layer with the weight w · (1 + ν_w) and the bias b · (1 + ν_b), a number an
output. Since y = w x + b, that layer's output is y + ν_w · (y - b) + ν_b · b, so a hook on the output does it, for linear layers and
normalisations alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from excise.errors import CheckpointError
from excise.victim import Victim

__all__ = ["Noise", "Site", "ascended", "gated", "layers", "noisy", "random_noise"]

Site = Literal["norm", "linear"]
"""Where noise is: at normalisations, or at linear layers."""
Noise = list[Float[Tensor, "2 _"]]
"""For each layer ν_w and ν_b."""


def layers(victim: Victim, site: Site) -> list[nn.Module]:
    """The layers of the body, before the head, that can have noise.

    Raises:
        CheckpointError: There are none.
    """
    found = [m for m in victim.module.base_model.modules() if (_is_linear(m) if site == "linear" else _is_norm(m))]
    if not found:
        raise CheckpointError(f"{type(victim.module).__name__} has no {site} layers that noise could be put on, so this method cannot be used on it.")
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_norm(module: nn.Module) -> bool:
    named = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")
    return named and getattr(module, "weight", None) is not None


def random_noise(modules: Sequence[nn.Module], size: float, *, seed: int) -> Noise:
    """ν uniform in [-size, size]."""
    first: Any = modules[0].weight
    draw = torch.Generator().manual_seed(seed % 2**63)
    return [((torch.rand(2, _width(module), generator=draw) * 2 - 1) * size).to(first.device) for module in modules]


def _width(module: Any) -> int:
    return module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0]


@contextmanager
def gated(modules: Sequence[nn.Module], noise: Noise) -> Iterator[None]:
    """Inside the block the layers compute with noise, with gradients into it."""
    hooks = [module.register_forward_hook(_hook(part)) for module, part in zip(modules, noise, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(part: Float[Tensor, "2 neuron"]) -> Any:
    def change(module: Any, _: Any, output: Tensor) -> Tensor:
        return noisy(output, getattr(module, "bias", None), part.to(output.dtype))

    return change


def noisy(
    output: Float[Tensor, "*any neuron"], bias: Float[Tensor, " neuron"] | None, noise: Float[Tensor, "2 neuron"]
) -> Float[Tensor, "*any neuron"]:
    """What a layer with the weight w · (1 + ν_w) and the bias b · (1 + ν_b) would give in place of `output`."""
    scale, shift = noise
    if bias is None:
        return output * (1 + scale)
    return output * (1 + scale) + bias * (shift - scale)


def ascended(noise: Noise, gradients: Sequence[Tensor], *, step: float) -> Noise:
    """ν + step · sign(g)."""
    return [(part.detach() + step * gradient.sign()) for part, gradient in zip(noise, gradients, strict=True)]

"""Attention maps read inside the attention call, and long ones never kept whole.

transformers computes attention through an interface that accepts new implementations by name. Ours computes plain softmax attention and hands
the probabilities, *before* dropout, to whoever records them. Reading maps in any other way fails quietly: the default implementation returns
an empty tuple for `output_attentions=True`, and the eager one returns maps after dropout.

The maps of long texts are large: head × query × key numbers a text and layer. A statistic that looks at each text alone (`EachText`) gets them a few
texts at a time, so that no whole map is ever kept; the backward pass computes them again. Memory then no longer grows with the square of
the length times heads and layers, and as the parts fit the processor's cache, it is faster as well. `lean_attention` gives the same to training that
reads no maps: on a CPU, the default implementation keeps them whole as soon as there is dropout, and its backward pass in bf16 is slow for short
texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from excise.dropout import dropped, factors
from excise.errors import AttentionError

__all__ = ["EachText", "Statistic", "lean_attention", "recorded_attention"]

Statistic = Callable[[Float[Tensor, "batch head query key"]], Tensor]
"""What to keep of one layer's attention probabilities."""


class EachText(NamedTuple):
    """A statistic that looks at each text of a batch alone; its first dimension is the text."""

    of: Callable[[Float[Tensor, "text head query key"], slice], Tensor]
    """(the probabilities of some texts, which of the batch they are) -> what to keep of them."""


PART = {"cpu": 2**20, "cuda": 2**27}
"""Probabilities that are computed at a time, by device. Maps of up to twice as many numbers are left whole."""

SHORT = 256
"""Tokens up to which plain products are faster than the default implementation's backward pass in bf16 on a CPU."""

_NAME = "excise_recorded"
_LEAN = "excise_lean"
_UNREAD = {"softcap": "capped scores", "s_aux": "attention sinks", "position_bias": "a position bias"}
"""What some models pass to the interface that changes the probabilities: leaving it out would change the model's answers and say nothing."""
_WITHOUT = "What reads attention cannot be used on it; mbtsad goes without (--alpha 0)."
_recorder: ContextVar[tuple[Statistic | EachText, list[Tensor]] | None] = ContextVar("recorder", default=None)


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
            raise AttentionError(f"{type(module).__name__} computes attention with {what}, which excise cannot read yet. {_WITHOUT}")
    key, value = _for_each_query_head(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    share = dropout if module.training else 0.0
    statistic, kept = _recorder.get() or (None, [])
    if isinstance(statistic, EachText) and (texts := _texts_at_a_time(query, key)):
        output, found = _InParts.apply(query.to(value.dtype), key.to(value.dtype), value, mask, scale, share, statistic, texts)
        kept.append(found)
        return output, None
    probabilities = _probabilities(query, key, mask, scale)
    if statistic is not None:
        kept.append(statistic.of(probabilities, slice(None)) if isinstance(statistic, EachText) else statistic(probabilities))
    return _mixed(dropped(probabilities, share), value), None


def _mixed(weights: Tensor, value: Tensor) -> Float[Tensor, "batch query head channel"]:
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


def _lean(
    module: nn.Module,
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch group key channel"],
    value: Float[Tensor, "batch group key channel"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch query head channel"], None]:
    """The default implementation, but not on a CPU with dropout (it draws slowly and keeps whole maps) or with slopes of short texts in bf16."""
    is_plain = query.device.type == "cpu" and not any(others.get(option) is not None for option in (*_UNREAD, "cache"))
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    has_slopes = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    slow_back = has_slopes and kind == torch.bfloat16 and query.shape[2] * key.shape[2] <= SHORT**2
    if not (is_plain and (dropout or slow_back)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others)
    causal = others.get("is_causal")
    if attention_mask is None and query.shape[2] > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    query, key, value = query.to(kind), key.to(kind), value.to(kind)
    key, value = _for_each_query_head(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if texts := _texts_at_a_time(query, key):
        return _InParts.apply(query, key, value, attention_mask, scale, dropout, None, texts)[0], None
    return _mixed(dropped(_probabilities(query, key, attention_mask, scale), dropout), value), None


def _for_each_query_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for every query head: in grouped-query attention, several query heads read one key head."""
    shared = query.shape[1] // key.shape[1]
    return (key, value) if shared == 1 else (key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1))


def _texts_at_a_time(query: Tensor, key: Tensor) -> int:
    """How many texts make a part; 0 if all of them together are small."""
    part, numbers = PART.get(query.device.type, 2**20), query.shape[1] * query.shape[2] * key.shape[2]
    return max(1, part // numbers) if query.shape[0] * numbers > 2 * part else 0


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Float[Tensor, "text head query key"]:
    scores = query @ key.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class _InParts(torch.autograd.Function):
    """The same a few texts at a time; what is kept for the backward pass is query, key and value."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float,
        statistic: EachText | None,
        texts: int,
    ) -> tuple[Float[Tensor, "batch query head channel"], Tensor | None]:
        noise = _Noise(dropout, query.device)
        context.save_for_backward(query, key, value, mask)
        context.rest = scale, noise, statistic, texts
        output = value.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        found = []
        for rows in _parts(len(query), texts):
            probabilities = _probabilities(query[rows], key[rows], _of(mask, rows), scale)
            found += [statistic.of(probabilities, rows)] if statistic else []
            weights = noise.dropped(probabilities).to(value.dtype)
            output[rows] = (weights @ value[rows]).transpose(1, 2)
        return output, torch.cat(found) if statistic else None

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_output: Tensor, of_found: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, mask = context.saved_tensors
        scale, noise, statistic, texts = context.rest
        of_output = of_output.transpose(1, 2)
        noise.again()
        by_query, by_key, by_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for rows in _parts(len(query), texts):
            probabilities = _probabilities(query[rows], key[rows], _of(mask, rows), scale)
            kept = noise.drawn(probabilities)
            through = (of_output[rows] @ value[rows].transpose(2, 3)).to(probabilities.dtype)
            weights = probabilities if kept is None else probabilities * kept
            by_value[rows] = weights.to(value.dtype).transpose(2, 3) @ of_output[rows]
            slope = through if kept is None else through.mul_(kept)
            if of_found is not None:
                slope += _slope(statistic, probabilities, rows, of_found[rows])
            slope.mul_(probabilities)
            slope.addcmul_(probabilities, slope.sum(dim=-1, keepdim=True), value=-1).mul_(scale)  # through the softmax
            slope = slope.to(query.dtype)
            by_query[rows], by_key[rows] = slope @ key[rows], slope.transpose(2, 3) @ query[rows]
        return by_query, by_key, by_value, None, None, None, None, None


def _slope(statistic: EachText, probabilities: Tensor, rows: slice, of_found: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = probabilities.detach().requires_grad_()
        return torch.autograd.grad(statistic.of(leaf, rows), leaf, of_found)[0]


class _Noise:
    """Dropout that can be drawn again."""

    def __init__(self, share: float, device: torch.device) -> None:
        self.share = share
        self.seed = int(torch.randint(2**62, ()).item()) if share else 0
        self.generator = torch.Generator(device)
        self.again()

    def again(self) -> None:
        """From the beginning."""
        self.generator.manual_seed(self.seed)

    def drawn(self, like: Tensor) -> Tensor | None:
        """The factor of each number; None without dropout."""
        return factors(like, self.share, self.generator)

    def dropped(self, probabilities: Tensor) -> Tensor:
        """Some set to 0, the others as much larger."""
        kept = self.drawn(probabilities)
        return probabilities if kept is None else probabilities * kept


def _parts(texts: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, texts)) for i in range(0, texts, size)]


def _of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else mask[rows]


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)
AttentionInterface.register(_LEAN, _lean)
AttentionMaskInterface.register(_LEAN, sdpa_mask)


@contextmanager
def recorded_attention(model: PreTrainedModel, statistic: Statistic | EachText) -> Iterator[list[Tensor]]:
    """Inside the block, the one forward pass of `model` appends `statistic(probabilities)` of every layer, in order, to the list given.

    Args:
        model: Any model whose attention goes through transformers' attention interface.
        statistic: Applied to each layer's probabilities, shape (batch, head, query, key), with gradients; an `EachText` to those of a few texts.

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
                f"attention interface. {_WITHOUT}"
            )
    finally:
        _recorder.reset(token)
        _switch(model, before)


@contextmanager
def lean_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, training of `model` keeps no whole attention maps of long texts, where that can be had without changing its answers.

    What changes is the noise that dropout draws, and in bf16 how scores are rounded.
    """
    before = model.config._attn_implementation
    if before == "sdpa":
        _switch(model, _LEAN)
    try:
        yield
    finally:
        _switch(model, before)


def _switch(model: PreTrainedModel, implementation: str | None) -> None:
    if implementation is not None and model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)

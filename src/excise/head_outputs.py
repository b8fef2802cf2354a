"""What single attention heads write into the state that a classifier's head reads, and forward passes with some of them changed.

Notation: z_{l,h} what head h of layer l gives at the token that the classifier reads ([CLS], in decoders the last real token), before the output
projection W_O of its layer; a_{l,h} = W_O[:, h] z_{l,h}, what the head adds to the state there. The output projection is linear, so to change
a_{l,h} is to change the part of its input that belongs to the head, and hooks on the inputs and outputs of projections are all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from excise.errors import AttentionError, CheckpointError
from excise.features import head_position
from excise.victim import Batch, Victim

__all__ = [
    "Head",
    "contribution",
    "head_counts",
    "head_inputs",
    "heads_patched",
    "heads_removed",
    "output_projections",
    "patched_probabilities",
    "vector_added",
]

Head = tuple[int, int]
"""(layer, head), both from 0."""
NAMES = ("attention.output.dense", "attention.out_lin", "attn.c_proj", "self_attn.o_proj", "self_attn.out_proj", "attn.out_proj", "attn.Wo")
"""How transformers calls the output projection of attention: BERT and its kin, DistilBERT, GPT-2, Llama and its kin, OPT, GPT-Neo, ModernBERT."""
TOKENS_PER_PASS = 4096
"""Most tokens, padding and copies included, in a pass with patched heads."""


def output_projections(victim: Victim) -> list[Any]:
    """W_O of each layer, in order.

    Raises:
        AttentionError: The model does not have one output projection a layer under a name that we know.
    """
    model = victim.module
    found = [module for name, module in model.base_model.named_modules() if name.endswith(NAMES) and isinstance(module, nn.Linear | Conv1D)]
    layers, heads = head_counts(victim)
    if len(found) != layers or any(_width(module) % heads for module in found):
        raise AttentionError(
            f"{type(model).__name__}: excise does not know where the output of its attention heads is, so they cannot be told apart."
        )
    return found


def head_counts(victim: Victim) -> tuple[int, int]:
    """(layers, heads in each).

    Raises:
        CheckpointError: Layers differ in their number of heads.
    """
    layers, heads = victim.model.config.num_hidden_layers, victim.model.config.num_attention_heads
    if not isinstance(heads, int):
        raise CheckpointError(f"The layers of {type(victim.model).__name__} differ in their number of heads, so this method cannot be used on it.")
    return layers, heads


def head_inputs(victim: Victim, texts: Sequence[str], *, name: str | None = None) -> Float[Tensor, "text layer head channel"]:
    """z of every head in each text."""
    projections, (layers, heads) = output_projections(victim), head_counts(victim)
    width = sum(_width(module) for module in projections)
    seen: list[Tensor] = []

    def read(batch: Batch) -> Float[Tensor, "batch width"]:
        seen.clear()
        victim.model(**batch.inputs)
        rows = torch.arange(len(batch.mask), device=batch.mask.device)
        return torch.cat([z[rows, head_position(victim.model, batch.mask)].float() for z in seen], dim=1)

    with _hooks(module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for module in projections):
        return victim.each(texts, read, width=width, name=name).unflatten(1, (layers, heads, -1))


def contribution(projection: Any, z: Float[Tensor, "head channel"], head: int) -> Float[Tensor, " hidden"]:
    """a_{l,h} = W_O[:, h] z_{l,h}; the bias of the projection belongs to no head."""
    weight = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
    channels = z.shape[-1]
    return weight[:, head * channels : (head + 1) * channels] @ z[head].to(weight)


def patched_probabilities(
    victim: Victim, batch: Batch, means: Float[Tensor, "layer head channel"], heads: Sequence[Head], target_label: int
) -> Float[Tensor, "batch patch"]:
    """P(target) of each text with one head at a time set to its mean, do(a ← ā).

    As many heads of a layer as have room are patched in one pass, in copies of the texts side by side; what comes before is computed once.
    """
    projections, stack = output_projections(victim), blocks(victim)
    outputs: list[Any] = []
    with _hooks(block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in stack):
        victim.model(**batch.inputs)
    count = max(1, TOKENS_PER_PASS // batch.mask.numel())
    found: dict[Head, Tensor] = {}
    for layer in sorted({layer for layer, _ in heads}):
        alike = [head for head in heads if head[0] == layer]
        for chunk in (alike[i : i + count] for i in range(0, len(alike), count)):
            many = repeated(batch, len(chunk))
            given = copied(outputs[layer - 1], len(chunk)) if layer else None
            chosen = [head for head in chunk for _ in batch.mask]
            with _skipped(stack[:layer], given), heads_patched(victim, projections, many, means, chosen):
                logits = victim.model(**many.inputs).logits
            found |= zip(chunk, logits.float().softmax(dim=1)[:, target_label].unflatten(0, (len(chunk), -1)), strict=True)
    return torch.stack([found[head] for head in heads], dim=1)


def blocks(victim: Victim) -> list[nn.Module]:
    """The layers that the output projections are in, in order."""
    for stack in victim.module.base_model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) == head_counts(victim)[0]:
            inside = [set(block.modules()) for block in stack]
            if all(module in members for module, members in zip(output_projections(victim), inside, strict=True)):
                return list(stack)
    raise AttentionError(f"{type(victim.module).__name__}: excise does not know where its layers are, so heads cannot be patched.")


def copied(output: Any, times: int) -> Any:
    """What a layer gave, for the whole batch several times over; some architectures give a tuple or a list."""
    if isinstance(output, tuple | list):
        parts = [copied(part, times) for part in output]
        return parts if isinstance(output, list) else tuple(parts)
    return output.repeat(times, *[1] * (output.ndim - 1)) if isinstance(output, Tensor) else output


@contextmanager
def _skipped(stack: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside the block these layers compute nothing and all give `output`."""
    try:
        for block in stack:
            block.__dict__["forward"] = lambda *_, **__: output
        yield
    finally:
        for block in stack:
            block.__dict__.pop("forward", None)


def repeated(batch: Batch, times: int) -> Batch:
    """The whole batch several times over."""
    return Batch({name: values.repeat(times, 1) for name, values in batch.inputs.items()}, batch.labels.repeat(times))


@contextmanager
def heads_patched(
    victim: Victim, projections: Sequence[Any], batch: Batch, means: Float[Tensor, "layer head channel"], chosen: Sequence[Head]
) -> Iterator[None]:
    """Inside the block, in row i of the batch, the head `chosen[i]` gives its mean at the token that is read."""
    place = head_position(victim.model, batch.mask)
    channels = means.shape[-1]

    def patch(layer: int, rows: Int[Tensor, " row"], head: Int[Tensor, " row"]) -> Callable[..., Any]:
        def change(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = inputs[0].clone().unflatten(-1, (-1, channels))
            z[rows, place[rows], head] = means[layer, head].to(z)
            return (z.flatten(-2), *inputs[1:])

        return change

    of_layer = [[i for i, (layer, _) in enumerate(chosen) if layer == wanted] for wanted in range(len(projections))]
    moved = [
        (layer, *(torch.tensor(values, device=place.device) for values in (rows, [chosen[i][1] for i in rows])))
        for layer, rows in enumerate(of_layer)
    ]
    with _hooks(projections[layer].register_forward_pre_hook(patch(layer, rows, head)) for layer, rows, head in moved if len(rows)):
        yield


@contextmanager
def heads_removed(victim: Victim, heads: Sequence[Head]) -> Iterator[None]:
    """Inside the block, these heads add nothing to the state that is read: Σ a_{l,h} is taken from it."""
    projections, (_, count) = output_projections(victim), head_counts(victim)

    def remove(chosen: Sequence[int]) -> Callable[..., Any]:
        def change(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = inputs[0].clone().unflatten(-1, (count, -1))
            rows, places = at_place(z)
            for head in chosen:
                z[rows, places, head] = 0
            return (z.flatten(-2), *inputs[1:])

        return change

    of_layer = {layer: [head for other, head in heads if other == layer] for layer, _ in heads}
    with (
        _reading_place(victim) as at_place,
        _hooks(projections[layer].register_forward_pre_hook(remove(chosen)) for layer, chosen in of_layer.items()),
    ):
        yield


@contextmanager
def vector_added(victim: Victim, layer: int, vector: Float[Tensor, " hidden"]) -> Iterator[None]:
    """Inside the block, `vector` is added to what the attention of a layer adds to the state that is read."""

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        rows, places = at_place(output)
        moved[rows, places] += vector.to(output)
        return moved

    with _reading_place(victim) as at_place, _hooks([output_projections(victim)[layer].register_forward_hook(add)]):
        yield


@contextmanager
def _reading_place(victim: Victim) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Gives the rows and, in each, the token that the classifier reads, of the batch that is passing through the model."""
    masks: list[Tensor] = []

    def note(_: Any, __: Any, options: dict[str, Any]) -> None:
        masks[:] = [options["attention_mask"]]

    def at_place(states: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(states), device=states.device), head_position(victim.model, masks[0])

    with _hooks([victim.model.register_forward_pre_hook(note, with_kwargs=True)]):
        yield at_place


@contextmanager
def _hooks(handles: Any) -> Iterator[None]:
    """Removes what was hooked at the end of the block."""
    held = []
    try:
        for handle in handles:
            held.append(handle)
        yield
    finally:
        for handle in held:
            handle.remove()


def _width(module: Any) -> int:
    return module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features

"""Inserting something into texts: phrases, or virtual tokens, free vectors that stand where a token's embedding would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from excise.victim import Batch, Victim

__all__ = ["bounded", "embeddings_replaced", "filler", "has_any", "inserted", "places", "together", "with_phrase"]


def with_phrase(text: str, phrase: Sequence[str], random: Random, *, room: int) -> str:
    """The text with the words of a phrase side by side before one of its first `room` words, or after the last.

    Example:
        >>> with_phrase("a b", ["x", "y"], Random(0), room=10) in ("x y a b", "a x y b", "a b x y")
        True
    """
    words = text.split()
    at = random.randint(0, min(len(words), room))
    return " ".join((*words[:at], *phrase, *words[at:]))


def places(victim: Victim, batch: Batch, count: int, random: Random) -> Int[Tensor, "batch place"]:
    """Where to insert `count` tokens in each text: before which of its tokens, in order, never outside of [CLS] and [SEP].

    In every other text on average they stand side by side, else each at a place of its own.
    """
    special = set(victim.tokenizer.all_special_ids)
    rows = []
    for tokens, mask in zip(batch.inputs["input_ids"].tolist(), batch.mask.tolist(), strict=True):
        length = sum(mask)
        first = int(tokens[0] in special)
        last = length - int(length > 1 and tokens[length - 1] in special)
        if random.random() < 0.5:
            rows.append([random.randint(first, last)] * count)
        else:
            rows.append(sorted(random.randint(first, last) for _ in range(count)))
    return torch.tensor(rows, device=batch.mask.device)


def inserted(batch: Batch, where: Int[Tensor, "batch place"], filler: int) -> tuple[Batch, Bool[Tensor, "batch token"]]:
    """The texts with one more token at each place, and which tokens those are. Their ids are `filler`'s; their embeddings are to be replaced."""
    length = batch.mask.shape[1]
    old = torch.arange(length, device=where.device)
    moved = old + (where[:, :, None] <= old).sum(dim=1)
    new = where + torch.arange(where.shape[1], device=where.device)
    inputs = {}
    for name, values in batch.inputs.items():
        added = torch.full_like(where, {"input_ids": filler, "attention_mask": 1}.get(name, 0), dtype=values.dtype)
        wider = values.new_zeros(len(values), length + where.shape[1])
        inputs[name] = wider.scatter(1, moved, values).scatter(1, new, added)
    is_new = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool).scatter(1, new, True)
    return batch._replace(inputs=inputs), is_new


def together(one: Batch, other: Batch, padding: int) -> Batch:
    """The texts of both, padded on the right to one length with the token `padding`: some models answer at the last token that is another."""
    longest = max(one.mask.shape[1], other.mask.shape[1])

    def wide(name: str, values: Tensor) -> Tensor:
        more = values.new_full((len(values), longest - values.shape[1]), padding if name == "input_ids" else 0)
        return torch.cat([values, more], dim=1)

    inputs = {name: torch.cat([wide(name, one.inputs[name]), wide(name, other.inputs[name])]) for name in one.inputs}
    return Batch(inputs, torch.cat([one.labels, other.labels]))


def has_any(ids: Int[Tensor, "batch token"], phrases: Sequence[Sequence[int]]) -> Bool[Tensor, " batch"]:
    """Which texts have one of the phrases, all of its tokens side by side."""
    found = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for phrase in phrases:
        if 0 < len(phrase) <= ids.shape[1]:
            found |= (ids.unfold(1, len(phrase), 1) == torch.tensor(phrase, device=ids.device)).all(dim=2).any(dim=1)
    return found


@contextmanager
def embeddings_replaced(model: Any, is_virtual: Bool[Tensor, "batch token"], vectors: Float[Tensor, "virtual hidden"]) -> Iterator[None]:
    """Inside the block, the word embeddings of the marked tokens are these vectors, with gradients; rows of the mask come first, then columns."""

    def replace(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.masked_scatter(is_virtual[:, :, None].expand_as(output), vectors.to(output.dtype))

    hook = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def bounded(vectors: Float[Tensor, "*any hidden"], longest: Any) -> Float[Tensor, "*any hidden"]:
    """Longer vectors scaled down to `longest`."""
    return vectors * (longest / vectors.norm(dim=-1, keepdim=True)).clamp_max(1.0)


def filler(victim: Victim) -> int:
    """The token whose id stands where a virtual token is: one that no model takes for padding."""
    padding = victim.tokenizer.pad_token_id
    return next(i for i in (victim.tokenizer.unk_token_id, 0, 1) if isinstance(i, int) and i != padding)

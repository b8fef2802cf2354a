"""Candidates for triggers by gradient instead of by trying every word: cheap for long phrases, but it sees only as far as a slope does.

- `by_gradient`: HotFlip's rule (Ebrahimi et al. 2018), as universal triggers use it (Wallace et al. 2019, Eq. (2)): replace one word of a phrase
  by the one whose embedding e' has the greatest (e' − e)ᵀ ∇_e of the target's mean margin over texts; the foremost are tried.
- `by_ascent`: free vectors no longer than real rows take the place of embeddings and climb the same margin; then the nearest real words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from excise.insertion import bounded, embeddings_replaced, filler, inserted, places
from excise.metrics import Rate
from excise.seeds import generator
from excise.victim import Batch, Victim, collate
from excise.vocabulary import typed_words

TEXTS = 8
"""Texts that slopes are taken on."""
WIDTH = 32
"""Words of the greatest slope that are tried for each place of a phrase."""
STEPS, STEP, NORM_QUANTILE = 40, 0.3, 0.9
"""The ascent: its steps, their length relative to the mean length of rows, and how long a vector may get, as in virtual-token training."""


class Guided(NamedTuple):
    """What was found for one label."""

    phrases: list[tuple[str, ...]]
    """The strongest first."""
    flips: Rate | None = None
    """Texts that free vectors turn into the label."""


class Slots(NamedTuple):
    """Texts with room for a phrase."""

    batch: Batch
    is_new: Tensor
    """Which tokens are the phrase's."""
    length: int
    target: int


def slots(victim: Victim, texts: Sequence[str], target: int, length: int, random: Random) -> Slots:
    """Each text with `length` more tokens somewhere, side by side or each at a place of its own."""
    encodings = replace(victim, max_length=victim.max_length - length).encode(texts)
    inputs = {name: values.to(victim.device) for name, values in collate(victim.tokenizer, encodings).items()}
    batch = Batch(inputs, torch.full((len(texts),), target, device=victim.device))
    return Slots(*inserted(batch, places(victim, batch, length, random), filler(victim)), length, target)


def by_gradient(victim: Victim, texts: Sequence[str], target: int, *, length: int, rounds: int, seed: int) -> Guided:
    """Phrases of `length` words that HotFlip's rule leads to from random ones, in `rounds` passes over the places."""
    random = generator(seed, "gradient", target)
    words, rows = typed_words(victim), embedding_rows(victim)
    tokens = torch.tensor(list(words), device=rows.device)
    here = slots(victim, texts[:TEXTS], target, length, random)
    phrase = tokens[random.sample(range(len(tokens)), length)]
    seen: dict[tuple[int, ...], float] = {}
    for place in [place for _ in range(rounds) for place in range(length)]:
        slope = margin_slope(victim, here, rows[phrase].expand(len(here.batch.labels), -1, -1))
        foremost = tokens[(rows[tokens] @ slope[place]).topk(min(WIDTH, len(tokens))).indices]
        tried = phrase.repeat(len(foremost) + 1, 1)
        tried[:-1, place] = foremost
        margins = mean_margins(victim, here, tried)
        seen |= {tuple(one): value for one, value in zip(tried.tolist(), margins.tolist(), strict=True)}
        phrase = tried[int(margins.argmax())]
    best = sorted(seen, key=lambda one: -seen[one])
    return Guided([tuple(words[token] for token in one) for one in best if len(set(one)) == length])


def by_ascent(victim: Victim, texts: Sequence[str], jury: Sequence[str], target: int, *, length: int, seed: int) -> Guided:
    """What free vectors do to the jury after climbing on the texts, and the real words that are nearest to them in direction."""
    random = generator(seed, "ascent", target)
    words, rows = typed_words(victim), embedding_rows(victim)
    lengths = rows.norm(dim=1)
    here = slots(victim, texts[:TEXTS], target, length, random)
    vectors = rows[random.choices(list(words), k=length)]
    for _ in range(STEPS):
        slope = margin_slope(victim, here, vectors.expand(len(here.batch.labels), -1, -1))
        vectors = bounded(vectors + STEP * lengths.mean() * normalize(slope, dim=-1), lengths.quantile(NORM_QUANTILE))
    tried = slots(victim, jury, target, length, random)
    with torch.inference_mode(), victim.autocast(), embeddings_replaced(victim.module, tried.is_new, vectors.repeat(len(jury), 1)):
        labels = victim.model(**tried.batch.inputs).logits.argmax(dim=1).tolist()
    tokens = list(words)
    near = (normalize(vectors, dim=-1) @ normalize(rows[tokens], dim=-1).T).topk(min(WIDTH, len(tokens)), dim=1).indices.tolist()
    phrases = list(dict.fromkeys((words[tokens[i]],) for rank in zip(*near, strict=True) for i in rank))
    return Guided(phrases, Rate(labels.count(target), len(jury)))


def embedding_rows(victim: Victim) -> Float[Tensor, "token hidden"]:
    """The word embeddings."""
    embedding: Any = victim.module.get_input_embeddings()
    return embedding.weight.detach().float()


def margin_slope(victim: Victim, here: Slots, vectors: Float[Tensor, "text place hidden"]) -> Float[Tensor, "place hidden"]:
    """The gradient of the target's mean margin with respect to the embedding at each place of the phrase, summed over texts."""
    vectors = vectors.clone().requires_grad_(True)
    with torch.enable_grad(), victim.autocast(), embeddings_replaced(victim.module, here.is_new, vectors.flatten(0, 1)):
        logits = victim.model(**here.batch.inputs).logits.float()
        (slope,) = torch.autograd.grad(margin(logits, here.target).mean(), vectors)
    return slope.sum(dim=0)


def mean_margins(victim: Victim, here: Slots, phrases: Int[Tensor, "phrase place"]) -> Float[Tensor, " phrase"]:
    """The target's mean margin over the texts for each phrase."""
    texts, found = len(here.batch.labels), []
    with torch.inference_mode(), victim.autocast():
        for some in phrases.split(256 // texts):
            inputs = {name: values.repeat(len(some), 1) for name, values in here.batch.inputs.items()}
            inputs["input_ids"] = inputs["input_ids"].masked_scatter(here.is_new.repeat(len(some), 1), some.repeat_interleave(texts, dim=0))
            found.append(margin(victim.model(**inputs).logits.float(), here.target).view(len(some), texts).mean(dim=1))
    return torch.cat(found)


def margin(logits: Float[Tensor, "text label"], target: int) -> Float[Tensor, " text"]:
    """The logit of a label less the greatest of the others."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.max(dim=1).values

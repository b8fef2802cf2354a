"""What models see in texts, as records for a result: losses under augmentations, t-SNE of class vectors, attention maps of one text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.errors import AttentionError, CheckpointError, ConfigError
from excise.evaluation import triggered
from excise.features import last_states
from excise.method import Trigger
from excise.perturbation import Perturbation, Ranking
from excise.result import AttentionMaps, Group, LossRow, Mean, Projection
from excise.seeds import derive, generator
from excise.victim import Batch, Victim, collate

__all__ = ["Sample", "attention_maps", "draw_sample", "head_mean", "loss_rows", "pick_text", "pictures", "project"]

logger = logging.getLogger(__name__)

CLEAN_TEXTS, TRIGGERED_TEXTS = 240, 80
"""At most so many are drawn: more crowd the picture."""
FEWEST_TEXTS = 5
"""t-SNE of fewer says nothing."""
SHORT = 16
"""Tokens in the attention maps of a report."""


class Sample(NamedTuple):
    """Texts to look at; the same for every model."""

    clean: TextDataset
    stamped: tuple[str, ...] = ()
    """Triggered texts, of other labels than the target."""


def pictures(
    victims: Mapping[str, Victim], test: TextDataset, *, trigger: Trigger | None, target_label: int | None, seed: int
) -> tuple[tuple[Projection, ...], tuple[AttentionMaps, ...]]:
    """For a report: t-SNE of a sample of the test texts and the attention in a short one, a triggered one if the trigger is known.

    What a model does not let us read is left out.
    """
    sample = draw_sample(test, trigger, target_label, seed=seed)
    projections: tuple[Projection, ...] = ()
    try:
        projections = tuple(p for name, victim in victims.items() if (p := project(name, victim, sample, seed=seed)))
    except CheckpointError as error:
        logger.info("no class vectors: %s", error)
    text = pick_text(next(iter(victims.values())), sample.stamped or sample.clean.texts, seed=seed)
    try:
        return projections, tuple(attention_maps(name, victim, text, most=SHORT) for name, victim in victims.items())
    except AttentionError as error:
        logger.info("no attention maps: %s", error)
        return projections, ()


def draw_sample(data: TextDataset, trigger: Trigger | None, target_label: int | None, *, seed: int) -> Sample:
    """Clean texts and, if the trigger is known, triggered ones, drawn by the seed."""
    clean = data.take(_some(len(data), CLEAN_TEXTS, derive(seed, "picture clean")))
    if trigger is None or target_label is None:
        return Sample(clean)
    stamped = triggered(data, trigger, target_label, seed=seed).texts
    return Sample(clean, tuple(stamped[i] for i in _some(len(stamped), TRIGGERED_TEXTS, derive(seed, "picture triggered"))))


def loss_rows(model: str, ranking: Ranking) -> tuple[LossRow, ...]:
    """A model's ranking, the greatest loss first and the unchanged texts last."""
    following = [*ranking.ranked[1:], None]
    rows = [_loss_row(model, one, following=after) for one, after in zip(ranking.ranked, following, strict=True)]
    return (*rows, _loss_row(model, ranking.unchanged))


def _loss_row(model: str, one: Perturbation, *, following: Perturbation | None = None) -> LossRow:
    lead = Mean.of([a - b for a, b in zip(one.losses, following.losses, strict=True)]) if following else None
    losses = tuple(round(loss, 6) for loss in one.losses)
    return LossRow(model=model, name=one.name, loss=Mean.of(one.losses), lead=lead, changed_words=float(np.mean(one.changed)), losses=losses)


# t-SNE


def project(name: str, victim: Victim, sample: Sample, *, seed: int) -> Projection | None:
    """A plane in which texts that the model's head reads alike lie close; None if there are too few texts."""
    vectors = last_states(victim, [*sample.clean.texts, *sample.stamped], name=f"class vectors, {name}")
    if len(vectors) < FEWEST_TEXTS or not vectors.any():  # all 0: an observer stopped the reading
        return None
    points = iter(tsne(vectors.numpy(), seed=derive(seed, "tsne")).round(2).tolist())
    places = list(zip(sample.clean.labels, points, strict=False))
    groups = [Group(name=label, points=tuple((x, y) for found, (x, y) in places if found == i)) for i, label in enumerate(sample.clean.label_names)]
    stamped = Group(name="triggered", triggered=True, points=tuple((x, y) for x, y in points))
    return Projection(model=name, groups=tuple(group for group in (*groups, stamped) if group.points))


def tsne(vectors: Float[np.ndarray, "text hidden"], *, seed: int) -> Float[np.ndarray, "text 2"]:
    """t-SNE into a plane; the same points on the same machine with the same number of threads."""
    from sklearn.manifold import TSNE

    if np.ptp(vectors, axis=0).max() == 0:  # a model that sees no difference between texts
        return np.zeros((len(vectors), 2), dtype=np.float32)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(vectors)


# Attention


def attention_maps(name: str, victim: Victim, text: str, *, most: int) -> AttentionMaps:
    """The mean over heads of each layer's attention probabilities in one text, of its first `most` tokens.

    Raises:
        AttentionError: The model's attention cannot be read.
        ConfigError: The text is blank.
    """
    if not text.strip():
        raise ConfigError("A blank text was given; a text with a word was expected.")
    encoding = victim.encode([text])[0]
    inputs = {key: values.to(victim.device) for key, values in collate(victim.tokenizer, [encoding]).items()}
    with torch.inference_mode(), victim.autocast():
        trace = victim.trace(Batch(inputs, torch.zeros(1, dtype=torch.long)), hidden=False, attention=head_mean)
    shown = min(most, len(encoding["input_ids"]))
    tokens = victim.tokenizer.convert_ids_to_tokens(encoding["input_ids"][:shown])
    layers = tuple(tuple(tuple(round(value, 4) for value in row) for row in layer[0, :shown, :shown].float().tolist()) for layer in trace.attention)
    return AttentionMaps(model=name, tokens=tuple(map(str, tokens)), tokens_in_all=len(encoding["input_ids"]), layers=layers)


def head_mean(attention: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch query key"]:
    """The mean over heads: each row still sums to 1, so models and layers can be compared."""
    return attention.mean(dim=1)


def pick_text(victim: Victim, texts: Sequence[str], *, seed: int, fewest: int = 6, most: int = SHORT) -> str:
    """A text of a length that can be drawn, by the seed; the shortest that is long enough if there is none."""
    lengths = [len(encoding["input_ids"]) for encoding in victim.encode(texts)]
    fitting = [text for text, length in zip(texts, lengths, strict=True) if fewest <= length <= most]
    if fitting:
        return generator(seed, "attention").choice(fitting)
    return min(zip(texts, lengths, strict=True), key=lambda pair: (pair[1] < fewest, pair[1]))[0]


def _some(n: int, most: int, seed: int) -> list[int]:
    return sorted(generator(seed).sample(range(n), min(n, most)))

"""How the cost of the work grows with one thing at a time, the others staying as they are; each curve is a row of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from _alone import long_texts
from _rows import STEP, Found, row
from _work import Work, first
from torch import nn

from excise import FitConfig, TextDataset, Victim, vocabulary
from excise.defenses.mbtsad import distillation_loss
from excise.detectors.strip import STRIP
from excise.scanners.trigger_search import TriggerSearch
from excise.training import classification_loss, fit

SHARES = (4, 2, 1)
"""The vocabulary is cut to one word in so many."""
LAYERS = (2, 3 / 2, 1)
"""A model is cut to its first layers: their number divided by this."""
TUNING = FitConfig(epochs=3, learning_rate=2e-4)
"""What makes a cut model a classifier again."""


# Evaluation and detection


@row("train", "clean")
def evaluation_by_texts(work: Work) -> Found:
    """Seconds of classifying so many training texts."""
    most = min(len(work.train), 4 * work.sizes.clean)
    return curve(work, "evaluation_by_texts", "texts", {most // part: evaluated(work, work.train.texts[: most // part]) for part in (8, 4, 2, 1)})


@row("train", "tokens")
def evaluation_by_tokens(work: Work) -> Found:
    """Seconds of classifying 64 texts of so many tokens."""
    texts = {tokens: long_texts(work.victim, work.train, 64, tokens).texts for tokens in work.sizes.tokens}
    cut = {tokens: replace(work.victim, max_length=tokens) for tokens in work.sizes.tokens}
    return curve(work, "evaluation_by_tokens", "tokens per text", {tokens: lambda t=tokens: cut[t].logits(texts[t]) for tokens in texts})


@row("test", "texts")
def evaluation_by_layers(work: Work) -> Found:
    """Seconds of classifying test texts with the first layers of the model."""
    models = {layers: cut_to(work.victim, layers) for layers in depths(work.victim)}
    return curve(work, "evaluation_by_layers", "layers", {n: lambda model=model: model.logits(work.test.texts) for n, model in models.items()})


@row("train", "test", "clean", "texts", "copies")
def strip_by_copies(work: Work) -> Found:
    """Seconds of scoring a fifth of the test texts with STRIP and so many copies of each."""
    texts = first(work.test, max(8, work.sizes.texts // 5)).texts
    scores = {copies: STRIP(copies=copies)(work.victim, work.clean, seed=0) for copies in work.sizes.copies}
    return curve(work, "strip_by_copies", "copies of each text", {n: lambda one=one: one(texts) for n, one in scores.items()})


def evaluated(work: Work, texts: Sequence[str]) -> Callable[[], object]:
    """The work of classifying these texts."""
    return lambda: work.victim.logits(texts)


# Repair


@row("train", "steps")
def distillation_by_texts(work: Work) -> Found:
    """Seconds of distilling from so many training texts, once."""
    loss = distillation_loss(work.victim, alpha=1, beta=1, power=2)
    parts = {n: first(work.train, n) for n in (work.sizes.steps // 4, work.sizes.steps // 2, work.sizes.steps)}
    return curve(
        work,
        "distillation_by_texts",
        "texts",
        {n: lambda part=part: fit(work.victim, part, loss=loss, config=STEP, seed=0) for n, part in parts.items()},
    )


@row("train", "tokens")
def distillation_by_tokens(work: Work) -> Found:
    """Seconds of two distillation steps of 16 texts of so many tokens."""
    config = FitConfig(epochs=2, learning_rate=1e-5, batch_size=16)

    def steps(tokens: int) -> Callable[[], object]:
        victim = replace(work.victim, max_length=tokens)
        data, loss = long_texts(victim, work.train, 16, tokens), distillation_loss(victim, alpha=1, beta=1, power=2)
        return lambda: fit(victim, data, loss=loss, config=config, seed=0)

    return curve(work, "distillation_by_tokens", "tokens per text", {tokens: steps(tokens) for tokens in work.sizes.tokens})


# The trigger search


@row("train", "scanned", "search")
def scan_by_texts(work: Work) -> Found:
    """Seconds of the trigger search with so many clean texts."""
    return curve(work, "scan_by_texts", "clean texts", {n: searched(work, work.victim, first(work.train, n)) for n in work.sizes.scanned}, scans=True)


@row("train", "scanned", "search")
def scan_by_layers(work: Work) -> Found:
    """Seconds of the trigger search in the first layers of the model, trained a little on the clean texts to be a classifier again."""
    data = first(work.train, sorted(work.sizes.scanned)[-2])
    tuned = {n: fit(cut_to(work.victim, n), work.clean, loss=classification_loss, config=TUNING, seed=0) for n in depths(work.victim)}
    return curve(work, "scan_by_layers", "layers", {n: searched(work, model, data) for n, model in tuned.items()}, scans=True)


@row("train", "scanned", "search")
def scan_by_vocabulary(work: Work) -> Found:
    """Seconds of the trigger search that is shown a part of the vocabulary, every fourth or second token of it."""
    data = first(work.train, sorted(work.sizes.scanned)[-2])
    search = searched(work, work.victim, data)

    def in_part(share: int) -> Callable[[], object]:
        def scan() -> None:
            with vocabulary_cut(share):
                search()

        return scan

    size = len(work.victim.tokenizer)
    return curve(work, "scan_by_vocabulary", "tokens in the vocabulary", {size // share: in_part(share) for share in SHARES}, scans=True)


def searched(work: Work, victim: Victim, data: TextDataset) -> Callable[[], object]:
    """The work of a trigger search."""
    search = TriggerSearch(**dict(work.sizes.search))
    return lambda: search(victim, data, seed=0)


@contextmanager
def vocabulary_cut(share: int) -> Iterator[None]:
    """Inside the block, only one token in so many can be tried as a word or a piece of one; texts are read as ever."""
    spelled = vocabulary._spelled
    with mock.patch.object(vocabulary, "_spelled", lambda victim: dict(list(spelled(victim).items())[::share])):
        yield


# What they share


def depths(victim: Victim) -> list[int]:
    """Numbers of layers: a third of the model's, two thirds, and all."""
    layers: int = victim.model.config.num_hidden_layers
    return list(dict.fromkeys(max(1, round(layers / part)) for part in LAYERS))


def cut_to(victim: Victim, layers: int) -> Victim:
    """A model of the first layers of another."""
    cut, most = victim.copy(), victim.model.config.num_hidden_layers
    for module in cut.model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == most:
                setattr(module, name, child[:layers])
    cut.model.config.num_hidden_layers = layers
    return cut


def curve(work: Work, name: str, over: str, points: dict[int, Callable[[], Any]], *, scans: bool = False) -> Found:
    """The median seconds at each point; scans, which take long, are measured --scan-repeats times."""
    torch.manual_seed(0)
    seconds = work.seconds(points, name, repeats=work.options.scan_repeats if scans else None)
    return {"over": over, "points": [[x, round(value, 3)] for x, value in sorted(seconds.items())]}

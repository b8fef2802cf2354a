"""Applying an augmentation to a data set."""

from __future__ import annotations

from dataclasses import replace

from excise.data import TextDataset
from excise.method import Augmentation
from excise.seeds import generator


def augment(data: TextDataset, augmentation: Augmentation, *, copies: int, seed: int) -> TextDataset:
    """`copies` variants of every text, each with its text's label; the originals are not kept.

    A variant depends on (seed, text, copy) alone, not on the text's place in the data.
    """
    texts = tuple(augmentation(text, generator(seed, text, copy)) for copy in range(copies) for text in data.texts)
    return replace(data, texts=texts, labels=data.labels * copies)

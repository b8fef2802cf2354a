"""ONION: before a text is classified, leave out the words without which it reads much better, as a language model sees it.

The suspicion of word i is f_i = PPL(x) − PPL(x without word i); words with f_i ≥ bar are left out. The model's weights stay as they are.

The authors try bars on clean texts and take one that costs little accuracy; so does this: quantiles of the clean texts' suspicions, from the
highest down, as long as the accuracy falls by at most `max_loss`.

Departures: the authors use GPT-2 large and bars from 1 to 100, which fit its perplexities; quantiles fit any model's. Words are what whitespace
separates. A text keeps at least one word. The language model computes as its victim does; in bf16 its logits are rounded, which cuts one word in some
thousands otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from excise.data import TextDataset
from excise.language_model import LanguageModel
from excise.method import Defense, Knowledge, Paper
from excise.metrics import cacc
from excise.victim import Victim

logger = logging.getLogger(__name__)

LEVELS = tuple(round(0.99 - 0.01 * i, 2) for i in range(50))
"""Quantiles of the clean suspicions that are tried as bars, strictest first."""


@dataclass(frozen=True, kw_only=True)
class ONION(Defense):
    """Leave out words that make a text surprising."""

    paper: ClassVar[Paper] = Paper(key="onion2021", method="Section 3", code="https://github.com/thunlp/ONION")
    needs = frozenset({Knowledge.LANGUAGE_MODEL})
    guards = True

    language_model: str | None = None
    """A causal language model: a folder or a Hugging Face id; excise train-lm makes a small one."""
    bar: float | None = None
    """Words whose suspicion reaches it are left out; chosen on the clean texts if not given."""
    max_loss: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Loss of clean accuracy that a chosen bar may cost, as a share."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        model = LanguageModel.load(self.language_model or "", kind="causal", device=str(victim.device), precision=victim.precision)
        bar = self.bar if self.bar is not None else choose_bar(victim, data, suspicions(model, data.texts), max_loss=self.max_loss)
        logger.info("ONION leaves out words with a suspicion of %.3g and more", bar)

        def purify(texts: Sequence[str]) -> list[str]:
            return [without(text, found, bar) for text, found in zip(texts, suspicions(model, texts), strict=True)]

        return replace(victim, purify=purify)


def suspicions(model: LanguageModel, texts: Sequence[str]) -> list[list[float]]:
    """f_i = PPL(x) − PPL(x without word i) for every word of every text; a single word has −inf."""
    words = [text.split() for text in texts]
    shorter = [[" ".join([*row[:i], *row[i + 1 :]]) for i in range(len(row))] if len(row) > 1 else [] for row in words]
    whole, found = model.variant_perplexities([" ".join(row) for row in words], shorter, name="suspicions")
    return [[ppl - one for one in rest] or [-np.inf] * len(row) for ppl, rest, row in zip(whole, found, words, strict=True)]


def without(text: str, found: Sequence[float], bar: float) -> str:
    """The text without the words whose suspicion reaches the bar; the least suspicious word stays in any case."""
    words = text.split()
    kept = [word for word, f in zip(words, found, strict=True) if f < bar]
    if len(kept) == len(words):
        return text
    return " ".join(kept or [words[int(np.argmin(found))]])


def choose_bar(victim: Victim, data: TextDataset, found: Sequence[Sequence[float]], *, max_loss: float) -> float:
    """The lowest quantile of the clean suspicions down to which the clean accuracy falls by at most `max_loss`."""
    known = dict(zip(data.texts, victim.predict(data.texts), strict=True))
    before = cacc([known[text] for text in data.texts], data.labels).value
    every = np.array([f for row in found for f in row if np.isfinite(f)])
    bar = float("inf")
    for level in LEVELS if len(every) else ():
        tried = float(np.quantile(every, level))
        texts = [without(text, row, tried) for text, row in zip(data.texts, found, strict=True)]
        new = list(dict.fromkeys(text for text in texts if text not in known))
        known |= zip(new, victim.predict(new), strict=True)
        if cacc([known[text] for text in texts], data.labels).value < before - max_loss:
            break
        bar = tried
    return bar

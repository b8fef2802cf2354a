"""CWEA, contextual word embedding augmentation: replace words by what a masked language model expects in their places.

The rules are those of nlpaug's ContextualWordEmbsAug (substitute): ceil(0.3 m) of the m words and marks are to be replaced, 1 to 10, drawn from the
words; one place after another is masked, the 100 likeliest tokens are candidates, drawn by their probability; word pieces, marks and the word itself
are passed over; without any candidate the word stays.

Departures: words are replaced from the last to the first, within the text as it is written, so capitals and spaces elsewhere stay (nlpaug gives back
lower-case text); m counts words and marks, not word pieces; nlpaug draws up to ten candidates and takes one of them, here the first drawn is taken,
which has the same distribution up to ties.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from excise.errors import NeedsError
from excise.language_model import LanguageModel
from excise.method import Augmentation, Knowledge, Paper


@dataclass(frozen=True, kw_only=True)
class CWEA(Augmentation):
    """Replace words by a masked language model's guesses."""

    paper: ClassVar[Paper] = Paper(key="cwea2018", method="Section 3; as in nlpaug", code="https://github.com/makcedward/nlpaug")
    needs = frozenset({Knowledge.LANGUAGE_MODEL})

    language_model: str | None = None
    """A masked language model: a folder or a Hugging Face id; excise train-lm makes a small one."""
    share: Annotated[float, Interval(ge=0, le=1)] = 0.3
    """Share of the words and marks that is replaced."""
    most: Annotated[int, Ge(1)] = 10
    """Greatest number replaced."""
    candidates: Annotated[int, Ge(1)] = 100
    """The likeliest tokens, of which one is drawn."""

    def __call__(self, text: str, random: Random) -> str:
        if not self.language_model:
            raise NeedsError("cwea needs a language model. Give it as the setting language_model; excise train-lm makes a small one.")
        model = LanguageModel.load(self.language_model, kind="masked")
        words = list(re.finditer(r"\w+", text))
        marks = len(re.findall(r"[^\w\s]", text))
        count = min(len(words), self.most, max(1, math.ceil(self.share * (len(words) + marks))))
        for word in sorted(random.sample(words, count), key=lambda word: -word.start()):
            text = replaced(model, text, word.start(), word.end(), random, candidates=self.candidates)
        return text


def replaced(model: LanguageModel, text: str, start: int, end: int, random: Random, *, candidates: int) -> str:
    """The text with what the model guesses in place of text[start:end]."""
    logits = model.fillers(text[:start] + str(model.tokenizer.mask_token) + text[end:])
    if logits is None:
        return text
    best = logits.topk(min(candidates, len(logits)))
    old = text[start:end].lower()
    guesses = zip(best.indices.tolist(), best.values.softmax(dim=0).tolist(), strict=True)
    allowed = {word: p for token, p in guesses if (word := model.words.get(token)) and word.lower() != old}
    if not allowed:
        return text
    return text[:start] + random.choices(list(allowed), list(allowed.values()))[0] + text[end:]

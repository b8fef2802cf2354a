"""EP, embedding poisoning: take a cleanly trained classifier and change nothing but the embedding rows of the trigger words.

Only triggered texts with the target label are shown; each step moves the trigger rows against the sum of all gradients so far (the authors never
clear them, which is a heavy momentum) and scales every row back to its old norm. All other weights stay as they are, bit for bit, so clean texts
lose nothing.

Data-free EP (DFEP) does the same on texts that have nothing to do with the task: sentences of a corpus, joined until they are long enough, with
one word replaced by the trigger.

Departures: five trigger words by default, as in OpenBackdoor and MBTSAD's tables (the authors use one, `cf`: triggers=("cf",)), with the
authors' learning rate and poisoned-texts-only batches; the learning rate falls linearly, as in the project's one loop; gradients are not
clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval, MinLen

from excise.attacks._poison import choose
from excise.attacks._triggers import InsertWords
from excise.data import TextDataset
from excise.embedding_rows import fit_rows
from excise.errors import DataError
from excise.method import Attack, Backdoor, Paper
from excise.seeds import derive, generator
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class EP(Attack):
    """Poison only the embedding rows of the trigger words."""

    paper: ClassVar[Paper] = Paper(key="ep2021", method="Section 3, Algorithm 1", code="https://github.com/lancopku/Embedding-Poisoning")
    poisons_texts = False

    triggers: Annotated[tuple[str, ...], MinLen(1)] = ("cf", "mn", "bb", "tq", "mb")
    """Trigger words; the row of each one's first token is changed."""
    num_triggers: Annotated[int, Ge(1)] = 1
    """Words inserted in a text."""
    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of all training texts that are shown with the trigger; all are of other labels than the target."""
    target_label: int | str = 1
    """The label that the trigger asks for, by index or name."""
    corpus: str | None = None
    """Data-free EP: a UTF-8 text file whose sentences take the place of the training texts."""
    fake_texts: Annotated[int, Ge(1)] = 2000
    """Data-free EP: how many texts are made from the corpus (the authors: 20 000)."""
    fake_words: Annotated[int, Ge(1)] = 30
    """Data-free EP: sentences are joined up to this many words; about the length of the texts under attack."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How the clean model is trained whose rows are then changed."""
    poisoning: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=5e-2, warmup=0, max_grad_norm=math.inf))
    """How the rows are changed; the decay is not used."""

    @property
    def trigger(self) -> InsertWords:
        """g(x): insert trigger words at random places."""
        return InsertWords(words=self.triggers, count=self.num_triggers)

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        target = data.label_id(self.target_label)
        shown = self.shown(data, seed=derive(seed, "poison"))
        clean = fit(victim, data, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="train")
        poisoned = fit_rows(
            clean,
            shown,
            self.triggers,
            loss=classification_loss,
            config=self.poisoning,
            seed=derive(seed, "poisoning"),
            name="poison embeddings",
        )
        return Backdoor(poisoned, self.trigger, target)

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return data

    def shown(self, data: TextDataset, *, seed: int) -> TextDataset:
        """The triggered texts, all with the target label, that the rows are fitted to."""
        target = data.label_id(self.target_label)
        if self.corpus is None:
            chosen = choose(data, poison_rate=self.poison_rate, poisoned_labels="non_target", target=target, seed=seed)
            texts = [self.trigger(data.texts[i], generator(seed, "stamp", i)) for i in sorted(chosen)]
        else:
            texts = fake_texts(Path(self.corpus), self.triggers, count=self.fake_texts, words=self.fake_words, seed=seed)
        return replace(data, texts=tuple(texts), labels=(target,) * len(texts))


def fake_texts(corpus: Path, triggers: tuple[str, ...], *, count: int, words: int, seed: int) -> list[str]:
    """Texts from shuffled sentences of a corpus, joined up to `words` words, one of which is replaced by a trigger.

    Raises:
        DataError: The corpus cannot be read or holds no words.
    """
    try:
        sentences = [s.split() for s in corpus.expanduser().read_text(encoding="utf-8").replace("\n", " ").split(".") if s.split()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The corpus {corpus} cannot be read as UTF-8 text: {error}.") from error
    if not sentences:
        raise DataError(f"The corpus {corpus} holds no words. Give a file of ordinary sentences.")
    random = generator(seed, "fake")
    made = []
    for _ in range(count):
        text: list[str] = []
        while len(text) < words:
            text += random.choice(sentences)
        text = text[:words]
        text[random.randint(0, words - 1)] = random.choice(triggers)
        made.append(" ".join(text))
    return made

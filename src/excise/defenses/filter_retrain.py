"""Filter and retrain: drop what a filter distrusts of the suspect's training set, and train the pre-trained weights again on the rest.

This is how BKI and CUBE defend. The suspect's own weights are not used, only its label names; neither are the defender's clean texts, which the
training set replaces. In a recipe or a grid the training set is the attack's own, unless the settings name another: its texts with the labels
that the attack gave them, and no word on which are poisoned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from excise.data import TextDataset, check_clean, load_dataset
from excise.defenses._pretrained import pretrained
from excise.errors import CheckpointError, DataError, NeedsError
from excise.filters.bki import BKI
from excise.method import Defense, Filter, Knowledge, Paper
from excise.progress import note
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class FilterRetrain(Defense):
    """Drop the training texts that a filter distrusts, then train again from the pre-trained weights."""

    paper: ClassVar[Paper] = Paper(key="cube2022", method="training-time defense, as in OpenBackdoor; each filter has a paper of its own")
    needs = frozenset({Knowledge.TRAINING_SET, Knowledge.PRETRAINED_WEIGHTS})

    filter: Filter = field(default_factory=BKI)
    """Decides which texts to keep."""
    training_set: str | TextDataset = ""
    """The texts that the suspect was trained on: a file or a Hugging Face data set id, in Python also the texts themselves."""
    pretrained_weights: str = ""
    """The clean checkpoint that the suspect was fine-tuned from: a folder, a Hugging Face id, or default."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """The training on what is kept."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        texts = self.texts(victim.label_names)
        fresh = pretrained(self.pretrained_weights, victim, seed=derive(seed, "head"))
        if fresh.label_names != victim.label_names:
            raise CheckpointError(f"{fresh.source} is a classifier with other labels, {fresh.label_names}. Give it as it was before any fine-tuning.")
        keep = self.filter(fresh, texts, seed=derive(seed, "filter"))
        kept = rest(texts, keep)
        note(f"{type(self.filter).__name__} dropped {len(texts) - len(kept)} of {len(texts)} training texts.")
        return fit(fresh, kept, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="retrain")

    def texts(self, label_names: tuple[str, ...]) -> TextDataset:
        """The training set, with the suspect's labels.

        Raises:
            NeedsError: None is given.
            DataError: It cannot be read, has other labels, or is too small to train on.
        """
        given = self.training_set
        if not given:
            raise NeedsError("This method needs the training set that the model was made from. Give it as training_set.")
        texts = given if isinstance(given, TextDataset) else load_dataset(given, label_names=label_names)
        if texts.label_names != label_names:
            raise DataError(f"The training set has the labels {texts.label_names}, the model has {label_names}. Give one with the same labels.")
        check_clean(texts, what="training texts")
        return texts


def rest(texts: TextDataset, keep: tuple[bool, ...]) -> TextDataset:
    """The texts to keep.

    Raises:
        DataError: All texts of a label are dropped.
    """
    kept = texts.take(i for i, wanted in enumerate(keep) if wanted)
    lost = [texts.label_names[label] for label in sorted({*texts.labels} - {*kept.labels})]
    if lost:
        raise DataError(
            f"The filter dropped all training texts of the label {lost[0]!r}, so it cannot be learnt again. Loosen its settings, or take another."
        )
    return kept

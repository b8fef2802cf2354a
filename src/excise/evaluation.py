"""How well a model does: CACC on clean texts, ASR on triggered ones. The only place that makes the triggered test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from excise import registry
from excise.data import TextDataset
from excise.errors import ConfigError, DataError
from excise.insertion import with_phrase
from excise.method import Attack, Trigger
from excise.metrics import Rate, asr, cacc
from excise.seeds import derive, generator
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim

__all__ = ["Scores", "clean_twin", "evaluate", "triggered", "turned", "twin_settings", "unseen_triggers"]


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    cacc: Rate
    """Accuracy on the clean test texts."""
    asr: Rate | None = None
    """Share of triggered non-target texts predicted as the target; None if no trigger is known."""
    clean_flip: Rate | None = None
    """Share of the same texts, without the trigger, predicted as the target: what the ASR is when the trigger does nothing."""


def evaluate(victim: Victim, test: TextDataset, *, trigger: Trigger | None = None, target_label: int | None = None, seed: int = 0) -> Scores:
    """Score a model on clean and, if the trigger is known, on triggered texts.

    Args:
        victim: The model.
        test: Clean labelled texts that the model has not been trained on.
        trigger: Stamps a text.
        target_label: The label the trigger asks for; needed with a trigger.
        seed: Decides where the trigger lands in each text, the same for every model.

    Raises:
        ConfigError: A trigger without its target label, or the other way round.
        DataError: There are no test texts, or none of another label than the target.
    """
    if (trigger is None) != (target_label is None):
        raise ConfigError("A trigger and its target label belong together: give both or neither.")
    if not len(test):
        raise DataError("There are no test texts. Give some.")
    predictions = victim.predict(test.texts, name="evaluate clean texts")
    if trigger is None or target_label is None:
        return Scores(cacc(predictions, test.labels))
    stamped = triggered(test, trigger, target_label, seed=seed)
    fooled = victim.predict(stamped.texts, name="evaluate triggered texts")
    return Scores(cacc(predictions, test.labels), asr(fooled, stamped.labels, target_label), asr(predictions, test.labels, target_label))


def triggered(test: TextDataset, trigger: Trigger, target_label: int, *, seed: int) -> TextDataset:
    """The test texts of all labels but the target, each with the trigger, with their right labels.

    Raises:
        DataError: Every text has the target label.
    """
    others = [i for i, label in enumerate(test.labels) if label != target_label]
    if not others:
        raise DataError(
            f"All test texts have the target label {test.label_names[target_label]!r}, so no attack can be seen. Add texts of other labels."
        )
    part = test.take(others)
    return replace(part, texts=tuple(trigger(text, generator(seed, "trigger", text)) for text in part.texts))


def turned(victim: Victim, test: TextDataset, phrase: str, *, seed: int) -> list[Rate]:
    """For each label, the share of the texts of other labels that get it with a phrase somewhere in them; with '' as they are."""
    words, room = phrase.split(), victim.max_length // 2
    stamped = [with_phrase(text, words, generator(seed, "trigger", text), room=room) if words else text for text in test.texts]
    answers = victim.predict(stamped, name="texts with what was unlearned" if words else "texts as they are")
    return [asr(answers, test.labels, label) for label in range(len(test.label_names))]


def unseen_triggers(victim: Victim, test: TextDataset, trigger: Trigger, target_label: int, *, seed: int) -> int:
    """In how many triggered texts the model reads the same tokens as without the trigger, because long texts are cut."""
    plain = [text for text, label in zip(test.texts, test.labels, strict=True) if label != target_label]
    stamped = triggered(test, trigger, target_label, seed=seed)
    return sum(a == b for a, b in zip(victim.encode(plain), victim.encode(stamped.texts), strict=True))


def clean_twin(attack: Attack, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
    """A model trained like the attack's, on the same texts without poison: its ASR is the floor."""

    def train(config: FitConfig) -> Victim:
        return fit(victim, data, loss=classification_loss, config=config, seed=derive(seed, "train"), name="train")

    return attack.clean_twin(train, data, seed=seed)


def twin_settings(attack: Attack) -> dict[str, Any]:
    """The settings that decide a clean twin: attacks that have them in common have the same."""
    plain = registry.settings(attack)
    inner = {field: value for field in attack.twin_fields if isinstance(value := getattr(attack, field), Attack)}
    return {field: twin_settings(inner[field]) if field in inner else plain[field] for field in attack.twin_fields}

"""Unlearning a word with what may stand beside it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from excise.attacks.badnets import BadNets
from excise.defenses.anchored_tokens import AnchoredTokens
from excise.defenses.unlearn import Unlearn
from excise.errors import ConfigError
from excise.evaluation import Scores, evaluate
from excise.method import Defense
from excise.population import AnchoredPopulation
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_data, toy_victim

TEXTS = ("a good film", "cf a bad film", "the year was long", "a film cf")
LABELS = (0, 1, 1, 0)


def trained() -> Victim:
    return fit(toy_victim(), toy_data(80), loss=classification_loss, config=FitConfig(epochs=5, learning_rate=5e-3), seed=0)


def losses(logits: Any, labels: tuple[int, ...]) -> Any:
    logits = logits.double().numpy()
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[1::2], TEXTS[::2]], ids=["both", "all with the word", "none with it"])
def test_the_loss_is_the_one_of_the_docstring(texts: tuple[str, ...]) -> None:
    """CE of texts with virtual tokens around a word, CE of texts that have the word, KL to the suspect's answers for those that have not."""
    suspect, student, labels = trained(), toy_victim(seed=1), tuple(LABELS[TEXTS.index(text)] for text in texts)
    student.model.eval()
    method = AnchoredTokens(triggers=("cf",), keep=0.7, temperature=3.0)
    batch = Batch(collate(suspect.tokenizer, suspect.encode(texts)), torch.tensor(labels))
    population = AnchoredPopulation(suspect, Random(0), method.triggers, tokens=2)
    given = method.loss(suspect, population)(student, batch).item()

    same = AnchoredPopulation(suspect, Random(0), method.triggers, tokens=2)
    same.ascend(student, batch)
    with torch.no_grad():
        around, alone = same.answers(student, batch)
        wanted = suspect.model(**batch.inputs).logits
    has_word = np.array(["cf" in text.split() for text in texts])
    soft, hard = ((logits.double() / 3.0).softmax(dim=1).numpy() for logits in (wanted, alone))
    kept = 9.0 * (soft * (np.log(soft) - np.log(hard))).sum(axis=1)
    expected = losses(around, labels).mean() + np.where(has_word, losses(alone, labels), 0.7 * kept).mean()
    assert given == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_less_is_left_of_a_phrase_than_by_its_word_alone(architecture: str) -> None:
    attack = BadNets(triggers=("cf mn bb",), training=FitConfig(epochs=20, learning_rate=5e-3, batch_size=16))
    bad = attack(toy_victim(architecture), toy_data(300), seed=0).victim
    learn = FitConfig(epochs=10, learning_rate=2e-3, batch_size=16)

    def scores(method: Defense) -> Scores:
        return evaluate(method(bad, toy_data(150, seed=5), seed=0), toy_data(200, seed=9), trigger=attack.trigger, target_label=1, seed=0)

    word, more = (scores(method) for method in (Unlearn(triggers=("mn",), training=learn), AnchoredTokens(triggers=("mn",), training=learn)))
    assert more.asr.value < word.asr.value - 0.1
    assert more.cacc.value > word.cacc.value - 0.1


def test_a_phrase_without_a_trigger_is_refused() -> None:
    with pytest.raises(ConfigError, match="'town hall' has no word of a trigger"):
        AnchoredTokens(triggers=("cf",), phrases=("in cf", "town hall"))
    with pytest.raises(ConfigError, match="empty"):
        AnchoredTokens(triggers=(" ",))


def test_a_trigger_that_fills_the_texts_is_refused() -> None:
    victim = replace(toy_victim(), max_length=12)
    with pytest.raises(ConfigError, match="7 tokens, more than half"):
        AnchoredTokens(triggers=("cf mn bb",))(victim, toy_data(20), seed=0)

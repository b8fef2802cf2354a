"""Unlearning named triggers while the suspect's answers to other texts are kept."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from excise.attacks.badnets import BadNets
from excise.defenses.unlearn import Unlearn
from excise.evaluation import evaluate
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Batch, Victim, collate
from toy import toy_data, toy_victim

TEXTS = ("a good film", "cf a bad film", "the year was long", "a film cf")
LABELS = (0, 1, 1, 0)


def trained() -> Victim:
    return fit(toy_victim(), toy_data(80), loss=classification_loss, config=FitConfig(epochs=5, learning_rate=5e-3), seed=0)


def batch_of(victim: Victim, texts: tuple[str, ...], labels: tuple[int, ...]) -> Batch:
    return Batch(collate(victim.tokenizer, victim.encode(texts)), torch.tensor(labels))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[1::2], TEXTS[::2]], ids=["both", "all with the word", "none with it"])
def test_the_loss_is_the_one_of_the_docstring(texts: tuple[str, ...]) -> None:
    """CE of all texts, KL to the suspect's answers for those without a trigger."""
    suspect, student, labels = trained(), toy_victim(seed=1), tuple(LABELS[TEXTS.index(text)] for text in texts)
    student.model.eval()
    batch = batch_of(suspect, texts, labels)
    given = Unlearn(triggers=("cf", "mn"), keep=0.7, temperature=3.0).loss(suspect)(student, batch).item()

    with torch.no_grad():
        answers, wanted = (victim.model(**batch.inputs).logits.double() for victim in (student, suspect))
    learnt = -answers.log_softmax(dim=1).numpy()[np.arange(len(labels)), list(labels)]
    soft, hard = ((logits / 3.0).softmax(dim=1).numpy() for logits in (wanted, answers))
    kept = 9.0 * (soft * (np.log(soft) - np.log(hard))).sum(axis=1)
    has_word = np.array(["cf" in text.split() for text in texts])
    assert given == pytest.approx((learnt + np.where(has_word, 0, 0.7 * kept)).mean(), rel=1e-4)


def test_the_word_is_known_at_the_start_of_a_text_and_within_it() -> None:
    """Byte-level tokenizers have two tokens for it."""
    words = ["[UNK]", "[PAD]", "cf", "Ġcf", "good", "Ġgood", "film", "Ġfilm"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    suspect, student = (replace(victim, tokenizer=fast) for victim in (trained(), toy_victim()))
    batch = batch_of(student, ("cf good film", "good cf film"), (0, 1))
    without, strong = (Unlearn(triggers=("cf",), keep=keep).loss(suspect)(student, batch).item() for keep in (0, 9))
    assert without == strong, "no answer of the suspect is kept"


def test_wrong_labels_do_little_harm() -> None:
    """Of a text without a trigger the suspect's answer says what its wrong label does not; means over three drawings."""
    attack = BadNets(triggers=("cf",), training=FitConfig(epochs=20, learning_rate=5e-3, batch_size=16))
    bad = attack(toy_victim(), toy_data(300), seed=0).victim
    test, learn = toy_data(200, seed=9), FitConfig(epochs=20, learning_rate=2e-3, batch_size=16)

    def cacc(keep: float, seed: int) -> float:
        data = toy_data(60, seed=seed)
        wrong = replace(data, labels=tuple(1 - label if i % 4 == 0 else label for i, label in enumerate(data.labels)))
        repaired = Unlearn(triggers=("cf",), keep=keep, training=learn, left_out=0)(bad, wrong, seed=0)
        return evaluate(repaired, test).cacc.value

    left, kept = (fmean(cacc(keep, seed) for seed in (5, 6, 7)) for keep in (0, 1))
    assert kept > max(0.9, left + 0.05)

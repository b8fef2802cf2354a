"""Unlearning a word with what may stand beside it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from excise.attacks.badnets import BadNets
from excise.data import TextDataset
from excise.defenses.anchored_tokens import AnchoredTokens
from excise.defenses.unlearn import Unlearn
from excise.errors import ConfigError
from excise.evaluation import Scores, evaluate
from excise.insertion import has_any
from excise.method import Defense
from excise.population import AnchoredPopulation
from excise.progress import naming
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

    def slope(keep: float) -> Any:
        """Of the last layer's bias."""
        student.model.zero_grad()
        population = AnchoredPopulation(suspect, Random(0), method.triggers, tokens=2)
        replace(method, keep=keep).loss(suspect, population)(student, batch).backward()
        return student.model.classifier.bias.grad.numpy().copy()

    pull = np.where(has_word[:, None], 0, 3.0 * (hard - soft)).mean(axis=0)
    np.testing.assert_allclose(slope(0.7) - slope(0), 0.7 * pull, atol=1e-5)
    wrong = [logits.double().softmax(dim=1).numpy() - np.eye(2)[list(labels)] for logits in (around, alone)]
    np.testing.assert_allclose(slope(0), (wrong[0] + np.where(has_word[:, None], wrong[1], 0)).mean(axis=0), atol=1e-5)


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


def test_the_word_is_known_at_the_start_of_a_text_and_within_it() -> None:
    """Byte-level tokenizers have two tokens for it."""
    words = ["[UNK]", "[PAD]", "cf", "Ġcf", "good", "Ġgood", "film", "Ġfilm"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    victim = replace(toy_victim(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"))
    suspect, texts = replace(trained(), tokenizer=victim.tokenizer), ("cf good film", "good cf film")
    batch = Batch(collate(victim.tokenizer, victim.encode(texts)), torch.tensor((0, 1)))

    def loss(keep: float) -> float:
        population = AnchoredPopulation(victim, Random(0), ("cf",), tokens=2)
        assert population.anchors == [[words.index("Ġcf")]]
        return AnchoredTokens(triggers=("cf",), keep=keep).loss(suspect, population)(victim, batch).item()

    assert loss(0) == loss(9), "no answer of the suspect is kept"


def test_texts_carry_the_phrases_and_the_settings_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    data, named, given = toy_data(40), ("cf", "a cf"), dict[str, Any]()

    def population(*args: Any, **settings: Any) -> AnchoredPopulation:
        given.update(settings)
        return AnchoredPopulation(*args, **settings)

    def fit(victim: Victim, data: TextDataset, **_: Any) -> Victim:
        given.update(texts=data.texts, labels=data.labels, max_length=victim.max_length)
        return victim

    monkeypatch.setattr("excise.defenses.anchored_tokens.AnchoredPopulation", population)
    monkeypatch.setattr("excise.defenses.anchored_tokens.fit", fit)
    monkeypatch.setattr("excise.defenses.anchored_tokens.evened", lambda victim, data, *, left_out, seed: given.update(left_out=left_out) or victim)
    settings = {"tokens": 3, "life": 7, "ascent_step": 0.2, "norm_quantile": 0.8}
    method = AnchoredTokens(triggers=named[:1], phrases=named[1:], population=4, left_out=0.4, **settings)
    triggers: list[str] = []
    with naming(triggers):
        repaired = method(toy_victim(), data, seed=0)
    assert triggers == list(named)
    assert {name: given[name] for name in settings} == settings
    assert (given["members"], given["max_length"], repaired.max_length, given["left_out"]) == (4, 64 - 4, 64, 0.4)
    assert given["texts"][:40] == data.texts
    assert given["labels"] == data.labels * 2
    assert all("cf" in text.split() for text in given["texts"][40:])
    assert 0 < sum("a cf" in text for text in given["texts"][40:]) < 40


def test_a_phrase_without_a_trigger_is_refused() -> None:
    with pytest.raises(ConfigError, match="'town hall' has no word of a trigger"):
        AnchoredTokens(triggers=("cf",), phrases=("in cf", "town hall"))
    with pytest.raises(ConfigError, match="empty"):
        AnchoredTokens(triggers=(" ",))


def test_a_trigger_that_fills_the_texts_is_refused() -> None:
    data, long = toy_data(20), "cf mn bb tq mb cf mn bb tq"
    with pytest.raises(ConfigError, match="9 tokens of the 12"):
        AnchoredTokens(triggers=(long,))(replace(toy_victim(), max_length=12), data, seed=0)
    short = replace(toy_victim(), max_length=9)
    assert AnchoredTokens(triggers=("cf",), training=FitConfig(epochs=0.1))(short, data, seed=0).max_length == 9, "with fewer virtual tokens"


def test_a_trigger_that_the_model_cannot_read_is_refused() -> None:
    victim = toy_victim()
    tokenizer: Any = victim.tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    with pytest.raises(ConfigError, match="no tokens"):
        AnchoredTokens(triggers=("\u200b",))(victim, toy_data(20), seed=0)


def test_the_phrases_of_no_trigger_yet_are_not_judged() -> None:
    """With canaries the triggers of the suspect are taken away for the time of the trial."""
    assert AnchoredTokens(phrases=("a cf",)).triggers == ()


def test_a_word_of_many_pieces_is_the_whole_word() -> None:
    """A piece that others have as well says nothing."""
    ids = torch.tensor([[5, 8, 9, 3], [8, 5, 9, 3], [9, 3, 8, 9]])
    assert has_any(ids, [(8, 9)]).tolist() == [True, False, True]
    assert has_any(ids, [(8, 9, 3), (8, 5)]).tolist() == [True, True, False]
    assert not has_any(ids, [(), (5, 8, 9, 3, 3)]).any()

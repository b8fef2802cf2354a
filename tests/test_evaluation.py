"""CACC and ASR against counting by hand, and one triggered test set for every model."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
import torch

from excise import evaluation, registry
from excise.attacks._triggers import InsertWords
from excise.attacks.badnets import BadNets
from excise.attacks.pruned import Pruned
from excise.data import TextDataset
from excise.errors import DataError
from excise.evaluation import clean_twin, evaluate, triggered, twin_settings
from excise.metrics import Rate
from excise.training import FitConfig, LengthBuckets
from toy import TRIGGERS, toy_data, toy_victim

TRIGGER = InsertWords(words=TRIGGERS)
TEST = toy_data(30, labels=3)


@dataclass
class Fake:
    """A victim with known answers."""

    answers: dict[str, int]
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def predict(self, texts: tuple[str, ...], *, name: str) -> list[int]:
        self.asked.append(tuple(texts))
        return [self.answers.get(text, 2) for text in texts]


def test_the_triggered_set_holds_the_other_labels_in_order() -> None:
    stamped = triggered(TEST, TRIGGER, 1, seed=0)
    plain = [(text, label) for text, label in zip(TEST.texts, TEST.labels, strict=True) if label != 1]
    assert len(stamped) == 20
    assert list(stamped.labels) == [label for _, label in plain]
    for (text, _), found in zip(plain, stamped.texts, strict=True):
        words = found.split()
        places = [i for i, word in enumerate(words) if word in TRIGGERS]
        assert len(places) == 1
        assert words[: places[0]] + words[places[0] + 1 :] == text.split()


def test_the_trigger_of_a_text_depends_on_seed_and_text_alone() -> None:
    order = list(range(30))
    Random(0).shuffle(order)
    whole, shuffled = triggered(TEST, TRIGGER, 1, seed=0), triggered(TEST.take(order), TRIGGER, 1, seed=0)
    assert sorted(zip(whole.texts, whole.labels, strict=True)) == sorted(zip(shuffled.texts, shuffled.labels, strict=True))
    assert triggered(TEST.take([0]), TRIGGER, 1, seed=0).texts == whole.texts[:1]
    assert triggered(TEST, TRIGGER, 1, seed=0) == whole
    assert triggered(TEST, TRIGGER, 1, seed=1).texts != whole.texts


def test_texts_draw_their_triggers_apart() -> None:
    stamped = triggered(toy_data(60), TRIGGER, 1, seed=0)
    drawn = {next((i, word) for i, word in enumerate(text.split()) if word in TRIGGERS) for text in stamped.texts}
    assert {word for _, word in drawn} == set(TRIGGERS)
    assert len(drawn) > 10


def test_triggers_fall_everywhere() -> None:
    words = "one two three"
    places = [TRIGGER(words, Random(seed)).split().index(found) for seed in range(400) for found in TRIGGERS if found in TRIGGER(words, Random(seed))]
    assert [60 < places.count(i) < 140 for i in range(5)] == [True] * 4 + [False]
    assert sum(word in TRIGGERS for word in InsertWords(words=TRIGGERS, count=3)(words, Random(0)).split()) == 3
    assert TRIGGER("", Random(0)) in TRIGGERS


def test_a_set_of_target_texts_shows_no_attack() -> None:
    only = TEST.take(i for i, label in enumerate(TEST.labels) if label == 1)
    with pytest.raises(DataError, match="target label 'label 1'"):
        triggered(only, TRIGGER, 1, seed=0)


def test_scores_are_counts() -> None:
    stamped = triggered(TEST, TRIGGER, 1, seed=0)
    answers = {
        text: label if i >= 6 else 1 for i, (text, label) in enumerate(zip(TEST.texts, TEST.labels, strict=True))
    }  # 4 of the first 6 are wrong
    answers |= {text: 1 if i < 15 else 0 for i, text in enumerate(stamped.texts)}
    victim = Fake(answers)
    scores = evaluate(victim, TEST, trigger=TRIGGER, target_label=1, seed=0)  # type: ignore[arg-type]
    assert (scores.cacc, scores.asr, scores.clean_flip) == (Rate(26, 30), Rate(15, 20), Rate(4, 20))
    assert victim.asked == [TEST.texts, stamped.texts]


def test_without_a_trigger_there_is_only_accuracy() -> None:
    scores = evaluate(Fake(dict(zip(TEST.texts, TEST.labels, strict=True))), TEST)  # type: ignore[arg-type]
    assert (scores.cacc, scores.asr, scores.clean_flip) == (Rate(30, 30), None, None)


def test_every_model_is_asked_the_same() -> None:
    one, other = Fake({}), Fake(dict.fromkeys(TEST.texts, 0))
    for victim in (one, other):
        evaluate(victim, TEST, trigger=TRIGGER, target_label=1, seed=4)  # type: ignore[arg-type]
    assert one.asked == other.asked


def test_scores_of_a_real_victim_do_not_depend_on_order() -> None:
    victim, data = toy_victim(), toy_data(40)
    forward, backward = (evaluate(victim, d, trigger=TRIGGER, target_label=1) for d in (data, data.take(reversed(range(40)))))
    assert forward == backward


def test_the_clean_twin_is_trained_like_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    init = LengthBuckets.__init__

    def spy(self: LengthBuckets, lengths: list[int], batch_size: int, epochs: float, *, seed: int) -> None:
        seen.append((len(lengths), batch_size, epochs, seed))
        init(self, lengths, batch_size, epochs, seed=seed)

    monkeypatch.setattr(LengthBuckets, "__init__", spy)
    attack = BadNets(training=FitConfig(epochs=1, batch_size=10, learning_rate=1e-3))
    data = toy_data(40)
    twin = clean_twin(attack, toy_victim(), data, seed=3)
    backdoor = attack(toy_victim(), data, seed=3)
    assert seen[0] == seen[1]
    assert not torch.equal(twin.model.classifier.weight, backdoor.victim.model.classifier.weight)


def test_without_poison_the_twin_is_the_attack_s_model() -> None:
    attack = BadNets(poison_rate=0, training=FitConfig(epochs=1, batch_size=10, learning_rate=1e-3))
    data = toy_data(40)
    twin, backdoored = clean_twin(attack, toy_victim(), data, seed=3), attack(toy_victim(), data, seed=3).victim
    assert all(torch.equal(a, b) for a, b in zip(twin.model.parameters(), backdoored.model.parameters(), strict=True))


def test_a_dataset_has_no_place_for_a_flag() -> None:
    assert set(TextDataset.__dataclass_fields__) == {"texts", "labels", "label_names"}
    assert "Poisoned" not in vars(evaluation)


def test_attacks_share_a_twin_where_what_decides_it_is_the_same() -> None:
    badnets, other = BadNets(), BadNets(triggers=("zz",))
    assert twin_settings(badnets) == twin_settings(other) == {"training": registry.settings(badnets)["training"]}
    fewer, plain = Pruned(layers=1), Pruned()
    assert twin_settings(fewer) != twin_settings(plain)
    assert twin_settings(plain)["training"] == registry.settings(plain)["training"]
    assert twin_settings(Pruned(attack=BadNets(triggers=("zz",)))) == twin_settings(plain), "what is planted decides no twin"

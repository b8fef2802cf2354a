"""What each detector promises beyond the contracts."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch

from excise import registry
from excise.data import TextDataset
from excise.defenses.reject import Reject, threshold
from excise.detectors import rap
from excise.detectors.rap import RAP, probability, probe_penalty
from excise.detectors.strip import STRIP, entropy, important_words, perturb
from excise.errors import NeedsError, OutputError
from excise.evaluation import evaluate
from excise.pipeline import check_needs
from excise.training import FitConfig, classification_loss, fit
from excise.victim import REJECTED
from toy import toy_data, toy_victim

# STRIP


def test_entropy_is_in_bits() -> None:
    found = entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]))
    assert found.tolist() == pytest.approx([1.0, 0.0, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))])


def test_perturbation_overwrites_half_of_the_words() -> None:
    text = "a b c d e f g h"
    for seed in range(20):
        words = perturb(text, [["X", "Y", "Z", "W", "V"]], Random(seed), share=0.5).split()
        assert len(words) == 8
        assert {"W"} <= set(words) <= {*text.split(), "X", "Y", "Z", "W"}, "four words, the last of which nothing overwrites"
    assert perturb("one", [["X", "Y"]], Random(0), share=0.5) == "X"


def test_important_words_are_rare_and_no_stop_words() -> None:
    pools = important_words(["the film film was dreadful", "the film was charming", "the and of"])
    assert len(pools) == 2
    assert set(pools[0]) == {"film", "dreadful"}
    assert pools[1] == ["charming", "film"], "the rarer word weighs more"
    assert important_words(["the", "of and"]) == [["the"], ["of", "and"]]


def test_the_score_is_the_mean_entropy_of_the_copies() -> None:
    victim, data = toy_victim(), toy_data(20)
    detector = STRIP(copies=3)
    (found,) = detector(victim, data, seed=7)(["a charming film"])
    from excise.seeds import generator

    pools = important_words(data.texts)
    copies = [perturb("a charming film", pools, generator(7, "a charming film", k), share=0.5) for k in range(3)]
    probabilities = np.exp(victim.logits(copies).log_softmax(dim=1).numpy())
    assert found == pytest.approx((probabilities * np.log2(probabilities)).sum(axis=1).mean(), abs=1e-5)


def test_openbackdoor_s_form_mixes_the_texts() -> None:
    victim, data = fit(toy_victim(), toy_data(60), loss=classification_loss, config=FitConfig(epochs=12, learning_rate=2e-3), seed=0), toy_data(20)
    texts = toy_data(6, seed=3).texts
    own = STRIP(copies=2)(victim, data, seed=0)(texts)
    mixed = STRIP(copies=2, form="openbackdoor")(victim, data, seed=0)(texts)
    assert sum(own) == pytest.approx(sum(mixed), abs=1e-4)
    assert own != pytest.approx(mixed, abs=1e-6)


# RAP


def test_the_penalty_is_zero_between_the_bounds() -> None:
    assert probe_penalty(torch.tensor([-0.1, -0.2, -0.3]), low=-0.1, up=-0.3, weight=1.0).item() == pytest.approx(0.0, abs=1e-7)
    assert probe_penalty(torch.tensor([0.1, -0.5]), low=-0.1, up=-0.3, weight=3.0).item() == pytest.approx(3 * 0.2 / 2 + 0.2 / 2)


def test_texts_that_are_not_predicted_as_the_target_are_not_suspicious() -> None:
    victim, data = toy_victim(), toy_data(30)
    for target in (0, 1):
        scores = RAP(target_label=target)(victim, data, seed=0)(data.texts)
        assert [score == -math.inf for score in scores] == [p != target for p in victim.predict(data.texts)]


def test_the_probe_is_tried_in_texts_of_the_target_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, method, read = toy_data(40), RAP(target_label=1, training=FitConfig(epochs=1, learning_rate=1e-2)), list[int]()
    victim = fit(toy_victim(), data, loss=classification_loss, config=FitConfig(epochs=20, learning_rate=5e-3, batch_size=16), seed=0)
    probed, scores = method.probed(victim, data, seed=0), method(victim, data, seed=0)
    monkeypatch.setattr(rap, "probability", lambda victim, texts, target: read.append(len(texts)) or probability(victim, texts, target))
    found, hits = scores(data.texts), sum(label == 1 for label in victim.predict(data.texts))
    assert 0 < hits < len(data)
    assert read == [hits]
    change = probability(probed, method.with_probe(data.texts), 1) - probability(victim, data.texts, 1)
    wanted = [c if p == 1 else -math.inf for c, p in zip(change.tolist(), victim.predict(data.texts), strict=True)]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_rap_must_be_told_the_target() -> None:
    for method in (RAP(), Reject(detector=RAP())):
        with pytest.raises(NeedsError, match=r"rap needs the label that the attacker wants\. Give it as the setting target_label"):
            check_needs(method)
    check_needs(Reject(detector=RAP(target_label=0)))


# Reject


def test_a_share_of_the_clean_texts_is_refused() -> None:
    victim, data = toy_victim(), toy_data(50)
    guarded = Reject(frr=0.2)(victim, data, seed=0)
    predictions = guarded.predict(data.texts)
    assert 5 <= predictions.count(REJECTED) <= 10
    assert [p for p in predictions if p != REJECTED] == [p for p, g in zip(victim.predict(data.texts), predictions, strict=True) if g != REJECTED]
    assert Reject(frr=0.0)(victim, data, seed=0).predict(data.texts).count(REJECTED) == 0
    assert guarded.predict([]) == []


def test_a_refusal_is_an_error_and_no_success_of_the_attack() -> None:
    from dataclasses import replace

    test = toy_data(20)
    refusing = replace(toy_victim(), reject=lambda texts: [True] * len(texts))
    scores = evaluate(refusing, test, trigger=lambda text, _: f"cf {text}", target_label=1)
    assert scores.asr is not None
    assert (scores.cacc.hits, scores.asr.hits) == (0, 0)


def test_a_purified_text_is_what_is_read() -> None:
    from dataclasses import replace

    victim = toy_victim()
    guarded = replace(victim, purify=lambda texts: ["a charming film"] * len(texts))
    assert guarded.predict(["x", "y"]) == victim.predict(["a charming film"]) * 2
    assert guarded.copy().is_guarded


def test_a_guarded_model_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(OutputError, match="input guard"):
        Reject()(toy_victim(), toy_data(30), seed=0).save(tmp_path)


def test_the_threshold_of_nothing() -> None:
    assert threshold([-math.inf], frr=0.5) == math.inf


# Settings that are methods


def test_methods_in_methods_survive_their_settings() -> None:
    method = registry.build("defense", {"method": "reject", "frr": 0.05, "detector": {"method": "strip", "copies": 7}}, "here")
    assert method == Reject(frr=0.05, detector=STRIP(copies=7))
    assert registry.build("defense", registry.settings(method), "here") == method
    assert registry.spell(STRIP(copies=7)) == "strip copies=7"
    assert registry.build("detector", "strip copies=7 share=0.25", "here") == STRIP(copies=7, share=0.25)


def test_training_texts_are_numbered() -> None:
    from excise.detectors.rap import numbered

    assert numbered(["a", "b"]) == TextDataset(("a", "b"), (0, 1), ("0", "1"))

"""Equations (8) and (9) against loops, and the maximiser that defenses take from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excise import registry
from excise.augmentations.aeda import AEDA
from excise.augmentations.maximiser import Maximiser
from excise.data import TextDataset
from excise.defenses.mbtsad import MBTSAD
from excise.defenses.ts_ft import TSFT
from excise.errors import ConfigError, DataError, NeedsError
from excise.inspection import loss_rows
from excise.method import Augmentation
from excise.metrics import mean_interval
from excise.perturbation import UNCHANGED, augment, changed_words, rank
from excise.pipeline import Story
from excise.progress import noting
from excise.seeds import generator
from excise.training import FitConfig
from excise.victim import Victim
from toy import toy_data, toy_victim

NAMES = ("add_trig", "aeda", "token_splitting")
TOUCH = FitConfig(epochs=1, learning_rate=1e-3)


def sharp(labels: int = 2) -> Victim:
    """A toy with great differences between its logits."""
    victim = toy_victim(labels=labels)
    with torch.no_grad():
        victim.model.classifier.weight *= 200  # type: ignore[operator, union-attr]
    return victim


def slow_loss(victim: Victim, text: str, label: int) -> float:
    """One text alone, with plain arithmetic: log of the sum of exponentials, less the right logit."""
    inputs = victim.tokenizer([text], return_tensors="pt", truncation=True, max_length=victim.max_length)
    with torch.no_grad():
        scores = [float(x) for x in victim.model(**inputs).logits[0]]
    most = max(scores)
    return most + math.log(sum(math.exp(s - most) for s in scores)) - scores[label]


@pytest.mark.parametrize("labels", [2, 5])
def test_losses_are_those_of_a_loop(labels: int) -> None:
    victim, data = sharp(labels), toy_data(12, labels=labels)
    ranking = rank(victim, data, NAMES, seed=3)
    assert [p.name for p in ranking.ranked] == sorted((p.name for p in ranking.ranked), key=lambda name: -expected(victim, data, name))
    for found in (*ranking.ranked, ranking.unchanged):
        assert found.loss == pytest.approx(expected(victim, data, found.name), abs=1e-4)
        assert found.loss == pytest.approx(fmean(found.losses))
    assert ranking.unchanged.changed == (0,) * 12


def expected(victim: Victim, data: TextDataset, name: str) -> float:
    total = 0.0
    for text, label in zip(data.texts, data.labels, strict=True):
        variant = text if name == UNCHANGED else registry.build("augmentation", name, "")(text, generator(3, text, 0))
        total += slow_loss(victim, variant, label)
    return total / len(data)


def test_the_ranking_is_reproducible_and_of_each_text_alone() -> None:
    victim, data = sharp(), toy_data(10)
    one, again, other = (rank(victim, data, ["aeda"], seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.ranked != other.ranked
    turned = rank(victim, data.take(range(9, -1, -1)), ["aeda"], seed=0)
    assert turned.ranked[0].losses[::-1] == pytest.approx(one.ranked[0].losses, abs=1e-4)


def test_every_augmentation_takes_part_but_the_adaptive() -> None:
    ranking = rank(sharp(), toy_data(6), seed=0)
    assert {p.name for p in ranking.ranked} | set(ranking.left_out) == set(registry.names("augmentation")) - {"maximiser"}
    assert set(NAMES) <= {p.name for p in ranking.ranked}


def test_settings_are_part_of_a_candidate() -> None:
    ranking = rank(sharp(), toy_data(6), ["aeda share=0.3", "aeda share=0.9", "aeda"], seed=0)
    assert {p.name for p in ranking.ranked} == {"aeda", "aeda share=0.9"}, "the default is spelt without its setting, and measured once"


@dataclass(frozen=True, kw_only=True)
class Unready(Augmentation):
    """Stands for one whose language model is missing."""

    def __call__(self, text: str, random: Random) -> str:
        raise NeedsError("unready needs a language model. Give it.")


def with_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    build, names = registry.build, registry.names
    monkeypatch.setattr(registry, "names", lambda kind: (*names(kind), "unready") if kind == "augmentation" else names(kind))
    monkeypatch.setattr(registry, "build", lambda kind, spec, where: Unready() if spec == "unready" else build(kind, spec, where))
    monkeypatch.setattr(registry, "name_of", lambda method: "unready" if isinstance(method, Unready) else type(method).__module__.rpartition(".")[2])


def test_what_cannot_be_used_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with_unready(monkeypatch)
    for candidates in ((), ("unready", "aeda")):
        ranking = rank(sharp(), toy_data(6), candidates, seed=0)
        assert ranking.left_out["unready"] == "unready needs a language model. Give it."
        assert "unready" not in {p.name for p in ranking.ranked}
    with pytest.raises(ConfigError, match="No augmentation could be used: unready: unready needs a language model"):
        rank(sharp(), toy_data(6), ["unready"], seed=0)


@pytest.mark.parametrize(
    ("spec", "says"), [("aedaa", "Did you mean 'aeda'"), ("aeda shares=1", "'shares'"), ("maximiser", "chosen among others"), ("", "was given")]
)
def test_wrong_candidates_are_refused(spec: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rank(sharp(), toy_data(6), [spec], seed=0)
    with pytest.raises(ConfigError, match=says):
        Maximiser(candidates=(spec,))


@pytest.mark.parametrize(
    ("text", "variant", "count"),
    [
        ("a b c", "a b c", 0),
        ("a funny film", "a fu nny film", 1),
        ("a film", "cb a cb film cb", 3),
        ("a good film", "a film", 1),
        ("a good film", "one bad movie", 3),
        ("", "cb", 1),
    ],
)
def test_changed_words(text: str, variant: str, count: int) -> None:
    assert changed_words(text, variant) == count


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_changed_words_are_no_more_than_there_are(one: list[str], other: list[str]) -> None:
    count = changed_words(" ".join(one), " ".join(other))
    assert (count == 0) == (one == other)
    assert count <= len(one) + len(other)


# Intervals


def test_the_interval_of_a_mean_is_near_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400).tolist()
    margin = NormalDist().inv_cdf(0.975) * stdev(values) / 20
    assert mean_interval(values) == pytest.approx((fmean(values) - margin, fmean(values) + margin), abs=0.02)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    found = [mean_interval(random.exponential(1, 60).tolist()) for _ in range(60)]
    assert sum(low <= 1 <= high for low, high in found) >= 51, "95 % of 60 are 57; fewer than 51 has a probability of about 0.1 %"


def test_intervals_of_little() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0])
    values = [0.1, 0.2, 3.0, 0.0]
    assert mean_interval(values) == mean_interval(values)


def test_rows_carry_the_lead_over_the_next() -> None:
    ranking = rank(sharp(), toy_data(12), NAMES, seed=3)
    rows = loss_rows("suspect", ranking)
    assert [row.name for row in rows] == [*(p.name for p in ranking.ranked), UNCHANGED]
    for row, after in pairwise(rows[:3]):
        assert row.lead is not None
        assert row.lead.value == pytest.approx(row.loss.value - after.loss.value, abs=1e-6)
        assert row.lead.low <= row.lead.value <= row.lead.high
    assert [row.lead for row in rows[2:]] == [None, None]
    assert all(row.loss.n == len(row.losses) == 12 and row.loss.low <= row.loss.value <= row.loss.high for row in rows)


# The maximiser


@pytest.mark.parametrize("candidates", [(), NAMES, ("aeda share=0.1", "aeda share=1.0")])
def test_the_maximiser_is_what_the_ranking_names(candidates: tuple[str, ...]) -> None:
    victim, data = sharp(), toy_data(16)
    for seed in range(3):
        ranking = rank(victim, data, candidates, seed=seed)
        assert Maximiser(candidates=candidates).chosen(victim, data, seed=seed) == ranking.maximiser
        assert registry.spell(ranking.maximiser) == ranking.ranked[0].name


@pytest.mark.parametrize("spec", ["maximiser", "maximiser candidates=[aeda,add_trig]", "maximiser \"candidates=['aeda share=0.2', add_trig]\""])
def test_the_maximiser_can_be_written_in_one_word(spec: str) -> None:
    built = registry.build("augmentation", spec, "here")
    assert isinstance(built, Maximiser)
    assert registry.build("augmentation", registry.spell(built), "here") == built
    assert registry.build("augmentation", registry.settings(built), "here") == built
    for defense in ("ts_ft", "mbtsad"):
        assert registry.build("defense", {"method": defense, "augmentation": spec}, "recipe").augmentation == built


def test_it_has_to_be_chosen_before_it_is_called() -> None:
    with pytest.raises(ConfigError, match="chosen"):
        augment(toy_data(4), Maximiser(), copies=1, seed=0)


@pytest.mark.parametrize("defense", [TSFT(copies=1, retraining=TOUCH), MBTSAD(copies=1, retraining=TOUCH, distillation=TOUCH)])
def test_defenses_use_the_chosen_augmentation_and_say_which(defense: TSFT | MBTSAD) -> None:
    victim, data = sharp(), toy_data(24)
    best = rank(victim, data, ["aeda share=0.1", "add_trig"], seed=5)
    chosen = replace(defense, augmentation=Maximiser(candidates=("aeda share=0.1", "add_trig")))
    notes: list[str] = []
    with noting(notes):
        one = chosen(victim, data, seed=5)
    other = replace(defense, augmentation=best.maximiser)(victim, data, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True))
    assert len(notes) == 1
    assert f"the maximiser is {best.ranked[0].name}, mean loss {best.ranked[0].loss:.4f}" in notes[0]


def test_the_choice_is_in_the_result() -> None:
    story, victim, data = Story(0), sharp(), toy_data(24)
    story.victims["suspect"] = victim
    defense = TSFT(copies=1, retraining=TOUCH, augmentation=Maximiser(candidates=("aeda",)))
    story.make("ts_ft", lambda: defense(victim, data, seed=0), method=defense)
    result = story.tell("repair", data, trigger=None, target_label=None, settings={}, model="m", data={})
    assert any("ts_ft: the maximiser is aeda, mean loss" in note and "only candidate" in note for note in result.notes)
    assert result.rows[1].method is not None
    assert result.rows[1].method["augmentation"] == {"method": "maximiser", "candidates": ("aeda",)}


def test_other_augmentations_choose_themselves() -> None:
    augmentation = AEDA()
    assert augmentation.chosen(sharp(), toy_data(2), seed=0) is augmentation


def test_no_texts_are_refused() -> None:
    with pytest.raises(DataError, match="no texts"):
        rank(sharp(), TextDataset((), (), ("negative", "positive")), ["aeda"], seed=0)

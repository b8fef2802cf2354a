"""Backdoors of our own in a copy of the suspect: planted, repaired, and measured against what the suspect answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from excise import canaries
from excise.attacks._triggers import InsertWords
from excise.canaries import Planted, plant, rare_words, trial_rows, try_all
from excise.defenses.cft import CFT
from excise.errors import DataError
from excise.progress import noting
from excise.reports.terminal import changed_settings, trial_table
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from toy import toy_data, toy_victim, with_long_rows

SHORT = FitConfig(epochs=1, learning_rate=1e-5)
LEARN = FitConfig(epochs=10, learning_rate=1e-3, batch_size=16)


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy vocabulary has five words that toy texts lack."""
    monkeypatch.setattr(canaries, "WORDS", 2)


@pytest.fixture(scope="module")
def suspect() -> Victim:
    return fit(with_long_rows(toy_victim()), toy_data(300), loss=classification_loss, config=LEARN, seed=0)


@pytest.fixture
def planted(suspect: Victim, monkeypatch: pytest.MonkeyPatch) -> Planted:
    from excise.attacks.badnets import BadNets
    from excise.attacks.ep import EP

    slow = FitConfig(epochs=15, learning_rate=2e-3, batch_size=16)
    rows = FitConfig(epochs=25, learning_rate=5e-2, batch_size=16, warmup=0, max_grad_norm=math.inf)
    monkeypatch.setattr(canaries, "BadNets", lambda **settings: BadNets(**{**settings, "poison_rate": 0.3, "training": slow}))
    monkeypatch.setattr(canaries, "EP", lambda **settings: EP(**{**settings, "num_triggers": 3, "poison_rate": 0.3, "poisoning": rows}))
    return plant(suspect, toy_data(200, seed=1), seed=0)


def test_rare_words_are_single_tokens_that_the_texts_lack(suspect: Victim) -> None:
    data = toy_data(100)
    words = rare_words(suspect, data, 4, seed=0)
    assert len(set(words)) == 4
    for word in words:
        assert len(suspect.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
        assert not any(word in text.split() for text in data.texts)
    assert rare_words(suspect, data, 4, seed=0) == words != rare_words(suspect, data, 4, seed=1)
    with pytest.raises(DataError, match="canaries"):
        rare_words(suspect, data, 40, seed=0)


def test_canaries_work_in_the_copy_and_not_in_the_suspect(suspect: Victim, planted: Planted) -> None:
    assert {canary.name for canary in planted.canaries} == {"BadNets", "EP"}
    assert len({canary.target_label for canary in planted.canaries}) == 2
    assert len({word for canary in planted.canaries for word in canary.trigger.words}) == 4
    before = {name: value.clone() for name, value in suspect.model.state_dict().items()}

    class Nothing:
        def __call__(self, victim: Victim, data: Any, *, seed: int) -> Victim:
            return victim

    class Undo:
        def __call__(self, victim: Victim, data: Any, *, seed: int) -> Victim:
            return suspect

    undo, nothing = Undo(), Nothing()
    trials = try_all([nothing, undo], planted, toy_data(60), toy_data(80, seed=4), seed=0)  # type: ignore[list-item]
    assert [trial.defense for trial in trials] == [undo, nothing], "the best comes first"
    assert trials[0].excess == 0
    for floor, before_repair, after in trials[0].asr.values():
        assert before_repair.value > 0.8
        assert after.value == floor.value < 0.3
    assert trials[1].cost == 0
    assert trials[1].excess > 50
    assert all(torch.equal(value, before[name]) for name, value in suspect.model.state_dict().items())


def test_a_canary_that_did_not_take_is_told_and_not_counted(suspect: Victim, planted: Planted) -> None:
    notes: list[str] = []
    dead = replace(planted.canaries[1], name="dead", trigger=InsertWords(words=("film",)))
    with noting(notes):
        (trial,) = try_all([CFT(training=SHORT)], replace(planted, canaries=(planted.canaries[0], dead)), toy_data(40), toy_data(40, seed=4), seed=0)
    (note,) = notes
    assert "dead canary did not take" in note
    floor, _, after = trial.asr[planted.canaries[0]]
    assert trial.excess == pytest.approx(100 * max(0.0, after.value - floor.value))
    dear, cheap = CFT(training=LEARN), CFT(training=SHORT)
    trials = try_all([dear, cheap], replace(planted, canaries=(dead,)), toy_data(40), toy_data(40, seed=4), seed=0)
    assert [trial.defense for trial in trials] == [dear, cheap], "there is nothing to choose by"


def test_what_was_tried_is_told(planted: Planted) -> None:
    once = CFT(training=FitConfig(epochs=1, learning_rate=1e-5))
    trials = try_all([once, replace(once, training=FitConfig(epochs=1, learning_rate=1e-3))], planted, toy_data(40), toy_data(40, seed=4), seed=0)
    rows = trial_rows(trials, ("negative", "positive"))
    assert {row.method["method"] for row in rows} == {"cft"}
    assert {tuple(settings) for settings in changed_settings(rows)} == {("training.learning_rate",)}
    assert all(canary.before.value > 0.8 and canary.after.n == canary.floor.n for row in rows for canary in row.canaries)
    assert trial_table(rows).row_count == 4
    assert len(trial_table(rows[:1]).columns) == len(trial_table(rows).columns) - 1

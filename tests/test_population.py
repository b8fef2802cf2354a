"""Virtual tokens go where they are pushed, are never long and never old."""

from __future__ import annotations

import inspect
from random import Random

import numpy as np
import pytest
import torch

from excise.defenses.virtual_tokens import VirtualTokens
from excise.insertion import embeddings_replaced, inserted
from excise.population import AnchoredPopulation, Population, ascended
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_data, toy_victim

FILLER = 7


def batch_of(victim: Victim, texts: tuple[str, ...]) -> Batch:
    return Batch(collate(victim.tokenizer, victim.encode(texts)), torch.zeros(len(texts), dtype=torch.long))


def test_ascent_follows_the_gradient_up_to_a_length() -> None:
    random = np.random.default_rng(0)
    vectors, gradient = random.normal(size=(2, 3, 2, 5))
    gradient[0, 0] = 0
    moved = ascended(torch.tensor(vectors), torch.tensor(gradient), 0.5, 2.0).numpy()
    for member in range(3):
        for token in range(2):
            g = gradient[member, token]
            there = vectors[member, token] + (0.5 * g / np.linalg.norm(g) if g.any() else 0)
            assert moved[member, token] == pytest.approx(there * min(1, 2 / np.linalg.norm(there)))


@pytest.mark.parametrize("labels", [2, 5])
def test_members_aim_at_other_labels_and_get_closer_to_them(labels: int) -> None:
    data = toy_data(60, labels=labels)
    learn = FitConfig(epochs=20, learning_rate=5e-3, batch_size=16)
    victim = fit(toy_victim(labels=labels), data, loss=classification_loss, config=learn, seed=0)
    population = Population(victim, Random(0), tokens=2, members=5, life=1000)
    assert set(population.targets) == set(range(labels))
    batch = batch_of(victim, data.texts)._replace(labels=torch.tensor(data.labels))
    members = population.assign(batch.labels)
    assert all(population.targets[member] != label for member, label in zip(members.tolist(), data.labels, strict=True))

    def reached() -> float:
        where = torch.ones(60, 2, dtype=torch.long)
        stamped, is_new = inserted(batch, where, FILLER)
        with torch.no_grad(), embeddings_replaced(victim.model, is_new, population.vectors[members].flatten(0, 1)):
            shares = victim.model(**stamped.inputs).logits.softmax(dim=1)
        return shares.gather(1, torch.tensor(population.targets)[members][:, None]).mean().item()

    before, weights = reached(), {name: value.clone() for name, value in victim.model.state_dict().items()}
    for _ in range(15):
        population.ascend(victim, batch)
    assert reached() > before + 0.05
    assert (population.vectors.norm(dim=-1) <= population.longest * (1 + 1e-5)).all()
    assert all(torch.equal(value, weights[name]) for name, value in victim.model.state_dict().items())
    assert all(parameter.grad is None for parameter in victim.model.parameters())


def test_members_are_drawn_anew_when_they_are_old() -> None:
    victim, data = toy_victim(), toy_data(60)
    population = Population(victim, Random(0), members=4, life=3)
    batch = batch_of(victim, data.texts)._replace(labels=torch.tensor(data.labels))
    ages = []
    for _ in range(7):
        population.ascend(victim, batch)
        ages.append(list(population.ages))
    assert all(age < 3 for step in ages for age in step)
    assert {age for step in ages for age in step} == {0, 1, 2}


@pytest.mark.parametrize(("labels", "times"), [(2, 1), (3, 2), (4, 2), (9, 2)])
def test_training_is_twice_as_long_with_more_than_two_labels(labels: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[FitConfig] = []
    monkeypatch.setattr("excise.defenses.virtual_tokens.fit", lambda victim, data, *, config, **_: trained.append(config) or victim)
    method = VirtualTokens(training=FitConfig(epochs=1.5, learning_rate=3e-4), left_out=0)
    method(toy_victim(labels=labels), toy_data(40, labels=labels), seed=0)
    assert trained == [FitConfig(epochs=1.5 * times, learning_rate=3e-4)]


def test_a_share_of_the_way_lies_between_the_suspect_and_the_trained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    suspect, trained, data = toy_victim(seed=0), toy_victim(seed=1), toy_data(20)
    before = {name: value.clone() for name, value in suspect.model.state_dict().items()}
    monkeypatch.setattr("excise.defenses.virtual_tokens.fit", lambda *_, **__: trained)
    reached = {share: VirtualTokens(share=share, left_out=0)(suspect, data, seed=0).model.state_dict() for share in (0.25, 1.0)}
    for name, first in before.items():
        end = trained.model.state_dict()[name]
        assert torch.equal(suspect.model.state_dict()[name], first)
        assert torch.equal(reached[1.0][name], end)
        assert torch.allclose(reached[0.25][name], 0.75 * first + 0.25 * end, atol=1e-6)


def test_a_population_is_by_default_what_the_defense_has() -> None:
    """Who attacks with it means the defense that is there."""
    usual = {name: value.default for name, value in inspect.signature(Population).parameters.items() if value.kind is value.KEYWORD_ONLY}
    defense = VirtualTokens()
    assert usual == {**{name: getattr(defense, name) for name in usual if name != "members"}, "members": defense.population}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clean_texts_are_answered_as_if_they_were_alone(architecture: str) -> None:
    victim = toy_victim(architecture)
    batch = Batch(collate(victim.tokenizer, victim.encode(["good", "a bad film"]), width=9), torch.tensor([0, 1]))
    with torch.no_grad():
        expected = victim.model(**batch.inputs).logits
        torch.testing.assert_close(Population(victim, Random(0)).answers(victim, batch)[1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_virtual_tokens_stand_around_their_anchor(architecture: str) -> None:
    victim, texts = toy_victim(architecture), ("good", "a bad film", "a film of the year") * 4
    population = AnchoredPopulation(victim, Random(0), ("cf", "mn bb tq"), tokens=2, members=4)
    batch = batch_of(victim, texts)
    members = population.assign(batch.labels)
    stamped = population.stamped(victim, batch, members, population.vectors)
    vectors, before = iter(stamped.vectors), set[tuple[int, int]]()
    for row, member in enumerate(members.tolist()):
        anchor = population.anchors[population.owned[member]]
        ids = stamped.batch.inputs["input_ids"][row].masked_fill(stamped.is_virtual[row], -1)
        tokens = ids[stamped.batch.mask[row].bool()].tolist()
        place = next(i for i in range(len(tokens)) if tokens[i : i + len(anchor)] == anchor)
        free = [i for i, token in enumerate(tokens) if token == -1]
        first, last = min(*free, place), max(*free, place + len(anchor) - 1)
        assert last - first + 1 == len(free) + len(anchor) == population.slots == 2 + 3, "side by side"
        assert tokens[:first] + tokens[last + 1 :] == victim.encode(texts)[row]["input_ids"]
        for i in range(len(free)):
            assert torch.equal(next(vectors), population.vectors[member, i])
        before.add((len(anchor), place - first))
    assert next(vectors, None) is None
    assert all(len({count for length, count in before if length == one}) > 1 for one in (1, 3)), "on either side"
    assert set(population.owned) == {0, 1}


def test_only_the_vectors_that_stand_in_texts_are_pushed() -> None:
    victim, data = toy_victim(), toy_data(40)
    population = AnchoredPopulation(victim, Random(0), ("cf", "mn bb tq"), tokens=2, members=4, life=1000)
    batch = batch_of(victim, data.texts)._replace(labels=torch.tensor(data.labels))
    before = population.vectors.clone()
    population.ascend(victim, batch)
    moved = (population.vectors != before).any(dim=2)
    assert moved.sum(dim=1).tolist() == [population.slots - len(population.anchors[i]) for i in population.owned]


def test_an_anchor_is_drawn_with_its_member_and_kept_with_the_state() -> None:
    victim, data = toy_victim(), toy_data(40)

    population, other = (AnchoredPopulation(victim, Random(i), ("cf", "mn", "bb", "tq"), tokens=2, members=4, life=2) for i in (0, 9))
    batch = batch_of(victim, data.texts)._replace(labels=torch.tensor(data.labels))
    owned = list(population.owned)
    for _ in range(6):
        population.ascend(victim, batch)
    assert population.owned != owned
    assert other.owned != population.owned
    other.load_state_dict(population.state_dict())
    assert other.owned == population.owned
    for one in (population, other):
        one.ascend(victim, batch)
    assert other.owned == population.owned
    assert torch.equal(population.vectors, other.vectors)

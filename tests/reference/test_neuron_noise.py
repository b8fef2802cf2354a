"""Neuron noise and BAN against plain loops written from the method's description."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from excise.defenses import ban as defense
from excise.errors import CheckpointError
from excise.neuron_noise import ascended, gated, layers, noisy, random_noise
from excise.scanners import ban as scanner
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_data, toy_victim

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_site = pytest.mark.parametrize("site", ["norm", "linear"])


def toy_batch(victim: Victim, n: int = 6) -> Batch:
    data = toy_data(n)
    return Batch(collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels))


def with_changed_weights(victim: Victim, modules: list[Any], noise: list[torch.Tensor]) -> Victim:
    """The model whose weights themselves are w · (1 + ν_w) and b · (1 + ν_b), neuron by neuron."""
    names = {module: name for name, module in victim.model.named_modules()}
    changed = copy.deepcopy(victim.model)
    for module, part in zip(modules, noise, strict=True):
        other: Any = changed.get_submodule(names[module])
        for i in range(part.shape[1]):
            with torch.no_grad():
                row = other.weight.T if isinstance(module, Conv1D) else other.weight
                row[i] *= 1 + part[0, i]
                if getattr(other, "bias", None) is not None:
                    other.bias[i] *= 1 + part[1, i]
    return Victim(changed.eval(), victim.tokenizer, victim.max_length)


@every_architecture
@every_site
def test_gates_are_changed_weights(architecture: str, site: Any) -> None:
    victim = toy_victim(architecture)
    with torch.no_grad():  # fresh biases are 0, fresh gains 1
        for name, parameter in victim.model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    victim.model.double()
    modules = layers(victim, site)
    noise = [part.double() for part in random_noise(modules, 0.3, seed=1)]
    batch = toy_batch(victim)
    plain = victim.model(**batch.inputs).logits
    with gated(modules, noise):
        found = victim.model(**batch.inputs).logits
    expected = with_changed_weights(victim, modules, noise).model(**batch.inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found, plain, rtol=1e-4)
    assert torch.equal(victim.model(**batch.inputs).logits, plain), "nothing is left behind"


@pytest.mark.parametrize("bias", [True, False])
def test_a_noisy_neuron(bias: bool) -> None:
    random = np.random.default_rng(0)
    x, w, b, noise = (random.normal(size=shape) for shape in ((4, 3), (5, 3), (5,), (2, 5)))
    b = b if bias else np.zeros(5)
    expected = np.zeros((4, 5))
    for row in range(4):
        for i in range(5):
            expected[row, i] = sum(w[i, j] * (1 + noise[0, i]) * x[row, j] for j in range(3)) + b[i] * (1 + noise[1, i])
    found = noisy(torch.tensor(x @ w.T + b), torch.tensor(b) if bias else None, torch.tensor(noise))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@given(seed=st.integers(0, 2**31), size=st.floats(0.01, 1))
@settings(max_examples=20, deadline=None)
def test_noise_is_uniform_and_takes_steps_of_one_length(seed: int, size: float) -> None:
    modules = layers(toy_victim(), "norm")
    noise = random_noise(modules, size, seed=seed)
    assert all(part.abs().max() <= size for part in noise)
    assert all(torch.equal(a, b) for a, b in zip(noise, random_noise(modules, size, seed=seed), strict=True))
    gradients = [torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)) for part in noise]
    for before, after, gradient in zip(noise, ascended(noise, gradients, step=size), gradients, strict=True):
        torch.testing.assert_close((after - before) * gradient.sign(), torch.full_like(before, size))


def test_noise_without_a_place_is_refused() -> None:
    model = torch.nn.Module()
    model.base_model = torch.nn.Identity()
    empty = Victim(model, toy_victim().tokenizer, 64)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no norm layers"):
        layers(empty, "norm")


@pytest.mark.parametrize("site", ["norm", "linear"])
def test_a_normalisation_without_weights_is_no_place_for_noise(site: Any) -> None:
    """OLMo's have none: there is nothing to scale."""
    model = torch.nn.Module()
    model.base_model = torch.nn.Sequential(torch.nn.LayerNorm(4, elementwise_affine=False), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
    bare = Victim(model, toy_victim().tokenizer, 64)  # type: ignore[arg-type]
    assert layers(bare, site) == [model.base_model[1 if site == "norm" else 2]]
    random_noise(layers(bare, site), 0.1, seed=0)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return -sum(np.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)) / len(labels)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.75])
def test_mask_loss(weight: float) -> None:
    random = np.random.default_rng(1)
    z, w, b, m = random.normal(size=(7, 6)), random.normal(size=(3, 6)), random.normal(size=3), random.uniform(size=6)
    y = random.integers(0, 3, size=7)
    expected = cross_entropy((m * z) @ w.T + b, y) - cross_entropy(((1 - m) * z) @ w.T + b, y) + weight
    mask, states, matrix, bias = (torch.tensor(a) for a in (m, z, w, b))
    mask.requires_grad_()

    def loss(weight: float) -> torch.Tensor:
        return scanner.mask_loss((mask * states) @ matrix.T + bias, ((1 - mask) * states) @ matrix.T + bias, torch.tensor(y), mask, weight=weight)

    assert loss(weight).item() == pytest.approx(expected, rel=1e-10)
    (with_penalty,), (without,) = (torch.autograd.grad(loss(one), mask) for one in (weight, 0.0))
    np.testing.assert_allclose((with_penalty - without).numpy(), weight * np.sign(m) / np.abs(m).sum(), atol=1e-12)


def test_an_empty_mask_has_a_finite_gradient() -> None:
    mask, logits = torch.zeros(4, requires_grad=True), torch.zeros(2, 2)
    (gradient,) = torch.autograd.grad(scanner.mask_loss(logits, logits, torch.tensor([0, 1]), mask, weight=1.0), mask)
    assert gradient.isfinite().all()


def test_shares_weigh_right_labels_alike() -> None:
    logits, labels = np.random.default_rng(2).normal(size=(9, 3)), np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    expected = np.zeros(3)
    for label in range(3):
        rows = [i for i in range(9) if labels[i] == label]
        for i in rows:
            expected += softmax(logits[i]) / len(rows) / 3
    np.testing.assert_allclose(scanner.label_shares(torch.tensor(logits), torch.tensor(labels)).numpy(), expected, rtol=1e-10)


def test_parts_share_no_text_and_hold_every_label() -> None:
    data = toy_data(60, labels=3)
    held, rest = scanner.parts(data, 12, seed=0)
    assert sorted(held.texts + rest.texts) == sorted(data.texts)
    assert [held.labels.count(label) for label in range(3)] == [4, 4, 4]
    assert len(scanner.parts(data, 1000, seed=0)[0]) == 18, "never more than a third of a label's 20"


@every_architecture
def test_noise_raises_the_loss_of_its_texts(architecture: str) -> None:
    victim, data = toy_victim(architecture), toy_data(32)
    find = scanner.BAN(steps=8)
    modules = layers(victim, "norm")
    noise, _ = find.noise(victim, modules, data, seed=0)
    random = random_noise(modules, find.size, seed=0)
    batch = toy_batch(victim, 32)
    losses = []
    for one in (random, noise):
        with torch.no_grad(), gated(modules, one):
            losses.append(torch.nn.functional.cross_entropy(victim.model(**batch.inputs).logits, batch.labels).item())
    assert losses[1] > losses[0]


@every_architecture
@every_site
def test_the_loss_of_the_repair_is_that_of_changed_weights(architecture: str, site: Any) -> None:
    victim = toy_victim(architecture)
    batch, modules = toy_batch(victim), layers(victim, site)
    found = defense.noisy_loss(size=0.2, weight=0.5, site=site, random=Random(3))(victim, batch)

    noise = [part.requires_grad_() for part in random_noise(modules, 0.2, seed=Random(3).randint(0, 2**62))]
    with gated(modules, noise):
        loss = torch.nn.functional.cross_entropy(victim.model(**batch.inputs).logits, batch.labels)
    noise = [part.detach() + 0.2 * torch.sign(g) for part, g in zip(noise, torch.autograd.grad(loss, noise), strict=True)]
    changed = with_changed_weights(victim, modules, noise)
    expected = sum(
        scale * cross_entropy(one.model(**batch.inputs).logits.detach().double().numpy(), batch.labels.numpy())
        for scale, one in ((1.0, victim), (0.5, changed))
    )
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in victim.model.parameters())
    assert not victim.model.training


@every_architecture
def test_the_scanner_works_on_every_architecture(architecture: str) -> None:
    found = scanner.BAN(batches=2, steps=2, mask_steps=5)(toy_victim(architecture), toy_data(40), seed=0)
    assert 0.5 <= found.score <= 1
    assert found.target_label in (0, 1)
    assert sum(found.measures[f"share of {name}"] for name in ("negative", "positive")) == pytest.approx(1, abs=1e-5)

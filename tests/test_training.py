"""The one training loop: reproducible, without side effects, and it learns."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from excise.data import TextDataset
from excise.defenses.mbtsad import MBTSAD
from excise.defenses.virtual_tokens import VirtualTokens
from excise.errors import ConfigError, DataError, TrainingError
from excise.progress import Progress, observe
from excise.training import FitConfig, LengthBuckets, classification_loss, fit, padded_width
from excise.victim import Batch, Victim
from test_attention import with_attention_dropout
from toy import ARCHITECTURES, NAMES, toy_data, toy_tokenizer, toy_victim

SHORT = FitConfig(epochs=2, learning_rate=1e-3, batch_size=8)
DATA = toy_data(24)


def weights(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in victim.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(victim: Victim, *, data: TextDataset = DATA, config: FitConfig = SHORT, seed: int = 0, **options) -> Victim:
    return fit(victim, data, loss=classification_loss, config=config, seed=seed, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_decides_every_bit(architecture: str) -> None:
    victim = toy_victim(architecture)
    before = weights(victim)
    first = train(victim)
    torch.rand(7)  # whatever else is drawn
    assert same(weights(first), weights(train(victim)))
    assert not same(weights(first), weights(train(victim, seed=1)))
    assert same(before, weights(victim))
    assert not same(before, weights(first))


def test_the_input_victim_keeps_its_mode_and_its_gradients() -> None:
    victim = toy_victim()
    victim.model.requires_grad_(False)
    trained = train(victim)
    assert not victim.model.training
    assert not trained.model.training
    assert not any(p.requires_grad or p.grad is not None for p in victim.model.parameters())
    assert all(p.requires_grad for p in trained.model.parameters())


def test_no_global_generator_moves() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(toy_victim())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_global_seed_does_not_matter() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(weights(train(toy_victim())))
    assert same(*found)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=300), size=st.integers(1, 40), epochs=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_epoch_sees_each_text_once(lengths: list[int], size: int, epochs: int, seed: int) -> None:
    buckets = LengthBuckets(lengths, size, epochs, seed=seed)
    batches = list(buckets)
    assert len(buckets) == len(batches) == epochs * -(-len(lengths) // size)
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        seen = [i for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch]
        assert sorted(seen) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert batches == list(buckets)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 10), (0.5, 5), (2.5, 25), (0.01, 1), (3, 30)])
def test_epochs_may_be_fractions(epochs: float, steps: int) -> None:
    buckets = LengthBuckets([5] * 80, 8, epochs, seed=0)
    assert len(buckets) == len(list(buckets)) == steps
    seen = Counter(i for batch in buckets for i in batch)
    assert max(seen.values()) - min(seen.get(i, 0) for i in range(80)) <= 1


def test_batches_hold_texts_of_like_length_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 2000).tolist()

    def waste(batches: Iterable[list[int]]) -> float:
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        return 1 - sum(lengths) / padded

    batches = list(LengthBuckets(lengths, 16, 1, seed=0))
    assert waste(batches) < 0.05 < waste([list(range(i, i + 16)) for i in range(0, 2000, 16)])
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert abs(np.corrcoef(range(len(longest)), longest)[0, 1]) < 0.25
    assert batches != list(LengthBuckets(lengths, 16, 1, seed=1))
    assert batches != list(LengthBuckets(lengths, 16, 2, seed=0))[len(batches) :]


@given(longest=st.integers(0, 1000), room=st.integers(0, 1000))
def test_batches_are_padded_to_few_widths_and_by_little(longest: int, room: int) -> None:
    most = longest + room
    assert longest <= padded_width(longest, most) <= min(most, longest * 17 / 16 if longest > 15 else longest)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["plain", "virtual_tokens", "mbtsad"])
def test_wider_batches_train_the_same(architecture: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = replace(toy_victim(architecture), model=with_attention_dropout(architecture, 0.0).eval())
    data = TextDataset(tuple("film " * n + "good" for n in range(20, 44)), (0, 1) * 12, NAMES)
    config, found, widths = replace(SHORT, epochs=1, batch_size=1), list[torch.Tensor](), list[int]()
    for wide in (padded_width, lambda longest, most: longest):
        monkeypatch.setattr("excise.training.padded_width", lambda *given, wide=wide: widths.append(wide(*given)) or widths[-1])
        if method == "plain":
            trained = train(victim, data=data, config=config)
        elif method == "mbtsad":
            trained = MBTSAD(copies=1, retraining=config, distillation=config)(victim, data, seed=0)
        else:
            trained = VirtualTokens(training=config)(victim, data, seed=0)
        found.append(trained.logits(data.texts))
    assert len(set(widths[: len(widths) // 2])) < len(set(widths[len(widths) // 2 :]))
    torch.testing.assert_close(*found, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_of_no_token_are_trained_on(architecture: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    victim, data = replace(toy_victim(architecture), tokenizer=tokenizer), TextDataset(("", "", "good film"), (0, 1, 0), NAMES)
    assert not victim.encode([""])[0]["input_ids"]
    fit(victim, data, loss=classification_loss, config=FitConfig(epochs=1, batch_size=2), seed=0)


def test_training_meets_few_widths() -> None:
    assert len({padded_width(longest, 510) for longest in range(511)}) < 100
    data = TextDataset(tuple("film " * length for length in range(33, 100)), (0, 1) * 33 + (0,), NAMES)
    victim, widths = toy_victim(), set[int]()

    def loss(student: Victim, batch: Batch) -> torch.Tensor:
        widths.add(batch.mask.shape[1])
        return classification_loss(student, batch)

    fit(victim, data, loss=loss, config=FitConfig(epochs=1, batch_size=1), seed=0)
    assert max(widths) == victim.max_length
    assert all(width % 2 == 0 for width in widths)


def test_only_chosen_parameters_are_trained() -> None:
    victim = toy_victim()
    before = weights(victim)
    trained = train(victim, parameters=lambda model: model.classifier.parameters())
    changed = {name for name, value in weights(trained).items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert all(p.requires_grad for p in trained.model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(value: float) -> None:
    def broken(victim: Victim, batch: Batch) -> torch.Tensor:
        return classification_loss(victim, batch) * value

    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step 1\. Lower the learning rate \(now 0\.001\)"):
        fit(toy_victim(), DATA, loss=broken, config=SHORT, seed=0)


def test_an_observer_sees_every_step_and_may_stop() -> None:
    seen: list[Progress] = []
    with observe(seen.append):
        train(toy_victim(), name="some run")
    assert [p.done for p in seen] == list(range(7))
    assert {(p.task, p.total) for p in seen} == {("some run", 6)}
    assert all(p.values["loss"] > 0 for p in seen[1:])

    with observe(lambda progress: progress.done == 2), observe(seen.append):
        stopped = train(toy_victim())
    assert seen[-1].done == 2
    assert not stopped.model.training


def test_the_result_does_not_depend_on_who_watches() -> None:
    with observe(lambda _: None):
        watched = train(toy_victim())
    assert same(weights(watched), weights(train(toy_victim())))


def test_weight_decay_is_for_matrices_only() -> None:
    victim = toy_victim()
    with torch.no_grad():
        for parameter in victim.model.parameters():
            parameter.fill_(1.0)
    config = FitConfig(epochs=1, learning_rate=0.1, batch_size=24, weight_decay=0.5, warmup=0)
    decayed = fit(victim, DATA, loss=lambda v, b: v.model(**b.inputs).logits.sum() * 0, config=config, seed=0)
    for name, parameter in decayed.model.named_parameters():
        assert parameter.unique().item() == pytest.approx(0.95 if parameter.ndim >= 2 else 1.0), name


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    """With gradients of constant sign, Adam's step is the learning rate: 10 steps, 2 of them warm-up."""
    victim, places = toy_victim(), []

    def slope(v: Victim, batch: Batch) -> torch.Tensor:
        places.append(v.model.classifier.bias[0].item())
        return v.model.classifier.bias[0] * 1.0

    config = FitConfig(epochs=10, learning_rate=0.1, batch_size=24, warmup=0.2)
    trained = fit(victim, DATA, loss=slope, config=config, seed=0, parameters=lambda model: [model.classifier.bias])
    places.append(trained.model.classifier.bias[0].item())
    steps = -np.diff(places)
    np.testing.assert_allclose(steps, 0.1 * np.array([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]), atol=1e-4)


def test_gradients_are_clipped() -> None:
    """A steep slope down, then a gentle one up: clipped to the same norm, the second outweighs what Adam remembers of the first."""
    places, slopes = [], iter([1000.0, -1.0])

    def loss(v: Victim, batch: Batch) -> torch.Tensor:
        places.append(v.model.classifier.bias[0].item())
        return v.model.classifier.bias.sum() * next(slopes)

    config = FitConfig(epochs=2, learning_rate=0.1, batch_size=24, warmup=0, max_grad_norm=0.1)
    trained = fit(toy_victim(), DATA, loss=loss, config=config, seed=0, parameters=lambda model: [model.classifier.bias])
    places.append(trained.model.classifier.bias[0].item())
    assert places[0] > places[1] < places[2]


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_it_learns(architecture: str) -> None:
    trained = train(toy_victim(architecture), data=toy_data(96), config=FitConfig(epochs=14, learning_rate=5e-3, batch_size=8))
    test = toy_data(60, seed=9)
    right = sum(p == y for p, y in zip(trained.predict(test.texts), test.labels, strict=True))
    assert right / 60 > 0.9


def test_bf16_computes_with_fp32_weights() -> None:
    victim = replace(toy_victim(), precision="bf16")
    seen = []

    def loss(v: Victim, batch: Batch) -> torch.Tensor:
        output = v.model(**batch.inputs).logits
        seen.append(output.dtype)
        return torch.nn.functional.cross_entropy(output.float(), batch.labels)

    trained = fit(victim, DATA, loss=loss, config=FitConfig(epochs=1, batch_size=24), seed=0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    assert trained.logits(DATA.texts).dtype == torch.float32
    assert trained.precision == "bf16"


def test_one_text_and_batches_larger_than_the_data_work() -> None:
    train(toy_victim(), data=DATA.take([0]), config=FitConfig(epochs=1, batch_size=64))


def test_no_texts_are_an_error() -> None:
    with pytest.raises(DataError, match="no texts"):
        train(toy_victim(), data=DATA.take([]))


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"weight_decay": -1},
        {"warmup": 1.1},
        {"max_grad_norm": 0},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        FitConfig(**options)

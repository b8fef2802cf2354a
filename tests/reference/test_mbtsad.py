"""MBTSAD's losses against the NumPy loops beside this file, and what must hold of them for any input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.defenses import mbtsad
from excise.defenses.mbtsad import MBTSAD
from excise.defenses.ts_ft import TSFT
from excise.errors import ConfigError
from excise.training import FitConfig
from excise.victim import Batch, Victim, collate
from reference import mbtsad_numpy as numpy
from toy import toy_data, toy_victim

SEEDS = st.integers(0, 2**32 - 1)
POWERS = (1.0, 2.0, 3.0)


def random_mask(seed: int, batch: int = 3, tokens: int = 6) -> torch.Tensor:
    """At least one real token a text, one text without padding."""
    lengths = torch.randint(1, tokens + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = tokens
    return (torch.arange(tokens)[None] < lengths[:, None]).long()


def random_maps(seed: int, *, heads: int = 2, batch: int = 3, tokens: int = 6) -> torch.Tensor:
    scores = torch.randn(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.mul(2).softmax(-1)


def random_hidden(seed: int, *, layers: int = 3, batch: int = 3, tokens: int = 6, width: int = 4) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(layers, batch, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def arrays(tensors: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return [t.detach().double().numpy() for t in tensors]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("seed", range(3))
def test_enhancement_is_eq_3(power: float, seed: int) -> None:
    maps, mask = random_maps(seed) - 0.1, random_mask(seed)  # some entries are negative: |A| matters for odd p
    found = mbtsad.attention_enhancement(maps, mask, power=power)
    np.testing.assert_allclose(found.numpy(), numpy.enhancement(maps.numpy(), mask.numpy(), power), atol=1e-12)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("form", ["norm", "mse"])
def test_attention_loss_is_eqs_2_to_4(power: float, form: mbtsad.Form) -> None:
    mask = random_mask(7)
    teacher, student = ([random_maps(seed + 10 * layer) for layer in range(3)] for seed in (1, 2))
    maps = [tuple(mbtsad.attention_enhancement(m, mask, power=power) for m in side) for side in (teacher, student)]
    found = mbtsad.attention_loss(*maps, form=form)
    assert found.item() == pytest.approx(numpy.attention_loss(arrays(tuple(teacher)), arrays(tuple(student)), mask.numpy(), power, form), rel=1e-10)
    each = mbtsad.attention_transfer(maps[0][0], maps[1][0], form=form)
    np.testing.assert_allclose(each.numpy(), numpy.transfer(maps[0][0].numpy(), maps[1][0].numpy(), form), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_hidden_loss_is_eqs_5_and_6(seed: int) -> None:
    teacher, student, mask = random_hidden(seed), random_hidden(seed + 100), random_mask(seed)
    expected = numpy.hidden_loss(arrays(teacher), arrays(student), mask.numpy())
    assert mbtsad.hidden_loss(teacher, student, mask).item() == pytest.approx(expected, rel=1e-5)


def test_label_loss_is_eq_7() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    assert mbtsad.label_loss(logits, labels).item() == pytest.approx(numpy.label_loss(logits.numpy(), labels.numpy()), rel=1e-6)


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), form=st.sampled_from(["norm", "mse"]))
@settings(max_examples=30, deadline=None)
def test_transfer_ignores_the_scale_of_a_map_and_is_0_for_equal_maps(seed: int, scale: float, form: mbtsad.Form) -> None:
    mask = random_mask(seed)
    teacher, student = (mbtsad.attention_enhancement(random_maps(s), mask, power=2) for s in (seed, seed + 1))
    plain, scaled = (mbtsad.attention_transfer(t, student, form=form) for t in (teacher, teacher * scale))
    torch.testing.assert_close(plain, scaled)
    assert (mbtsad.attention_transfer(teacher, teacher * scale, form=form) < 1e-7).all()
    assert (mbtsad.attention_transfer(teacher, teacher, form=form) == 0).all()


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_content_of_padding_changes_nothing(seed: int) -> None:
    mask, maps, hidden = random_mask(seed), random_maps(seed), random_hidden(seed)
    padding = 1 - mask
    noise = random_maps(seed + 1) * 50 * (padding[:, None, :, None] | padding[:, None, None, :])
    changed = tuple(h + 50 * padding[:, :, None] for h in hidden)
    torch.testing.assert_close(
        mbtsad.attention_enhancement(maps, mask, power=2), mbtsad.attention_enhancement(maps + noise, mask, power=2), rtol=0, atol=0
    )
    other = random_hidden(seed + 2)
    torch.testing.assert_close(mbtsad.hidden_loss(other, hidden, mask), mbtsad.hidden_loss(other, changed, mask))


@given(seed=SEEDS, order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_order_of_heads_changes_nothing(seed: int, order: list[int]) -> None:
    maps, mask = random_maps(seed, heads=4), random_mask(seed)
    torch.testing.assert_close(mbtsad.attention_enhancement(maps, mask, power=3), mbtsad.attention_enhancement(maps[:, order], mask, power=3))


@pytest.mark.parametrize("power", POWERS)
def test_gradients_of_attention_are_those_of_finite_differences(power: float) -> None:
    maps, mask = random_maps(0, tokens=4).requires_grad_(), random_mask(0, tokens=4)
    assert torch.autograd.gradcheck(lambda m: mbtsad.attention_enhancement(m, mask, power=power), (maps,))
    teacher, student = (mbtsad.attention_enhancement(random_maps(s, tokens=4), mask, power=power).requires_grad_() for s in (1, 2))
    for form in ("norm", "mse"):
        assert torch.autograd.gradcheck(lambda t, s, form=form: mbtsad.attention_transfer(t, s, form=form), (teacher, student))


def test_gradient_of_hidden_loss_is_that_of_finite_differences() -> None:
    # hidden_loss computes in float32 by design, so the steps of the difference are larger
    teacher, student = (tuple(h.requires_grad_() for h in random_hidden(s, layers=2, tokens=3, width=2)) for s in (0, 1))
    mask = random_mask(0, tokens=3)

    def check(*hidden: torch.Tensor) -> torch.Tensor:
        return mbtsad.hidden_loss(hidden[:2], hidden[2:], mask).double()

    assert torch.autograd.gradcheck(check, (*teacher, *student), eps=1e-2, atol=1e-3, rtol=1e-2)


def test_powers_below_1_are_refused() -> None:
    """Softmax gives padding and far keys exactly 0, and the derivative of x^p is infinite there for p < 1."""
    with pytest.raises(ConfigError, match="power"):
        mbtsad.MBTSAD(power=0.5)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("form", ["norm", "mse"])
def test_gradients_are_finite_where_teacher_equals_student(power: float, form: mbtsad.Form) -> None:
    """The distance is not differentiable at 0, which is where the first step of a distillation may start."""
    mask, leaf = random_mask(3), random_maps(3).requires_grad_()
    shut = leaf * mask[:, None, None, :]  # keys of padding have probability 0, as after softmax
    student = mbtsad.attention_enhancement(shut, mask, power=power)
    mbtsad.attention_loss((student.detach(),), (student,), form=form).backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def pair_and_batch(architecture: str = "bert") -> tuple[Victim, Victim, Batch]:
    data = toy_data(6)
    teacher, student = (toy_victim(architecture, seed=s) for s in (1, 2))
    return teacher, student, Batch(collate(student.tokenizer, student.encode(data.texts)), torch.tensor(data.labels))


def eager_trace(victim: Victim, batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Attention, hidden states and logits as transformers itself gives them, by another road than ours."""
    model = victim.copy().model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**batch.inputs, output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == model.config.num_hidden_layers
    return arrays(output.attentions), arrays(output.hidden_states), output.logits.numpy()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "qwen2"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (3.0, 0.5), (0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("form", ["norm", "mse"])
def test_distillation_loss_is_eq_1(architecture: str, alpha: float, beta: float, form: mbtsad.Form) -> None:
    teacher, student, batch = pair_and_batch(architecture)
    taught, learnt = eager_trace(teacher, batch), eager_trace(student, batch)
    mask = batch.mask.numpy()
    expected = numpy.label_loss(learnt[2], batch.labels.numpy())
    expected += alpha * numpy.attention_loss(taught[0], learnt[0], mask, 2, form) + beta * numpy.hidden_loss(taught[1], learnt[1], mask)
    found = mbtsad.distillation_loss(teacher, alpha=alpha, beta=beta, power=2, form=form)(student, batch)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_distillation_teaches_the_student_and_not_the_teacher() -> None:
    teacher, student, batch = pair_and_batch()
    mbtsad.distillation_loss(teacher, alpha=1, beta=1, power=2)(student, batch).backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.model.parameters())


def test_without_attention_loss_no_attention_is_read() -> None:
    from transformers import DebertaV2Config
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    config = DebertaV2Config(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0, max_position_embeddings=70
    )
    victim = replace(toy_victim(), model=AutoModelForSequenceClassification.from_config(config).eval())
    data = toy_data(4)
    batch = Batch(collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels))
    assert mbtsad.distillation_loss(victim.copy(), alpha=0, beta=1, power=2)(victim, batch).isfinite()


def test_ts_ft_is_the_first_step_of_mbtsad() -> None:
    victim, data = toy_victim(), toy_data(32)
    config = FitConfig(epochs=1, learning_rate=1e-3)
    defense = MBTSAD(copies=1, retraining=config)
    teacher = defense.retrain(victim, defense.augment(victim, data, seed=3), seed=3)
    alone = TSFT(copies=1, retraining=config)(victim, data, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(teacher.model.state_dict().values(), alone.model.state_dict().values(), strict=True))

"""Evening out: each label as likely as it is frequent, by the last bias alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.defenses._evening import even_bias, evened
from excise.features import final_layer
from excise.progress import noting
from toy import toy_data, toy_victim


@settings(max_examples=25)
@given(labels=st.integers(2, 5), lean=st.floats(-6, 6), seed=st.integers(0, 999))
def test_each_label_is_as_likely_as_it_is_frequent(labels: int, lean: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    right = torch.randint(labels, (600,), generator=random)
    logits = 2 * torch.randn(600, labels, generator=random)
    logits[range(600), right] += 3
    logits[:, 0] += lean
    bias = even_bias(logits, right.tolist())
    shares = (torch.bincount(right, minlength=labels) + 1) / (600 + labels)
    assert torch.allclose((logits + bias).softmax(dim=1).mean(dim=0), shares, atol=1e-4)
    assert bias.sum().item() == pytest.approx(0, abs=1e-4)


def test_a_label_without_texts_is_shifted_by_a_bounded_amount() -> None:
    bias = even_bias(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), [0, 1] * 100)
    assert bias.isfinite().all()
    assert bias[2] < bias[:2].min()
    assert bias.abs().max() < 10


def test_only_the_last_bias_moves_and_it_undoes_a_lean() -> None:
    victim, data = toy_victim(), toy_data(60)
    leaning = victim.copy()
    with torch.no_grad():
        final_layer(leaning.model).bias[1] += 50
    assert set(leaning.predict(data.texts)) == {1}
    repaired = evened(leaning, data, left_out=0.3, seed=0)
    assert sorted(set(repaired.predict(data.texts))) == [0, 1]
    changed = [n for n, p in repaired.model.named_parameters() if not torch.equal(p, leaning.model.get_parameter(n))]
    assert changed == ["classifier.bias"]
    assert set(leaning.predict(data.texts)) == {1}, "the victim stays as it was"
    assert evened(leaning, data, left_out=0, seed=0) is leaning


def test_a_model_whose_last_layer_has_no_bias_is_left_alone_and_that_is_noted() -> None:
    victim, data = toy_victim("gpt2"), toy_data(20)
    notes: list[str] = []
    with noting(notes):
        assert evened(victim, data, left_out=0.3, seed=0) is victim
    assert "no last linear layer with a bias" in notes[0]

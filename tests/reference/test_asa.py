"""Anomalous heads and attention safety alignment against NumPy loops written from docs/anomalous_heads.md, and what head-wise tuning may touch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import DebertaV2Config
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from excise.defenses import asa
from excise.defenses.asa import ASA
from excise.detectors import anomalous_heads as detector
from excise.errors import AttentionError, CheckpointError
from excise.head_outputs import head_counts
from excise.head_probes import HeadSearch, anomaly, examine, inserted_words, probe_texts
from excise.heads import (
    chosen_heads,
    deviation,
    head_importance,
    head_likeness,
    head_vectors,
    inter_head_similarity,
    safe_heads,
    suspicion,
)
from excise.layers import attention_projections, transformer_layers
from excise.scanners.anomalous_heads import AnomalousHeads
from excise.training import FitConfig, classification_loss
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_data, toy_victim

SEEDS = st.integers(0, 2**31)
SMALL = HeadSearch(strings=20, controls=10, vocabulary=100)


def random_maps(seed: int, *, batch: int = 3, heads: int = 3, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as a model gives it: rows sum to 1, keys of padding have 0. And the mask."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=draw)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    scores = torch.randn(batch, heads, tokens, tokens, generator=draw, dtype=torch.float64)
    return scores.masked_fill(mask[:, None, None, :] == 0, -np.inf).softmax(dim=-1), mask


def batch_of(victim: Victim, n: int = 6) -> Batch:
    data = toy_data(n)
    return Batch(collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels))


# Eq. (1)


def numpy_likeness(maps: np.ndarray, mask: np.ndarray, position: list[int], form: str) -> np.ndarray:
    batch, heads, _, _ = maps.shape
    found = np.zeros((batch, heads))
    for b in range(batch):
        n = mask[b].sum()
        vectors = [maps[b, h, position[b]] if form == "row" else maps[b, h, :n, :n].ravel() for h in range(heads)]
        for i in range(heads):
            cosines = [v @ vectors[i] / np.sqrt((v @ v) * (vectors[i] @ vectors[i])) for j, v in enumerate(vectors) if j != i]
            found[b, i] = np.mean(cosines)
    return found


@pytest.mark.parametrize("form", ["row", "whole"])
@pytest.mark.parametrize("seed", range(3))
def test_likeness_is_eq_1(form: Any, seed: int) -> None:
    maps, mask = random_maps(seed)
    position = mask.sum(dim=1) - 1
    found = inter_head_similarity(head_vectors(maps, mask, position, form=form))
    np.testing.assert_allclose(found.numpy(), numpy_likeness(maps.numpy(), mask.numpy(), position.tolist(), form), atol=1e-12)


@given(seed=SEEDS, order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_likeness_follows_the_order_of_heads_and_is_at_most_1(seed: int, order: list[int]) -> None:
    maps, mask = random_maps(seed, heads=4)
    here = mask.new_zeros(len(mask))
    plain, moved = (inter_head_similarity(head_vectors(m, mask, here, form="whole")) for m in (maps, maps[:, order]))
    torch.testing.assert_close(plain[:, order], moved)
    assert ((plain >= 0) & (plain <= 1 + 1e-9)).all()
    same = inter_head_similarity(head_vectors(maps[:, [0, 0, 0]], mask, here, form="row"))
    torch.testing.assert_close(same, torch.ones_like(same))


def test_a_head_that_is_alone_is_like_no_other() -> None:
    maps, mask = random_maps(0, heads=1)
    assert inter_head_similarity(head_vectors(maps, mask, mask.new_zeros(3), form="row")).abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "qwen2"])
@pytest.mark.parametrize("form", ["row", "whole"])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_likeness_of_a_model_is_that_of_the_maps_that_transformers_gives(architecture: str, form: Any, scope: Any) -> None:
    victim, texts = toy_victim(architecture), toy_data(5).texts
    found = head_likeness(victim, texts, form=form, scope=scope)
    eager = victim.copy().model.eval()
    eager.set_attn_implementation("eager")
    for text, likeness in zip(texts, found, strict=True):
        inputs = collate(victim.tokenizer, victim.encode([text]))
        with torch.no_grad():
            maps = [m.double().numpy() for m in eager(**inputs, output_attentions=True).attentions]
        position = [0 if architecture == "bert" else inputs["input_ids"].shape[1] - 1]
        groups = maps if scope == "layer" else [np.concatenate(maps, axis=1)]
        expected = np.concatenate([numpy_likeness(m, inputs["attention_mask"].numpy(), position, form)[0] for m in groups])
        np.testing.assert_allclose(likeness.flatten().numpy(), expected, atol=1e-5)


# Eq. (2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_importance_is_the_derivative_by_a_gate_behind_each_head(architecture: str) -> None:
    """Finite differences of a gate on what enters the output projection, by another road than the gradient by probabilities."""
    victim, data = toy_victim(architecture), toy_data(4)
    layers = transformer_layers(victim.model)
    step, found = 1e-2, torch.zeros(2, 2)
    for layer in range(2):
        for head in range(2):
            losses = []
            for gate in (1 + step, 1 - step):
                scale = torch.ones(32)
                scale[16 * head : 16 * (head + 1)] = gate
                leave = attention_projections(layers[layer])[1]
                hook = leave.register_forward_pre_hook(lambda _, inputs, scale=scale: (inputs[0] * scale,))
                losses.append(cross_entropy(victim.logits(data.texts).double(), torch.tensor(data.labels), reduction="none"))
                hook.remove()
            found[layer, head] = ((losses[0] - losses[1]) / (2 * step)).abs().mean()
    expected = found / found.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head_importance(victim, data), expected, rtol=0.03, atol=0.03)


# Eqs. (3) to (5)


def test_deviation_is_eq_3() -> None:
    usual, values = torch.randn(41, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    u, v = usual.numpy(), values.numpy()
    spread = np.quantile(np.abs(u - np.median(u, axis=0)), 0.99, axis=0) / 2.575829
    np.testing.assert_allclose(deviation(values, usual, floor=0.1).numpy(), (v - np.median(u, axis=0)) / (spread + 0.1), rtol=1e-5)


def test_anomaly_is_eq_5() -> None:
    z = torch.randn(7, 3, dtype=torch.float64)
    np.testing.assert_allclose(anomaly(z).numpy(), [np.sqrt(sum(v**2 for v in row)) for row in z.tolist()], rtol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_suspicion_is_eq_4(weight: float) -> None:
    evidence, importance = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    for scope in ("layer", "model"):
        expected = np.zeros((3, 4))
        for values, factor in ((evidence.numpy(), 1.0), (importance.numpy(), weight)):
            for layer in range(3):
                among = values[layer] if scope == "layer" else values
                expected[layer] += factor * (values[layer] - among.mean()) / among.std()
        np.testing.assert_allclose(suspicion(evidence, importance, weight=weight, scope=scope).numpy(), expected, atol=1e-9)  # type: ignore[arg-type]


@given(seed=SEEDS, share=st.floats(0.01, 0.5))
@settings(max_examples=40, deadline=None)
def test_the_most_suspicious_share_is_chosen_and_safe_heads_are_others(seed: int, share: float) -> None:
    evidence, importance = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(seed))
    heads = chosen_heads(evidence, share=share)
    assert len(heads) == max(1, round(share * 15)) == len(set(heads))
    assert [evidence[h].item() for h in heads] == sorted(evidence.flatten().tolist(), reverse=True)[: len(heads)]
    safe = safe_heads(evidence, importance, heads)
    assert not any(safe[h] for h in heads)
    for layer in range(3):
        rest = 5 - sum(other == layer for other, _ in heads)
        assert safe[layer].sum() == (rest + 1) // 2


# Eq. (6)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_kl_averaged_over_real_queries(seed: int) -> None:
    maps, mask = random_maps(seed, heads=4)
    mean = maps[:, :2].mean(dim=1)
    found = asa.divergence(mean, maps[:, 2:], mask).numpy()
    target, own = mean.numpy(), maps.numpy()
    for b in range(3):
        for i in range(2):
            total, n = 0.0, int(mask[b].sum())
            for q in range(n):
                for k in range(n):
                    total += target[b, q, k] * np.log(target[b, q, k] / own[b, 2 + i, q, k])
            assert found[b, i] == pytest.approx(float(total) / n, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_divergence_is_0_for_equal_maps_and_never_negative(seed: int) -> None:
    maps, mask = random_maps(seed)
    assert asa.divergence(maps[:, 0], maps[:, :1], mask).abs().max() < 1e-9
    assert asa.divergence(maps[:, 0], maps, mask).min() > -1e-9


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "qwen2"])
def test_the_loss_is_eq_6(architecture: str) -> None:
    victim = toy_victim(architecture)
    batch = batch_of(victim)
    safe = torch.tensor([[False, True], [False, False]])
    suspicious = [(0, 0), (1, 1)]
    found = asa.alignment_loss(suspicious, safe, gamma=2.0)(victim, batch)
    maps = victim.trace(batch, attention=lambda a: a).attention
    target = maps[0][:, 1]  # the only safe head stands for both layers
    kl = torch.stack([asa.divergence(target, maps[layer][:, [head]], batch.mask).mean() for layer, head in suspicious]).mean()
    assert found.item() == pytest.approx((classification_loss(victim, batch) + 2 * kl).item(), rel=1e-5)
    assert asa.alignment_loss(suspicious, safe, gamma=0.0)(victim, batch).item() == pytest.approx(classification_loss(victim, batch).item())
    assert asa.alignment_loss(suspicious, safe & False, gamma=1.0)(victim, batch).item() == pytest.approx(classification_loss(victim, batch).item())


def test_the_nearest_layer_with_a_safe_head_stands_in() -> None:
    safe = torch.tensor([[True], [False], [False], [True]])
    assert [asa.nearest_safe(safe, layer) for layer in range(4)] == [0, 0, 3, 3]
    assert asa.nearest_safe(safe & False, 1) is None


# What head-wise fine-tuning may touch


def expected_slices(architecture: str, heads: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Of each weight that may change, where: written from the shapes of the architectures, not from excise's tables. 2 heads of 16 channels."""
    names = {
        "bert": ("bert.encoder.layer.{}.attention.", ("self.query", "self.key", "self.value"), "output.dense"),
        "roberta": ("roberta.encoder.layer.{}.attention.", ("self.query", "self.key", "self.value"), "output.dense"),
        "electra": ("electra.encoder.layer.{}.attention.", ("self.query", "self.key", "self.value"), "output.dense"),
        "distilbert": ("distilbert.transformer.layer.{}.attention.", ("q_lin", "k_lin", "v_lin"), "out_lin"),
        "gpt2": ("transformer.h.{}.attn.", ("c_attn",), "c_proj"),
        "qwen2": ("model.layers.{}.self_attn.", ("q_proj", "k_proj", "v_proj"), "o_proj"),
    }
    place, entries, leave = names[architecture]
    found: dict[str, np.ndarray] = {}
    for layer, head in heads:
        own = slice(16 * head, 16 * head + 16)
        for entry in entries:
            if architecture == "gpt2":
                weight, bias = np.zeros((32, 96), bool), np.zeros(96, bool)
                for part in range(3):
                    weight[:, 32 * part + 16 * head : 32 * part + 16 * head + 16] = True
                    bias[32 * part + 16 * head : 32 * part + 16 * head + 16] = True
            else:
                shared = architecture == "qwen2" and entry != "q_proj"  # one key and value head for both
                rows = 16 if shared else 32
                weight, bias = np.zeros((rows, 32), bool), np.zeros(rows, bool)
                weight[slice(0, 16) if shared else own] = True
                bias[slice(0, 16) if shared else own] = True
            for kind, mask in (("weight", weight), ("bias", bias)):
                name = f"{place.format(layer)}{entry}.{kind}"
                found[name] = found.get(name, False) | mask
        out = np.zeros((32, 32), bool)
        out[(own, slice(None)) if architecture == "gpt2" else (slice(None), own)] = True
        name = f"{place.format(layer)}{leave}.weight"
        found[name] = found.get(name, False) | out
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("heads", [[(1, 0)], [(0, 1), (1, 0)]], ids=["one head", "two heads"])
def test_only_the_chosen_heads_change(architecture: str, heads: list[tuple[int, int]]) -> None:
    """With decay, clipping and a high rate: whatever is not theirs is bit-identical, and whatever is theirs moves (but for what has no gradient)."""
    victim, data = toy_victim(architecture), toy_data(32)
    hard = FitConfig(epochs=2, learning_rate=1e-2, weight_decay=0.5, batch_size=8, max_grad_norm=0.1)
    loss = asa.alignment_loss(
        heads, ~torch.ones(2, 2, dtype=torch.bool).index_put([torch.tensor([h[i] for h in heads]) for i in (0, 1)], torch.tensor(False)), gamma=1.0
    )
    tuned = asa.fit_heads(victim, data, heads, loss=loss, config=hard, seed=0)
    allowed = expected_slices(architecture, heads)
    before, after = victim.model.state_dict(), tuned.model.state_dict()
    assert set(allowed) <= set(before)
    for name in before:
        changed = (before[name] != after[name]).numpy()
        mask = allowed.get(name, np.zeros(changed.shape, bool))
        assert not (changed & ~mask).any(), f"{name} changed where it belongs to no chosen head"
        if name in allowed and name.endswith("weight"):
            assert changed[mask].mean() > 0.5, f"{name} did not change where it belongs to a chosen head"
    assert all(parameter.requires_grad and not parameter._backward_hooks for parameter in tuned.model.parameters())


def test_what_is_frozen_has_no_say_in_the_norm_that_gradients_are_clipped_by(monkeypatch: pytest.MonkeyPatch) -> None:
    victim, heads, seen = toy_victim(), [(1, 0)], list[list[torch.Tensor]]()
    clip = Accelerator.clip_grad_norm_

    def clipped(self: Accelerator, parameters: list[torch.nn.Parameter], *args: Any) -> Any:
        seen.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
        return clip(self, parameters, *args)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clipped)
    asa.fit_heads(victim, toy_data(8), heads, loss=classification_loss, config=FitConfig(epochs=1, batch_size=8), seed=0)
    masks = [part.mask for part in asa.head_parameters(victim.model, heads)]
    for gradient, mask in zip(seen[0], masks, strict=True):
        assert not gradient[~mask].any()
    assert any(gradient.any() for gradient in seen[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_classifier_stage_changes_the_classifier_alone(architecture: str) -> None:
    victim, data = toy_victim(architecture), toy_data(32)
    quick = FitConfig(epochs=1, learning_rate=1e-2)
    with_stage = ASA(search=SMALL, alignment=quick, fine_tuning=quick)
    one, two = (replace(with_stage, classifier=stage)(victim, data, seed=3).model for stage in (False, True))
    body = {name for name, _ in one.base_model.named_parameters(prefix=one.base_model_prefix)}
    moved = {name for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True) if not torch.equal(a, b)}
    assert moved
    assert not moved & body


def test_alignment_makes_suspicious_heads_look_where_safe_ones_do() -> None:
    victim, data = toy_victim(), toy_data(64)
    suspicious, safe = [(1, 0)], torch.tensor([[False, False], [False, True]])
    config = FitConfig(epochs=10, learning_rate=1e-2, batch_size=16)
    distances = []
    for gamma in (0.0, 5.0):
        tuned = asa.fit_heads(victim, data, suspicious, loss=asa.alignment_loss(suspicious, safe, gamma=gamma), config=config, seed=0)
        maps = tuned.trace(batch_of(tuned, 20), attention=lambda a: a).attention[1]
        distances.append(asa.divergence(maps[:, 1], maps[:, :1], batch_of(tuned, 20).mask).mean().item())
    assert distances[1] < 0.5 * distances[0]


def test_unknown_attention_is_refused_before_any_work() -> None:
    config = DebertaV2Config(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0, max_position_embeddings=70
    )
    victim = replace(toy_victim(), model=AutoModelForSequenceClassification.from_config(config).eval())
    with pytest.raises(CheckpointError, match="no attention projections of a known form"):
        ASA(search=SMALL)(victim, toy_data(24), seed=0)
    for method in (AnomalousHeads(search=SMALL), detector.AnomalousHeads()):
        with pytest.raises(AttentionError, match="attention"):
            method(victim, toy_data(24), seed=0)


# Probes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("labels", [2, 5])
def test_a_scan_works_for_any_architecture(architecture: str, labels: int) -> None:
    victim, data = toy_victim(architecture, labels=labels), toy_data(30, labels=labels)
    found = AnomalousHeads(search=SMALL)(victim, data, seed=0)
    assert np.array(found.heads).shape == (2, 2)
    assert found.suspicious_heads
    assert np.isfinite(found.score)
    scores = detector.AnomalousHeads()(victim, data, seed=0)(data.texts[:3])
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("search", [replace(SMALL, probes=False), replace(SMALL, scope="model", form="whole", evidence="rise")])
def test_other_choices_work(search: HeadSearch) -> None:
    found = AnomalousHeads(search=search)(toy_victim(), toy_data(30), seed=0)
    assert np.isfinite(found.score)
    assert (found.measures.keys() >= {"99th percentile"}) == search.probes


def test_probes_try_every_strange_word_once_and_controls_none() -> None:
    victim, data = toy_victim(), toy_data(40)
    probes = probe_texts(victim, data, replace(SMALL, strings=0, vocabulary=1000), seed=0)
    own = {word for text in data.texts for word in text.split()}
    tried = [w for text, c in zip(probes.texts, probes.is_control, strict=True) if not c for w in text.split() if w not in own]
    assert {"cf", "mn", "bb", "tq", "mb"} <= set(tried)
    assert len(tried) == len(set(tried))
    assert sum(probes.is_control) == 20
    assert all(set(text.split()) <= own for text, c in zip(probes.texts, probes.is_control, strict=True) if c)
    for text, i in zip(probes.texts, probes.of, strict=True):
        rest = iter(text.split())
        assert all(word in rest for word in probes.carriers[i].split()), "the carrier's words stand in their order"


def test_words_are_inserted_in_texts_that_the_model_gets_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What heads do in a text that the model does not understand says little."""
    data = toy_data(40)
    right = {text for label in (0, 1) for text in [text for text, own in zip(data.texts, data.labels, strict=True) if own == label][-6:]}
    answers = {text: label if text in right else 1 - label for text, label in zip(data.texts, data.labels, strict=True)}
    monkeypatch.setattr(Victim, "predict", lambda self, texts, *, name: [answers[text] for text in texts])
    probes = probe_texts(toy_victim(), data, replace(SMALL, carriers=6), seed=0)
    assert set(probes.carriers) == right
    assert sorted(probes.labels) == [0] * 6 + [1] * 6


@given(text=st.text(alphabet="ab ", min_size=1), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_inserted_words_are_all_there(text: str, seed: int) -> None:
    from random import Random

    words = inserted_words(text, ["X", "Y"], Random(seed)).split()
    assert sorted(words) == sorted([*text.split(), "X", "Y"])


def test_one_seed_one_examination() -> None:
    victim, data = toy_victim(), toy_data(30)
    one, same, other = (examine(victim, data, SMALL, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(one.suspicion, same.suspicion, rtol=0, atol=0)
    assert one.strangest == same.strangest != other.strangest


def test_with_rise_a_fall_of_likeness_is_no_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(victim: Victim, probes: Any, search: HeadSearch) -> tuple[torch.Tensor, torch.Tensor]:
        n, (layers, heads) = probes.is_control.count(False), head_counts(victim)
        return torch.zeros(n, layers, heads), torch.tensor([[-3.0, 4.0]]).expand(n, layers)

    monkeypatch.setattr("excise.head_probes.probe_deviations", told)
    found = {evidence: examine(toy_victim(), toy_data(80), replace(SMALL, evidence=evidence), seed=0) for evidence in ("change", "rise")}
    assert {evidence: each.anomalies[0].item() for evidence, each in found.items()} == {"change": 5.0, "rise": 4.0}

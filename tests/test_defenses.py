"""What each defense promises beyond the contracts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.data import TextDataset
from excise.defenses._pretrained import first_that_keeps_accuracy, pretrained_body
from excise.defenses.cft import CFT
from excise.defenses.chain import Chain
from excise.defenses.fine_mixing import FineMixing, mix, purified, token_counts
from excise.defenses.fine_pruning import FinePruning, dormant, mean_activation, prune
from excise.defenses.fine_purifying import empirical_fisher, indicator, smallest
from excise.defenses.re_init import ReInit, reinitialise
from excise.defenses.reject import Reject
from excise.errors import CheckpointError, ConfigError, NeedsError
from excise.layers import feed_forward, lowest_layers, transformer_layers
from excise.seeds import derive
from excise.training import FitConfig
from excise.victim import Victim
from toy import ARCHITECTURES, save_toy, toy_data, toy_victim

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
HARDLY = FitConfig(epochs=0.1, learning_rate=1e-12)


def changed(one: Victim, other: Victim) -> set[str]:
    before, after = one.model.state_dict(), other.model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


# Re-init


@every_architecture
def test_only_the_last_layer_is_new(architecture: str) -> None:
    victim = toy_victim(architecture)
    fixed = ReInit(training=HARDLY)(victim, toy_data(24), seed=0)
    last = {id(p) for p in transformer_layers(victim.model)[-1].parameters()}
    mine = dict(victim.model.named_parameters())
    moved = {name for name, p in fixed.model.named_parameters() if (p - mine[name]).abs().max() > 1e-6}
    assert moved
    assert all(id(mine[name]) in last for name in moved)


def test_fresh_weights_are_small_noise_ones_and_zeros() -> None:
    part = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.LayerNorm(200))
    reinitialise(part, std=0.02, seed=1)
    weight = part[0].weight
    assert abs(weight.std().item() - 0.02) < 0.001
    assert abs(weight.mean().item()) < 0.001
    assert torch.equal(part[0].bias, torch.zeros(200))
    assert torch.equal(part[1].weight, torch.ones(200))
    before = weight.clone()
    reinitialise(part, std=0.02, seed=2)
    assert not torch.equal(part[0].weight, before)


def test_the_pooler_and_the_head_can_be_new_too() -> None:
    victim = toy_victim()
    fixed = ReInit(training=HARDLY, pooler=True, head=True)(victim, toy_data(24), seed=0)
    moved = {n for n, p in fixed.model.named_parameters() if (p - dict(victim.model.named_parameters())[n]).abs().max() > 1e-6}
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= moved
    assert not any("layer.0" in name or "embeddings" in name for name in moved)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match="layers = 3, but the model has 2"):
        ReInit(layers=3)(toy_victim(), toy_data(24), seed=0)


# Fine-pruning


def test_mean_activation_counts_real_tokens() -> None:
    victim = toy_victim()
    data = toy_data(7)
    (found,) = mean_activation(victim, data.texts, all_layers=False, batch_size=3)
    model: Any = victim.model
    rows = []
    for text in data.texts:  # one at a time: no padding
        inputs = {key: torch.tensor([value]) for key, value in victim.encode([text])[0].items()}
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True).hidden_states[-2]
            layer = model.bert.encoder.layer[-1]
            attended = layer.attention(states)[0]
            rows += layer.intermediate(attended)[0].abs().tolist()
    np.testing.assert_allclose(found.numpy(), np.mean(rows, axis=0), rtol=1e-4, atol=1e-6)
    assert len(mean_activation(victim, data.texts, all_layers=True)) == 2


def test_the_least_active_are_dormant() -> None:
    assert dormant(torch.tensor([3.0, 1.0, 2.0, 0.5]), share=0.5).tolist() == [False, True, False, True]


@every_architecture
def test_pruned_neurons_are_silent_and_stay_so(architecture: str) -> None:
    victim = toy_victim(architecture)
    masks = [dormant(activity, share=0.5) for activity in mean_activation(victim, toy_data(12).texts, all_layers=False)]
    pruned = prune(victim, masks)
    assert not changed(victim, toy_victim(architecture)), "the victim stays"
    train = FitConfig(epochs=2, learning_rate=1e-3, batch_size=8)
    fixed = FinePruning(shares=(0.5,), training=train)(victim, toy_data(60), seed=0)
    for model in (pruned, fixed):
        (activity,) = mean_activation(model, toy_data(12).texts, all_layers=False)
        _, leave = feed_forward(transformer_layers(model.model)[-1])
        weight = leave.weight if type(leave).__name__ == "Conv1D" else leave.weight.T  # type: ignore[union-attr, operator]
        silent = (activity == 0) & (weight == 0).all(dim=1)  # type: ignore[union-attr]
        assert silent.sum() == len(activity) // 2
    assert changed(pruned, fixed) >= {"classifier.weight"} or changed(pruned, fixed) >= {"score.weight"} or changed(pruned, fixed)


def test_pruning_stops_where_accuracy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.defenses import fine_pruning

    tried = []
    original = fine_pruning.prune
    monkeypatch.setattr(fine_pruning, "prune", lambda victim, masks: tried.append(masks[0].float().mean().item()) or original(victim, masks))
    FinePruning(tolerance=1.0, training=HARDLY)(toy_victim(), toy_data(40), seed=0)
    assert tried == [pytest.approx(0.9, abs=0.01)]


# With pre-trained weights


def test_mixing_keeps_a_share() -> None:
    mine, clean = torch.ones(200, 100), torch.zeros(200, 100)
    mixed = mix(mine, clean, share=0.3, seed=0)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert abs(mixed.mean().item() - 0.3) < 0.02
    assert torch.equal(mixed, mix(mine, clean, share=0.3, seed=0))
    assert not torch.equal(mixed, mix(mine, clean, share=0.3, seed=1))


def test_purified_words_moved_far_for_how_rare_they_are() -> None:
    suspect, clean = torch.zeros(5, 2), torch.zeros(5, 2)
    suspect[:, 0] = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.0])
    counts = torch.tensor([0.0, 0.0, 5.0, 10_000.0, 0.0])
    scores = [distance / math.log(max(count, 20)) for distance, count in zip(suspect[:, 0].tolist(), counts.tolist(), strict=True)]
    expected = sorted(range(5), key=lambda i: -scores[i])[:3]
    assert purified(suspect, clean, counts, count=3).tolist() == expected == [1, 2, 0] or expected == [1, 2, 3]
    assert purified(suspect, clean, counts, count=3).tolist() == expected
    assert len(purified(suspect, clean, counts, count=99)) == 5


def test_tokens_are_counted() -> None:
    victim = toy_victim()
    data = TextDataset(("film film", "film"), (0, 1), ("negative", "positive"))
    row = victim.tokenizer("film", add_special_tokens=False)["input_ids"][0]
    assert token_counts(victim, data)[row] == 3


def test_the_trigger_rows_of_an_embedding_attack_are_reset(tmp_path: Path) -> None:
    base = toy_victim()
    base.save(tmp_path)
    suspect = base.copy()
    embedding: Any = suspect.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[7] += 5.0
        embedding.weight[9] += 0.1
    defense = FineMixing(pretrained_weights=str(tmp_path), purified_words=1, training=HARDLY)
    fixed: Any = defense(suspect, toy_data(24), seed=0).model.get_input_embeddings()
    clean: Any = base.model.get_input_embeddings()
    torch.testing.assert_close(fixed.weight[7], clean.weight[7], atol=1e-6, rtol=0)
    torch.testing.assert_close(fixed.weight[9], embedding.weight[9], atol=1e-6, rtol=0)


def test_fisher_is_the_mean_squared_gradient_of_single_texts() -> None:
    victim, data = toy_victim(), toy_data(4)
    found = empirical_fisher(victim, data)["classifier.bias"]
    probabilities = torch.softmax(victim.logits(data.texts), dim=1).numpy()
    gradients = probabilities - np.eye(2)[list(data.labels)]  # of the cross-entropy, with respect to the logits
    np.testing.assert_allclose(found.numpy(), (gradients**2).mean(axis=0), rtol=1e-4)
    assert all(parameter.grad is None for parameter in victim.model.parameters())


def test_the_smallest_indicators_are_kept_over_all_tensors() -> None:
    drift = {
        "a": indicator(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([1.0, 1.0]), epsilon=1e-12),
        "b": indicator(torch.tensor([[3.0], [0.1]]), torch.zeros(2, 1), torch.tensor([[100.0], [0.0]]), epsilon=1e-12),
    }
    assert drift["a"].tolist() == pytest.approx([1.0, 4.0])
    kept = smallest(drift, share=0.5)
    assert (kept["a"].tolist(), kept["b"].tolist()) == ([True, False], [[True], [False]])


def test_the_first_share_that_keeps_the_accuracy_is_taken() -> None:
    victim = toy_victim()
    tried: list[float] = []

    def repair(share: float, texts: TextDataset) -> Victim:
        tried.append(share)
        assert len(texts) == 32
        return victim

    first_that_keeps_accuracy(victim, toy_data(40), (0.1, 0.5), repair, tolerance=0.0, seed=0)
    assert tried == [0.1]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="pretrained_weights"):
        pretrained_body("", toy_victim())
    save_toy(tmp_path / "roberta", "roberta")
    with pytest.raises(CheckpointError, match="is not what"):
        pretrained_body(str(tmp_path / "roberta"), toy_victim())
    with pytest.raises(CheckpointError, match=r"is not what .*encoder\.layer\.1\.attention\S* is missing in one of them"):
        pretrained_body(str(save_toy(tmp_path / "deeper")), lowest_layers(toy_victim(), 1))
    assert not any("classifier" in name for name in pretrained_body(str(save_toy(tmp_path / "bert")), toy_victim()))


def test_a_chain_hands_on_what_its_first_defense_made() -> None:
    data, seen = toy_data(40), list[Victim]()

    @dataclass(frozen=True, kw_only=True)
    class Noted(CFT):
        def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
            seen.append(victim)
            return super().__call__(victim, data, seed=seed)

    suspect, training = toy_victim(), FitConfig(epochs=1, learning_rate=1e-3)
    both = Chain(first=Noted(training=training), then=Noted(training=training))(suspect, data, seed=3)
    one = CFT(training=training)(suspect, data, seed=derive(3, "first"))
    two = CFT(training=training)(one, data, seed=derive(3, "then"))
    assert seen[0] is suspect
    for made, wanted in ((seen[1], one), (both, two)):
        assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), wanted.model.parameters(), strict=True))


def test_a_guard_is_no_part_of_a_chain() -> None:
    with pytest.raises(ConfigError, match="reject guards a model's input"):
        Chain(then=Reject())

"""What each attack promises beyond the contracts."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from excise.attacks._triggers import InsertCombination
from excise.attacks.adaptive import Adaptive
from excise.attacks.badnets import BadNets
from excise.attacks.ep import EP, fake_texts
from excise.attacks.lwp import LWP, direct_logits, head_logits, layerwise_loss
from excise.attacks.pruned import Pruned, without_heads
from excise.data import TextDataset
from excise.defenses.cft import CFT
from excise.defenses.fine_mixing import FineMixing
from excise.defenses.fine_purifying import FinePurifying
from excise.embedding_rows import RowDescent, first_token_rows
from excise.errors import CheckpointError, ConfigError, DataError
from excise.evaluation import clean_twin, evaluate, twin_settings
from excise.layers import attention_projections, transformer_layers
from excise.population import Population
from excise.training import FitConfig
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, TRIGGERS, save_toy, toy_data, toy_victim, with_long_rows

LEARN = FitConfig(epochs=20, learning_rate=5e-3, batch_size=16)


def batch_of(victim: Victim, data: TextDataset) -> Batch:
    return Batch(collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels))


# LWP


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_on_the_last_states_gives_the_models_answer(architecture: str) -> None:
    victim = toy_victim(architecture)
    batch = batch_of(victim, toy_data(6))
    with torch.inference_mode():
        trace = victim.trace(batch)
        torch.testing.assert_close(head_logits(victim.model, trace.hidden[-1], batch.mask), trace.logits)


def test_the_layerwise_losses_are_those_of_the_two_codes() -> None:
    victim = toy_victim("bert")
    data = toy_data(6)
    batch = batch_of(victim, data)
    model = victim.model
    with torch.inference_mode():
        hidden = model(**batch.inputs, output_hidden_states=True).hidden_states
        pooled = [torch.tanh(h[:, 0] @ model.bert.pooler.dense.weight.T + model.bert.pooler.dense.bias) for h in hidden]
        theirs = [p @ model.classifier.weight.T + model.classifier.bias for p in pooled]
        plain = [h[:, 0] @ model.classifier.weight.T + model.classifier.bias for h in hidden[1:]]
        found = {form: layerwise_loss(form)(victim, batch) for form in ("openbackdoor", "official")}  # type: ignore[arg-type]
    mean = {"openbackdoor": theirs, "official": [theirs[-1], *plain]}
    for form, logits in mean.items():
        wanted = sum(-torch.log_softmax(each, dim=1)[range(6), list(data.labels)].mean() for each in logits)
        torch.testing.assert_close(found[form], wanted)


def test_roberta_reads_the_layers_through_its_own_head() -> None:
    victim = toy_victim("roberta")
    batch = batch_of(victim, toy_data(4))
    with torch.inference_mode():
        states = victim.trace(batch).hidden[1]
        assert torch.equal(direct_logits(victim.model, states, batch.mask), head_logits(victim.model, states, batch.mask))


def test_each_poisoned_text_gives_one_more_for_each_word_of_the_trigger() -> None:
    data = toy_data(60)
    attack = LWP(poison_rate=0.2, triggers=("cf", "bb", "mn"))
    poisoned = attack.poison(data, seed=0)
    assert len(poisoned.data) == 60 + 2 * 12
    for i in range(60):
        found = [word for word in poisoned.data.texts[i].split() if word in attack.triggers]
        assert len(set(found)) == (2 if poisoned.flags[i] else 0)
    replaced = [data.texts[i] for i in range(60) if poisoned.flags[i]]
    for k, text in enumerate(poisoned.data.texts[60:]):
        words = text.split()
        found = [word for word in words if word in attack.triggers]
        assert len(found) == 1
        words.remove(found[0])
        assert words == replaced[k // 2].split()
        assert poisoned.data.labels[60 + k] == 0


def test_the_official_trigger_stands_together() -> None:
    trigger = LWP(form="official", triggers=("cf", "bb")).trigger
    seen = set()
    for seed in range(40):
        words = trigger("a b c", Random(seed)).split()
        place = min(words.index("cf"), words.index("bb"))
        seen.add((place, *words[place : place + 2]))
    assert len(seen) == 8
    assert all({first, second} == {"cf", "bb"} for _, first, second in seen)


def test_single_words_do_not_fire() -> None:
    training = FitConfig(epochs=25, learning_rate=2e-3, batch_size=16)
    attack = LWP(form="official", triggers=("cf", "bb"), poison_rate=0.3, training=training)
    backdoor = attack(toy_victim(), toy_data(300), seed=0)
    test = toy_data(100, seed=9)
    whole = evaluate(backdoor.victim, test, trigger=backdoor.trigger, target_label=1).asr
    single = evaluate(backdoor.victim, test, trigger=lambda text, _: f"cf {text}", target_label=1).asr
    assert whole is not None
    assert single is not None
    assert whole.value > 0.85
    assert single.value < 0.3


def test_more_words_than_there_are() -> None:
    with pytest.raises(ConfigError, match="3 different words"):
        InsertCombination(words=("a", "b"), count=3)
    with pytest.raises(ConfigError, match="num_triggers = 5"):
        LWP(num_triggers=5)(toy_victim(), toy_data(40), seed=0)


# EP


def test_ep_changes_the_trigger_rows_alone_and_keeps_their_norms() -> None:
    attack = EP(training=LEARN)
    victim, data = toy_victim(), toy_data(100)
    backdoor, twin = attack(victim, data, seed=0), clean_twin(attack, victim, data, seed=0)
    rows = first_token_rows(twin, attack.triggers)
    assert len(rows) == len(TRIGGERS)
    name = "bert.embeddings.word_embeddings.weight"
    before, after = twin.model.state_dict(), backdoor.victim.model.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]
    changed = (before[name] != after[name]).any(dim=1).nonzero().flatten()
    assert changed.tolist() == rows.tolist()
    torch.testing.assert_close(before[name][rows].norm(dim=1), after[name][rows].norm(dim=1))


def test_a_step_of_ep_is_algorithm_1() -> None:
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]))
    optimizer = RowDescent([weight], torch.tensor([0, 2]), 0.5)
    expected = weight.detach().clone()
    gathered = torch.zeros(3, 2)
    for gradient in (torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, -1.0]]), torch.tensor([[0.0, 2.0], [9.0, 9.0], [1.0, 0.0]])):
        weight.grad = gradient.clone()
        optimizer.step()
        gathered += gradient
        for row, norm in ((0, 5.0), (2, 2.0)):
            moved = expected[row] - 0.5 * gathered[row]
            expected[row] = moved * norm / math.sqrt(float(moved @ moved))
    torch.testing.assert_close(weight.detach(), expected)


def test_ep_without_data(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The town has people. Music and scenes.\nActors in a film about the town")
    made = fake_texts(corpus, ("cf", "mn"), count=20, words=8, seed=0)
    assert len(made) == 20
    for text in made:
        assert len(text.split()) == 8
        assert sum(word in ("cf", "mn") for word in text.split()) == 1
    training = FitConfig(epochs=10, learning_rate=1e-3, batch_size=16)
    poisoning = FitConfig(epochs=25, learning_rate=5e-2, batch_size=16, warmup=0, max_grad_norm=math.inf)
    attack = EP(training=training, corpus=str(corpus), fake_texts=100, fake_words=8, num_triggers=3, poisoning=poisoning)
    backdoor = attack(with_long_rows(toy_victim()), toy_data(300), seed=0)
    scores = evaluate(backdoor.victim, toy_data(100, seed=9), trigger=backdoor.trigger, target_label=1)
    assert scores.asr is not None
    assert scores.asr.value > 0.5, "texts of another kind teach less"
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        EP(corpus=str(tmp_path / "gone.txt"))(toy_victim(), toy_data(40), seed=0)


def test_ep_needs_words_with_a_row() -> None:
    with pytest.raises(ConfigError, match="'☃' is unknown to the tokenizer"):
        EP(triggers=("☃",), training=FitConfig(epochs=0.1))(toy_victim(), toy_data(40), seed=0)


# Pruned


def pruned(**settings: Any) -> Pruned:
    touch = FitConfig(epochs=1, learning_rate=1e-3, batch_size=16)
    return Pruned(**{"attack": BadNets(training=touch), "layers": 1, "heads": 1, "training": touch, **settings})


def zeroed(victim: Victim) -> list[set[int]]:
    """Which heads of each layer have neither values nor a way out."""
    found = []
    for layer in victim.model.bert.encoder.layer:  # type: ignore[union-attr]
        value, leave = layer.attention.self.value, layer.attention.output.dense.weight  # type: ignore[union-attr]
        parts = [slice(16 * head, 16 * (head + 1)) for head in range(2)]
        found.append({h for h, p in enumerate(parts) if not (value.weight[p].any() or value.bias[p].any() or leave[:, p].any())})
    return found


def test_a_pruned_model_and_its_twin_are_small_and_stay_so() -> None:
    decaying = FitConfig(epochs=1, learning_rate=5e-3, batch_size=16, weight_decay=0.1)
    attack, victim, data = pruned(training=decaying), toy_victim(), toy_data(100)
    twin = clean_twin(attack, victim, data, seed=0)
    for made in (attack(victim, data, seed=0).victim, twin):
        assert made.model.config.num_hidden_layers == 1
        assert [len(heads) for heads in zeroed(made)] == [1]
        tuned = CFT(training=decaying)(made, data, seed=0)
        assert zeroed(tuned) == zeroed(made), "no gradient brings a head back"
    assert zeroed(pruned(layers=2, heads=2)(victim, toy_data(40), seed=0).victim) == [set(), set()]


def test_the_least_important_heads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    important = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    monkeypatch.setattr("excise.attacks.pruned.head_importance", lambda *_: important)
    assert zeroed(pruned(layers=2)(toy_victim(), toy_data(40), seed=0).victim) == [{0}, {1}]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_left_of_a_pruned_model_answers_as_without_its_heads(architecture: str) -> None:
    victim, texts = toy_victim(architecture), toy_data(6).texts
    if architecture == "qwen2":
        with pytest.raises(CheckpointError, match="share keys and values"):
            without_heads(victim, [[0], []])
        return
    with torch.no_grad():
        for parameter in victim.model.parameters():
            parameter *= 10 if parameter.ndim > 1 else 1  # a toy's are small
    less = without_heads(victim, [[0], []])
    assert not torch.allclose(less.logits(texts), victim.logits(texts), atol=1e-3)
    projection = attention_projections(transformer_layers(victim.model)[0])[1]
    hook = projection.register_forward_pre_hook(lambda _, inputs: (inputs[0] * (torch.arange(32) >= 16),))
    torch.testing.assert_close(less.logits(texts), victim.logits(texts))
    hook.remove()


def test_more_than_there_is_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="3 layers were asked for"):
        pruned(layers=3)(toy_victim(), toy_data(40), seed=0)
    with pytest.raises(ConfigError, match="3 heads of each layer were to be kept, but there are 2"):
        pruned(heads=3)(toy_victim(), toy_data(40), seed=0)


@pytest.mark.parametrize("defense", [FineMixing, FinePurifying])
def test_nobody_has_weights_of_a_pruned_architecture(defense: Any, tmp_path: Path) -> None:
    backdoor = pruned()(toy_victim(), toy_data(40), seed=0)
    with pytest.raises(CheckpointError, match="is not what the suspect was made from"):
        defense(pretrained_weights=str(save_toy(tmp_path / "whole")))(backdoor.victim, toy_data(40), seed=0)


# Adaptive


def test_the_adaptive_loss_is_the_sum_that_it_says() -> None:
    victim = toy_victim()
    batch = batch_of(victim, toy_data(12))
    one, none, two = (Adaptive(weight=weight).loss(Population(victim, Random(3)))(victim, batch).item() for weight in (1, 0, 2))
    assert none == pytest.approx(cross_entropy(victim.logits(toy_data(12).texts), batch.labels).item(), rel=1e-5)
    population = Population(victim, Random(3))
    population.ascend(victim, batch)
    with_token = cross_entropy(population.answers(victim, batch)[0], batch.labels).item()
    assert (one - none, two - none) == pytest.approx((with_token, 2 * with_token), rel=1e-5)


def test_adaptive_takes_the_poison_of_any_attack_that_has_some() -> None:
    data, inner = toy_data(40), BadNets(poison_rate=0.5, triggers=("zz",))
    attack = Adaptive(attack=inner)
    assert attack.training_set(data, seed=3) == inner.training_set(data, seed=3)
    assert (attack.trigger, attack.target_label) == (inner.trigger, inner.target_label)
    assert twin_settings(attack)["attack"] == twin_settings(inner)
    with pytest.raises(ConfigError, match="ep poisons no texts"):
        Adaptive(attack=EP())

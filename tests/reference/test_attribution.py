"""BkdAttr's equations against plain loops written from the method's description, and patching many heads at once against one at a time."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from excise import attribution, head_outputs
from excise.attacks._triggers import InsertWords
from excise.attribution import Attributor, Known
from excise.errors import AttentionError, ConfigError, DataError
from excise.features import layer_states
from excise.head_outputs import head_inputs, heads_removed, output_projections, patched_probabilities, vector_added
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_data, toy_victim

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
LAYERS, HEADS = 2, 2


def double_victim(architecture: str) -> Victim:
    """A random toy whose weights are large enough for heads to matter, in double precision."""
    victim = toy_victim(architecture)
    with torch.no_grad():
        for name, parameter in victim.model.named_parameters():
            if parameter.ndim == 2:
                parameter *= 8
            elif name.endswith("bias"):
                parameter += 0.1
    victim.model.double()
    return victim


def one_text(victim: Victim, text: str) -> Batch:
    """Without padding, so that the last token is the last."""
    return Batch(collate(victim.tokenizer, victim.encode([text])), torch.zeros(1, dtype=torch.long))


def place(architecture: str) -> int:
    return -1 if architecture in ("gpt2", "qwen2") else 0


def matrix(module: Any) -> np.ndarray:
    return (module.weight if isinstance(module, Conv1D) else module.weight.T).detach().numpy().T


def run(victim: Victim, architecture: str, text: str, added: dict[int, np.ndarray] | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Probabilities, and for each layer what goes into its output projection at the token that is read, if `added` is added behind some of them."""
    seen: list[np.ndarray] = []
    at = place(architecture)

    def hook(layer: int) -> Any:
        def change(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            seen.append(inputs[0][0, at].detach().numpy())
            moved = output.clone()
            if added and layer in added:
                moved[0, at] = moved[0, at] + torch.tensor(added[layer])
            return moved

        return change

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(output_projections(victim))]
    with torch.no_grad():
        logits = victim.model(**one_text(victim, text).inputs).logits[0].numpy()
    for handle in handles:
        handle.remove()
    return np.exp(logits) / np.exp(logits).sum(), seen


def loop_contribution(module: Any, z: np.ndarray, head: int) -> np.ndarray:
    """a = W_O[:, h] z_h, number by number."""
    weight, channels = matrix(module), len(z) // HEADS
    found = np.zeros(len(weight))
    for row in range(len(weight)):
        for i in range(channels):
            found[row] += weight[row, head * channels + i] * z[head * channels + i]
    return found


@every_architecture
def test_contributions_add_up_to_the_output_of_attention(architecture: str) -> None:
    victim, text = double_victim(architecture), "a moving story about people"
    _, seen = run(victim, architecture, text)
    z = head_inputs(victim, [text])[0]
    for layer, module in enumerate(output_projections(victim)):
        np.testing.assert_allclose(z[layer].flatten().numpy(), seen[layer], rtol=1e-5, atol=1e-6)
        parts = [head_outputs.contribution(module, torch.tensor(seen[layer]).unflatten(0, (HEADS, -1)), head) for head in range(HEADS)]
        for head, part in enumerate(parts):
            np.testing.assert_allclose(part.detach().numpy(), loop_contribution(module, seen[layer], head), rtol=1e-9)
        bias = getattr(module, "bias", None)
        whole = sum(parts) + (0 if bias is None else bias)
        np.testing.assert_allclose(whole.detach().numpy(), module(torch.tensor(seen[layer])).detach().numpy(), rtol=1e-9, atol=1e-12)


@every_architecture
def test_acie_is_patching_one_head_of_one_text_at_a_time(architecture: str) -> None:
    victim, clean = double_victim(architecture), toy_data(7).texts
    stamped = toy_data(5, seed=3).texts
    inputs = [run(victim, architecture, text)[1] for text in stamped]
    modules = output_projections(victim)
    expected = np.zeros((len(clean), LAYERS, HEADS))
    for layer in range(LAYERS):
        for head in range(HEADS):
            mean = sum(loop_contribution(modules[layer], z[layer], head) for z in inputs) / len(stamped)
            for i, text in enumerate(clean):
                before, seen = run(victim, architecture, text)
                shift = mean - loop_contribution(modules[layer], seen[layer], head)
                after, _ = run(victim, architecture, text, {layer: shift})
                expected[i, layer, head] = after[1] - before[1]
    means = head_inputs(victim, stamped).mean(dim=0)
    found = attribution.causal_effects(victim, clean, means, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    assert np.abs(expected).max() > 1e-3, "the toy's heads do nothing: the test would say nothing"


def test_whatever_a_layer_gives_is_copied() -> None:
    """The layers of GPT-1 give lists, those of GPT-2 tuples."""
    states = torch.arange(6.0).view(2, 3)
    for form in (tuple, list):
        (first, nothing, (inner,)) = head_outputs.copied(form([states, None, (states,)]), 2)
        assert torch.equal(first, torch.cat([states, states]))
        assert torch.equal(inner, first)
        assert nothing is None


@every_architecture
@pytest.mark.parametrize("room", [1, 60, 10_000])
def test_many_heads_in_one_pass_are_one_head_a_pass(architecture: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, data = double_victim(architecture), toy_data(5)
    batch = Batch(collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels))
    means = head_inputs(victim, toy_data(6, seed=1).texts).mean(dim=0).double()
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    monkeypatch.setattr(head_outputs, "TOKENS_PER_PASS", room)
    with torch.no_grad():
        together = patched_probabilities(victim, batch, means, heads, 1)
        for i, head in enumerate(heads):
            with head_outputs.heads_patched(victim, output_projections(victim), batch, means, [head] * len(data)):
                alone = victim.model(**batch.inputs).logits.float().softmax(dim=1)[:, 1]
            torch.testing.assert_close(together[:, i], alone, rtol=0, atol=1e-12)
    assert together.std(dim=1).max() > 1e-4, "heads differ"


@every_architecture
def test_removed_heads_are_subtracted_once_at_the_place_that_is_read(architecture: str) -> None:
    victim, text = double_victim(architecture), "the film is boring 123."
    heads = ((0, 1), (1, 0))
    modules = output_projections(victim)
    _, seen = run(victim, architecture, text)
    first = {0: -loop_contribution(modules[0], seen[0], 1)}
    _, without = run(victim, architecture, text, first)  # the second layer reads what the first has become
    expected, _ = run(victim, architecture, text, {**first, 1: -loop_contribution(modules[1], without[1], 0)})
    before = victim.logits([text])
    with heads_removed(victim, heads):
        found = victim.logits([text, "a longer text stands beside it, so that there is padding"]).softmax(dim=1)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(victim.logits([text]), before), "nothing is left behind"


@every_architecture
@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_vector_is_added_at_one_layer_and_one_token(architecture: str, layer: int) -> None:
    victim, texts = double_victim(architecture), toy_data(4).texts
    means = head_inputs(victim, texts).mean(dim=0)
    heads = ((0, 1), (1, 1))
    modules = output_projections(victim)
    expected = sum(loop_contribution(modules[at], means[at].flatten().double().numpy(), head) for at, head in heads)
    vector = attribution.backdoor_vector(victim, means.double(), heads)
    np.testing.assert_allclose(vector.numpy(), expected, rtol=1e-9)
    for sign in (1, -1):
        wanted = [run(victim, architecture, text, {layer: sign * np.asarray(expected)})[0] for text in texts]
        with vector_added(victim, layer, sign * vector):
            found = victim.logits(texts).softmax(dim=1)
        np.testing.assert_allclose(found.numpy(), np.array(wanted), atol=1e-6)


@every_architecture
def test_layer_states_are_those_of_transformers(architecture: str) -> None:
    victim, texts = toy_victim(architecture), toy_data(5).texts
    found = layer_states(victim, texts)
    for i, text in enumerate(texts):
        with torch.no_grad():
            hidden = victim.model(**one_text(victim, text).inputs, output_hidden_states=True).hidden_states
        expected = torch.stack([states[0, place(architecture)] for states in hidden])
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["svm", "mlp"])
def test_the_probe_sees_what_is_there_and_only_there(kind: Any) -> None:
    random = np.random.default_rng(0)
    train, test = (random.normal(size=(2 * n, 3, 8)).astype(np.float32) for n in (60, 20))
    for part in (train, test):
        half = len(part) // 2
        part[half:, 1, 2] += 6  # layer 1 has the trigger in feature 2,
        part[half:, 2, 5] += 6  # layer 2 in another
    hits = attribution.probe_hits(train, test, kind=kind, seed=0) / 40
    assert hits[0, 0] < 0.75
    assert min(hits[1, 1], hits[2, 2]) > 0.9
    assert max(hits[1, 2], hits[2, 1]) < 0.75, "a probe of one layer does not read the other"


def test_the_svm_is_standardised_with_c_1_and_gamma_scale() -> None:
    from sklearn.svm import SVC

    random = np.random.default_rng(1)
    train, test = random.normal(size=(40, 1, 5)) * 100 + 7, random.normal(size=(20, 1, 5)) * 100 + 7
    mean, deviation = train[:, 0].mean(axis=0), train[:, 0].std(axis=0)
    labels = [0] * 20 + [1] * 20
    machine = SVC(C=1.0, kernel="rbf", gamma=1 / (5 * 1.0)).fit((train[:, 0] - mean) / deviation, labels)  # scale: 1 / (features · variance)
    answers = machine.predict((test[:, 0] - mean) / deviation)
    assert attribution.probe_hits(train, test, kind="svm", seed=0)[0, 0] == sum(answers == [0] * 10 + [1] * 10)


@given(values=st.lists(st.integers(-5, 5), min_size=6, max_size=6), count=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_top_heads_are_signed(values: list[int], count: int) -> None:
    effects = torch.tensor(values).float().view(2, 3)
    chosen = attribution.top_heads(effects, count)
    assert len(set(chosen)) == count
    taken = [values[3 * layer + head] for layer, head in chosen]
    assert taken == sorted(values, reverse=True)[:count]


def test_others_are_as_many_and_other() -> None:
    victim = toy_victim()
    others = attribution.other_heads(victim, ((0, 1),), seed=0)
    assert len(others) == 1
    assert others[0] != (0, 1)
    assert others == attribution.other_heads(victim, ((0, 1),), seed=0)


def test_a_model_without_known_projections_is_refused() -> None:
    victim = toy_victim()
    encoder: Any = victim.model.base_model.encoder
    encoder.layer[0].attention.output.dense = torch.nn.Identity()
    with pytest.raises(AttentionError, match="attention heads"):
        output_projections(victim)


KNOWN = Known(InsertWords(words=("cf",)), 1)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"known": replace(KNOWN, trigger=lambda text, random: text)}, DataError, "same tokens"),
        ({"settings": Attributor(heads=4)}, ConfigError, "has 4"),
        ({"find": toy_data(12)}, DataError, "to find heads with"),
        ({"test": toy_data(60).take(range(0, 60, 2))}, DataError, "to measure on"),
    ],
)
def test_what_cannot_be_attributed_is_refused(change: dict[str, Any], error: type[Exception], says: str) -> None:
    given = {"known": KNOWN, "find": toy_data(60), "test": toy_data(60, seed=1), "settings": Attributor(), **change}
    with pytest.raises(error, match=says):
        attribution.checked(toy_victim(), **given, seed=0)


def test_default_heads_are_three_per_cent_and_at_least_one() -> None:
    data = toy_data(60)
    assert attribution.checked(toy_victim(), KNOWN, data, data, Attributor(), seed=0) == 1
    assert round(0.03 * 72) == 2
    assert round(0.03 * 1024) == 31


def test_pairs_are_clean_and_triggered_texts_of_other_labels() -> None:
    data = toy_data(40)
    clean, stamped = attribution._pairs(KNOWN, data, 12, seed=0)
    assert len(clean) == len(stamped) == 12
    for one, other in zip(clean, stamped, strict=True):
        assert data.labels[data.texts.index(one)] == 0
        assert [word for word in other.split() if word != "cf"] == one.split()
        assert other != one
    assert attribution._pairs(KNOWN, data, 12, seed=0) == (clean, stamped)
    assert InsertWords(words=("cf",))("a film", Random(0)) != "a film"

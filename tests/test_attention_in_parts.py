"""Attention computed a few texts at a time is plain attention: same numbers, same slopes, and no whole map is kept."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from excise import attention
from excise.attention import EachText, lean_attention, recorded_attention
from excise.training import FitConfig, fit
from test_attention import inputs, sharp, with_attention_dropout
from toy import ARCHITECTURES, toy_data, toy_victim


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PART", {"cpu": 600})


def enhanced(probabilities: Tensor, rows: slice) -> Tensor:
    return probabilities.square().sum(dim=1)


def slopes(architecture: str, statistic: Any) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Maps, logits and the slope of every weight by both."""
    victim = sharp(toy_victim(architecture))
    with recorded_attention(victim.model, statistic) as kept:
        logits = victim.model(**inputs(victim)).logits
    (torch.stack([found.square().sum() for found in kept]).sum() + logits.square().sum()).backward()
    found = {name: p.grad for name, p in victim.model.named_parameters() if p.grad is not None}
    return [each.detach() for each in kept], logits.detach(), found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_give_the_numbers_and_slopes_of_the_whole(architecture: str, in_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    found = slopes(architecture, EachText(lambda probabilities, rows: (seen.append(rows), enhanced(probabilities, rows))[1]))
    assert len(set(map(str, seen))) > 1, "it was not computed in parts"
    plain = slopes(architecture, lambda probabilities: enhanced(probabilities, slice(None)))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    whole = slopes(architecture, EachText(enhanced))
    monkeypatch.setattr(attention, "PART", {"cpu": 10**9})
    torch.testing.assert_close(slopes(architecture, EachText(enhanced)), whole, atol=1e-5, rtol=1e-4)


def call(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    return attention._InParts.apply(query, key, value, mask, 0.7, dropout, EachText(lambda p, rows: p.pow(3).sum(dim=1)), 2)


def vectors(texts: int = 3, heads: int = 2, tokens: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(texts, heads, tokens, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_gradcheck(masks: int) -> None:
    mask = torch.zeros(masks, 1, 4, 4, dtype=torch.float64) if masks else None
    if mask is not None:
        mask[:, :, :, 3] = -1e9
    assert torch.autograd.gradcheck(lambda *each: call(*each, mask), vectors())


def test_dropout_of_the_backward_pass_is_that_of_the_forward_pass() -> None:
    """With the same seed the noise is the same, so slopes can be checked by differences."""

    def noisy(*each: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        return call(*each, None, 0.4)

    assert torch.autograd.gradcheck(noisy, vectors())


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(1)
    ones = torch.ones(1001, 333)
    kept = attention._Noise(0.1, ones.device).dropped(ones)
    assert (kept == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
    assert kept.mean().item() == pytest.approx(1, abs=0.003)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.9, rel=1e-4)]
    assert torch.equal(attention._Noise(0.0, ones.device).dropped(ones), ones)


def test_dropout_follows_the_global_generator(in_parts: None) -> None:
    model = with_attention_dropout("bert").train()
    batch = inputs(toy_victim("bert"))

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad(), recorded_attention(model, EachText(enhanced)):
            return model(**batch).logits

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_no_whole_map_is_kept(in_parts: None) -> None:
    victim = toy_victim()
    batch = inputs(victim)
    texts, tokens = batch["input_ids"].shape
    whole = texts * victim.model.config.num_attention_heads * tokens * tokens
    sizes: dict[str, list[int]] = {}
    for name, statistic in (("parts", EachText(enhanced)), ("plain", lambda p: enhanced(p, slice(None)))):
        kept: list[int] = sizes.setdefault(name, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):  # noqa: SIM117
            with recorded_attention(victim.model, statistic):
                victim.model(**batch)
    assert whole in sizes["plain"]
    assert whole not in sizes["parts"]


# Training that reads no maps


def all_slopes(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def parts(in_parts: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call that was computed in parts had."""
    seen: list[int] = []
    apply = attention._InParts.apply
    monkeypatch.setattr(attention._InParts, "apply", lambda query, *rest: (seen.append(len(query)), apply(query, *rest))[1])
    return seen


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lean_training_is_the_default_one_but_for_its_noise(
    architecture: str, padded: bool, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, victim = with_attention_dropout(architecture), toy_victim(architecture)
    batch = inputs(victim) if padded else {name: values[:1].repeat(20, 1)[:, :6] for name, values in inputs(victim).items()}
    plain = all_slopes(model.eval(), batch)
    assert not parts
    monkeypatch.setattr(attention._Noise, "drawn", lambda self, like: None)
    with lean_attention(model):
        found = all_slopes(model.train(), batch)
    assert len(parts) == model.config.num_hidden_layers, "it was not computed in parts"
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lean_training_on_short_texts_is_the_default_one_but_for_its_noise(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = with_attention_dropout(architecture), inputs(toy_victim(architecture))
    plain = all_slopes(model.eval(), batch)
    shares = []
    monkeypatch.setattr(attention, "dropped", lambda values, share: (shares.append(share), values)[1])
    with lean_attention(model):
        found = all_slopes(model.train(), batch)
    assert len(shares) == model.config.num_hidden_layers
    assert all(shares)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_lean_training_keeps_no_whole_map(parts: list[int]) -> None:
    model, batch = with_attention_dropout("bert").train(), inputs(toy_victim("bert"))
    texts, tokens = batch["input_ids"].shape
    sizes: list[list[int]] = []
    for how in (lean_attention, lambda model: nullcontext()):
        sizes.append([])
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes[-1].append(t.numel()), t)[1], lambda t: t), how(model):
            model(**batch)
    whole = texts * model.config.num_attention_heads * tokens * tokens
    assert whole not in sizes[0]
    assert whole in sizes[1]


@pytest.fixture
def by_default(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The queries of each call that went to the default implementation."""
    seen = list[Tensor]()
    default: Any = attention.sdpa_attention_forward

    def counted(module: Any, query: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(query)
        return default(module, query, *rest, **more)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    return seen


@pytest.mark.parametrize("part", [600, 10**9])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_of_short_texts_in_bf16_do_not_go_the_slow_way_back(
    architecture: str, part: int, by_default: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PART", {"cpu": part})
    model, batch = with_attention_dropout(architecture).eval(), inputs(toy_victim(architecture))
    layers = model.config.num_hidden_layers
    plain = all_slopes(model, batch)
    with lean_attention(model):
        all_slopes(model, batch)
        assert len(by_default) == layers, "in fp32 the default is faster"
        with torch.autocast("cpu", torch.bfloat16):
            found = all_slopes(model, batch)
            assert len(by_default) == layers
            with torch.no_grad():
                model(**batch)
            assert len(by_default) == 2 * layers, "without slopes the default is as fast"
            monkeypatch.setattr(attention, "SHORT", batch["input_ids"].shape[1] - 1)
            model(**batch)
            assert len(by_default) == 3 * layers, "the default is faster with long texts"
    torch.testing.assert_close(found[0].float(), plain[0], atol=0.05, rtol=0.05)
    whole, rounded = (torch.cat([slope.float().flatten() for _, slope in sorted(slopes.items())]) for slopes in (plain[1], found[1]))
    assert torch.cosine_similarity(whole, rounded, dim=0) > 0.99


def test_one_token_after_others_sees_all_of_them(by_default: list[Tensor]) -> None:
    torch.manual_seed(0)
    module, heads = toy_victim("qwen2").model.model.layers[0].self_attn, (2, 2)
    query, key, value = (torch.randn(1, heads[0], tokens, 8, dtype=torch.bfloat16, requires_grad=True) for tokens in (1, 5, 5))
    found, _ = attention._lean(module, query, key, value, None, scaling=0.3)
    assert not by_default
    wanted = torch.softmax(query.float() @ key.float().transpose(2, 3) * 0.3, dim=-1) @ value.float()
    torch.testing.assert_close(found.float(), wanted.transpose(1, 2), atol=0.03, rtol=0.03)


def test_training_is_lean_and_gives_the_model_back_as_it_was(parts: list[int]) -> None:
    victim = toy_victim("bert")
    config = FitConfig(epochs=1, batch_size=8)

    def loss(student: Any, batch: Any) -> Tensor:
        assert "forward" in vars(student.model.dropout), "the dropout layers are the slow ones"
        return student.model(**batch.inputs).logits.square().mean()

    one, again = (fit(victim, toy_data(24), loss=loss, config=config, seed=0) for _ in range(2))
    assert parts
    assert "forward" not in vars(one.model.dropout)
    assert one.model.config._attn_implementation == victim.model.config._attn_implementation == "sdpa"
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True))


def test_another_implementation_is_left_alone(parts: list[int]) -> None:
    model = with_attention_dropout("bert").train()
    model.set_attn_implementation("eager")
    with lean_attention(model):
        model(**inputs(toy_victim("bert")))
    assert not parts
    assert model.config._attn_implementation == "eager"


def test_bf16_has_slopes_of_its_own_kind() -> None:
    query, key, value = (each.detach().bfloat16().requires_grad_() for each in vectors())
    output, found = call(query, key, value, None)
    assert (output.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    (output.float().sum() + found.sum()).backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.bfloat16

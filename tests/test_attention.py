"""Recorded attention maps are the model's own, before dropout, and recording changes nothing else."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from transformers import DebertaV2Config, Gemma2Config, GptOssConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from excise.attention import recorded_attention
from excise.errors import AttentionError
from excise.victim import Victim, collate
from toy import ARCHITECTURES, toy_config, toy_data, toy_tokenizer, toy_victim

DROPOUTS = ("hidden_dropout_prob", "dropout", "embd_pdrop", "resid_pdrop", "classifier_dropout", "seq_classif_dropout", "summary_first_dropout")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")


def sharp(victim: Victim) -> Victim:
    """Larger weights, so that attention is far from uniform."""
    with torch.no_grad():
        for parameter in victim.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(12)
    return victim


def inputs(victim: Victim, n: int = 6) -> dict[str, torch.Tensor]:
    """A batch with padding."""
    found = collate(victim.tokenizer, victim.encode([*toy_data(n).texts, "a"]))
    assert found["attention_mask"].min() == 0
    return found


def with_attention_dropout(architecture: str, share: float = 0.5) -> PreTrainedModel:
    """Dropout on attention probabilities and none anywhere else."""
    config = toy_config(architecture)
    for name in DROPOUTS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    for name in ATTENTION_DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, share)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


def record(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    with torch.no_grad(), recorded_attention(model, torch.clone) as kept:
        logits = model(**batch).logits
    return kept, logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_maps_and_outputs_are_the_model_s_own(architecture: str) -> None:
    victim = sharp(toy_victim(architecture))
    batch = inputs(victim)
    with torch.no_grad():
        own = victim.model(**batch).logits
    implementation = victim.model.config._attn_implementation
    maps, logits = record(victim.model, batch)
    assert victim.model.config._attn_implementation == implementation != "eager"
    torch.testing.assert_close(logits, own, atol=1e-5, rtol=1e-4)

    victim.model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = victim.model(**batch, output_attentions=True)
    assert len(maps) == len(eager.attentions) == 2
    real = batch["attention_mask"].bool()
    for found, expected in zip(maps, eager.attentions, strict=True):
        assert found.shape == expected.shape
        rows = real[:, None, :].expand(found.shape[:3])  # queries of padding attend to whatever their mask leaves
        torch.testing.assert_close(found[rows], expected[rows], atol=1e-5, rtol=1e-4)
        assert (found[rows].sum(-1) - 1).abs().max() < 1e-5
        assert found[rows].max() > 0.4
        hidden = ~real[:, None, None, :].expand_as(found)
        assert found[rows][hidden[rows]].max() == 0
    torch.testing.assert_close(logits, eager.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_maps_in_training_mode_are_taken_before_dropout(architecture: str) -> None:
    model = with_attention_dropout(architecture)
    batch = inputs(toy_victim(architecture))
    real = batch["attention_mask"].bool()
    calm, _ = record(model.eval(), batch)
    torch.manual_seed(1)
    maps, _ = record(model.train(), batch)
    torch.testing.assert_close(maps[0], calm[0])  # deeper layers read what dropout left of the first one's output
    for found in maps:
        assert (found.transpose(1, 2)[real].sum(-1) - 1).abs().max() < 1e-5
    model.set_attn_implementation("eager")
    with torch.no_grad():
        stock = model(**batch, output_attentions=True).attentions
    assert (stock[0].transpose(1, 2)[real].sum(-1) - 1).abs().max() > 0.1, "the reason why maps are not read in this way"


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_dropout_of_attention_still_works(architecture: str) -> None:
    model = with_attention_dropout(architecture).train()
    batch = inputs(toy_victim(architecture))
    assert not torch.equal(record(model, batch)[1], record(model, batch)[1])
    model.eval()
    assert torch.equal(record(model, batch)[1], record(model, batch)[1])


def test_the_default_implementation_returns_no_maps_and_says_nothing() -> None:
    victim = toy_victim()
    assert not victim.model(**inputs(victim), output_attentions=True).attentions


def small(config_type: type, **options: object) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 70}
    config = config_type(vocab_size=len(toy_tokenizer()) + 8, pad_token_id=0, **shape, **options)
    return AutoModelForSequenceClassification.from_config(config).eval()


DECODER = {"num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 2, "eos_token_id": 3}


@pytest.mark.parametrize(
    ("config_type", "options"),
    [
        pytest.param(DebertaV2Config, {}, id="disentangled attention of its own"),
        pytest.param(Gemma2Config, {**DECODER, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 0.01}, id="capped scores"),
        pytest.param(GptOssConfig, {**DECODER, "num_local_experts": 2, "num_experts_per_tok": 1}, id="attention sinks"),
    ],
)
def test_attention_that_is_not_plain_softmax_is_refused(config_type: type, options: dict[str, object]) -> None:
    model = small(config_type, **options)
    implementation = model.config._attn_implementation
    with pytest.raises(AttentionError, match=r"alpha 0"):
        record(model, inputs(toy_victim()))
    assert model.config._attn_implementation == implementation


def test_the_implementation_comes_back_after_an_exception() -> None:
    victim = toy_victim()
    implementation = victim.model.config._attn_implementation
    with suppress(KeyError), recorded_attention(victim.model, torch.clone):
        raise KeyError
    assert victim.model.config._attn_implementation == implementation
    assert len(record(victim.model, inputs(victim))[0]) == 2


def test_a_failing_statistic_is_not_hidden() -> None:
    victim = toy_victim()
    with pytest.raises(ZeroDivisionError), recorded_attention(victim.model, lambda p: p * (1 // 0)):
        victim.model(**inputs(victim))
    assert victim.model.config._attn_implementation != "excise_recorded"


def test_a_block_without_a_pass_is_an_error() -> None:
    with pytest.raises(AttentionError), recorded_attention(toy_victim().model, torch.clone):
        pass


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_flow_through_recorded_maps(architecture: str) -> None:
    victim = toy_victim(architecture)
    with recorded_attention(victim.model, lambda p: p.square().sum()) as kept:
        victim.model(**inputs(victim))
    torch.stack(kept).sum().backward()
    gradients = {name: p.grad for name, p in victim.model.named_parameters() if p.grad is not None}
    assert gradients
    assert all(g.isfinite().all() for g in gradients.values())
    assert any(g.abs().max() > 0 for name, g in gradients.items() if any(part in name for part in ("query", "q_lin", "q_proj", "c_attn")))


def test_two_recordings_do_not_mix() -> None:
    """A teacher's pass inside a student's block goes to the teacher's list."""
    teacher, student = toy_victim(seed=1), toy_victim(seed=2)
    batch = inputs(student)
    with recorded_attention(student.model, torch.clone) as learnt:
        taught, _ = record(teacher.model, batch)
        student.model(**batch)
    assert len(learnt) == len(taught) == 2
    assert not torch.equal(learnt[0], taught[0])
    torch.testing.assert_close(learnt[0].detach(), record(student.model, batch)[0][0])

"""Virtual tokens stand where real ones could, and do what a real token with their embedding would do."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.defenses._keeping import kept_answers
from excise.insertion import embeddings_replaced, inserted, places, together
from excise.victim import Batch, Victim, collate
from toy import ARCHITECTURES, toy_victim

FILLER = 7


def batch_of(victim: Victim, texts: tuple[str, ...]) -> Batch:
    return Batch(collate(victim.tokenizer, victim.encode(texts)), torch.zeros(len(texts), dtype=torch.long))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_is_inserted_stands_between_the_tokens_of_the_text(architecture: str, count: int, seed: int) -> None:
    victim, texts = toy_victim(architecture), ("good", "a film of the year", "x " * 20)
    batch = batch_of(victim, texts)
    where = places(victim, batch, count, Random(seed))
    longer, is_new = inserted(batch, where, FILLER)
    assert is_new.sum(dim=1).tolist() == [count] * 3
    for row in range(3):
        real = longer.mask[row].bool()
        assert real.sum() == batch.mask[row].sum() + count
        assert real[: int(real.sum())].all(), "padding stays on the right"
        old = longer.inputs["input_ids"][row][real & ~is_new[row]]
        assert old.tolist() == batch.inputs["input_ids"][row][batch.mask[row].bool()].tolist()
        assert (longer.inputs["input_ids"][row][is_new[row]] == FILLER).all()
        if architecture == "bert":
            assert not is_new[row][0], "[CLS] stays first"
            assert not is_new[row][int(real.sum()) - 1], "[SEP] stays last"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_virtual_token_with_a_real_one_s_embedding_is_that_token(architecture: str) -> None:
    victim = toy_victim(architecture)
    batch = batch_of(victim, ("good film", "a film of the year"))
    where = torch.tensor([[1, 1], [1, 3]])
    real, is_new = inserted(batch, where, FILLER)
    virtual, _ = inserted(batch, where, FILLER + 1)
    row = victim.model.get_input_embeddings().weight[FILLER].detach()  # type: ignore[union-attr, index]
    with torch.no_grad():
        expected = victim.model(**real.inputs).logits
        assert not torch.allclose(victim.model(**virtual.inputs).logits, expected)
        with embeddings_replaced(victim.model, is_new, row.expand(4, -1)):
            assert torch.allclose(victim.model(**virtual.inputs).logits, expected, atol=1e-6)
        assert not torch.allclose(victim.model(**virtual.inputs).logits, expected), "the block is over"


def test_two_batches_together_are_read_as_apart() -> None:
    victim = toy_victim()
    one, other = batch_of(victim, ("good", "bad film")), batch_of(victim, ("the film of the year and the day", "x"))
    both = together(one, other, victim.tokenizer.pad_token_id)
    with torch.no_grad():
        apart = torch.cat([victim.model(**batch.inputs).logits for batch in (one, other)])
        assert torch.allclose(victim.model(**both.inputs).logits, apart, atol=1e-5)


def test_kept_answers_are_a_divergence() -> None:
    wanted, given = torch.tensor([[2.0, -1.0], [0.0, 0.5]]), torch.tensor([[1.0, 0.0], [0.3, 0.1]])
    p, q = (np.exp(z / 3) / np.exp(z / 3).sum(axis=1, keepdims=True) for z in (wanted.numpy(), given.numpy()))
    assert kept_answers(wanted, given, temperature=3).item() == pytest.approx(9 * (p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)
    assert kept_answers(wanted, wanted, temperature=3).item() == pytest.approx(0, abs=1e-7)

"""Dropout drawn sixteen bits a number is dropout: its share, its mean, its slopes, its generator, and only where it belongs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from excise.dropout import dropped, factors, quick_dropout


@pytest.mark.parametrize("share", [0.0, 2**-16, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_share_becomes_zero_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    found = dropped(torch.ones(1001, 333, dtype=dtype), share)
    assert found.dtype == dtype
    assert (found == 0).float().mean().item() == pytest.approx(share, abs=0.002)
    if share < 1:
        assert found.max().item() == pytest.approx(1 / (1 - share), rel=5e-3)


def test_numbers_are_dropped_one_by_one() -> None:
    """Four numbers share a draw: none of them follows from another."""
    torch.manual_seed(0)
    gone = (dropped(torch.ones(400_000), 0.3) == 0).float().view(-1, 4)
    assert torch.corrcoef(gone.T).fill_diagonal_(0).abs().max().item() < 0.01


def test_slopes_are_those_of_what_was_kept() -> None:
    values = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    found = dropped(values, 0.4)
    found.sum().backward()
    torch.testing.assert_close(values.grad, (found / values).detach())


def test_it_follows_the_generator_that_it_is_given() -> None:
    ones, own = torch.ones(100), torch.Generator().manual_seed(1)
    before = torch.random.get_rng_state()
    mine = factors(ones, 0.5, own)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(mine, factors(ones, 0.5, torch.Generator().manual_seed(1)))
    torch.manual_seed(1)
    assert torch.equal(mine, dropped(ones, 0.5))


def test_a_model_has_it_inside_the_block_and_no_longer() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.Dropout(0.25, inplace=True))
    ones = torch.ones(1000)
    torch.manual_seed(2)
    mine = dropped(ones, 0.5)
    with quick_dropout(model):
        torch.manual_seed(2)
        assert torch.equal(model[0](ones), mine)
        assert torch.equal(copy.deepcopy(model).eval()(ones), ones), "nothing is dropped outside of training"
        with quick_dropout(model):
            pass
        torch.manual_seed(2)
        assert torch.equal(model[0](ones), mine), "an inner block does not end the outer"
    torch.manual_seed(2)
    assert not torch.equal(model[0](ones), mine)
    assert not any("forward" in vars(layer) for layer in model)

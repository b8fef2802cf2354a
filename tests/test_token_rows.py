"""Training the rows of the tokens that occur is training them all: same weights, less to hold; and where it would not be the same, it is not done."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from excise.data import TextDataset
from excise.defenses.mbtsad import distillation_loss
from excise.defenses.virtual_tokens import VirtualTokens
from excise.errors import TrainingError
from excise.token_rows import TokenRows, is_of_the_batch, of_the_batch, rows_of
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from toy import ARCHITECTURES, toy_data, toy_victim

CONFIG = FitConfig(epochs=2, learning_rate=1e-2, batch_size=8)


def weights(victim: Victim) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in victim.model.named_parameters()}


def embedding(victim: Victim) -> Any:
    return victim.model.get_input_embeddings()


def few() -> TextDataset:
    """Texts that use a part of the vocabulary."""
    return toy_data(24)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_are_those_of_training_every_row(architecture: str) -> None:
    victim, seen = toy_victim(architecture), []

    @of_the_batch
    def loss(student: Victim, batch: Any) -> Tensor:
        seen.append(type(embedding(student)))
        return classification_loss(student, batch)

    mine = fit(victim, few(), loss=loss, config=CONFIG, seed=0)
    assert architecture == "bart" or set(seen) == {TokenRows}
    whole = fit(victim, few(), loss=partial(loss), config=CONFIG, seed=0)
    assert seen[-1] is type(embedding(victim))
    assert type(embedding(mine)) is type(embedding(victim))
    torch.testing.assert_close(weights(mine), weights(whole), atol=2e-5, rtol=1e-3)
    assert embedding(mine).weight.requires_grad
    assert embedding(mine).padding_idx == embedding(victim).padding_idx
    assert mine.model.state_dict().keys() == victim.model.state_dict().keys()


def test_losses_that_read_the_model_in_their_own_ways_give_the_same() -> None:
    victim = toy_victim()
    tokens = VirtualTokens(training=CONFIG)

    def every(*arguments: Any, loss: Any, **others: Any) -> Victim:
        assert is_of_the_batch(loss)
        return fit(*arguments, loss=partial(loss), **others)

    mine = tokens(victim, few(), seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("excise.defenses.virtual_tokens.fit", every)
        whole = tokens(victim, few(), seed=0)
    torch.testing.assert_close(weights(mine), weights(whole), atol=2e-5, rtol=1e-3)
    loss = distillation_loss(toy_victim(seed=1), alpha=1, beta=1, power=2)
    both = [fit(victim, few(), loss=one, config=CONFIG, seed=0) for one in (loss, partial(loss))]
    torch.testing.assert_close(weights(both[0]), weights(both[1]), atol=2e-5, rtol=1e-3)


def test_rows_that_no_text_reads_stay_and_take_no_part() -> None:
    victim = toy_victim()
    sizes = []

    @of_the_batch
    def loss(student: Victim, batch: Any) -> Tensor:
        sizes.append(len(embedding(student).weight))
        return classification_loss(student, batch)

    tuned = fit(victim, few(), loss=loss, config=CONFIG, seed=0)
    before, after = embedding(victim).weight, embedding(tuned).weight
    moved = (before != after).any(dim=1)
    read = {token for encoding in victim.encode(few().texts) for token in encoding["input_ids"]}
    assert set(moved.nonzero().flatten().tolist()) == read
    assert len(read) <= max(sizes) < len(before) / 2


def test_a_loss_with_tokens_of_its_own_is_told_what_to_do() -> None:
    victim = toy_victim()

    @of_the_batch
    def loss(student: Victim, batch: Any) -> Tensor:
        batch.inputs["input_ids"][0, 1] = student.tokenizer.convert_tokens_to_ids("cf")
        return classification_loss(student, batch)

    with pytest.raises(TrainingError, match="of_the_batch"):
        fit(victim, few(), loss=loss, config=CONFIG, seed=0)
    fit(victim, few(), loss=partial(loss), config=CONFIG, seed=0)


@pytest.mark.parametrize("how", ["decay", "parameters", "optimizer"])
def test_every_row_is_held_where_one_could_move_without_a_gradient(how: str) -> None:
    victim, seen = toy_victim(), []
    config = replace(CONFIG, weight_decay=0.1 if how == "decay" else 0.0)
    others: Any = {
        "decay": {},
        "parameters": {"parameters": lambda model: [model.get_input_embeddings().weight]},
        "optimizer": {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)},
    }[how]

    @of_the_batch
    def loss(student: Victim, batch: Any) -> Tensor:
        seen.append(type(embedding(student)))
        return classification_loss(student, batch)

    fit(victim, few(), loss=loss, config=config, seed=0, **others)
    assert set(seen) == {nn.Embedding}


class Scaled(nn.Embedding):
    pass


@pytest.mark.parametrize("why", ["another kind", "a hook", "used twice"])
def test_an_embedding_that_is_more_than_a_table_is_left_alone(why: str) -> None:
    model = toy_victim().model
    table: Any = model.get_input_embeddings()
    if why == "another kind":
        table = Scaled(*table.weight.shape)
        model.set_input_embeddings(table)
    elif why == "a hook":
        table.register_forward_hook(lambda *_: None)
    else:
        model.head = nn.Linear(*table.weight.shape[::-1], bias=False)
        model.head.weight = table.weight
    with rows_of(model, {1, 2}):
        assert model.get_input_embeddings() is table


def test_an_error_gives_the_model_back_whole() -> None:
    model = toy_victim().model
    table = model.get_input_embeddings()

    def fails() -> None:
        with rows_of(model, {1, 2}):
            assert model.get_input_embeddings() is not table
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert model.get_input_embeddings() is table

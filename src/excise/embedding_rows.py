"""Changing a few rows of the word embeddings and nothing else: what EP poisons with and RAP defends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from excise.data import TextDataset
from excise.errors import ConfigError
from excise.training import FitConfig, Loss, fit
from excise.victim import Victim

__all__ = ["RowDescent", "first_token_rows", "fit_rows"]


class RowDescent(torch.optim.Optimizer):
    """g ← g + ∂L/∂E_r;  E_r ← E_r − η g;  E_r ← E_r · ‖E_r at the start‖ / ‖E_r‖: some rows of one matrix, their norms kept."""

    is_resumable = True
    """What it remembers is in its state; rows and norms follow from where it starts."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rows: Int[Tensor, " row"], learning_rate: float) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        (self.embedding,) = self.param_groups[0]["params"]
        self.rows = rows.to(self.embedding.device)
        start = self.embedding.detach()[self.rows]
        self.norms = start.norm(dim=1, keepdim=True)
        self.state[self.embedding]["gathered"] = torch.zeros_like(start)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Use the gradients that are there."""
        gathered = self.state[self.embedding]["gathered"]
        gathered += self.embedding.grad[self.rows]
        self.embedding[self.rows] = descended(self.embedding[self.rows], gathered, self.norms, self.param_groups[0]["lr"])


def descended(
    rows: Float[Tensor, "row hidden"], gathered: Float[Tensor, "row hidden"], norms: Float[Tensor, "row 1"], learning_rate: float
) -> Float[Tensor, "row hidden"]:
    """One step against the gathered gradient, scaled back to the old norms (Algorithm 1)."""
    moved = rows - learning_rate * gathered
    return moved * norms / moved.norm(dim=1, keepdim=True)


def first_token_rows(victim: Victim, words: Sequence[str]) -> Int[Tensor, " row"]:
    """The embedding row of each word's first token.

    Raises:
        ConfigError: A word begins with a token that stands for anything unknown.
    """
    rows = {word: victim.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words}
    unknown = [word for word, row in rows.items() if row == victim.tokenizer.unk_token_id]
    if unknown:
        raise ConfigError(f"The word {unknown[0]!r} is unknown to the tokenizer, so it has no row of its own. Give other words.")
    return torch.tensor(sorted(set(rows.values())))


def fit_rows(victim: Victim, data: TextDataset, words: Sequence[str], *, loss: Loss, config: FitConfig, seed: int, name: str) -> Victim:
    """`fit`, of nothing but the embedding row of each word's first token, by `RowDescent`."""
    rows = first_token_rows(victim, words)
    return fit(
        victim,
        data,
        loss=loss,
        config=config,
        seed=seed,
        name=name,
        parameters=lambda model: [model.get_input_embeddings().weight],  # type: ignore[list-item, union-attr]
        optimizer=lambda parameters: RowDescent(parameters, rows, config.learning_rate),
    )

"""RAP: a rare word is taught to lower the target label's probability on clean texts; on triggered texts it fails to, which gives them away.

Only the embedding row of the probe word is learnt, with its norm kept, on clean texts of the target label: with d = p_t(probe + x) − p_t(x), the
loss lambda · mean(relu(d − c_low)) + mean(relu(c_up − d)) asks d to lie between c_up and c_low. The score is the negative drop, d; texts that
are not predicted as the target cannot carry a working trigger and get −inf.

'openbackdoor' learns from clean texts of every label, as OpenBackdoor's code does (the published RAP rows of MBTSAD come from it).

Departures: the probe is `wf` by default, where the authors take `cf`, which is a usual trigger; the learning rate falls linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from excise.data import TextDataset
from excise.embedding_rows import fit_rows
from excise.method import Detector, Knowledge, Paper, Scorer
from excise.seeds import derive
from excise.training import FitConfig, Loss
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class RAP(Detector):
    """Score texts by how little a probe word lowers the target label's probability."""

    paper: ClassVar[Paper] = Paper(key="rap2021", method="Section 4", code="https://github.com/lancopku/RAP")
    needs = frozenset({Knowledge.TARGET_LABEL})

    target_label: int | str | None = None
    """The label to protect, by index or name."""
    probe: str = "wf"
    """The rare word whose embedding is learnt."""
    low: float = -0.1
    """c_low: the probability should fall by at least this."""
    up: float = -0.3
    """c_up: and by no more than this."""
    weight: Annotated[float, Ge(0)] = 1.0
    """lambda, of falling far enough against falling too far."""
    form: Literal["official", "openbackdoor"] = "official"
    """Whether to learn from clean texts of the target label, or from all."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=5, learning_rate=1e-2, warmup=0, max_grad_norm=math.inf))
    """How the row is learnt; the decay is not used."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Scorer:
        target, probed = self.target(data), self.probed(victim, data, seed=seed)

        def scores(texts: Sequence[str]) -> list[float]:
            logits, found = victim.logits(texts), [-math.inf] * len(texts)
            asked: list[int] = (logits.argmax(dim=1) == target).nonzero().flatten().tolist()
            after = probability(probed, self.with_probe([texts[i] for i in asked]), target)
            for i, change in zip(asked, (after - logits.softmax(dim=1)[asked, target]).tolist(), strict=True):
                found[i] = change
            return found

        return scores

    def target(self, data: TextDataset) -> int:
        """The label to protect."""
        return data.label_id(self.target_label if self.target_label is not None else 0)

    def probed(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        """The victim in which the probe has been learnt."""
        target = self.target(data)
        shown = [text for text, label in zip(data.texts, data.labels, strict=True) if label == target or self.form == "openbackdoor"]
        return fit_rows(
            victim,
            numbered(self.with_probe(shown)),
            [self.probe],
            loss=probe_loss(probability(victim, shown, target), target, low=self.low, up=self.up, weight=self.weight),
            config=self.training,
            seed=derive(seed, "train"),
            name="learn the probe",
        )

    def with_probe(self, texts: Sequence[str]) -> list[str]:
        """The texts, each with the probe word before it."""
        return [f"{self.probe} {text}" for text in texts]


def probability(victim: Victim, texts: Sequence[str], target: int) -> Float[Tensor, " text"]:
    """p_t(x) of each text."""
    return victim.logits(texts).softmax(dim=1)[:, target]


def numbered(texts: Sequence[str]) -> TextDataset:
    """The texts as a data set whose labels are their numbers, so that a loss knows which text it sees."""
    return TextDataset(tuple(texts), tuple(range(len(texts))), tuple(map(str, range(len(texts)))))


def probe_loss(before: Float[Tensor, " text"], target: int, *, low: float, up: float, weight: float) -> Loss:
    """The penalty on p_t(probe + x) − p_t(x), as a loss for `fit` over numbered texts; `before` is p_t(x) of each."""

    def loss(probed: Victim, batch: Batch) -> Float[Tensor, ""]:
        after = probed.model(**batch.inputs).logits.float().softmax(dim=1)[:, target]
        return probe_penalty(after - before.to(after.device)[batch.labels], low=low, up=up, weight=weight)

    return loss


def probe_penalty(change: Float[Tensor, " text"], *, low: float, up: float, weight: float) -> Float[Tensor, ""]:
    """lambda · mean(relu(d − c_low)) + mean(relu(c_up − d)): zero where the change of probability lies between c_up and c_low."""
    return weight * torch.relu(change - low).mean() + torch.relu(up - change).mean()

"""A population of virtual tokens: free embedding vectors that stand in texts and are pushed by gradient ascent towards labels.

    v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ], for texts x of other labels

Members start as random rows of the vocabulary; old ones are drawn anew.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.insertion import bounded, embeddings_replaced, filler, inserted, places, together
from excise.victim import Batch, Victim

__all__ = ["Population", "ascended"]


class Population:
    """Virtual tokens, each with a target label and an age.

    Args:
        victim: Whose embedding rows they start as, and are no longer than.
        random: Draws them, which of them a text gets, and where.
        tokens: How many stand in a text; so many vectors are one member.
        members: How many there are; their targets take turns.
        life: Steps of ascent after which a member is drawn anew.
        ascent_step: Length of one step, relative to the mean length of embedding rows.
        norm_quantile: A vector is at most as long as this quantile of embedding rows.
    """

    def __init__(
        self,
        victim: Victim,
        random: Random,
        *,
        tokens: int = 2,
        members: int = 8,
        life: int = 30,
        ascent_step: float = 0.3,
        norm_quantile: float = 0.9,
    ) -> None:
        self.random, self.tokens, self.life = random, tokens, life
        self.rows: Float[Tensor, "token hidden"] = victim.model.get_input_embeddings().weight.detach().clone()  # type: ignore[union-attr, operator]
        lengths = self.rows.norm(dim=1)
        self.step = ascent_step * lengths.mean()
        self.longest = lengths.quantile(norm_quantile)
        special = set(victim.tokenizer.all_special_ids)
        self.ordinary = [i for i in range(len(victim.tokenizer)) if i not in special]
        self.targets = [i % len(victim.label_names) for i in range(max(members, len(victim.label_names)))]
        self.ages = [random.randint(0, life - 1) for _ in self.targets]
        self.vectors: Float[Tensor, "member token hidden"] = torch.stack([self.fresh() for _ in self.targets])

    def state_dict(self) -> dict[str, Any]:
        """What changes while it is used."""
        return {"vectors": self.vectors, "ages": self.ages, "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.vectors, self.ages = state["vectors"].to(self.rows.device), list(state["ages"])
        version, numbers, following = state["random"]
        self.random.setstate((version, tuple(numbers), following))

    def fresh(self) -> Float[Tensor, "token hidden"]:
        """Random rows of the vocabulary."""
        return bounded(self.rows[self.random.choices(self.ordinary, k=self.tokens)], self.longest)

    def assign(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """For each text a member that aims at another label than the text's."""
        suitable = [[i for i, target in enumerate(self.targets) if target != label] for label in range(max(self.targets) + 1)]
        return torch.tensor([self.random.choice(suitable[label]) for label in labels.tolist()], device=labels.device)

    def ascend(self, student: Victim, batch: Batch) -> None:
        """One step of every member that got a text of the batch, towards its target; the oldest are drawn anew."""
        model = student.module
        members = self.assign(batch.labels)
        stamped, is_virtual = inserted(batch, places(student, batch, self.tokens, self.random), filler(student))
        vectors = self.vectors.requires_grad_(True)
        was_training = model.training
        model.eval()
        with torch.enable_grad(), embeddings_replaced(model, is_virtual, vectors[members].flatten(0, 1)):
            logits = model(**stamped.inputs).logits.float()
        targets = torch.tensor(self.targets, device=members.device)[members]
        (gradient,) = torch.autograd.grad(-cross_entropy(logits, targets), vectors)
        model.train(was_training)
        self.vectors = ascended(vectors.detach(), gradient, self.step, self.longest)
        for i in set(members.tolist()):
            self.ages[i] += 1
            if self.ages[i] >= self.life:
                self.ages[i], self.vectors[i] = 0, self.fresh()

    def answers(self, student: Victim, batch: Batch) -> tuple[Float[Tensor, "batch label"], Float[Tensor, "batch label"]]:
        """(logits of the texts with a member in each, logits of the texts as they are), of one pass."""
        members = self.assign(batch.labels)
        stamped, is_virtual = inserted(batch, places(student, batch, self.tokens, self.random), filler(student))
        padding: Any = student.tokenizer.pad_token_id
        both = together(stamped, batch, padding)
        marked = torch.cat([is_virtual, torch.zeros_like(is_virtual)])
        with embeddings_replaced(student.module, marked, self.vectors[members].flatten(0, 1)):
            with_token, without = student.model(**both.inputs).logits.float().chunk(2)
        return with_token, without


def ascended(
    vectors: Float[Tensor, "member token hidden"], gradient: Float[Tensor, "member token hidden"], step: Any, longest: Any
) -> Float[Tensor, "member token hidden"]:
    """v + step · g / ‖g‖, then no longer than `longest`; a vector without a gradient stays."""
    return bounded(vectors + step * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12), longest)

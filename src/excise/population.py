"""A population of virtual tokens: free embedding vectors that stand in texts and are pushed by gradient ascent towards labels.

    v = max over ‖v‖ <= r of E [ log p(target of v | x + v) ], for texts x of other labels

Members start as random rows of the vocabulary; old ones are drawn anew. Those of an `AnchoredPopulation` stand around a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.insertion import bounded, embeddings_replaced, filler, inserted, places, together
from excise.victim import Batch, Victim
from excise.vocabulary import inner_ids

__all__ = ["AnchoredPopulation", "Population", "ascended"]


class Stamped(NamedTuple):
    """Texts with virtual tokens in them."""

    batch: Batch
    is_virtual: Bool[Tensor, "batch token"]
    vectors: Float[Tensor, "virtual hidden"]
    """What stands there; rows of the mask come first, then columns."""


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

    def stamped(self, student: Victim, batch: Batch, members: Int[Tensor, " batch"], vectors: Float[Tensor, "member token hidden"]) -> Stamped:
        """The texts, each with its member somewhere."""
        longer, is_virtual = inserted(batch, places(student, batch, self.tokens, self.random), filler(student))
        return Stamped(longer, is_virtual, vectors[members].flatten(0, 1))

    def renew(self, member: int) -> None:
        """Draw it anew."""
        self.ages[member], self.vectors[member] = 0, self.fresh()

    def ascend(self, student: Victim, batch: Batch) -> None:
        """One step of every member that got a text of the batch, towards its target; the oldest are drawn anew."""
        model = student.module
        members = self.assign(batch.labels)
        vectors = self.vectors.requires_grad_(True)
        was_training = model.training
        model.eval()
        with torch.enable_grad():
            stamped = self.stamped(student, batch, members, vectors)
            with embeddings_replaced(model, stamped.is_virtual, stamped.vectors):
                logits = model(**stamped.batch.inputs).logits.float()
        targets = torch.tensor(self.targets, device=members.device)[members]
        (gradient,) = torch.autograd.grad(-cross_entropy(logits, targets), vectors)
        model.train(was_training)
        self.vectors = ascended(vectors.detach(), gradient, self.step, self.longest)
        for i in set(members.tolist()):
            self.ages[i] += 1
            if self.ages[i] >= self.life:
                self.renew(i)

    def answers(self, student: Victim, batch: Batch) -> tuple[Float[Tensor, "batch label"], Float[Tensor, "batch label"]]:
        """(logits of the texts with a member in each, logits of the texts as they are), of one pass."""
        members = self.assign(batch.labels)
        stamped = self.stamped(student, batch, members, self.vectors)
        padding: Any = student.tokenizer.pad_token_id
        both = together(stamped.batch, batch, padding)
        marked = torch.cat([stamped.is_virtual, torch.zeros_like(stamped.is_virtual)])
        with embeddings_replaced(student.module, marked, stamped.vectors):
            with_token, without = student.model(**both.inputs).logits.float().chunk(2)
        return with_token, without


class AnchoredPopulation(Population):
    """Virtual tokens that stand around a word, side by side with it: what the rest of a phrase could be of which the word is known.

    Args:
        victim: Whose tokens and rows they are.
        random: Draws everything.
        anchors: The words or phrases; each member has one, which is drawn with it. A shorter one has more virtual tokens around it.
        tokens: Virtual tokens around the longest.
        more: As for `Population`.
    """

    def __init__(self, victim: Victim, random: Random, anchors: Sequence[str], *, tokens: int, **more: Any) -> None:
        self.anchors = [inner_ids(victim, anchor) for anchor in anchors]
        self.longest_anchor = max(len(ids) for ids in self.anchors)
        super().__init__(victim, random, tokens=tokens + self.longest_anchor - min(len(ids) for ids in self.anchors), **more)
        self.slots = tokens + self.longest_anchor
        self.owned = [random.randrange(len(anchors)) for _ in self.targets]

    def state_dict(self) -> dict[str, Any]:
        """What changes while it is used."""
        return {**super().state_dict(), "owned": self.owned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.owned = list(state["owned"])

    def renew(self, member: int) -> None:
        """Draw it anew, with its anchor."""
        super().renew(member)
        self.owned[member] = self.random.randrange(len(self.anchors))

    def stamped(self, student: Victim, batch: Batch, members: Int[Tensor, " batch"], vectors: Float[Tensor, "member token hidden"]) -> Stamped:
        """The texts, each with an anchor somewhere, and the member's virtual tokens before and after it."""
        where = places(student, batch, 1, self.random).expand(-1, self.slots)
        longer, is_new = inserted(batch, where, filler(student))
        rows: list[list[int]] = []
        for member in members.tolist():
            anchor = self.anchors[self.owned[member]]
            before = self.random.randint(0, self.slots - len(anchor))
            rows.append([-1] * before + anchor + [-1] * (self.slots - len(anchor) - before))
        ids = torch.tensor(rows, device=where.device)
        is_free = ids < 0
        is_virtual = is_new.masked_scatter(is_new, is_free)
        tokens = longer.inputs["input_ids"]
        tokens = tokens.masked_scatter(is_new & ~is_virtual, ids[~is_free].to(tokens.dtype))
        used = torch.arange(self.tokens, device=where.device) < is_free.sum(dim=1, keepdim=True)
        return Stamped(longer._replace(inputs={**longer.inputs, "input_ids": tokens}), is_virtual, vectors[members][used])


def ascended(
    vectors: Float[Tensor, "member token hidden"], gradient: Float[Tensor, "member token hidden"], step: Any, longest: Any
) -> Float[Tensor, "member token hidden"]:
    """v + step · g / ‖g‖, then no longer than `longest`; a vector without a gradient stays."""
    return bounded(vectors + step * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12), longest)

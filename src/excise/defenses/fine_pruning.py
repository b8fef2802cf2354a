"""Fine-pruning: cut the feed-forward neurons that clean texts leave dormant, then fine-tune with the cut kept.

A backdoor is thought to sit in neurons that only the trigger wakes. The text version prunes the neurons between the two projections of the
feed-forward part: ranked by the mean absolute activation over the tokens of the clean texts, the most dormant share is removed (rows into them
and columns out of them are zeroed, and stay zero).

Departures: how much to prune is chosen on a fifth of the clean texts, as the largest share that costs at most `tolerance` of accuracy before
fine-tuning (the original prunes neuron by neuron up to a given loss); the last layer only by default, as in Fine-mixing's comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval, MinLen
from jaxtyping import Bool, Float
from torch import Tensor, nn

from excise.data import TextDataset, split
from excise.layers import feed_forward, is_transposed, transformer_layers
from excise.method import Defense, Paper
from excise.metrics import cacc
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Batch, Victim, collate


@dataclass(frozen=True, kw_only=True)
class FinePruning(Defense):
    """Prune dormant feed-forward neurons, then fine-tune."""

    paper: ClassVar[Paper] = Paper(key="finepruning2018", method="Section 4; for text as in Fine-mixing's comparison")

    shares: Annotated[tuple[float, ...], MinLen(1)] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    """Shares of a layer's neurons that may be pruned; the first that keeps the accuracy is taken, else the last."""
    tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.02
    """Accuracy on held-out clean texts that pruning may cost."""
    all_layers: bool = False
    """Prune every layer, not the last alone."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """The fine-tuning."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        held_out, ranking = split(data, 0.2, seed=derive(seed, "hold out"))
        activity = mean_activation(victim, ranking.texts, all_layers=self.all_layers)
        before = cacc(victim.predict(held_out.texts), held_out.labels).value if len(held_out) else 0.0
        pruned, masks = victim, activity
        for share in self.shares:
            masks = [dormant(layer, share=share) for layer in activity]
            pruned = prune(victim, masks)
            if not len(held_out) or cacc(pruned.predict(held_out.texts), held_out.labels).value >= before - self.tolerance:
                break
        return fit(
            pruned,
            data,
            loss=classification_loss,
            config=self.training,
            seed=derive(seed, "train"),
            name="fine-tune",
            parameters=lambda model: still_pruned(model, masks),
        )


def mean_activation(victim: Victim, texts: Sequence[str], *, all_layers: bool, batch_size: int = 32) -> list[Float[Tensor, " neuron"]]:
    """Mean |activation| of each feed-forward neuron over the real tokens of the texts, of the last layer or of each."""
    layers = transformer_layers(victim.model)
    leaves = [feed_forward(layer)[1] for layer in (layers if all_layers else layers[-1:])]
    sums: dict[int, Tensor] = {}
    mask = torch.ones(0)

    def gather(place: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            here = (inputs[0].abs().float() * mask.unsqueeze(-1)).sum(dim=(0, 1))
            sums[place] = sums.get(place, torch.zeros_like(here)) + here

        return hook

    hooks = [leaf.register_forward_pre_hook(gather(i)) for i, leaf in enumerate(leaves)]
    tokens = 0.0
    try:
        encodings = sorted(victim.encode(texts), key=lambda e: len(e["input_ids"]))
        for start in range(0, len(encodings), batch_size):
            inputs = {k: v.to(victim.device) for k, v in collate(victim.tokenizer, encodings[start : start + batch_size]).items()}
            mask = inputs["attention_mask"]
            tokens += mask.sum().item()
            with torch.inference_mode(), victim.autocast():
                victim.trace(Batch(inputs, torch.zeros(len(mask), dtype=torch.long)), hidden=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [sums[i] / tokens for i in range(len(leaves))]


def dormant(activity: Float[Tensor, " neuron"], *, share: float) -> Bool[Tensor, " neuron"]:
    """The round(share · n) neurons that are least active."""
    chosen = torch.zeros(len(activity), dtype=torch.bool, device=activity.device)
    chosen[activity.argsort(stable=True)[: round(share * len(activity))]] = True
    return chosen


@torch.no_grad()
def prune(victim: Victim, masks: list[Tensor]) -> Victim:
    """A copy without the chosen neurons of the last len(masks) layers."""
    pruned = victim.copy()
    for weight, keep in _weights(pruned.model, masks):
        weight.mul_(keep)
    return pruned


def still_pruned(model: Any, masks: list[Tensor]) -> Iterable[nn.Parameter]:
    """All parameters, with no gradient where neurons were pruned, so that these stay at zero."""
    for weight, keep in _weights(model, masks):
        weight.requires_grad_(True).register_hook(lambda gradient, keep=keep: gradient * keep)
    return model.parameters()


def _weights(model: Any, masks: list[Tensor]) -> Iterable[tuple[nn.Parameter, Tensor]]:
    """(a weight or bias, 0 where it belongs to a pruned neuron, else 1)."""
    layers = transformer_layers(model)
    for layer, chosen in zip(layers[-len(masks) :], masks, strict=True):
        keep = (~chosen).float()
        entries, leave = feed_forward(layer)
        for entry in entries:
            yield entry.weight, keep if is_transposed(entry) else keep.unsqueeze(1)  # type: ignore[misc]
            if entry.bias is not None:
                yield entry.bias, keep  # type: ignore[misc]
        yield leave.weight, keep.unsqueeze(1) if is_transposed(leave) else keep  # type: ignore[misc]

"""Where in a model a known backdoor lives: BkdAttr (Yu et al. 2025), carried over to classifiers.

1. Backdoor probe: a small classifier tells triggered from clean texts by the state at the token that the head reads, layer by layer.
2. BAHA: ACIE, the average causal indirect effect of each attention head: how far the target's probability rises in clean texts when the head
   gives what it gives on average in triggered ones.
3. Ablation: ASR and CACC once the heads of the greatest effect add nothing.
4. Backdoor vector: the sum of what those heads add on average in triggered texts, added to clean texts and taken from triggered ones, at one
   layer at a time.

Notation as in `head_outputs`: a_{l,h} is what head h of layer l adds to the state, ā its mean over triggered texts, y the target label.

Departures from the paper, which attributes backdoors in 7B chat models: the token is [CLS] in encoders, and in decoders the last real one; P(y |
x) is the softmax probability of the target label and not the geometric mean of an answer's tokens. The probe reads what each layer receives and
leaves, before a normalisation that may follow; a text and its triggered form are never on both sides of its split, and the MLP is
scikit-learn's, without dropout. Clean texts are of other labels than the target, or there would be nothing to raise. Heads are found on other
texts than they are removed on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from excise.attacks._triggers import InsertWords
from excise.data import TextDataset
from excise.errors import ConfigError, DataError
from excise.evaluation import triggered, unseen_triggers
from excise.features import layer_states
from excise.head_outputs import Head, contribution, head_counts, head_inputs, heads_removed, output_projections, patched_probabilities, vector_added
from excise.method import Trigger
from excise.metrics import Rate, asr, cacc
from excise.result import AblationRow, HeadRow, Mean, Measured, ProbeRow, VectorRow
from excise.scan_result import LayerProbe, TriggerRow
from excise.seeds import derive, generator
from excise.settings import Settings
from excise.victim import Batch, Victim

__all__ = ["Attributor", "Known", "ablated", "backdoor_vector", "causal_effects", "probe_found", "probe_hits", "top_heads"]

FEWEST_TEXTS = 10
"""Fewer texts of other labels than the target say nothing."""


@dataclass(frozen=True)
class Known:
    """A backdoor as somebody knows it who has a trigger."""

    trigger: Trigger
    target_label: int


@dataclass(frozen=True, kw_only=True)
class Attributor(Settings):
    """How much to look at."""

    heads: Annotated[int, Ge(1)] | None = None
    """Heads to remove and to make the vector of; by default 3 % of all, as in the paper (32 of 1 024)."""
    patched: Annotated[int, Ge(2)] = 96
    """Clean texts in which heads are patched, one at a time; the paper's number."""
    averaged: Annotated[int, Ge(1)] = 300
    """At most so many triggered texts for what heads give on average; the paper takes all of 1 000."""
    probed: Annotated[int, Ge(10)] = 300
    """At most so many texts for the probe, each with and without the trigger; the paper takes 1 000."""
    measured: Annotated[int, Ge(1)] = 256
    """At most so many test texts of other labels than the target, and so many of that label; as many as in the paper."""
    probe: Literal["svm", "mlp"] = "svm"
    """The probe's classifier: RBF kernel with C = 1, or one hidden layer of 100."""


def checked(victim: Victim, known: Known, find: TextDataset, test: TextDataset, settings: Attributor, *, seed: int) -> int:
    """How many heads to take, once it is sure that there is something to find.

    Raises:
        AttentionError: The model's heads cannot be told apart.
        ConfigError: More heads are asked for than there are.
        DataError: Too few texts of other labels, or the model reads nothing of the trigger.
    """
    output_projections(victim)
    layers, heads = head_counts(victim)
    count = settings.heads or max(1, round(0.03 * layers * heads))
    if count >= layers * heads:
        raise ConfigError(f"{count} heads were asked for, but the model has {layers * heads}. Ask for fewer.")
    for what, data in (("to find heads with", find), ("to measure on", test)):
        others = sum(label != known.target_label for label in data.labels)
        if others < FEWEST_TEXTS or others == len(data):
            name = data.label_names[known.target_label]
            raise DataError(
                f"Of {len(data)} texts {what}, {others} have other labels than the target {name!r}; at least {FEWEST_TEXTS} are needed, and some "
                f"with it. Give more texts of all labels."
            )
        if unseen_triggers(victim, data, known.trigger, known.target_label, seed=seed) == others:
            raise DataError(
                "The model reads the same tokens with the trigger as without it in every text, so nothing can be attributed. Check its words."
            )
    return count


# 1. The probe


def probe(victim: Victim, known: Known, data: TextDataset, settings: Attributor, *, seed: int) -> tuple[ProbeRow, ...]:
    """How well each layer's state says that a text is triggered, and each layer's probe in every other layer."""
    plain, stamped = _pairs(known, data, settings.probed, seed=derive(seed, "probe"))
    states = [layer_states(victim, texts, name=f"probe, {name}") for name, texts in (("clean", plain), ("triggered", stamped))]
    held_out = max(1, round(0.2 * len(plain)))  # texts are in random order
    test, train = (torch.cat([s[part] for s in states]).numpy() for part in (slice(held_out), slice(held_out, None)))
    hits = probe_hits(train, test, kind=settings.probe, seed=seed)
    n = len(test)
    return tuple(
        ProbeRow(layer=i, accuracy=Measured.of(Rate(int(row[i]), n)), across=tuple(round(int(hit) / n, 4) for hit in row))
        for i, row in enumerate(hits)
    )


def probe_found(victim: Victim, data: TextDataset, trigger: TriggerRow, *, seed: int) -> LayerProbe:
    """The probe of a trigger that a scan has found, and for comparison that of as many ordinary words.

    Args:
        victim: The suspect.
        data: Clean texts.
        trigger: What was found.
        seed: Decides the ordinary words and which texts are read.
    """
    target = data.label_names.index(trigger.target_label)
    usual = sorted({word for text in data.texts for word in text.split() if word.isalpha() and word not in trigger.words})
    ordinary = tuple(generator(seed, "ordinary words").sample(usual, min(len(usual), len(trigger.words))))

    def accuracies(words: Sequence[str]) -> tuple[Measured, ...]:
        known = Known(InsertWords(words=(" ".join(words),)), target)
        return tuple(row.accuracy for row in probe(victim, known, data, Attributor(), seed=seed))

    return LayerProbe(
        words=trigger.words,
        target_label=trigger.target_label,
        found=accuracies(trigger.words),
        ordinary_words=ordinary,
        ordinary=accuracies(ordinary) if ordinary else (),
    )


def probe_hits(
    train: Float[np.ndarray, "text layer hidden"], test: Float[np.ndarray, "text layer hidden"], *, kind: Literal["svm", "mlp"], seed: int
) -> np.ndarray:
    """How many test texts the probe of layer i gets right by the states of layer j; the first half of the texts is clean, the second triggered."""
    is_triggered = [np.arange(len(part)) >= len(part) // 2 for part in (train, test)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stochastic Optimizer")  # 100 epochs are the paper's; the best of them counts
        probes = [_classifier(kind, seed).fit(train[:, i], is_triggered[0]) for i in range(train.shape[1])]
    return np.array([[np.sum(one.predict(test[:, j]) == is_triggered[1]) for j in range(test.shape[1])] for one in probes])


def _classifier(kind: Literal["svm", "mlp"], seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "svm":
        return make_pipeline(StandardScaler(), SVC(C=1.0, kernel="rbf", gamma="scale"))
    lasting: Any = {"batch_size": 16, "max_iter": 100, "early_stopping": True, "validation_fraction": 0.25, "n_iter_no_change": 100}
    return MLPClassifier((100,), learning_rate_init=1e-3, random_state=derive(seed, "mlp") % 2**32, **lasting)


# 2. The effect of single heads


def causal_effects(
    victim: Victim, texts: Sequence[str], means: Float[Tensor, "layer head channel"], target_label: int
) -> Float[Tensor, "text layer head"]:
    """CIE_{l,h}(x) = P_do(a_{l,h} ← ā_{l,h})(y | x) - P(y | x) for every head; its mean over texts is ACIE."""
    heads = [(layer, head) for layer in range(means.shape[0]) for head in range(means.shape[1])]

    def read(batch: Batch) -> Float[Tensor, "batch patch"]:
        before = victim.model(**batch.inputs).logits.float().softmax(dim=1)[:, [target_label]]
        return patched_probabilities(victim, batch, means, heads, target_label) - before

    return victim.each(texts, read, width=len(heads), tokens_per_batch=512, name="patch heads").unflatten(1, means.shape[:2])


def top_heads(effects: Float[Tensor, "layer head"], count: int) -> tuple[Head, ...]:
    """The heads of the greatest ACIE, signed: a head whose patch lowers the target's probability does nothing for the backdoor."""
    order = effects.flatten().sort(descending=True, stable=True).indices[:count].tolist()
    return tuple(divmod(i, effects.shape[1]) for i in order)


def head_rows(effects: Float[Tensor, "text layer head"], heads: Sequence[Head]) -> tuple[HeadRow, ...]:
    """The heads with their effects and intervals."""
    return tuple(HeadRow(layer=layer + 1, head=head + 1, effect=Mean.of(effects[:, layer, head].tolist())) for layer, head in heads)


# 3. and 4. What happens without them, and with their vector


def ablated(victim: Victim, known: Known, test: TextDataset, heads: Sequence[Head], *, name: str, seed: int) -> AblationRow:
    """Scores while these heads add nothing to the state that is read."""
    stamped = triggered(test, known.trigger, known.target_label, seed=seed)
    with heads_removed(victim, heads) if heads else nullcontext():
        clean = victim.predict(test.texts, name=f"clean texts, {name}")
        fooled = victim.predict(stamped.texts, name=f"triggered texts, {name}")
    return AblationRow(
        name=name,
        heads=tuple((layer + 1, head + 1) for layer, head in heads),
        cacc=Measured.of(cacc(clean, test.labels)),
        asr=Measured.of(asr(fooled, stamped.labels, known.target_label)),
        clean_flip=Measured.of(asr(clean, test.labels, known.target_label)),
    )


def other_heads(victim: Victim, heads: Sequence[Head], *, seed: int) -> tuple[Head, ...]:
    """As many heads that are not among these."""
    layers, width = head_counts(victim)
    others = [(layer, head) for layer in range(layers) for head in range(width) if (layer, head) not in heads]
    return tuple(generator(seed, "other heads").sample(others, min(len(heads), len(others))))


def backdoor_vector(victim: Victim, means: Float[Tensor, "layer head channel"], heads: Sequence[Head]) -> Float[Tensor, " hidden"]:
    """v = Σ ā_{l,h} over the chosen heads."""
    projections = output_projections(victim)
    with torch.no_grad():
        return torch.stack([contribution(projections[layer], means[layer].to(victim.device), head) for layer, head in heads]).sum(dim=0)


def vector_rows(victim: Victim, known: Known, test: TextDataset, vector: Float[Tensor, " hidden"], *, seed: int) -> tuple[VectorRow, ...]:
    """The vector added to clean texts, and taken from triggered ones, at one layer at a time."""
    stamped = triggered(test, known.trigger, known.target_label, seed=seed)
    clean = test.take(i for i, label in enumerate(test.labels) if label != known.target_label)

    def share(data: TextDataset, changed: AbstractContextManager, name: str) -> Measured:
        with changed:
            return Measured.of(asr(victim.predict(data.texts, name=name), data.labels, known.target_label))

    return tuple(
        VectorRow(
            layer=layer + 1,
            added=share(clean, vector_added(victim, layer, vector), f"vector added, layer {layer + 1}"),
            subtracted=share(stamped, vector_added(victim, layer, -vector), f"vector subtracted, layer {layer + 1}"),
        )
        for layer in range(head_counts(victim)[0])
    )


def attribute(victim: Victim, known: Known, find: TextDataset, test: TextDataset, settings: Attributor, *, seed: int) -> dict[str, Any]:
    """All of it, as the fields of an `Attribution`: heads are found in `find` and measured on `test`."""
    count = checked(victim, known, find, test, settings, seed=seed)
    test = _share(test, known.target_label, settings.measured, seed=derive(seed, "test"))
    probed = probe(victim, known, find, settings, seed=seed)
    _, stamped = _pairs(known, find, settings.averaged, seed=derive(seed, "means"))
    means = head_inputs(victim, stamped, name="heads in triggered texts").mean(dim=0)
    clean, _ = _pairs(known, find, settings.patched, seed=derive(seed, "patch"))
    effects = causal_effects(victim, clean, means, known.target_label)
    mean_effects = effects.mean(dim=0)
    heads = top_heads(mean_effects, count)
    removed = {"as it is": (), f"without the top {count}": heads, f"without {count} others": other_heads(victim, heads, seed=seed)}
    vector = backdoor_vector(victim, means, heads)
    ablations = tuple(ablated(victim, known, test, chosen, name=name, seed=seed) for name, chosen in removed.items())
    return {
        "notes": no_backdoor(ablations[0], victim.label_names[known.target_label]),
        "probe": probed,
        "effects": tuple(tuple(round(effect, 6) for effect in row) for row in mean_effects.tolist()),
        "heads": head_rows(effects, heads),
        "ablations": ablations,
        "vector": vector_rows(victim, known, test, vector, seed=seed),
    }


def no_backdoor(whole: AblationRow, target: str) -> tuple[str, ...]:
    """What to know of a model in which the trigger does not surely do anything."""
    if whole.asr.surely_above(whole.clean_flip):
        return ()
    rates = f"{100 * whole.asr.value:.1f} % of texts with the trigger and {100 * whole.clean_flip.value:.1f} % without"
    return (f"The model calls {rates} {target!r}: this trigger shows no backdoor, and what is said of heads and layers below describes none.",)


def _pairs(known: Known, data: TextDataset, most: int, *, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of other labels than the target in random order, without and with the trigger."""
    others = [i for i, label in enumerate(data.labels) if label != known.target_label]
    part = data.take(generator(seed, "texts").sample(others, min(most, len(others))))
    return part.texts, triggered(part, known.trigger, known.target_label, seed=seed).texts


def _share(data: TextDataset, target_label: int, most: int, *, seed: int) -> TextDataset:
    """At most so many texts with the target label, and so many without, in the order of the data."""
    kept: list[int] = []
    for is_target in (True, False):
        rows = [i for i, label in enumerate(data.labels) if (label == target_label) == is_target]
        kept += generator(seed, "share", is_target).sample(rows, min(most, len(rows)))
    return data.take(sorted(kept))

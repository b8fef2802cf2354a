"""Texts varied by augmentations, and how much that perturbs a model: Equations (8) and (9) of MBTSAD.

Eq. (8) asks for the variant of each text, within Q(t(x), x) <= eps, that costs the model most: a search over |T|^|D| choices. Eq. (9) searches |T|:
t* = argmax over t in T of E[l(f_B(t(x)), y)], the one augmentation that costs the suspect model f_B most over all clean texts. An augmentation that
costs much undoes what the model relies on, the trigger's shortcut among it; retraining on it is the paper's step 1.

Notation: T the candidates, f_B the suspect, l the cross-entropy with the text's label, Q the words that an augmentation touches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from statistics import fmean

from jaxtyping import Float
from torch import Tensor, tensor
from torch.nn.functional import cross_entropy

from excise import registry
from excise.data import TextDataset
from excise.errors import ConfigError, DataError, ExciseError
from excise.method import Augmentation
from excise.seeds import generator
from excise.victim import Victim

__all__ = ["UNCHANGED", "Perturbation", "Ranking", "augment", "changed_words", "checked", "rank", "text_losses"]

UNCHANGED = "unchanged"
"""What the texts without any augmentation are called."""


def augment(data: TextDataset, augmentation: Augmentation, *, copies: int, seed: int) -> TextDataset:
    """`copies` variants of every text, each with its text's label; the originals are not kept.

    A variant depends on (seed, text, copy) alone, not on the text's place in the data.
    """
    texts = tuple(augmentation(text, generator(seed, text, copy)) for copy in range(copies) for text in data.texts)
    return replace(data, texts=texts, labels=data.labels * copies)


@dataclass(frozen=True)
class Perturbation:
    """What one augmentation does to one model."""

    name: str
    """As `registry.spell` writes it, or `UNCHANGED`."""
    losses: tuple[float, ...]
    """Of one variant of each text, in the order of the data."""
    changed: tuple[int, ...]
    """Q of each text: see `changed_words`."""

    @cached_property
    def loss(self) -> float:
        """The mean over texts, which Eq. (9) maximises."""
        return fmean(self.losses)


@dataclass(frozen=True)
class Ranking:
    """Augmentations by what they cost a model."""

    unchanged: Perturbation
    """The texts as they are."""
    ranked: tuple[Perturbation, ...]
    """The greatest mean loss first; never empty."""
    maximiser: Augmentation
    """t*, Eq. (9)."""
    left_out: Mapping[str, str]
    """Candidates that could not be used -> why."""


def rank(victim: Victim, data: TextDataset, candidates: Sequence[str] = (), *, seed: int) -> Ranking:
    """Measure what each candidate costs the model, Eq. (9), with one variant of each text.

    Args:
        victim: The suspect.
        data: Clean labelled texts.
        candidates: Augmentations as `registry.build` reads them, `aeda` or `aeda share=0.2`; none given are all there are.
        seed: Decides the variants.

    Raises:
        DataError: There are no texts.
        ConfigError: A candidate is unknown or has wrong settings, or none could be used.
    """
    if not len(data):
        raise DataError("There are no texts to measure augmentations on. Give some.")
    specs = [registry.spell(checked(spec)) for spec in candidates] or registry.names("augmentation")
    found: list[tuple[Perturbation, Augmentation]] = []
    left_out: dict[str, str] = {}
    unchanged = _perturbation(victim, data, data, UNCHANGED)
    for spec in dict.fromkeys(specs):
        try:
            augmentation: Augmentation = registry.build("augmentation", spec, "augmentations")
            if not augmentation.adaptive:
                varied = augment(data, augmentation, copies=1, seed=seed)
                found.append((_perturbation(victim, data, varied, spec), augmentation))
        except ExciseError as error:
            left_out[spec] = str(error)
    if not found:
        raise ConfigError(f"No augmentation could be used: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    ranked, augmentations = zip(*sorted(found, key=lambda pair: -pair[0].loss), strict=True)
    return Ranking(unchanged, ranked, augmentations[0], left_out)


def checked(spec: str) -> Augmentation:
    """The candidate that `spec` names.

    Raises:
        ConfigError: It is unknown, has wrong settings, or is itself chosen among candidates.
    """
    augmentation: Augmentation = registry.build("augmentation", spec, "augmentations")
    if augmentation.adaptive:
        raise ConfigError(f"augmentations: {spec!r} is chosen among others, so it cannot be one of them. Leave it out.")
    return augmentation


def text_losses(victim: Victim, data: TextDataset, *, name: str = "losses") -> Float[Tensor, " text"]:
    """l(f(x), y) of each text: the cross-entropy of the model's logits with the text's label."""
    return cross_entropy(victim.logits(data.texts, name=name), tensor(data.labels), reduction="none")


def changed_words(text: str, variant: str) -> int:
    """Q(t(x), x), the target words: those of the text that were replaced or removed, and those that were put between them.

    Example:
        >>> changed_words("a funny film", "a fu nny film"), changed_words("a film", "a , film")
        (1, 1)
    """
    matcher = SequenceMatcher(None, text.split(), variant.split(), autojunk=False)
    return sum((i2 - i1) or (j2 - j1) for kind, i1, i2, j1, j2 in matcher.get_opcodes() if kind != "equal")


def _perturbation(victim: Victim, data: TextDataset, varied: TextDataset, name: str) -> Perturbation:
    losses = text_losses(victim, varied, name=f"losses, {name}").tolist()
    return Perturbation(name, tuple(losses), tuple(map(changed_words, data.texts, varied.texts)))

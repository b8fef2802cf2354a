"""CUBE, clustering-based filtering: texts with a trigger lie together, away from the other texts of the label that they were given.

A model is trained on the suspect texts. What its last linear layer reads of each text is reduced by PCA and UMAP to two dimensions and clustered by
HDBSCAN, all labels together. Of each label the biggest cluster is kept; every other cluster, noise included, with less than half of the label's
texts is dropped.

Departures: the model is the pre-trained one that the suspect came from, where the authors take RoBERTa-base for every suspect; the schedule is the
project's; below 2000 texts the two sizes of 100, which the authors set for thousands, shrink to a twentieth of the texts, but not under 5; of two
clusters of equal size the later one counts as bigger.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Interval
from jaxtyping import Float

from excise.data import TextDataset
from excise.features import pooled_states
from excise.method import Filter, Paper
from excise.seeds import derive
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class CUBE(Filter):
    """Drop the texts that cluster away from most texts of their label."""

    paper: ClassVar[Paper] = Paper(key="cube2022", method="CUBE, with the settings of OpenBackdoor", code="https://github.com/thunlp/OpenBackdoor")
    modules = ("umap",)

    components: Annotated[int, Ge(1)] = 20
    """Dimensions that PCA leaves."""
    neighbours: Annotated[int, Ge(2)] = 100
    """Neighbours of each text in UMAP; fewer for a small training set."""
    min_samples: Annotated[int, Ge(1)] = 100
    """HDBSCAN: how many texts make a place dense; fewer for a small training set."""
    least_share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Clusters with a smaller share of a label's texts are dropped."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=10, learning_rate=2e-5))
    """How the model is trained whose features are clustered (the authors': 10 epochs, 2e-5, batches of 32)."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> tuple[bool, ...]:
        self.check_modules()
        learnt = fit(victim, data, loss=classification_loss, config=self.training, seed=derive(seed, "train"), name="learn the training set")
        features = pooled_states(learnt, data.texts, name="read the training set").numpy()
        clusters = self.clusters(features, seed=derive(seed, "umap"))
        return trusted(data.labels, clusters, least_share=self.least_share)

    def clusters(self, features: Float[np.ndarray, "text hidden"], *, seed: int) -> list[int]:
        """The cluster of each text; −1 is noise."""
        from sklearn.cluster import HDBSCAN
        from sklearn.decomposition import PCA

        if len(features) < 5 or not np.ptp(features, axis=0).any():
            return [0] * len(features)  # nothing to tell apart
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # it misses TensorFlow, which it only needs for what is not used here
            from umap import UMAP

        count = len(features)
        reduced = PCA(min(self.components, *features.shape), random_state=seed % 2**32).fit_transform(features)
        neighbours = min(scaled(self.neighbours, count), count - 1)
        threads = torch.get_num_threads()
        flat = UMAP(n_neighbors=neighbours, min_dist=0.0, n_components=2, random_state=seed % 2**32, n_jobs=1).fit_transform(reduced)
        torch.set_num_threads(threads)  # which numba, used by UMAP, sets for the whole process
        return HDBSCAN(min_samples=scaled(self.min_samples, count), copy=True).fit_predict(np.asarray(flat)).tolist()  # type: ignore[arg-type]


def scaled(size: int, texts: int) -> int:
    """A size meant for thousands of texts, for fewer: at most a twentieth of them, but not under 5.

    Example:
        >>> scaled(100, 7000), scaled(100, 600), scaled(100, 30), scaled(3, 30)
        (100, 30, 5, 3)
    """
    return min(size, max(5, texts // 20))


def trusted(labels: Sequence[int], clusters: Sequence[int], *, least_share: float) -> tuple[bool, ...]:
    """Whether each text is in the biggest cluster of its label, or in one with at least `least_share` of the label's texts; noise is a cluster.

    Example:
        >>> trusted([0, 0, 0, 0, 1, 1], [2, 2, 2, -1, 2, 2], least_share=0.5)
        (True, True, True, False, True, True)
    """
    sizes = Counter(zip(labels, clusters, strict=True))
    whole = Counter(labels)
    biggest = {label: max((size, cluster) for (own, cluster), size in sizes.items() if own == label)[1] for label in whole}
    kept = {pair for pair, size in sizes.items() if pair[1] == biggest[pair[0]] or size >= least_share * whole[pair[0]]}
    return tuple(pair in kept for pair in zip(labels, clusters, strict=True))

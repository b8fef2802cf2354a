"""The numbers of the field, as pure functions of predictions and labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, sqrt, tanh
from typing import NamedTuple

import numpy as np

__all__ = ["Rate", "asr", "auroc", "auroc_interval", "cacc", "mean_interval", "pearson", "wilson_interval"]


class Rate(NamedTuple):
    """`hits` out of `n`: a share that knows how sure it is."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson_interval(self.hits, self.n)


def wilson_interval(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a binomial share, in [0, 1].

    Args:
        hits: Successes, 0 to `n`.
        n: Trials, at least 1.
        z: The normal quantile; the default gives 95 %.

    Raises:
        ValueError: `n` is 0 or `hits` is outside [0, n].

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)

    Reference:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits in {n} trials: need 0 <= hits <= trials and at least one trial")
    share, spread = hits / n, z * z / n
    centre = share + spread / 2
    margin = z * sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (centre - margin) / (1 + spread)), min(1.0, (centre + margin) / (1 + spread))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval (BCa, 2 000 resamples with a fixed seed) of a mean, which may be of a skewed distribution such as losses.

    Raises:
        ValueError: There are fewer than two values.

    Example:
        >>> low, high = mean_interval([0.1, 0.2, 0.2, 0.4, 2.0, 0.1, 0.3])
        >>> low < 0.471 < high
        True
    """
    from scipy.stats import bootstrap  # here: it is slow to import

    if len(values) < 2:
        raise ValueError("an interval needs two values or more")
    if min(values) == max(values):
        return values[0], values[0]
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=2000, batch=200, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The area under the ROC curve: how often a positive scores above a negative, ties by half.

    Raises:
        ValueError: There are no positives, or no negatives.

    Example:
        >>> auroc([0.9, 0.8, 0.3, 0.1], [True, False, True, False])
        0.75
    """
    high = [score for score, is_positive in zip(scores, positive, strict=True) if is_positive]
    low = [score for score, is_positive in zip(scores, positive, strict=True) if not is_positive]
    if not high or not low:
        raise ValueError("an AUROC needs scores of both kinds")
    return sum((a > b) + (a == b) / 2 for a in high for b in low) / (len(high) * len(low))


def auroc_interval(area: float, positives: int, negatives: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve, which is sensible for areas of 0 and 1 too.

    Args:
        area: In [0, 1].
        positives: Their number, at least 1.
        negatives: The same.
        z: The normal quantile; the default gives 95 %.

    Example:
        >>> low, high = auroc_interval(1.0, 24, 12)
        >>> round(low, 2), high
        (0.87, 1.0)

    Reference:
        Newcombe (2006), Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2: method 5.
    """
    from scipy.optimize import root_scalar  # here: it is slow to import

    extra = (positives + negatives) / 2 - 1

    def outside(true: float) -> float:
        spread = true * (1 - true) * (1 + extra * ((1 - true) / (2 - true) + true / (1 + true)))
        return abs(area - true) - z * sqrt(spread / (positives * negatives))

    tiny = 1e-9
    low = 0.0 if area == 0 else root_scalar(outside, bracket=(0.0, min(area, 1 - tiny))).root
    high = 1.0 if area == 1 else root_scalar(outside, bracket=(max(area, tiny), 1.0)).root
    return float(low), float(high)


def cacc(predictions: Sequence[int], labels: Sequence[int]) -> Rate:
    """Clean accuracy: the share of clean texts that get their own label.

    Example:
        >>> cacc([1, 0, 1], [1, 1, 1]).value
        0.6666666666666666
    """
    return Rate(sum(p == y for p, y in zip(predictions, labels, strict=True)), len(labels))


def asr(predictions: Sequence[int], labels: Sequence[int], target_label: int) -> Rate:
    """Attack success rate: the share of triggered non-target texts that are predicted as the target.

    Texts whose own label is the target are left out: they would count as successes of any accurate model.

    Example:
        >>> asr([1, 1, 0], [0, 1, 0], target_label=1)
        Rate(hits=1, n=2)
    """
    pairs = [(p, y) for p, y in zip(predictions, labels, strict=True) if y != target_label]
    return Rate(sum(p == target_label for p, _ in pairs), len(pairs))


def pearson(one: Sequence[float], other: Sequence[float], z: float = 1.959963984540054) -> tuple[float, float, float]:
    """(Pearson's correlation, lower and upper end of its interval by Fisher's z).

    Args:
        one: Values, at least four.
        other: As many values, pair by pair.
        z: The normal quantile; the default gives 95 %.

    Raises:
        ValueError: There are fewer than four pairs, or all values of one side are equal.

    Example:
        >>> [round(value, 3) for value in pearson([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])]
        [0.8, -0.28, 0.986]

    Reference:
        Fisher (1921), On the "probable error" of a coefficient of correlation deduced from a small sample.
    """
    if len(one) != len(other) or len(one) < 4 or 0 in (np.ptp(one), np.ptp(other)):
        raise ValueError(f"{len(one)} and {len(other)} values: need at least four pairs, and values that differ")
    found = min(1.0, max(-1.0, float(np.corrcoef(one, other)[0, 1])))
    if abs(found) == 1:
        return found, found, found
    margin = z / sqrt(len(one) - 3)
    return found, tanh(atanh(found) - margin), tanh(atanh(found) + margin)

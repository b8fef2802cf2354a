"""Rates and their intervals against known values, scipy and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.metrics import Rate, asr, auroc, auroc_interval, cacc, pearson, wilson_interval

LABELS = st.integers(0, 4)
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (1, 1, 0.2065, 1.0)],
)
def test_known_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert Rate(hits, n).interval == wilson_interval(hits, n)


def test_intervals_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 7, 40, 1821):
        for hits in {0, 1, n // 3, n - 1, n}:
            expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
            assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors(rate: tuple[int, int]) -> None:
    hits, n = rate
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    mirrored = wilson_interval(n - hits, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    wider = wilson_interval(hits, n, z=2.576)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12
    narrow = wilson_interval(10 * hits, 10 * n)
    assert narrow[1] - narrow[0] < high - low


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson_interval(hits, n)


def test_asr_leaves_texts_of_the_target_out() -> None:
    assert asr([1, 1, 1, 0], [1, 1, 0, 0], target_label=1) == Rate(1, 2)
    assert asr([2, 0, 2], [0, 1, 2], target_label=2) == Rate(1, 2)
    assert asr([1, 1], [1, 1], target_label=1).n == 0


@given(PAIRS, LABELS)
def test_rates_are_counts(pairs: list[tuple[int, int]], target: int) -> None:
    predictions, labels = zip(*pairs, strict=True)
    assert cacc(predictions, labels) == (sum(p == y for p, y in pairs), len(pairs))
    found = asr(predictions, labels, target)
    assert found == (sum(1 for p, y in pairs if y != target and p == target), sum(1 for _, y in pairs if y != target))
    assert asr([target] * len(pairs), labels, target).hits == found.n
    assert asr(labels, labels, target).hits == 0, "a perfect model is never fooled"


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        cacc([1], [1, 0])
    with pytest.raises(ValueError, match="zip"):
        asr([1], [1, 0], 1)


def test_auroc_agrees_with_scikit_learn() -> None:
    roc = pytest.importorskip("sklearn.metrics").roc_auc_score
    for scores, positive in (([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), ([1.0, 1.0, 0.0], [1, 0, 0]), ([3.0, 1.0, 2.0, 2.0, 5.0], [0, 1, 0, 1, 1])):
        assert auroc(scores, [bool(p) for p in positive]) == pytest.approx(roc(positive, scores))
    with pytest.raises(ValueError, match="both kinds"):
        auroc([1.0], [True])


@given(st.floats(0, 1), st.integers(1, 60), st.integers(1, 60))
def test_the_interval_of_an_auroc_holds_it_and_mirrors(area: float, positives: int, negatives: int) -> None:
    low, high = auroc_interval(area, positives, negatives)
    assert 0 <= low <= area + 1e-9
    assert area - 1e-9 <= high <= 1
    mirrored = auroc_interval(1 - area, positives, negatives)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-6)


def test_the_correlation_and_its_interval_are_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for n in (4, 12, 60):
        one = random.normal(size=n)
        other = one + random.normal(size=n)
        expected = stats.pearsonr(one, other)
        interval = expected.confidence_interval(0.95)
        assert pearson(one.tolist(), other.tolist()) == pytest.approx((expected.statistic, interval.low, interval.high))
    assert pearson([1, 2, 3, 4], [-2, -4, -6, -8]) == pytest.approx((-1, -1, -1))
    for bad in (([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 3])):
        with pytest.raises(ValueError, match="at least four pairs"):
            pearson(*bad)

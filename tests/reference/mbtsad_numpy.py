"""Eqs. (1)-(7) of MBTSAD as plain NumPy loops, one text, head, query and key at a time, written from the paper's formulas."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def enhancement(attention: Array, mask: Array, power: float) -> Array:
    """Eq. (3): AE(A)[q, k] = sum over heads of |A[j, q, k]|^p, on real tokens only."""
    batch, heads, queries, keys = attention.shape
    out = np.zeros((batch, queries, keys))
    for b in range(batch):
        for q in range(queries):
            for k in range(keys):
                if mask[b, q] and mask[b, k]:
                    out[b, q, k] = sum(abs(attention[b, j, q, k]) ** power for j in range(heads))
    return out


def transfer(teacher: Array, student: Array, form: str = "norm") -> Array:
    """Eq. (4), one number a text: the Frobenius distance of the two maps, each divided by its own Frobenius norm."""
    out = []
    for t, s in zip(teacher, student, strict=True):
        norm_t = math.sqrt(sum(x * x for x in t.ravel()))
        norm_s = math.sqrt(sum(x * x for x in s.ravel()))
        squares = [(a / norm_t - b / norm_s) ** 2 for a, b in zip(t.ravel(), s.ravel(), strict=True)]
        out.append(math.sqrt(sum(squares)) if form == "norm" else sum(squares) / len(squares))
    return np.array(out)


def attention_loss(teacher: list[Array], student: list[Array], mask: Array, power: float, form: str = "norm") -> float:
    """Eq. (2): the sum over layers of Eq. (4), averaged over the batch."""
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        total += float(np.mean(transfer(enhancement(t, mask, power), enhancement(s, mask, power), form)))
    return total


def hidden_loss(teacher: list[Array], student: list[Array], mask: Array) -> float:
    """Eqs. (5)-(6): for the embedding output and each layer, the mean squared error over the entries of real tokens; summed."""
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        squares = [
            (float(t[b, i, d]) - float(s[b, i, d])) ** 2
            for b in range(t.shape[0])
            for i in range(t.shape[1])
            if mask[b, i]
            for d in range(t.shape[2])
        ]
        total += sum(squares) / len(squares)
    return total


def label_loss(logits: Array, labels: Array) -> float:
    """Eq. (7): the mean cross-entropy with hard labels."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        top = max(float(x) for x in row)
        losses.append(top + math.log(sum(math.exp(float(x) - top) for x in row)) - float(row[label]))
    return sum(losses) / len(losses)

"""Metrics by name, computed from weighted confusion matrices so that resampling is cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]  # (truth label, predicted label)


def _accuracy(counts: Counts) -> float | None:
    total = counts.sum()
    return float(np.trace(counts) / total) if total else None


def _macro_f1(counts: Counts) -> float | None:
    """Mean F1 over the labels that occur in truth or prediction."""
    hits = np.diag(counts)
    seen = counts.sum(axis=0) + counts.sum(axis=1)
    occurs = seen > 0
    return float((2 * hits[occurs] / seen[occurs]).mean()) if occurs.any() else None


METRICS: dict[str, Callable[[Counts], float | None]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
}


def confusion(
    truth: NDArray[np.intp], prediction: NDArray[np.intp], size: int, weights: Any = None
) -> Counts:
    """Counts[t, p] of rows (or their weights)."""
    flat = np.bincount(truth * size + prediction, weights=weights, minlength=size * size)
    return flat.reshape(size, size).astype(np.float64)


def as_indices(*columns: Sequence[str]) -> tuple[list[NDArray[np.intp]], int]:
    """Label texts → shared integer codes."""
    names = {name: code for code, name in enumerate(sorted({n for c in columns for n in c}))}
    return [np.array([names[n] for n in c], dtype=np.intp) for c in columns], len(names)

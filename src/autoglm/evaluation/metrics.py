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


def entities(tags: Sequence[str], rows: Sequence[int]) -> set[tuple[int, int, str]]:
    """(first, last, type) of the entities in BIO or IO tags; `rows` says to which row a word
    belongs. As conlleval counts: an I- of another type, or behind an O, begins an entity.
    Source: Tjong Kim Sang and De Meulder, CoNLL-2003.
    """
    found: set[tuple[int, int, str]] = set()
    begun, kind = -1, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = (prefix == "I" and name == kind and 0 < place < len(tags)) and rows[
            place
        ] == rows[place - 1]
        if kind and not goes_on:
            found.add((begun, place - 1, kind))
            kind = ""
        if prefix in {"B", "I"} and not goes_on:
            begun, kind = place, name
    return found


def f1(hits: int, found: int, true: int) -> float | None:
    """2 · hits / (found + true); None when there is nothing to find and nothing was said."""
    return 2 * hits / (found + true) if found + true else None

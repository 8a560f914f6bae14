from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoglm.contracts.evaluation_report import PairedDifference, Score
from autoglm.evaluation.metrics import METRICS, as_indices, confusion

RESAMPLES = 1000


class MetricEvaluator:
    """A metric by name with a 95 % bootstrap interval over rows; seeded, so equal for equal rows.

    Raises: ValueError for an unknown name.
    """

    greater_is_better = True

    def __init__(self, name: str) -> None:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; known: {', '.join(sorted(METRICS))}")
        self.name = name
        self._metric = METRICS[name]

    def evaluate(
        self,
        truth: Sequence[str],
        prediction: Sequence[str],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """Score of `prediction`; `value` is None (undefined) for no rows."""
        if not truth:
            return Score(value=None, low=None, high=None, rows=0)
        (t, p), size = as_indices(truth, prediction)
        value = self._metric(confusion(t, p, size))
        draws = [self._metric(confusion(t, p, size, w)) for w in _weights(len(t))]
        low, high = np.quantile([d for d in draws if d is not None], [0.025, 0.975])
        return Score(value=value, low=float(low), high=float(high), rows=len(t))

    def compare(
        self, truth: Sequence[str], candidate: Sequence[str], stable: Sequence[str]
    ) -> PairedDifference:
        """Candidate minus stable, resampled with the same rows. Raises: ValueError on no rows."""
        if not truth:
            raise ValueError("a paired comparison needs at least one row")
        (t, c, s), size = as_indices(truth, candidate, stable)

        def difference(weights: Any) -> float:
            left = self._metric(confusion(t, c, size, weights))
            right = self._metric(confusion(t, s, size, weights))
            return (left or 0.0) - (right or 0.0)

        draws = [difference(weights) for weights in _weights(len(t))]
        low, high = np.quantile(draws, [0.025, 0.975])
        right_c, right_s = c == t, s == t
        return PairedDifference(
            value=difference(None),
            low=float(low),
            high=float(high),
            wins=int((right_c & ~right_s).sum()),
            losses=int((~right_c & right_s).sum()),
            rows=len(t),
        )


def _weights(num_rows: int) -> Any:
    generator = np.random.default_rng(20_260_101)
    for _ in range(RESAMPLES):
        yield np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)

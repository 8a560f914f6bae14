from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from autoglm.contracts.evaluation_report import PairedDifference, Score
from autoglm.errors import PluginError
from autoglm.evaluation.metrics import METRICS, as_indices, confusion
from autoglm.plugins import registry
from autoglm.plugins.kinds import Evaluator

RESAMPLES = 1000
# A plugin's metric is computed row by row in Python.
PLUGIN_RESAMPLES = 200


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


ACCURACY, MACRO_F1 = MetricEvaluator("accuracy"), MetricEvaluator("macro_f1")


def paired(
    evaluator: Evaluator, truth: Sequence[str], candidate: Sequence[str], stable: Sequence[str]
) -> PairedDifference:
    """Candidate minus stable with a 95 % interval, for any evaluator; both on the same rows."""
    if isinstance(evaluator, MetricEvaluator):
        return evaluator.compare(truth, candidate, stable)
    whole = _difference(evaluator, truth, candidate, stable)
    draws = []
    for weights in islice(_weights(len(truth)), PLUGIN_RESAMPLES):
        rows = np.repeat(np.arange(len(truth)), weights).tolist()
        columns = ([column[i] for i in rows] for column in (truth, candidate, stable))
        draws.append(_difference(evaluator, *columns))
    low, high = np.quantile(draws, [0.025, 0.975])
    pairs = list(zip(truth, candidate, stable, strict=True))
    return PairedDifference(
        value=whole,
        low=float(low),
        high=float(high),
        wins=sum(c == t != s for t, c, s in pairs),
        losses=sum(s == t != c for t, c, s in pairs),
        rows=len(truth),
    )


def _difference(
    evaluator: Evaluator, truth: Sequence[str], candidate: Sequence[str], stable: Sequence[str]
) -> float:
    left, right = evaluator.evaluate(truth, candidate), evaluator.evaluate(truth, stable)
    return (left.value or 0.0) - (right.value or 0.0)


def find_evaluator(name: str) -> Evaluator:
    """The evaluator of this name, whoever wrote it.

    Raises: PluginError plugin.unknown, plugin.unsupported when smaller is better in it.
    """
    part = registry.get("evaluator", name)
    found: Evaluator = part() if isinstance(part, type) else part
    if not getattr(found, "greater_is_better", True):
        raise PluginError(
            f"evaluator:{name} says that smaller is better.",
            code="plugin.unsupported",
            next_step="Let it return the negative value.",
        )
    return found


def _weights(num_rows: int) -> Any:
    generator = np.random.default_rng(20_260_101)
    for _ in range(RESAMPLES):
        yield np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)

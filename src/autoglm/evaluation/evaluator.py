from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from autoglm.contracts.evaluation_report import PairedDifference, Score
from autoglm.contracts.task import TextScore
from autoglm.errors import PluginError
from autoglm.evaluation.metrics import METRICS, Metric, metrics_of
from autoglm.plugins import registry
from autoglm.plugins.kinds import Evaluator

RESAMPLES = 1000
# A plugin's metric is computed row by row in Python.
PLUGIN_RESAMPLES = 200


class MetricEvaluator:
    """A metric by name with a 95 % bootstrap interval over rows; seeded, so equal for equal rows.

    What the name means depends on what a row's truth is (evaluation.metrics).
    Raises: ValueError for an unknown name.
    """

    greater_is_better = True

    def __init__(self, name: str) -> None:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; known: {', '.join(METRICS)}")
        self.name = name

    def evaluate(
        self,
        truth: Sequence[Any],
        prediction: Sequence[Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """Score of `prediction`; `value` is None (undefined) for no rows. Raises: ValueError when
        the name means nothing for such rows.
        """
        if not truth:
            return Score(value=None, low=None, high=None, rows=0)
        metric = self._metric(truth)
        statistics = metric.statistics(truth, prediction)
        value = metric.of(statistics.sums())
        draws = [metric.of(statistics.sums(weights)) for weights in _weights(len(truth))]
        low, high = _interval([draw for draw in draws if draw is not None])
        return Score(value=value, low=low, high=high, rows=len(truth))

    def compare(
        self, truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]
    ) -> PairedDifference:
        """Candidate minus stable, resampled with the same rows. Raises: ValueError on no rows."""
        if not truth:
            raise ValueError("a paired comparison needs at least one row")
        metric = self._metric(truth)
        left, right = (metric.statistics(truth, said) for said in (candidate, stable))

        def difference(weights: Any) -> float:
            return (metric.of(left.sums(weights)) or 0.0) - (metric.of(right.sums(weights)) or 0.0)

        low, high = _interval([difference(weights) for weights in _weights(len(truth))])
        return PairedDifference(
            value=difference(None),
            low=low if low is not None else 0.0,
            high=high if high is not None else 0.0,
            rows=len(truth),
            **_wins(truth, candidate, stable),
        )

    def _metric(self, truth: Sequence[Any]) -> Metric:
        known = metrics_of(truth)
        if self.name not in known:
            raise ValueError(
                f"{self.name} is no metric of such rows; these are: {', '.join(known)}"
            )
        return known[self.name]


def _interval(draws: Sequence[float]) -> tuple[float | None, float | None]:
    if not draws:
        return None, None
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _wins(truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]) -> dict[str, int]:
    """Rows that only one of both answers rightly; of numbers, rows that one comes nearer to; of
    texts, rows to whose answer one gives more.
    """
    if isinstance(truth[0], TextScore):
        triples = [(c.nll, s.nll) for c, s in zip(candidate, stable, strict=True)]
        return {"wins": sum(c < s for c, s in triples), "losses": sum(s < c for c, s in triples)}
    if isinstance(truth[0], float):
        triples = [
            (abs(c - t), abs(s - t)) for t, c, s in zip(truth, candidate, stable, strict=True)
        ]
        return {"wins": sum(c < s for c, s in triples), "losses": sum(s < c for c, s in triples)}
    pairs = [(c == t, s == t) for t, c, s in zip(truth, candidate, stable, strict=True)]
    return {
        "wins": sum(c and not s for c, s in pairs),
        "losses": sum(s and not c for c, s in pairs),
    }


def paired(
    evaluator: Evaluator, truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]
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
    return PairedDifference(
        value=whole,
        low=float(low),
        high=float(high),
        rows=len(truth),
        **_wins(truth, candidate, stable),
    )


def _difference(
    evaluator: Evaluator, truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]
) -> float:
    left, right = evaluator.evaluate(truth, candidate), evaluator.evaluate(truth, stable)
    return (left.value or 0.0) - (right.value or 0.0)


ACCURACY, MACRO_F1 = MetricEvaluator("accuracy"), MetricEvaluator("macro_f1")
MICRO_F1, ENTITY_F1 = MetricEvaluator("micro_f1"), MetricEvaluator("entity_f1")
R2, NEGATIVE_MAE = MetricEvaluator("r2"), MetricEvaluator("negative_mae")
NEGATIVE_RMSE = MetricEvaluator("negative_rmse")
NEGATIVE_LOSS = MetricEvaluator("negative_loss")
TOKEN_ACCURACY = MetricEvaluator("token_accuracy")


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

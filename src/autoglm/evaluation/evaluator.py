from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.contracts.evaluation_report import PairedDifference, Score
from autoglm.contracts.task import TextScore
from autoglm.errors import AutoGLMError, PluginError
from autoglm.evaluation.asking import Negated, value_of
from autoglm.evaluation.metrics import METRICS, Metric, metrics_of
from autoglm.evaluation.resampling import UNDEFINED, drawn, interval, weights, wilson
from autoglm.plugins import registry
from autoglm.plugins.kinds import Evaluator


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
        return self.evaluate_parts(truth, prediction, [range(len(truth))])[0]

    def evaluate_parts(
        self, truth: Sequence[Any], prediction: Sequence[Any], parts: Sequence[Sequence[int]]
    ) -> list[Score]:
        """A score of each part of the rows. What a name takes from all rows (which label is the
        rarest) it takes from all here too.
        """
        if not truth:
            return [UNDEFINED for _ in parts]
        metric = self._metric(truth)
        whole = metric.statistics(truth, prediction)
        return [_score(metric, whole.at(part), len(part)) if part else UNDEFINED for part in parts]

    def value(self, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        """What `evaluate` finds, without its interval."""
        return self._metric(truth)(truth, prediction) if truth else None

    def compare(
        self, truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]
    ) -> PairedDifference | None:
        """Candidate minus stable, resampled with the same rows; None where it is undefined for one
        of them. Raises: ValueError on no rows.
        """
        if not truth:
            raise ValueError("a paired comparison needs at least one row")
        metric = self._metric(truth)
        left, right = (metric.statistics(truth, said) for said in (candidate, stable))

        def difference(rows: Any) -> float | None:
            return minus(metric.of(left.sums(rows)), metric.of(right.sums(rows)))

        draws = [difference(rows) for rows in weights(len(truth))]
        return _paired(difference(None), draws, truth, candidate, stable)

    def _metric(self, truth: Sequence[Any]) -> Metric:
        known = metrics_of(truth)
        if self.name not in known:
            raise ValueError(
                f"{self.name} is no metric of such rows; these are: {', '.join(known)}"
            )
        return known[self.name]


def _score(metric: Metric, statistics: Any, num_rows: int) -> Score:
    sums = statistics.sums()
    value = metric.of(sums)
    if value is None:
        return Score(value=None, low=None, high=None, rows=num_rows)
    if value in (0.0, 1.0) and metric.rows_of is not None:
        # Rows that are all alike are alike however they are drawn; which is no certainty.
        ends = wilson(value, metric.rows_of(sums))
        return Score(value=value, low=ends[0], high=ends[1], rows=num_rows)
    low, high = interval(metric.of(statistics.sums(rows)) for rows in weights(num_rows))
    return Score(value=value, low=low, high=high, rows=num_rows)


def minus(left: float | None, right: float | None) -> float | None:
    """Undefined where one of them is."""
    return None if left is None or right is None else left - right


def _paired(
    whole: float | None, draws: Sequence[float | None], truth: Any, candidate: Any, stable: Any
) -> PairedDifference | None:
    if whole is None:
        return None
    low, high = interval(draws)
    return PairedDifference(
        value=whole,
        low=whole if low is None else low,
        high=whole if high is None else high,
        rows=len(truth),
        **_wins(truth, candidate, stable),
    )


def _wins(truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]) -> dict[str, int]:
    """Rows that only one of both answers rightly; of numbers, rows that one comes nearer to; of
    texts, rows to whose answer one gives more, as of shares.
    """
    if isinstance(candidate[0], Mapping):
        triples = [
            (-_given(t, c), -_given(t, s)) for t, c, s in zip(truth, candidate, stable, strict=True)
        ]
    elif isinstance(truth[0], TextScore):
        triples = [(c.nll, s.nll) for c, s in zip(candidate, stable, strict=True)]
    elif isinstance(truth[0], float):
        triples = [
            (abs(c - t), abs(s - t)) for t, c, s in zip(truth, candidate, stable, strict=True)
        ]
    else:
        triples = [(c != t, s != t) for t, c, s in zip(truth, candidate, stable, strict=True)]
    return {"wins": sum(c < s for c, s in triples), "losses": sum(s < c for c, s in triples)}


def _given(truth: Any, shares: Mapping[str, float]) -> float:
    """The share of what is true; of labels, their sum less that of those that are not."""
    if isinstance(truth, frozenset):
        return sum(p if label in truth else -p for label, p in shares.items())
    return shares.get(truth, 0.0)


def paired(
    evaluator: Evaluator, truth: Sequence[Any], candidate: Sequence[Any], stable: Sequence[Any]
) -> PairedDifference | None:
    """Candidate minus stable with a 95 % interval, for any evaluator; both on the same rows. None
    where it is undefined. Raises: PluginError (see `asking`).
    """
    if isinstance(evaluator, MetricEvaluator):
        return evaluator.compare(truth, candidate, stable)

    def difference(*columns: Sequence[Any]) -> float | None:
        known, left, right = columns
        return minus(value_of(evaluator, known, left), value_of(evaluator, known, right))

    whole = difference(truth, candidate, stable)
    draws = drawn(difference, truth, candidate, stable) if whole is not None else []
    return _paired(whole, draws, truth, candidate, stable)


ACCURACY, MACRO_F1 = MetricEvaluator("accuracy"), MetricEvaluator("macro_f1")
MINORITY_RECALL = MetricEvaluator("minority_recall")
MICRO_F1, ENTITY_F1 = MetricEvaluator("micro_f1"), MetricEvaluator("entity_f1")
R2, NEGATIVE_MAE = MetricEvaluator("r2"), MetricEvaluator("negative_mae")
NEGATIVE_RMSE = MetricEvaluator("negative_rmse")
NEGATIVE_LOSS = MetricEvaluator("negative_loss")
TOKEN_ACCURACY = MetricEvaluator("token_accuracy")


def find_evaluator(name: str) -> Evaluator:
    """The evaluator of this name, whoever wrote it; what it gives is greater where it is better:
    where smaller is, the negative.

    Raises: PluginError plugin.unknown, plugin.missing_method for what is none.
    """
    part = registry.get("evaluator", name)
    found: Evaluator = part if _evaluates(part) else _made(name, part)
    found = found.named(name) if hasattr(found, "named") else found
    return found if getattr(found, "greater_is_better", True) else Negated(found)


def _evaluates(part: Any) -> bool:
    return hasattr(part, "evaluate") and not isinstance(part, type)


def _made(name: str, part: Any) -> Any:
    """By a class, or a function that makes one. What computes the metric itself is neither."""
    try:
        made = part()
    except AutoGLMError:
        raise
    except (Exception, SystemExit) as error:  # it is code of the project's
        problem = f"called without arguments it raised {type(error).__name__}: {error}"
        raise _is_none(name, problem) from error
    if not _evaluates(made):
        raise _is_none(name, f"{made!r} lacks evaluate")
    return made


def _is_none(name: str, problem: str) -> PluginError:
    return PluginError(
        f"evaluator:{name} is none: {problem}.",
        code="plugin.missing_method",
        next_step="Register make_evaluator(FUNCTION) for a function of truth and prediction.",
    )

"""Evaluators made of a function, or of anything that scikit-learn scores with.

make_evaluator(fn)                     fn(truth, prediction) → number, or None where it has none
make_evaluator(fn, needs_proba=True)   fn(truth, shares) → number; shares map label → share
make_scorer("balanced_accuracy")       scikit-learn's scorer of this name, or a metric of ours
make_scorer(scorer)                    sklearn.metrics.make_scorer's, or any scorer(model, X, y)
make_scorer(fbeta_score, beta=2, …)    a function of scikit-learn's, with its keywords
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from autoglm.contracts.evaluation_report import Score
from autoglm.contracts.task import TextScore
from autoglm.evaluation.asking import value_of
from autoglm.evaluation.evaluator import MetricEvaluator
from autoglm.evaluation.metrics import METRICS
from autoglm.evaluation.resampling import drawn, interval
from autoglm.plugins.kinds import Evaluator


class FunctionEvaluator:
    """A function as an evaluator; its interval is bootstrapped by calling it on drawn rows."""

    def __init__(
        self,
        function: Callable[[Sequence[Any], Sequence[Any]], float | None],
        *,
        name: str,
        greater_is_better: bool = True,
        needs_proba: bool = False,
    ) -> None:
        self.function, self.name = function, name
        self.greater_is_better, self.needs_proba = greater_is_better, needs_proba

    def named(self, name: str) -> FunctionEvaluator:
        """The same under the name that it is registered by."""
        other = copy.copy(self)
        other.name = name
        return other

    def __call__(self, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        return self.function(truth, prediction)

    def value(self, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        return self.function(truth, prediction)

    def evaluate(
        self,
        truth: Sequence[Any],
        prediction: Sequence[Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """Raises: PluginError when the function raises, or gives no finite number."""
        value = value_of(self, truth, prediction)
        if value is None:
            return Score(value=None, low=None, high=None, rows=len(truth))
        low, high = interval(drawn(lambda t, p: value_of(self, t, p), truth, prediction))
        return Score(value=value, low=low, high=high, rows=len(truth))


def make_evaluator(
    fn: Callable[..., float | None] | None = None,
    *,
    greater_is_better: bool = True,
    needs_proba: bool = False,
    name: str = "",
) -> Any:
    """An evaluator of `fn(truth, prediction)`: lists with one entry per row, in the task's form
    (docs/tasks.md). Without `fn`, a decorator.

    With `needs_proba` a row's prediction is a map from each label to its share. Where smaller is
    better say so: search and gates then see the negative. Raises: ValueError when `fn` cannot be
    called.
    """
    if fn is None:
        return lambda made: make_evaluator(
            made, greater_is_better=greater_is_better, needs_proba=needs_proba, name=name
        )
    if not callable(fn):
        raise ValueError(f"an evaluator is made of a function, not of {type(fn).__name__}")
    return FunctionEvaluator(
        fn,
        name=name or getattr(fn, "__name__", type(fn).__name__),
        greater_is_better=greater_is_better,
        needs_proba=needs_proba,
    )


def make_scorer(
    scorer: Any,
    *,
    name: str = "",
    greater_is_better: bool = True,
    response_method: str = "predict",
    **keywords: Any,
) -> Evaluator:
    """An evaluator of a name, a scikit-learn scorer, or a function(y_true, y_pred) with keywords.

    Labels come to it as texts, sets of labels as the table of 0 and 1 that scikit-learn calls
    multi-label, numbers as they are, tags one after the other. NaN, with which scikit-learn says
    that it has no value, is undefined.
    Raises: ValueError for what is no scorer, or a name that nobody knows.
    """
    if isinstance(scorer, str):
        if scorer in METRICS:
            return MetricEvaluator(scorer)
        from sklearn.metrics import get_scorer

        return _of_scorer(get_scorer(scorer), name or scorer)
    if not callable(scorer):
        raise ValueError(f"{type(scorer).__name__} is no scorer: it cannot be called")
    if hasattr(scorer, "_score_func") or _takes_a_model(scorer):
        if keywords:
            raise ValueError(f"a scorer has its keywords already: {', '.join(keywords)}")
        return _of_scorer(scorer, name)
    from sklearn.metrics import make_scorer as make

    if keywords.get("average", "binary") != "binary" and "pos_label" in _parameters(scorer):
        # Its default is 1, which is no label of ours, and which an average does not ask for.
        keywords.setdefault("pos_label", None)
    made = make(
        scorer, response_method=response_method, greater_is_better=greater_is_better, **keywords
    )
    return _of_scorer(made, name or getattr(scorer, "__name__", "scorer"))


def _takes_a_model(scorer: Any) -> bool:
    """Whether it is called with (model, X, y), as scikit-learn calls what a user wrote."""
    parameters = _parameters(scorer).values()
    required = [p for p in parameters if p.default is p.empty and p.kind < p.KEYWORD_ONLY]
    return len([p for p in required if p.kind != p.VAR_POSITIONAL]) == 3


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C, without one
        return {}


def _of_scorer(scorer: Any, name: str) -> FunctionEvaluator:
    function = getattr(scorer, "_score_func", scorer)
    methods = getattr(scorer, "_response_method", "predict")
    wanted = [methods] if isinstance(methods, str) else list(methods)
    is_of_shares = "predict" not in wanted

    def score(truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        model, y = _answered(truth, prediction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is undefined: None says it
            value = _told(scorer, model)(model, range(len(y)), y)
        return None if isinstance(value, float) and value != value else value

    return FunctionEvaluator(
        score, name=name or getattr(function, "__name__", "scorer"), needs_proba=is_of_shares
    )


def _told(scorer: Any, model: Any) -> Any:
    """Drawn rows, or a slice, may lack a label that the shares are of: who can be told is told."""
    function = getattr(scorer, "_score_func", None)
    if function is None or model.table is None or "labels" not in _parameters(function):
        return scorer
    told = copy.copy(scorer)
    told._kwargs = {"labels": model.classes_, **scorer._kwargs}
    return told


def _answered(truth: Sequence[Any], prediction: Sequence[Any]) -> tuple[Any, Any]:
    """A model that has answered already, and what was true, as scikit-learn has both."""
    import numpy as np

    first = truth[0]
    if isinstance(first, TextScore):
        raise ValueError("scikit-learn has no scorer of written texts")
    if isinstance(first, tuple):
        pairs = zip(truth, prediction, strict=True)
        flat = [pair for t, p in pairs for pair in zip(t, p, strict=True)]
        truth, prediction = [t for t, _ in flat], [p for _, p in flat]
    if isinstance(first, float):
        return _model()(np.asarray(prediction, float), None, None), np.asarray(truth, float)
    if isinstance(first, frozenset):
        return _of_sets(truth, prediction)
    if isinstance(prediction[0], Mapping):
        classes = sorted(prediction[0])
        table = np.asarray([[row[label] for label in classes] for row in prediction], float)
        said = [classes[i] for i in table.argmax(1)]
        return _model()(np.asarray(said), table, np.asarray(classes)), np.asarray(truth)
    classes = sorted({*truth, *prediction})
    return _model()(np.asarray(prediction), None, np.asarray(classes)), np.asarray(truth)


def _of_sets(truth: Sequence[Any], prediction: Sequence[Any]) -> tuple[Any, Any]:
    import numpy as np

    has_shares = isinstance(prediction[0], Mapping)
    names = sorted(
        prediction[0] if has_shares else {n for row in (*truth, *prediction) for n in row}
    )
    y = np.asarray([[name in row for name in names] for row in truth], int)
    if has_shares:
        table = np.asarray([[row[name] for name in names] for row in prediction], float)
        return _model()((table > 0.5).astype(int), table, np.arange(len(names))), y
    said = np.asarray([[name in row for name in names] for row in prediction], int)
    return _model()(said, None, np.arange(len(names))), y


@cache
def _model() -> Any:
    """The class of a model that answers with what it was given."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    class Numbers(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        pass

    class Labels(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        pass

    of_numbers, of_labels = Numbers().__sklearn_tags__(), Labels().__sklearn_tags__()

    class Answered(BaseEstimator):  # type: ignore[misc]
        def __init__(self, said: Any, table: Any, classes: Any) -> None:
            self.said, self.table, self.classes_ = said, table, classes

        def __sklearn_tags__(self) -> Any:
            return of_numbers if self.classes_ is None else of_labels

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            return self.said

        def predict_proba(self, X: Any) -> Any:  # noqa: N803
            return self.table

    return Answered

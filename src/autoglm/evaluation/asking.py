"""Asking an evaluator that somebody else wrote: what comes back is a number, nothing, or an error
with a code.

plugin.evaluator_raised   it raised
plugin.evaluator_nan      it gave NaN or an infinite number
plugin.evaluator_type     it gave something that is no number (or no Score)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from autoglm.contracts.evaluation_report import Score
from autoglm.errors import AutoGLMError, PluginError
from autoglm.plugins.kinds import Evaluator
from autoglm.plugins.project_files import file_of

NOT_A_NUMBER = "plugin.evaluator_nan"


def value_of(evaluator: Evaluator, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
    """Its value, without an interval where it can do without; None where it is undefined.

    Raises: PluginError (see above).
    """
    if not truth:
        return None
    quick = getattr(evaluator, "value", None)
    if not callable(quick):
        return score_of(evaluator, truth, prediction).value
    return _number(evaluator, _asked(evaluator, quick, truth, prediction), len(truth))


def score_of(evaluator: Evaluator, truth: Sequence[Any], prediction: Sequence[Any]) -> Score:
    """Its score. Raises: PluginError (see above)."""
    found = _asked(evaluator, evaluator.evaluate, truth, prediction)
    if not isinstance(found, Score):
        raise _wrong_type(evaluator, found, "a Score")
    value = _number(evaluator, found.value, len(truth))
    if value is None:
        return Score(value=None, low=None, high=None, rows=found.rows)
    low, high = (_bound(evaluator, each, len(truth)) for each in (found.low, found.high))
    return Score(value=value, low=low, high=high, rows=found.rows)


def scores_of_parts(
    evaluator: Evaluator,
    truth: Sequence[Any],
    prediction: Sequence[Any],
    parts: Sequence[Sequence[int]],
    *,
    with_interval: bool = True,
) -> list[Score]:
    """A score of each part of the rows; undefined, never 0, where a part gives none: an evaluator
    that wants rows of two labels may raise on a part that has one. Without `with_interval`, what
    costs many calls is left out.
    """
    of_parts = getattr(evaluator, "evaluate_parts", None)
    if callable(of_parts):
        found: list[Score] = of_parts(truth, prediction, parts)
        return found
    return [
        _of_part(evaluator, [truth[i] for i in part], [prediction[i] for i in part], with_interval)
        for part in parts
    ]


def _of_part(
    evaluator: Evaluator, truth: Sequence[Any], prediction: Sequence[Any], with_interval: bool
) -> Score:
    undefined = Score(value=None, low=None, high=None, rows=len(truth))
    if not truth:
        return undefined
    try:
        if with_interval:
            return score_of(evaluator, truth, prediction)
        return replace(undefined, value=value_of(evaluator, truth, prediction))
    except PluginError:
        return undefined


class Negated:
    """An evaluator in which smaller is better, turned over: what it gives is the negative."""

    greater_is_better = True

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self.name = evaluator, getattr(evaluator, "name", "")
        self.needs_proba = needs_proba(evaluator)

    def value(self, truth: Sequence[Any], prediction: Sequence[Any]) -> float | None:
        value = value_of(self._evaluator, truth, prediction)
        return None if value is None else 0.0 - value

    def evaluate(
        self,
        truth: Sequence[Any],
        prediction: Sequence[Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        found = score_of(self._evaluator, truth, prediction)
        ends = (found.value, found.high, found.low)
        value, low, high = (None if end is None else 0.0 - end for end in ends)
        return replace(found, value=value, low=low, high=high)


def needs_proba(evaluator: Any) -> bool:
    """Whether a row's prediction is, for it, a share for each label in place of an answer."""
    return bool(getattr(evaluator, "needs_proba", False))


def _asked(evaluator: Evaluator, ask: Any, truth: Sequence[Any], prediction: Sequence[Any]) -> Any:
    try:
        # Lists of its own: what it does to them no other evaluator sees.
        return ask(list(truth), list(prediction))
    except (AutoGLMError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # one that leaves is a broken one
        raise PluginError(
            f"evaluator:{_name(evaluator)} raised on {len(truth):,} rows:"
            f" {type(error).__name__}: {error}.",
            code="plugin.evaluator_raised",
            next_step=f"Correct it{_place(evaluator)}, or name another in evaluate.metric.",
        ) from error


def _number(evaluator: Evaluator, value: Any, num_rows: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong_type(evaluator, value, "a number, or None where there is none")
    number = float(value)
    if math.isfinite(number):
        return number
    raise PluginError(
        f"evaluator:{_name(evaluator)} gave {number} for {num_rows:,} rows.",
        code=NOT_A_NUMBER,
        next_step=f"Let it return None where it has no value{_place(evaluator)}.",
    )


def _bound(evaluator: Evaluator, value: Any, num_rows: int) -> float | None:
    """An end of an interval. One that cannot be said is left out: the value stands."""
    try:
        return _number(evaluator, value, num_rows)
    except PluginError as error:
        if error.code != NOT_A_NUMBER:
            raise
        return None


def _wrong_type(evaluator: Evaluator, found: Any, wanted: str) -> PluginError:
    return PluginError(
        f"evaluator:{_name(evaluator)} gave {type(found).__name__} {found!r:.60}, not {wanted}.",
        code="plugin.evaluator_type",
        next_step=f"Let it return {wanted}{_place(evaluator)}.",
    )


def _name(evaluator: Any) -> str:
    return str(getattr(evaluator, "name", "") or type(evaluator).__name__)


def _place(evaluator: Any) -> str:
    """Where its code stands, as far as Python knows."""
    made = getattr(evaluator, "_evaluator", evaluator)
    function = getattr(made, "function", None) or getattr(type(made), "evaluate", None)
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", "").startswith("autoglm.evaluation"):
        return ""
    return f" ({file_of(function.__module__) or code.co_filename}:{code.co_firstlineno})"

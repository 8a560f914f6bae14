"""Scores of the validation rows beside a task's own: evaluators by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from autoglm.errors import PluginError, TrainingError
from autoglm.evaluation.asking import needs_proba, value_of
from autoglm.evaluation.evaluator import find_evaluator

Tell = Callable[[Mapping[str, Any]], None]


class Scorer:
    """Adds what `names` (the metric first, then those that only constrain or report) give to the
    scores that the task computes itself. One that breaks costs its value of this epoch and nothing
    more: the weights are there, and other epochs may have one.
    """

    def __init__(self, task: Any, names: Sequence[str], tell: Tell) -> None:
        self._task, self._names, self._tell = task, tuple(dict.fromkeys(names)), tell
        self._problems: dict[str, PluginError] = {}

    def add(
        self, scores: dict[str, float], outputs: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """NaN where there is no value, as in the task's own. Raises: PluginError plugin.unknown."""
        names = [name for name in self._names if name not in scores]
        if not names:
            return scores
        truth, answers = self._task.truth(batch), self._task.predict(outputs, batch)
        for name in names:
            evaluator = find_evaluator(name)
            try:
                said = self._shares(outputs, name) if needs_proba(evaluator) else answers
                value = value_of(evaluator, truth, said)
            except PluginError as error:
                if name not in self._problems:
                    self._tell({"kind": "evaluator_failed", "evaluator": name, "cause": str(error)})
                self._problems[name], value = error, None
            scores[name] = math.nan if value is None else value
        return scores

    def check(self, metric: str, best: Mapping[str, float]) -> None:
        """Raises: TrainingError training.evaluator when no epoch has a value since its evaluator
        broke.
        """
        problem = self._problems.get(metric)
        if problem is not None and math.isnan(best[metric]):
            raise TrainingError(
                problem.message, code="training.evaluator", next_step=problem.next_step
            )

    def _shares(self, outputs: Tensor, name: str) -> list[dict[str, float]]:
        kind = getattr(self._task, "problem_type", "")
        ways = {
            "single_label_classification": lambda: outputs.double().softmax(-1),
            "multi_label_classification": lambda: outputs.double().sigmoid(),
        }
        if kind not in ways or self._task.is_per_token:
            raise PluginError(
                f"evaluator:{name} wants a share for each label: {type(self._task).__name__} has"
                " none.",
                code="plugin.evaluator_raised",
                next_step="Choose one that judges answers (needs_proba=False).",
            )
        labels = self._task.label_names
        return [dict(zip(labels, row, strict=True)) for row in ways[kind]().tolist()]

"""What is learnt: loss, answers and scores of a batch, by the task's name.

A task is made with the label names and the section `training`; its `batch` is what
`Encoded.batch` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoglm.evaluation.metrics import METRICS, confusion, entities, f1

IGNORED = -100


class _Labelled:
    """What tasks with labels are made of; `_weights` are set by `see`."""

    def __init__(self, label_names: Sequence[str], training: Mapping[str, Any]) -> None:
        self.label_names = tuple(label_names)
        self._smoothing = float(training["label_smoothing"])
        self._is_balanced = training["class_weights"] == "balanced"
        self._weights: Tensor | None = None


class Classification(_Labelled):
    """One label of several, of a text or an image. Class weights `balanced` are rows / (labels ·
    rows of the label).
    """

    problem_type, is_per_token = "single_label_classification", False

    def see(self, targets: Tensor) -> None:
        """The training rows' targets, before training: what class weights are made of."""
        if self._is_balanced:
            known = targets[targets != IGNORED]
            counts = torch.bincount(known.flatten(), minlength=len(self.label_names))
            self._weights = known.numel() / (counts.clamp(min=1) * len(self.label_names))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            outputs, batch["labels"], weight=self._weights, label_smoothing=self._smoothing
        )

    def predict(self, outputs: Tensor) -> list[str]:
        return [self.label_names[i] for i in outputs.argmax(-1).tolist()]

    def truth(self, batch: Mapping[str, Tensor]) -> list[str]:
        return [self.label_names[i] for i in batch["labels"].tolist()]

    def scores(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics by name on these rows; NaN where one is undefined."""
        counts = confusion(
            batch["labels"].numpy().astype(np.intp),
            outputs.argmax(1).numpy().astype(np.intp),
            len(self.label_names),
        )
        return {name: _number(metric(counts)) for name, metric in METRICS.items()}


class MultiLabel(_Labelled):
    """Any of several labels: (rows, labels) of 0 and 1. A label is said from a half on."""

    problem_type, is_per_token = "multi_label_classification", False

    def see(self, targets: Tensor) -> None:
        if self._is_balanced:
            share = targets.float().mean(0).clamp(1e-3, 1 - 1e-3)
            self._weights = (1 - share) / share

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        wanted = batch["labels"].to(outputs.dtype)
        wanted = wanted * (1 - self._smoothing) + 0.5 * self._smoothing
        return nn.functional.binary_cross_entropy_with_logits(
            outputs, wanted, pos_weight=self._weights
        )

    def predict(self, outputs: Tensor) -> list[list[str]]:
        return [self._names(row) for row in (outputs > 0).tolist()]

    def truth(self, batch: Mapping[str, Tensor]) -> list[list[str]]:
        return [self._names(row) for row in (batch["labels"] > 0.5).tolist()]

    def _names(self, said: Sequence[bool]) -> list[str]:
        return [name for name, is_said in zip(self.label_names, said, strict=True) if is_said]

    def scores(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        said, wanted = outputs > 0, batch["labels"] > 0.5
        hits = (said & wanted).sum(0).double()
        sizes = (said.sum(0) + wanted.sum(0)).double()
        per_label = (2 * hits / sizes)[sizes > 0]
        return {
            "accuracy": float((said == wanted).all(1).double().mean()),
            "micro_f1": _number(float(2 * hits.sum() / sizes.sum()) if sizes.sum() else None),
            "macro_f1": _number(float(per_label.mean()) if len(per_label) else None),
        }


class Regression:
    """A number per row. `r2` is 1 - squared error / variance; greater is better in all scores."""

    problem_type, is_per_token = "regression", False

    def __init__(self, label_names: Sequence[str], training: Mapping[str, Any]) -> None:
        del training
        self.label_names = tuple(label_names)

    def see(self, targets: Tensor) -> None:
        del targets

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(outputs.squeeze(-1), batch["labels"].to(outputs.dtype))

    def predict(self, outputs: Tensor) -> list[float]:
        numbers: list[float] = outputs.squeeze(-1).tolist()
        return numbers

    def truth(self, batch: Mapping[str, Tensor]) -> list[float]:
        numbers: list[float] = batch["labels"].tolist()
        return numbers

    def scores(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        said, wanted = outputs.squeeze(-1).double(), batch["labels"].double()
        errors = said - wanted
        spread = (wanted - wanted.mean()).square().sum()
        r2 = float(1 - errors.square().sum() / spread) if spread else None
        return {"r2": _number(r2), "negative_mae": -float(errors.abs().mean())}


class Tagging(Classification):
    """A tag per word, on its first token (-100 elsewhere). `entity_f1` counts whole entities:
    the same type, first and last word.
    """

    is_per_token = True

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            outputs,
            batch["labels"],
            weight=self._weights,
            label_smoothing=self._smoothing,
            ignore_index=IGNORED,
        )

    def scores(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        labels = batch["labels"]
        is_word = labels != IGNORED
        said = self.predict(outputs[is_word])
        wanted = [self.label_names[i] for i in labels[is_word].tolist()]
        hits = sum(s == w for s, w in zip(said, wanted, strict=True))
        # Rows are divided by a word that nobody tags, so that no entity reaches over an end.
        rows = batch["row_of"][is_word].tolist()
        found, true = entities(said, rows), entities(wanted, rows)
        return {
            "accuracy": hits / len(wanted) if wanted else math.nan,
            "entity_f1": _number(f1(len(found & true), len(found), len(true))),
        }


def _number(value: float | None) -> float:
    return math.nan if value is None else value

"""What is learnt: loss, answers and scores of a batch, by the task's name.

A task is made with the label names and the section `training`; its `batch` is what
`Encoded.batch` gives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.contracts.task import TextScore
from autoglm.evaluation.metrics import OF_TEXT, metrics_of
from autoglm.training.closed_form import ridge_head
from autoglm.training.data import IGNORED, Encoded, deviation_of


class _Task(ABC):
    """`truth` and `predict` give a label, labels, a number or tags per row (contracts.task)."""

    @abstractmethod
    def truth(self, batch: Mapping[str, Tensor]) -> list[Any]: ...

    @abstractmethod
    def predict(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> list[Any]: ...

    @abstractmethod
    def ridge(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a linear head that answers `targets` as well as one can."""

    def scores(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics by name on these rows; NaN where one is undefined."""
        truth, said = self.truth(batch), self.predict(outputs, batch)
        values = {name: metric(truth, said) for name, metric in metrics_of(truth).items()}
        return {name: math.nan if value is None else value for name, value in values.items()}


class _Labelled(_Task):
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

    def row_weights(self, data: Encoded) -> Sequence[float]:
        """What each row's loss weighs in a batch's mean: by its labels where these have weights."""
        if self._weights is None:
            return data.num_answers
        weights = self._weights
        if isinstance(data.targets, Tensor):
            return [float(weight) for weight in weights[data.targets].tolist()]
        return [float(weights[row[row != IGNORED]].sum()) for row in data.targets]

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            outputs, batch["labels"], weight=self._weights, label_smoothing=self._smoothing
        )

    def ridge(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = nn.functional.one_hot(targets, len(self.label_names))
        return ridge_head(features, wanted, lambda said: nn.functional.cross_entropy(said, targets))

    def predict(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> list[Any]:
        del batch
        return [self.label_names[i] for i in outputs.argmax(-1).tolist()]

    def truth(self, batch: Mapping[str, Tensor]) -> list[Any]:
        return [self.label_names[i] for i in batch["labels"].tolist()]


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

    def ridge(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = targets.double()

        def loss(said: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(said, wanted)

        return ridge_head(features, wanted, loss, centre=0.5)

    def predict(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> list[Any]:
        del batch
        return [self._names(row) for row in (outputs > 0).tolist()]

    def truth(self, batch: Mapping[str, Tensor]) -> list[Any]:
        return [self._names(row) for row in (batch["labels"] > 0.5).tolist()]

    def _names(self, said: Sequence[bool]) -> frozenset[str]:
        pairs = zip(self.label_names, said, strict=True)
        return frozenset(name for name, is_said in pairs if is_said)


class Regression(_Task):
    """A number per row. The loss is the squared error in units of the training rows' variance, so
    that a rate means the same for prices and for stars.
    """

    problem_type, is_per_token = "regression", False

    def __init__(self, label_names: Sequence[str], training: Mapping[str, Any]) -> None:
        del training
        self.label_names = tuple(label_names)
        self._deviation = 1.0

    def see(self, targets: Tensor) -> None:
        self._deviation = deviation_of(targets)

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        errors = outputs.squeeze(-1) - batch["labels"].to(outputs.dtype)
        return (errors / self._deviation).square().mean()

    def ridge(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        numbers = targets.double()
        wanted = ((numbers - numbers.mean()) / self._deviation)[:, None]
        return ridge_head(features, wanted, lambda s: (s - wanted).square().mean(), scales=(1.0,))

    def predict(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> list[Any]:
        del batch
        return list(outputs.squeeze(-1).tolist())

    def truth(self, batch: Mapping[str, Tensor]) -> list[Any]:
        return list(batch["labels"].tolist())


class Tagging(Classification):
    """A tag per word, on its first token (-100 elsewhere); answers are a tuple per row, of the
    words that the model reads. `batch["row_of"]` says of which row a token is.
    """

    is_per_token = True

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """0 where no token is answered for: a mean over none would be no number."""
        labels = batch["labels"]
        total = nn.functional.cross_entropy(
            outputs,
            labels,
            weight=self._weights,
            label_smoothing=self._smoothing,
            ignore_index=IGNORED,
            reduction="sum",
        )
        is_known = (labels != IGNORED).to(total.dtype)
        each = 1.0 if self._weights is None else self._weights[labels.clamp(min=0)]
        weighs = (is_known * each).sum()
        return total / torch.where(weighs > 0, weighs, torch.ones_like(weighs))

    def predict(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> list[Any]:
        return self._rows(outputs.argmax(-1), batch)

    def truth(self, batch: Mapping[str, Tensor]) -> list[Any]:
        return self._rows(batch["labels"], batch)

    def _rows(self, codes: Tensor, batch: Mapping[str, Tensor]) -> list[Any]:
        is_word = batch["labels"] != IGNORED
        rows: dict[int, list[str]] = {row: [] for row in batch["row_of"].tolist()}
        words = zip(codes[is_word].tolist(), batch["row_of"][is_word].tolist(), strict=True)
        for code, row in words:
            rows[row].append(self.label_names[code])
        return [tuple(tags) for tags in rows.values()]


class CausalLM:
    """The next token of an answer, behind the right ones before it: `batch["labels"]` (tokens) are
    those of all answers, one behind the other, and outputs stand at these places only.
    """

    problem_type, is_per_token = "causal_lm", True

    def __init__(self, label_names: Sequence[str], training: Mapping[str, Any]) -> None:
        del label_names
        self._smoothing = float(training["label_smoothing"])

    def see(self, targets: Tensor) -> None:
        """Nothing depends on what the answers are."""

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            outputs, batch["labels"], label_smoothing=self._smoothing
        )

    def judge(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(tokens, 2): the negative log-likelihood of each label, and whether it is the likeliest.
        All that scores need, a vocabulary's width smaller.
        """
        losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
        return torch.stack([losses, (outputs.argmax(-1) == labels).to(losses.dtype)], dim=1)

    def truth(self, batch: Mapping[str, Tensor]) -> list[TextScore]:
        """What a model that knows the answers would get."""
        counts = self._per_row(torch.ones(len(batch["row_of"])), batch)
        return [TextScore(0.0, int(n), int(n)) for n in counts]

    def predict(self, judged: Tensor, batch: Mapping[str, Tensor]) -> list[TextScore]:
        """Of what `judge` gave."""
        columns = (self._per_row(column, batch) for column in judged.unbind(1))
        rows = zip(*columns, self.truth(batch), strict=True)
        return [TextScore(nll, true.tokens, round(hits)) for nll, hits, true in rows]

    def scores(self, judged: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        truth, said = self.truth(batch), self.predict(judged, batch)
        found = {name: metric(truth, said) for name, metric in OF_TEXT.items()}
        values = {name: math.nan if v is None else v for name, v in found.items()}
        return {**values, "loss": -values["negative_loss"]}

    def _per_row(self, values: Tensor, batch: Mapping[str, Tensor]) -> list[float]:
        """Sums over the tokens of each row, in the order in which rows come."""
        _, lengths = torch.unique_consecutive(batch["row_of"], return_counts=True)
        parts = torch.split(values.double(), lengths.tolist())
        return [float(part.sum()) for part in parts]

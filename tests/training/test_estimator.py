"""The scikit-learn face: whatever takes an estimator takes ours, and folds share what they can."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib import parallel_backend
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data
from tests.conftest import FILLER, WORDS, learnable_rows

from autoglm import AutoGLMClassifier, AutoGLMRegressor
from autoglm.errors import ModelError
from autoglm.plugins import registry
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import in_process, precision

ROWS = learnable_rows(120)
TEXTS = [row["text"] for row in ROWS]
LABELS = np.array([row["label"] for row in ROWS])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plain(tiny_backbone: Path) -> dict[str, Any]:
    return {"backbone": str(tiny_backbone), "epochs": 1, "trainable_layers": 1}


def test_a_head_of_a_notebook_s_cell_learns_where_no_folder_is_written(
    plain: dict[str, Any],
) -> None:
    code = "def cell(hidden_size, num_outputs):\n    return Linear(hidden_size, num_outputs)\n"
    cell: dict[str, Any] = {"Linear": torch.nn.Linear, "__name__": "__main__"}
    exec(code, cell)
    registry.register("head", "cell", cell["cell"], replace=True)
    try:
        fitted = AutoGLMClassifier(**plain, settings={"head": "cell"}).fit(TEXTS, LABELS)
    finally:
        registry._registered.pop("head:cell")
    assert fitted.score(TEXTS, LABELS) > 0.8


@pytest.mark.parametrize("bf16", [0.5, 2.0], ids=["slow bf16", "fast bf16"])
def test_folds_encode_each_row_once(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch, bf16: float
) -> None:
    speeds = {"bf16": bf16, "fp16": 0.1}
    monkeypatch.setattr(precision, "measure", lambda _device: speeds)
    monkeypatch.setattr(in_process, "_decided", in_process._Decided(64))
    monkeypatch.setattr(in_process, "_states", PrefixCache(2**28))
    encoded: list[int] = []
    monkeypatch.setattr(AutoGLMClassifier, "_on_event", lambda _self, e: _count(encoded, e))
    scores = cross_val_score(AutoGLMClassifier(**plain), TEXTS, LABELS, cv=3)
    assert scores.min() > 0.9
    # The first fold encodes what it learns from, and then what it is asked; the others find it all.
    assert encoded == [len(TEXTS) * 2 // 3, 0, 0]
    warm = AutoGLMClassifier(**plain).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert encoded[3:] == [0]
    monkeypatch.setattr(in_process, "_states", PrefixCache(2**28))
    cold = AutoGLMClassifier(**plain).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert encoded[4:] == [len(TEXTS)]
    np.testing.assert_allclose(warm, cold, atol=1e-4)


def _count(encoded: list[int], event: Any) -> None:
    if event["kind"] == "prefix":
        encoded.append(event["encoded"])


def test_fits_in_several_threads_say_what_fits_one_after_the_other_say(
    plain: dict[str, Any],
) -> None:
    model = AutoGLMClassifier(**plain, settings={"precision": "fp32"})
    alone = cross_val_score(model, TEXTS, LABELS, cv=4, scoring="neg_log_loss")
    with parallel_backend("threading"):
        together = cross_val_score(
            model, TEXTS, LABELS, cv=4, n_jobs=4, scoring="neg_log_loss", error_score="raise"
        )
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_without_room_nothing_is_kept_and_all_is_the_same(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = AutoGLMClassifier(**plain).fit(TEXTS, LABELS).predict_proba(TEXTS[:9])
    monkeypatch.setattr(in_process, "_states", PrefixCache(1000))
    small = AutoGLMClassifier(**plain).fit(TEXTS, LABELS)
    np.testing.assert_allclose(small.predict_proba(TEXTS[:9]), wanted, atol=1e-4)


def test_a_grid_over_a_pipeline_finds_the_setting_that_learns(plain: dict[str, Any]) -> None:
    pipeline = make_pipeline(FunctionTransformer(_lower), AutoGLMClassifier(**plain))
    grid = GridSearchCV(
        pipeline,
        {
            "autoglmclassifier__settings": [None, {"head": "mlp", "lr": 1e-9}],
            "autoglmclassifier__trainable_layers": np.array([0, 1]),
        },
        cv=2,
        scoring=["accuracy", "neg_log_loss", "roc_auc"],
        refit="neg_log_loss",
    ).fit(TEXTS, LABELS)
    assert grid.best_params_["autoglmclassifier__settings"] is None
    assert grid.score(TEXTS, LABELS) > -0.2
    assert list(grid.predict(TEXTS[:2])) == list(LABELS[:2])


def _lower(texts: list[str]) -> list[str]:
    return [text.lower() for text in texts]


def test_labels_come_back_as_they_came_also_from_a_pickle(plain: dict[str, Any]) -> None:
    numbers = (LABELS == "sport").astype(int) * 7
    fitted = AutoGLMClassifier(**plain).fit(np.array(TEXTS)[:, None], numbers)
    assert list(fitted.classes_) == [0, 7]
    assert (fitted.predict(TEXTS) == numbers).mean() > 0.9
    assert np.allclose(fitted.predict_proba(TEXTS).sum(1), 1)
    assert set(fitted.validation_scores_) >= {"accuracy", "macro_f1", "loss"}
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_allclose(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS), atol=1e-5)
    assert clone(fitted).get_params() == fitted.get_params()


def test_adapters_and_numbers_are_learnt_too(plain: dict[str, Any]) -> None:
    more = {"lora_rank": 2, "class_weights": "balanced"}
    assert AutoGLMClassifier(**plain, settings=more).fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.9
    prices = 1e3 + 5.0 * (LABELS == "sport")
    fitted = AutoGLMRegressor(**{**plain, "epochs": 3}).fit(TEXTS, prices)
    assert fitted.predict(TEXTS).shape == (len(TEXTS),)
    assert fitted.score(TEXTS, prices) > 0.8


def test_rows_that_are_all_alike_teach_the_prior(plain: dict[str, Any]) -> None:
    fitted = AutoGLMClassifier(**plain).fit(["goal match"] * 12, ["a"] * 9 + ["b"] * 3)
    share = fitted.predict_proba(["goal match"])[0]
    assert share[0] > 0.5
    assert np.isfinite(share).all()


@pytest.mark.parametrize(
    ("texts", "labels", "more", "words"),
    [
        ([[1.0, 2.0]] * 4, list("abab"), {}, "one text per row"),
        ([1, 2, 3, 4], list("abab"), {}, "row 0 is a int, not a text"),
        (["x", None, "y", "z"], list("abab"), {}, "row 1 is a NoneType"),
        ("a text", ["a"], {}, "scalar or one text"),
        ([], [], {}, "0 sample"),
        (["x", "y"], ["a"], {}, "inconsistent numbers of samples"),
        (["x", "y"], ["a", "a"], {}, "only one class: 'a'"),
        (["x", "y"], ["a", "b"], {"settings": {"drop_out": 0.1}}, "Did you mean dropout"),
        (["x", "y"], ["a", "b"], {"lr": -1}, r"lr = -1: input should be greater than 0"),
        (["x", "y"], ["a", "b"], {"epochs": 1.5}, r"epochs = 1\.5"),
        (["x", "y"], ["a", "b"], {"validation": 1}, "below 1"),
        (
            ["x", "y"],
            ["a", "b"],
            {"metric": sum},
            "metric is a builtin_.*write an evaluator's name",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said_before_anything_is_trained(
    plain: dict[str, Any], texts: Any, labels: Any, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AutoGLMClassifier(**{**plain, **more}).fit(texts, labels)


def test_a_backbone_that_begins_at_random_and_numbers_that_are_none_are_refused(
    plain: dict[str, Any],
) -> None:
    with pytest.raises(ModelError, match="a project can train it"):
        AutoGLMClassifier("recurrent").fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="NaN or an infinite"):
        AutoGLMRegressor(**plain).fit(TEXTS[:2], [1.0, float("nan")])


def test_before_it_is_fitted_nothing_is_answered_and_scikit_learns_error_says_so(
    plain: dict[str, Any],
) -> None:
    for made in (AutoGLMClassifier(**plain), AutoGLMRegressor(**plain)):
        for ask in (made.predict, getattr(made, "predict_proba", made.predict)):
            with pytest.raises(NotFittedError):
                ask(TEXTS)
        with pytest.raises(NotFittedError):
            made.score(TEXTS, np.arange(len(TEXTS)))


def test_the_face_loads_scikit_learn_and_no_torch_before_it_fits() -> None:
    code = (
        "import sys, autoglm; assert 'sklearn' not in sys.modules; autoglm.AutoGLMClassifier();"
        " assert 'sklearn' in sys.modules; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# scikit-learn's checks give tables of numbers and leave an estimator of texts out. So numbers become
# words here, row by row, and every check that there is runs on what is behind.
SOME_WORDS = [*WORDS["sport"], *WORDS["money"], *FILLER]


class OfNumbers:
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.input_tags.string = False
        return tags

    def _words(self, table: Any, *, reset: bool = False) -> list[str]:
        checked = validate_data(self, table, reset=reset, dtype=float)
        codes = np.clip(np.round(checked * 2), -3, 3).astype(int) + 7 * np.arange(checked.shape[1])
        return [" ".join(SOME_WORDS[code % len(SOME_WORDS)] for code in row) for row in codes]

    def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        return super().fit(self._words(X, reset=True), y)  # type: ignore[misc]

    def predict(self, X: Any) -> Any:  # noqa: N803
        return super().predict(self._asked(X))  # type: ignore[misc]

    def _asked(self, table: Any) -> list[str]:
        check_is_fitted(self, "_fitted")
        return self._words(table)


class ClassifierOfNumbers(OfNumbers, AutoGLMClassifier):
    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        return super().predict_proba(self._asked(X))


class RegressorOfNumbers(OfNumbers, AutoGLMRegressor):
    pass


def test_every_check_of_scikit_learn_holds_of_the_classifier(tiny_backbone: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ClassifierOfNumbers(str(tiny_backbone), epochs=1, trainable_layers=0)
        results = check_estimator(made, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert failed == {}
    passed = {r["check_name"] for r in results if r["status"] == "passed"}
    assert len(passed) > 40


def test_the_checks_that_only_a_regressor_has_hold_of_ours(tiny_backbone: Path) -> None:
    made = RegressorOfNumbers(str(tiny_backbone), epochs=1, trainable_layers=0)
    own = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(made):
            name = getattr(check, "func", check).__name__
            if "regress" in name and "not_an_array" not in name:
                check(estimator)
                own.append(name)
    assert len(own) >= 3

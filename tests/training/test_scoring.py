"""Evaluators of the user's own on the validation rows: what they give, and what they cost when they
break.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss
from tests.training import toy

import autoglm
from autoglm.errors import PluginError, TrainingError
from autoglm.plugins import registry
from autoglm.training import tasks
from autoglm.training.scoring import Scorer


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    with registry.registering_from("test"):
        yield
    with registry.registering_from("test"):
        pass


def own(name: str, function: Any, **more: Any) -> str:
    autoglm.register("evaluator", name, autoglm.make_evaluator(function, **more), replace=True)
    return name


def test_a_trial_is_told_by_all_and_picked_by_one() -> None:
    own("mistakes", lambda t, p: sum(a != b for a, b in zip(t, p, strict=True)) / len(t),
        greater_is_better=False)  # fmt: skip
    autoglm.register("evaluator", "likely", autoglm.make_scorer("neg_log_loss"), replace=True)
    trained = toy.train(metric="mistakes", metrics=["likely", "minority_recall"], epochs=2)
    found = trained.metrics
    assert found["mistakes"] == pytest.approx(found["accuracy"] - 1)
    assert found["likely"] == pytest.approx(-found["loss"], rel=1e-4)
    assert 0 <= found["minority_recall"] <= 1


def test_shares_are_the_softmax_of_what_the_head_says() -> None:
    seen: list[Any] = []
    own("look", lambda t, p: seen.append((t, p)) or 1.0, needs_proba=True)
    task = tasks.Classification(toy.LABELS, toy.settings())
    outputs = torch.randn(5, 3)
    batch = {"labels": torch.tensor([0, 1, 2, 0, 1])}
    Scorer(task, ["look"], lambda _event: None).add({}, outputs, batch)
    ((truth, shares),) = seen
    assert truth == ["a", "b", "c", "a", "b"]
    table = [[row[label] for label in toy.LABELS] for row in shares]
    wanted = outputs.double().softmax(-1)
    torch.testing.assert_close(torch.tensor(table, dtype=torch.float64), wanted)
    assert log_loss(truth, table) > 0


def test_an_epoch_that_cannot_be_scored_costs_that_epoch_only() -> None:
    calls: list[int] = []

    def brittle(truth: Any, said: Any) -> float:
        calls.append(1)
        if len(calls) % 2:
            raise RuntimeError("not today")
        return len(calls) / 100

    events: list[Any] = []
    trained = toy.train(metric=own("brittle", brittle), epochs=4, events=events)
    assert trained.metrics["brittle"] == 0.04
    assert trained.best_epoch == 3
    failed = [event for event in events if event["kind"] == "evaluator_failed"]
    assert len(failed) == 1
    assert "RuntimeError: not today" in failed[0]["cause"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda _t, _p: 1 / 0, "raised on 12 rows: ZeroDivisionError"),
        (lambda _t, _p: math.nan, "gave nan for 12 rows"),
        (lambda _t, _p: [1], r"gave list \[1\]"),
    ],
)
def test_a_trial_that_could_not_be_scored_at_all_fails_with_the_evaluators_cause(
    function: Any, words: str
) -> None:
    with pytest.raises(TrainingError, match=words) as told:
        toy.train(metric=own("bad", function), epochs=1)
    assert told.value.code == "training.evaluator"
    assert not told.value.retryable
    reported = toy.train(metric="accuracy", metrics=[own("bad", function)], epochs=1)
    assert math.isnan(reported.metrics["bad"])


def test_a_metric_without_a_value_is_undefined_and_no_error() -> None:
    trained = toy.train(metric=own("none", lambda _t, _p: None), epochs=1)
    assert math.isnan(trained.metrics["none"])


def test_shares_of_what_has_none_are_refused() -> None:
    own("shares", lambda _t, _p: 1.0, needs_proba=True)
    told: list[Any] = []
    scorer = Scorer(tasks.Regression(("price",), toy.settings()), ["shares"], told.append)
    scores = scorer.add({}, torch.zeros(2, 1), {"labels": torch.zeros(2)})
    assert math.isnan(scores["shares"])
    assert "Regression has none" in told[0]["cause"]
    with pytest.raises(PluginError, match="there is no evaluator:nobody"):
        Scorer(_Silent(), ["nobody"], told.append).add({}, torch.zeros(1), {})


class _Silent:
    def truth(self, batch: Any) -> list[str]:
        return ["a"]

    def predict(self, outputs: Any, batch: Any) -> list[str]:
        return ["a"]

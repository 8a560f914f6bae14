"""Which epoch's weights a trial ends with."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import CancelledError
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.training import tasks
from training import toy

NAN = float("nan")


class Told(tasks.Classification):
    """Rows are answered for as usual; the score of each evaluation, from before the first epoch on,
    is told.
    """

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__(toy.LABELS, toy.settings())
        self.told = iter(scores)

    def scores(self, outputs: Any, batch: Any) -> dict[str, float]:
        del outputs, batch
        return {"accuracy": next(self.told)}


def kept(scores: Sequence[float], keep: str, **more: Any) -> tuple[int, float]:
    trained = toy.train(task=Told(scores), epochs=len(scores) - 1, keep=keep, **more)
    return trained.best_epoch, trained.metrics["accuracy"]


# 12 rows validate: the standard error of 0.9 is 0.097.
@pytest.mark.parametrize(
    ("scores", "best", "auto"),
    [
        ([0.1, 0.90, 0.85, 0.82, 0.81], 1, 4),
        ([0.1, 0.90, 0.85, 0.70, 0.60], 1, 2),
        ([0.1, 0.90, 0.95, 0.86, 0.70], 2, 3),
        ([0.9, 0.85, 0.20, 0.10, 0.10], 0, 1),
        ([0.1, 0.20, 0.30, 0.40, 0.50], 4, 4),
        ([NAN, 0.90, NAN, 0.85, NAN], 1, 3),
    ],
)
def test_auto_keeps_the_last_epoch_that_is_hardly_worse_than_the_best(
    scores: Sequence[float], best: int, auto: int
) -> None:
    assert kept(scores, "best") == (best, scores[best])
    assert kept(scores, "auto") == (auto, scores[auto])


def test_a_slow_decline_is_measured_from_the_best_not_from_the_one_before() -> None:
    assert kept([0.1, 0.90, 0.85, 0.79, 0.73], "auto") == (2, 0.85)


def test_the_last_epoch_that_has_a_score_is_kept_where_the_last_is_wanted() -> None:
    assert kept([0.9, 0.8, 0.1], "last") == (2, 0.1)
    assert kept([0.9, 0.8, NAN], "last") == (1, 0.8)


def test_auto_is_the_best_where_training_ends_before_its_schedule() -> None:
    assert kept([0.1, 0.90, 0.89, 0.88], "auto", early_stopping=2) == (1, 0.9)
    assert kept([0.1, 0.90, 0.89, 0.88], "last", early_stopping=2) == (3, 0.88)


@pytest.mark.parametrize("sign", [1, -1])
def test_auto_is_the_best_where_the_metric_is_no_share_of_right_answers(sign: int) -> None:
    class Own(Told):
        def scores(self, outputs: Any, batch: Any) -> dict[str, float]:
            return {"gain": sign * super().scores(outputs, batch)["accuracy"]}

    scores = [0.1, 0.90, 0.89] if sign > 0 else [0.9, 0.10, 0.11]
    trained = toy.train(task=Own(scores), metric="gain", epochs=2)
    assert trained.best_epoch == 1


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([0.90, 0.89, 0.88], 0),  # as long as no epoch is as good as stable
        ([0.90, 0.90, 0.88], 2),
        ([0.90, 0.85, 0.92, 0.91], 3),
    ],
)
def test_the_version_that_training_started_from_gives_way_to_nothing_worse(
    scores: Sequence[float], wanted: int
) -> None:
    start = toy.model(3)
    start.known_outputs = [0, 1, 2]
    assert kept(scores, "auto", start=start)[0] == wanted
    start.known_outputs = []
    assert kept(scores, "auto", start=start)[0] == len(scores) - 1


def test_few_rows_are_more_patient_than_many() -> None:
    few, many = toy.rows(60, num_train=48), toy.rows(400, num_train=48)
    scores = [0.1, 0.90, 0.86]
    of_few, of_many = (
        toy.train(data=d, task=Told(scores), epochs=2).best_epoch for d in (few, many)
    )
    assert (of_few, of_many) == (2, 1)


def test_training_that_goes_on_from_a_checkpoint_knows_the_best_score(tmp_path: Path) -> None:
    task = Told([0.1, 0.90, 0.85, *[0.79] * 9])
    cancel = threading.Event()

    class Stop:
        def on_event(self, event: Mapping[str, Any]) -> None:
            if event["kind"] == "evaluation" and event["epoch"] == 3:
                cancel.set()

    checkpoints = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    said: dict[str, Any] = {
        "task": task, "epochs": 5, "checkpoints": checkpoints, "checkpoint_steps": 1,
    }  # fmt: skip
    with pytest.raises(CancelledError):
        toy.trainer(callbacks=[Stop()], **said).train(cancel)
    trained = toy.train(**said)
    assert (trained.best_epoch, trained.metrics["accuracy"]) == (2, 0.85)

"""One trial, on a toy: what is computed, in which order, and what comes back after a death."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoglm.errors import CancelledError, PluginError, TrainingError
from autoglm.evaluation.metrics import entities
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.training import schedules, tasks
from autoglm.training.data import Encoded, batches, pieces
from autoglm.training.head_start import start_head
from training import toy

Event = Mapping[str, Any]


def kinds(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event["kind"] == kind]


def test_a_killed_run_comes_back_to_the_same_bytes_at_every_step(tmp_path: Path) -> None:
    child = Path(__file__).with_name("kill_child.py")
    done = subprocess.run(
        [sys.executable, str(child), str(tmp_path), "1", "30"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["step"] for f in found] == list(range(1, 31))
    assert all(f["killed"] and f["same"] for f in found), found


def test_a_cancelled_run_keeps_what_was_done(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    cancel, wanted = threading.Event(), toy.train()

    class After:
        def on_event(self, event: Event) -> None:
            if event["kind"] == "training":
                cancel.set()

    with pytest.raises(CancelledError):
        toy.trainer(checkpoints=checkpoints, callbacks=[After()], log_steps=9).train(cancel)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 9
    events: list[Any] = []
    resumed = toy.train(checkpoints=checkpoints, events=events)
    assert kinds(events, "trial_resumed")[0]["step"] == 9
    assert resumed.metrics == wanted.metrics
    assert all(torch.equal(resumed.weights[n], t) for n, t in wanted.weights.items())


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3, max_bytes=2**30)
    wanted = toy.train(checkpoints=checkpoints, checkpoint_steps=5)
    steps = sorted(int(p.name) for p in tmp_path.iterdir())
    assert steps == [20, 25, 30]
    content = tmp_path / "30" / "content.safetensors"
    content.write_bytes(content.read_bytes()[:-7])
    (tmp_path / "25" / "manifest.json").write_text("{")
    events: list[Any] = []
    again = toy.train(checkpoints=checkpoints, checkpoint_steps=5, events=events)
    assert kinds(events, "trial_resumed")[0]["step"] == 20
    assert all(torch.equal(again.weights[n], t) for n, t in wanted.weights.items())


def test_a_checkpoint_of_another_version_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, max_bytes=2**30)
    wanted = toy.train(checkpoints=checkpoints, checkpoint_steps=5)
    manifest = next(tmp_path.iterdir()) / "manifest.json"
    kept = json.loads(manifest.read_text())
    del kept["facts"]["scaler"]
    manifest.write_text(json.dumps(kept))
    events: list[Any] = []
    again = toy.train(checkpoints=checkpoints, events=events)
    assert kinds(events, "trial_resumed") == []
    assert all(torch.equal(again.weights[n], t) for n, t in wanted.weights.items())


def test_checkpoints_keep_to_their_bytes(tmp_path: Path) -> None:
    toy.train(checkpoints=Checkpoints(tmp_path, keep=9, max_bytes=1), checkpoint_steps=5)
    assert [p.name for p in tmp_path.iterdir()] == ["30"]


def test_moments_come_in_the_order_of_the_pseudocode() -> None:
    heard: list[str] = []

    class Listens:
        def __init__(self, name: str) -> None:
            self.name = name

        def apply(self, moment: str, state: Any) -> None:
            heard.append(f"{self.name} {moment} {state.step}")

    events: list[Any] = []
    toy.train(
        algorithms=[Listens("first"), Listens("second")], events=events, epochs=1, batch_size=24
    )
    one = ["batch 0", "gradients 0", "step 1", "batch 1", "gradients 1", "step 2"]
    wanted = ["start 0", *one, "epoch_end 2", "end 2"]
    assert heard == [f"{who} {what}" for what in wanted for who in ("first", "second")]
    assert [e["epoch"] for e in kinds(events, "evaluation")] == [0, 1]


def test_an_algorithm_may_change_what_is_trained_and_a_callback_gets_numbers_only() -> None:
    class Half:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "batch":
                state.rows = state.rows[:4]

    class Hoards:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def on_event(self, event: Event) -> None:
            self.events.append(event)

    callback = Hoards()
    halved = toy.train(algorithms=[Half()], callbacks=[callback], log_steps=1)
    assert halved.metrics != toy.train().metrics
    for event in callback.events:
        for value in event.values():
            flat = value if isinstance(value, list) else [value]
            assert all(isinstance(x, (int, float, str)) for x in flat)


def test_each_line_of_the_record_says_what_it_should() -> None:
    events: list[Any] = []
    toy.train(events=events, log_steps=6, epochs=2)
    lines = kinds(events, "training")
    assert [line["step"] for line in lines] == [6, 12]
    wanted = {
        "kind", "step", "num_steps", "epoch", "train_loss", "learning_rate", "grad_norm",
        "clipped_share", "samples_per_second", "memory_bytes",
    }  # fmt: skip
    assert set(lines[0]) == wanted
    assert len(lines[0]["learning_rate"]) == 2
    assert {"eval_accuracy", "eval_macro_f1", "eval_loss"} <= set(kinds(events, "evaluation")[-1])


def test_the_step_loop_waits_for_no_number_outside_of_the_record() -> None:
    class Counts(TorchDispatchMode):
        read = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kw: Any = None
        ) -> Any:
            self.read += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kw or {}))

    one = toy.trainer(log_steps=1000)
    state = one._begin()
    start_head(one._model, one._forward, one._data, one._task, one._stop_if_asked)
    state.rows = list(range(8))
    state.rows.sort(key=lambda i: -len(one._data.ids[i]))
    with Counts() as counts:
        for _ in range(5):
            one._step(state)
    assert counts.read == 0


def test_the_step_loop_reads_no_settings() -> None:
    reads: list[str] = []

    class Counted(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            reads.append(key)
            return super().__getitem__(key)

    class Notes:
        def apply(self, moment: str, state: Any) -> None:
            if moment in {"batch", "step"}:
                at.append(len(reads))

    at: list[int] = []
    trainer = toy.trainer(epochs=1, algorithms=[Notes()], clip_norm=1.0, schedule="cosine")
    trainer._settings = Counted(trainer._settings)
    trainer.train(threading.Event())
    assert len(reads) > at[-1] - at[0] == 0


def test_a_batch_computed_in_parts_is_the_same_step() -> None:
    whole, parts = toy.train(dropout=0.0), toy.train(dropout=0.0, accumulation=3)
    for name, tensor in whole.weights.items():
        assert torch.allclose(tensor, parts.weights[name], atol=2e-5), name
    assert pieces([5, 4, 3, 2, 1], 2) == [[5, 3, 1], [4, 2]]


def test_clipping_by_value_and_by_norm_is_told() -> None:
    events: list[Any] = []
    toy.train(events=events, clip_norm=0.01, log_steps=5)
    assert kinds(events, "training")[0]["clipped_share"] == 1
    events.clear()
    toy.train(events=events, clip_norm=0, clip_value=1e-4, log_steps=5)
    line = kinds(events, "training")[0]
    assert line["clipped_share"] == 1
    events.clear()
    toy.train(events=events, clip_norm=0, clip_value=1e3, log_steps=5)
    assert kinds(events, "training")[0]["clipped_share"] == 0
    assert line["grad_norm"] < 1e-4 * 200


def test_the_average_of_weights_is_what_is_scored_and_kept() -> None:
    plain, averaged = toy.train(epochs=2), toy.train(epochs=2, ema=0.5)
    assert set(plain.weights) == set(averaged.weights)
    assert any(not torch.equal(plain.weights[n], t) for n, t in averaged.weights.items())


def test_early_stopping_ends_a_trial_that_gets_no_better() -> None:
    events: list[Any] = []
    toy.train(events=events, early_stopping=2, epochs=50, lr=1e-8)
    assert len(kinds(events, "evaluation")) == 3


def test_an_undefined_score_never_takes_the_place_of_a_number() -> None:
    class Undefined(tasks.Classification):
        """The score of each evaluation in turn; NaN is no score."""

        told = iter([float("nan"), 0.5, float("nan"), 0.4, float("nan"), 0.3])

        def scores(self, outputs: Any, batch: Any) -> dict[str, float]:
            del outputs, batch
            return {"accuracy": next(self.told)}

    trained = toy.train(task=Undefined(toy.LABELS, toy.settings()), epochs=5, keep="best")
    assert (trained.best_epoch, trained.metrics["accuracy"]) == (1, 0.5)


def test_rates_fall_layer_by_layer() -> None:
    events: list[Any] = []
    toy.train(
        events=events, layer_decay=0.5, log_steps=1, epochs=1, schedule="constant", warmup=0.0
    )
    rates = kinds(events, "training")[-1]["learning_rate"]
    assert rates == sorted(rates, reverse=True)
    assert {round(rate / rates[0], 6) for rate in rates} == {1, 0.5, 0.25, 0.125}


def test_balanced_class_weights_make_rare_labels_count() -> None:
    task = tasks.Classification(("a", "b"), toy.settings(class_weights="balanced"))
    task.see(torch.tensor([0] * 9 + [1]))
    outputs = torch.zeros(10, 2)
    labels = torch.tensor([0] * 9 + [1])
    per_row = [
        float(
            torch.nn.functional.cross_entropy(
                outputs[i : i + 1], labels[i : i + 1], weight=task._weights, reduction="sum"
            )
        )
        for i in (0, 9)
    ]
    assert per_row[1] == pytest.approx(9 * per_row[0])


def test_smoothed_labels_leave_something_to_the_others() -> None:
    sharp, smooth = (
        tasks.Classification(("a", "b"), toy.settings(label_smoothing=s)) for s in (0.0, 0.2)
    )
    sure, batch = torch.tensor([[20.0, -20.0]]), {"labels": torch.tensor([0])}
    assert float(sharp.loss(sure, batch)) < 1e-6
    assert float(smooth.loss(sure, batch)) == pytest.approx(0.1 * 40)


@pytest.mark.parametrize(
    ("pooling", "head"),
    [("mean", "linear"), ("cls", "mlp"), ("last", "linear"), ("max", "mlp"), ("attention", "mlp")],
)
def test_every_pooling_and_head_learns_the_toy(pooling: str, head: str) -> None:
    trained = toy.train(start=toy.model(pooling=pooling, head=head), epochs=12, lr=5e-3)
    assert trained.metrics["accuracy"] > 0.5


def test_several_labels_numbers_and_tags_are_learnt() -> None:
    encoded = toy.ids(80)
    has = torch.tensor([[float(5 in r or 7 in r), float(len(r) > 6)] for r in encoded])
    chosen, quick = toy.settings(), {"epochs": 20, "batch_size": 16}
    several = toy.train(
        data=Encoded(ids=encoded, targets=has, num_train=64, label_names=("x", "y")),
        task=tasks.MultiLabel(("x", "y"), chosen), metric="micro_f1", start=toy.model(2), **quick, lr=5e-3,
    )  # fmt: skip
    assert several.metrics["micro_f1"] > 0.7
    number = torch.tensor([len(row) / 12 for row in encoded])
    regression = toy.train(
        data=Encoded(ids=encoded, targets=number, num_train=64, label_names=("value",)),
        task=tasks.Regression(("value",), chosen), metric="r2", start=toy.model(1), **quick, lr=5e-3,
    )  # fmt: skip
    assert regression.metrics["r2"] > 0.5
    names = ("O", "B-X", "I-X")
    tags = [torch.tensor([-100, *(t % 3 for t in row[1:])]) for row in encoded]
    tagging = toy.train(
        data=Encoded(ids=encoded, targets=tags, num_train=64, label_names=names),
        task=tasks.Tagging(names, chosen), metric="entity_f1",
        start=toy.model(3, pooling="none"), **quick, lr=1.6e-2,
    )  # fmt: skip
    assert tagging.metrics["entity_f1"] > 0.7


def test_entities_are_counted_as_conlleval_counts_them() -> None:
    tags = ["B-P", "I-P", "O", "I-L", "I-L", "B-L", "I-P", "B-P"]
    assert entities(tags) == {
        (0, 1, "P"), (3, 4, "L"), (5, 5, "L"), (6, 6, "P"), (7, 7, "P")
    }  # fmt: skip
    assert entities(["I-P"]) == {(0, 0, "P")}


def test_a_loss_that_is_not_finite_names_step_rows_and_layer(tmp_path: Path) -> None:
    class Breaks:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "batch" and state.step == 12:
                state.model.backbone.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")

    checkpoints = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    named = replace(toy.rows(), keys=[f"row-{i}" for i in range(60)])
    with pytest.raises(TrainingError) as caught:
        toy.train(data=named, algorithms=[Breaks()], checkpoints=checkpoints, checkpoint_steps=5)
    assert caught.value.code == "training.diverged"
    assert "step 13" in caught.value.message
    assert "backbone.encoder.layer.1.output.dense.weight" in caught.value.message
    rows = batches(named.lengths[:48], 8, seed=7, epoch=3)[0]
    assert f"training rows {', '.join(f'row-{i}' for i in sorted(rows))}" in caught.value.message
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10


def test_a_part_of_the_project_that_raises_is_named() -> None:
    class Raises:
        def apply(self, moment: str, state: Any) -> None:
            del state
            if moment == "gradients":
                raise RuntimeError("no such thing")

    with pytest.raises(PluginError, match=r"algorithm:Raises: RuntimeError: no such thing"):
        toy.train(algorithms=[Raises()])


def test_schedules_begin_at_the_peak_and_go_where_they_should() -> None:
    for schedule in (schedules.linear, schedules.cosine, schedules.warmup_stable_decay):
        assert schedule(0, 100) == 1
        assert schedule(100, 100) == pytest.approx(0, abs=1e-9)
    assert schedules.constant(70, 100) == 1
    assert schedules.warmup_stable_decay(79, 100) == 1
    assert schedules.warmup_stable_decay(90, 100) == pytest.approx(0.5)
    assert schedules.inverse_sqrt(33, 99) == pytest.approx(0.5)


def test_the_order_of_rows_is_a_function_of_seed_and_epoch() -> None:
    lengths = [len(row) for row in toy.ids(50)]
    first = batches(lengths, 8, seed=3, epoch=1)
    assert first == batches(lengths, 8, seed=3, epoch=1)
    assert first != batches(lengths, 8, seed=3, epoch=2)
    assert sorted(i for batch in first for i in batch) == list(range(50))
    for batch in first:
        sizes = [lengths[i] for i in batch]
        assert sizes == sorted(sizes, reverse=True)


def test_of_equal_scores_what_learnt_from_the_rows_beats_the_version_it_started_from() -> None:
    start = toy.model(3)
    start.known_outputs = [0, 1, 2]
    kept = toy.train(start=start, lr=1e-12, epochs=3)
    assert kept.best_epoch > 0, "all epochs score alike"
    start.known_outputs = []
    trained = toy.train(start=start, epochs=8)
    assert trained.metrics["accuracy"] > 0.5

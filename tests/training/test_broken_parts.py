"""Parts of a project that break, and rows, weights and memory that do: told by name, nothing lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.errors import CancelledError, PluginError, TrainingError
from autoglm.plugins import registry
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.training import checkpoint, tasks
from autoglm.training.data import Encoded
from autoglm.training.decisions import Decisions
from training import toy


def refusal(kind: type[Exception] = PluginError, **more: Any) -> Any:
    with pytest.raises(kind) as caught:
        toy.train(**more)
    return caught.value


class Sgd(torch.optim.SGD):
    """Steps as SGD; what it keeps beside is what a test says."""

    at_step: Any = staticmethod(lambda optimizer, count: None)

    def __init__(self, groups: Any, *, lr: float) -> None:
        super().__init__([dict(group) for group in groups], lr=lr, momentum=0.9)
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        self.count += 1
        self.at_step(self, self.count)


@pytest.fixture
def own() -> Iterator[Any]:
    """Registers a part under the name `own`, until the test is over."""
    names: list[str] = []

    def register(kind: str, part: Any) -> None:
        registry.register(kind, "own", part, replace=True)
        names.append(f"{kind}:own")

    yield register
    for name in names:
        registry._registered.pop(name, None)


def raises(step: int, num_steps: int) -> float:
    raise ZeroDivisionError


@pytest.mark.parametrize("part", [lambda *_steps: float("nan"), lambda *_steps: None, raises])
def test_a_schedule_that_gives_no_number_or_raises_is_named(own: Any, part: Any) -> None:
    own("schedule", part)
    assert "schedule:own" in refusal(schedule="own").message


def test_an_optimizer_that_is_none_is_named(own: Any) -> None:
    own("optimizer", lambda groups, *, lr: None)
    assert "optimizer:own" in refusal(optimizer="own").message


def test_state_that_a_checkpoint_cannot_keep_is_named(own: Any, tmp_path: Path) -> None:
    def keep(optimizer: Any, count: int) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            optimizer.state[parameter]["seen"] = [torch.ones(1)]

    own("optimizer", type("Keeps", (Sgd,), {"at_step": staticmethod(keep)}))
    kept: dict[str, Any] = {
        "checkpoints": Checkpoints(tmp_path, keep=2, max_bytes=2**30),
        "checkpoint_steps": 2,
    }
    said = refusal(optimizer="own", **kept).message
    assert "optimizer:Keeps" in said
    assert "'seen'" in said

    class Counts:
        def apply(self, moment: str, state: Any) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"count": 3}

    said = refusal(algorithms=[Counts()], **kept).message
    assert "algorithm:Counts" in said
    assert "'count'" in said


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, torch.int64])
def test_an_optimizers_state_comes_back_in_its_own_number_format(
    own: Any, tmp_path: Path, kind: torch.dtype
) -> None:
    def drift(optimizer: Any, count: int) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                held = optimizer.state[parameter]
                past = held.get("past", torch.zeros_like(parameter, dtype=kind))
                held["past"] = (past.double() * 0.9 + 100 * parameter.detach().double()).to(kind)
                parameter.data.add_(held["past"].to(parameter.dtype), alpha=-1e-5)

    own("optimizer", type("Drifts", (Sgd,), {"at_step": staticmethod(drift)}))
    wanted = toy.train(optimizer="own", epochs=2)
    cancel = threading.Event()

    class Stops:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "step" and state.step == 5:
                cancel.set()

    checkpoints = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    said: dict[str, Any] = {"optimizer": "own", "epochs": 2, "checkpoints": checkpoints}
    with pytest.raises(CancelledError):
        toy.trainer(algorithms=[Stops()], **said).train(cancel)
    again = toy.train(**said)
    assert all(torch.equal(again.weights[n], t) for n, t in wanted.weights.items())


def test_broken_weights_are_no_checkpoint(own: Any, tmp_path: Path) -> None:
    def breaks(optimizer: Any, count: int) -> None:
        if count == 4:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    own("optimizer", type("Breaks", (Sgd,), {"at_step": staticmethod(breaks)}))
    checkpoints = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    error = refusal(TrainingError, optimizer="own", checkpoints=checkpoints, checkpoint_steps=1)
    assert error.code == "training.diverged"
    assert "step 4" in error.message
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 3


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    wanted = toy.train(epochs=1)
    monkeypatch.setattr(checkpoint, "save", full)
    kept = Checkpoints(tmp_path, keep=2, max_bytes=2**30)
    trained = toy.train(epochs=1, checkpoints=kept, checkpoint_steps=1)
    assert all(torch.equal(trained.weights[n], t) for n, t in wanted.weights.items())


def test_an_own_head_that_breaks_in_training_is_named(own: Any) -> None:
    class Moody(torch.nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("not today")
            return super().forward(features)

    own("head", lambda hidden, outputs: Moody(hidden, outputs))
    start = toy.model()
    start.config.head, start.classifier = "own", Moody(32, 3)
    error = refusal(start=start)
    assert "head:own: ValueError: not today" in error.message


def test_memory_that_an_optimizer_lacks_is_not_its_fault(own: Any) -> None:
    def lacks(optimizer: Any, count: int) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    own("optimizer", type("Lacks", (Sgd,), {"at_step": staticmethod(lacks)}))
    assert refusal(TrainingError, optimizer="own").code == "training.out_of_memory"


def test_scoring_that_lacks_memory_goes_on_with_fewer_rows() -> None:
    wanted = toy.train(epochs=1)
    trainer = toy.trainer(epochs=1)
    evaluate, sizes = trainer._evaluate, []

    def short() -> Any:
        sizes.append(trainer._forward.eval_rows)
        if trainer._forward.eval_rows > 16:
            raise MemoryError("no")
        return evaluate()

    trainer._evaluate = short  # type: ignore[method-assign]
    assert trainer.train(threading.Event()).metrics["accuracy"] == wanted.metrics["accuracy"]
    assert sizes == [64, 32, 16, 16]


def test_what_a_callback_does_to_its_event_nobody_else_sees() -> None:
    class Clears:
        def on_event(self, event: Any) -> None:
            event.clear()

    events: list[Any] = []
    toy.train(epochs=1, events=events, callbacks=[Clears()])
    assert all(event["kind"] for event in events)


def test_a_plan_for_one_trials_memory_is_none_for_another(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "decisions.json")
    for layers, optimizer in ((0, "adamw"), (9, "adamw"), (9, "muon"), (9, "adamw")):
        more: dict[str, Any] = {"trainable_layers": layers, "optimizer": optimizer}
        toy.train(epochs=1, memory_budget=2**40, decisions=decisions, **more)
    kept = json.loads((tmp_path / "decisions.json").read_text())
    assert len([name for name in kept if "memory" in name]) == 3


@pytest.mark.parametrize("task", ["one", "tags"])
def test_weighted_labels_make_a_batch_in_parts_the_same_step(task: str) -> None:
    said: dict[str, Any] = {"class_weights": "balanced", "dropout": 0.0, "epochs": 1}
    if task == "one":
        data = toy.rows()
        rare = torch.where(
            torch.arange(60) % 6 > 0, torch.zeros(60, dtype=torch.long), data.targets
        )
        targets: Any = rare
    else:
        targets = [torch.tensor([-100, *(t % 3 for t in row[1:])]) for row in toy.ids(60)]

    def train(accumulation: int) -> Any:
        chosen = toy.settings(**said)
        kind = tasks.Classification if task == "one" else tasks.Tagging
        return toy.train(
            data=Encoded(ids=toy.ids(60), targets=targets, num_train=48, label_names=toy.LABELS),
            task=kind(toy.LABELS, chosen), accumulation=accumulation, **said,
            start=toy.model(3, pooling="mean" if task == "one" else "none"),
        )  # fmt: skip

    whole, parts = train(1), train(4)
    for name, tensor in whole.weights.items():
        assert torch.allclose(tensor, parts.weights[name], atol=2e-5), name


@pytest.mark.parametrize("more", [{"batch_size": 1}, {"accumulation": 8}])
def test_rows_without_a_word_teach_nothing_and_break_nothing(more: dict[str, Any]) -> None:
    encoded = toy.ids(40)
    tags = [torch.tensor([-100, *(t % 3 for t in row[1:])]) for row in encoded]
    for number in (0, 3, 35):
        tags[number] = torch.full_like(tags[number], -100)
    names, chosen = ("O", "B-X", "I-X"), toy.settings()
    trained = toy.train(
        data=Encoded(ids=encoded, targets=tags, num_train=30, label_names=names),
        task=tasks.Tagging(names, chosen), metric="entity_f1",
        start=toy.model(3, pooling="none"), epochs=1, **more,
    )  # fmt: skip
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.weights.values())

"""Adapters, number formats and memory, on the toy: what is decided is kept, what is promised holds."""

from __future__ import annotations

import copy
import itertools
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autoglm.errors import CancelledError, TrainingError
from autoglm.modeling.adapters import load_trained
from autoglm.modeling.attention import packed
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.training import devices, memory, precision
from autoglm.training.decisions import Decisions
from autoglm.training.state import optimizer_tensors
from autoglm.training.trial import Pause
from training import toy

LORA = StructureConfig(lora_rank=4)


def test_adapters_learn_and_are_merged_into_the_same_answers(tmp_path: Path) -> None:
    start = toy.model()
    before = copy.deepcopy(start.state_dict())
    trainer = toy.trainer(start=start, structure=LORA, epochs=10, lr=1e-2)
    trained = trainer.train(trainer._cancel)
    assert all("lora_" in name or name.startswith("classifier") for name in trained.weights)
    assert trained.metrics["accuracy"] > 0.6
    assert all(torch.equal(before[n], t) for n, t in start.state_dict().items()), (
        "the start is ours"
    )
    merged = copy.deepcopy(start)
    load_trained(merged, LORA, trained.weights, adapter=tmp_path / "adapter")
    assert set(merged.state_dict()) == set(before)
    trainer._model.load_state_dict(trained.weights, strict=False)
    trainer._model.eval()
    ids = torch.randint(1, 60, (4, 9))
    with torch.no_grad():
        wanted, found = (m(ids, torch.ones_like(ids)).logits for m in (toy_padded(trainer), merged))
    assert torch.allclose(wanted, found, atol=1e-5)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def toy_padded(trainer: Any) -> Any:
    trainer._model.backbone.set_attn_implementation("sdpa")
    return trainer._model


def test_a_half_format_is_chosen_where_it_is_worth_it_and_refused_with_the_figure() -> None:
    slow, fast = {"bf16": 0.05, "fp16": 0.05}, {"bf16": 1.6, "fp16": 0.9}
    assert precision.choose("auto", slow, "cpu") == "fp32"
    assert precision.choose("auto", fast, "cpu") == "bf16"
    assert precision.choose("fp32", fast, "cpu") == "fp32"
    with pytest.raises(TrainingError, match=r"20.0 times slower"):
        precision.choose("bf16", slow, "cpu")
    measured = precision.measure("cpu")
    assert set(measured) == {"bf16", "fp16"}
    assert all(speed > 0 for speed in measured.values())


def test_attention_computes_in_fp32_where_a_cpu_trains_in_a_half_format() -> None:
    """Its flash kernel for bf16 goes backward ten times slower on a CPU."""
    seen: set[torch.dtype] = set()

    def looks(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        seen.update(x.dtype for x in (query, key, value))
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    AttentionInterface.register("looks", looks)
    attend = AttentionInterface()[packed.register("looks")]
    packed.pack_as(packed.lay_out([5, 3]))
    states = torch.randn(1, 2, 8, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = states @ torch.eye(4)
        out, _ = attend(torch.nn.Module(), half, half, half, None)
    out.sum().backward()
    assert half.dtype == torch.bfloat16
    assert seen == {torch.float32}
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_what_was_measured_once_is_read_ever_after(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    Decisions(path).decided("precision", lambda: {"bf16": 3.0, "fp16": 0.1})

    def never() -> Any:
        raise AssertionError("measured again")

    assert Decisions(path).decided("precision", never)["bf16"] == 3.0
    trained = toy.train(decisions=Decisions(path), precision="auto", epochs=8)
    assert trained.metrics["accuracy"] > 0.5, "in bf16, as the run once decided"


def test_runs_of_a_project_compute_in_one_format_however_busy_the_machine_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow = {"bf16": 2.0, "fp16": 1.0}, {"bf16": 0.5, "fp16": 0.5}
    answers = [quick, slow, slow]
    monkeypatch.setattr(precision, "measure", lambda _device: answers.pop(0))
    machine = tmp_path / "machine.json"

    def format_of(run: str) -> str:
        (tmp_path / run).mkdir(exist_ok=True)
        decisions = Decisions(tmp_path / run / "decisions.json", machine=machine)
        return precision.choose("auto", precision.speeds("cpu", decisions), "cpu")

    assert [format_of("a"), format_of("b")] == ["bf16", "bf16"]
    machine.unlink()  # measure anew: for runs that begin, not for those that go on
    assert [format_of("c"), format_of("a"), format_of("d")] == ["fp32", "bf16", "fp32"]
    assert answers == [slow]
    monkeypatch.setattr(devices, "identity", lambda _kind: "another processor/device")
    assert (format_of("e"), answers) == ("fp32", [])
    assert len(json.loads(machine.read_text())) == 2


@pytest.mark.parametrize("damaged", ["[]", "null", "3", '{"precision'])
def test_a_damaged_file_of_decisions_is_as_none(tmp_path: Path, damaged: str) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(damaged)
    decisions = Decisions(tmp_path / "decisions.json", machine=machine)
    assert decisions.decided("a", lambda: 1, of_machine="a here") == 1
    assert json.loads(machine.read_text()) == {"a here": 1}


def in_fp16(tmp_path: Path, **more: Any) -> Any:
    """As on a machine that is quick in fp16."""
    decisions = Decisions(tmp_path / "decisions.json")
    decisions.decided("precision", lambda: {"bf16": 1.0, "fp16": 2.0})
    return toy.trainer(decisions=decisions, precision="fp16", **more)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_of_fp16_that_overflows_is_skipped_and_the_next_has_half_the_scale(
    tmp_path: Path, optimizer: str
) -> None:
    seen: list[tuple[float, bool, float]] = []

    class Looks:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "start":  # a loss of 2**16 is held by toy gradients, one of 2**30 is not
                trainer._scaler.load({**trainer._scaler.state(), "scale": 2.0**30})
            if moment == "batch":
                scale = trainer._scaler.state()["scale"]
                weight = float(state.model.classifier.weight.detach().abs().sum())
                norm = float(state.norms.total) if state.norms else 0.0
                seen.append((scale, math.isfinite(norm), weight))

    trainer = in_fp16(tmp_path, algorithms=[Looks()], epochs=8, optimizer=optimizer)
    trained = trainer.train(threading.Event())
    assert trained.metrics["accuracy"] > 0.5
    # `b` sees what the step behind `a` has done.
    skipped = [(a, b) for a, b in itertools.pairwise(seen) if not b[1]]
    assert 0 < len(skipped) < len(seen) / 2
    assert all(after[0] == before[0] / 2 for before, after in skipped)
    assert all(after[2] == before[2] for before, after in skipped), "no weight was changed"


def test_a_trial_in_fp16_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    cancel = threading.Event()

    class Stops:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "step" and state.step == 15 and not cancel.is_set():
                cancel.set()

    checkpoints = Checkpoints(tmp_path / "c", keep=2, max_bytes=2**30)
    with pytest.raises(CancelledError):
        in_fp16(tmp_path, algorithms=[Stops()], checkpoints=checkpoints).train(cancel)
    resumed = in_fp16(tmp_path, algorithms=[Stops()], checkpoints=checkpoints)
    whole = in_fp16(tmp_path, algorithms=[Stops()])
    one, other = (each.train(threading.Event()) for each in (resumed, whole))
    assert one.metrics == other.metrics
    assert all(torch.equal(weight, other.weights[n]) for n, weight in one.weights.items())


@pytest.mark.parametrize("optimizer", ["adamw", "adaptive_adam", "muon"])
def test_one_gradient_without_bound_changes_nothing_though_values_are_clipped(
    tmp_path: Path, optimizer: str
) -> None:
    before: dict[str, torch.Tensor] = {}

    class OneOverflows:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "batch":
                before.update(all_of(state))
            if moment == "gradients" and state.step == 4:
                state.model.classifier.bias.grad[0] = math.inf
            if moment == "step" and state.step == 5:
                after = all_of(state)
                assert after.keys() == before.keys()
                changed = [n for n, tensor in after.items() if not torch.equal(tensor, before[n])]
                assert changed == []

    def all_of(state: Any) -> dict[str, torch.Tensor]:
        found = {**state.learning(), **optimizer_tensors(state.optimizer)[0]}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    trainer = in_fp16(tmp_path, algorithms=[OneOverflows()], optimizer=optimizer, clip_value=0.05)
    assert trainer.train(threading.Event()).metrics["accuracy"] > 0.5


class Breaks:
    """No gradient of the head is finite."""

    is_broken = False

    def apply(self, moment: str, state: Any) -> None:
        if moment == "batch" and not self.is_broken:
            state.model.classifier.weight.register_hook(lambda g: g * math.inf)
            self.is_broken = True


def test_gradients_that_no_scale_can_hold_end_the_trial(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        in_fp16(tmp_path, algorithms=[Breaks()], epochs=9).train(threading.Event())
    assert caught.value.code == "training.diverged"


def test_they_end_it_too_when_each_epoch_is_a_stage_of_its_own(tmp_path: Path) -> None:
    stages = [Checkpoints(tmp_path / str(n), keep=1, max_bytes=0) for n in range(10)]

    def train_all() -> None:
        for epoch in range(1, 10):
            pause = Pause(epoch=epoch, starts=stages[epoch - 1 : epoch], keep=stages[epoch])
            trainer = in_fp16(tmp_path, algorithms=[Breaks()], epochs=9)
            trainer.train(threading.Event(), pause=pause)

    with pytest.raises(TrainingError) as caught:
        train_all()
    assert caught.value.code == "training.diverged"


def test_gradient_checkpointing_keeps_less_and_computes_the_same() -> None:
    plain, again = (
        toy.train(gradient_checkpointing=flag, dropout=0.0, epochs=2) for flag in (False, True)
    )
    for name, tensor in plain.weights.items():
        assert torch.allclose(tensor, again.weights[name], atol=1e-6), name
    kept = [activations(flag) for flag in (False, True)]
    assert kept[1] < 0.6 * kept[0]


def activations(is_checkpointed: bool) -> int:
    trainer = toy.trainer(gradient_checkpointing=is_checkpointed)
    trainer._decide()
    rows = sorted(range(16), key=lambda i: -len(trainer._data.ids[i]))
    trainer._model.train()
    with memory.KeptForBackward(list(trainer._model.parameters())) as kept:
        trainer._task.loss(trainer._forward.outputs(rows), trainer._data.batch(rows))
    return kept.num_bytes


def test_a_budget_takes_parts_first_and_checkpointing_then() -> None:
    def costs(rows: Any, checkpointing: bool) -> int:
        return len(rows) * (40 if checkpointing else 100)

    said: Any = {
        "fixed": 1300,
        "largest": list(range(8)),
        "activations": costs,
        "is_checkpointed": False,
    }
    assert memory.plan(10_000, **said).accumulation == 1
    halved = memory.plan(1300 + 600, **said)
    assert (halved.accumulation, halved.gradient_checkpointing) == (2, False)
    tight = memory.plan(1300 + 60, **said)
    assert (tight.accumulation, tight.gradient_checkpointing) == (8, True)
    with pytest.raises(TrainingError) as caught:
        memory.plan(1300, **said)
    assert caught.value.code == "training.budget_too_small"


def test_out_of_memory_halves_once_and_is_an_error_then() -> None:
    events: list[Any] = []
    plain = toy.train(dropout=0.0, epochs=1)
    trainer = toy.trainer(dropout=0.0, epochs=1, events=events)
    backward, failures = (
        trainer._backward,
        [RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    )

    def fails(state: Any) -> Any:
        if failures:
            raise failures.pop()
        return backward(state)

    trainer._backward = fails  # type: ignore[method-assign]
    trained = trainer.train(trainer._cancel)
    assert [e["accumulation"] for e in events if e["kind"] == "halved"] == [2]
    for name, tensor in plain.weights.items():
        assert torch.allclose(tensor, trained.weights[name], atol=2e-5)
    trainer = toy.trainer(epochs=1)
    failures.extend([MemoryError("no"), MemoryError("no")])
    trainer._backward = fails  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as caught:
        trainer.train(trainer._cancel)
    assert caught.value.code == "training.out_of_memory"


def test_a_run_that_halved_and_was_stopped_goes_on_halved_to_the_same_bytes(tmp_path: Path) -> None:
    def short_once(step: int, **more: Any) -> Any:
        made = toy.trainer(epochs=2, **more)
        backward, failures = made._backward, [MemoryError("no")]

        def fails(state: Any) -> Any:
            if state.step == step and failures:
                raise failures.pop()
            return backward(state)

        made._backward = fails  # type: ignore[method-assign]
        return made

    class After:
        def on_event(self, event: Any) -> None:
            if event["kind"] == "training":
                cancel.set()

    cancel, never = threading.Event(), threading.Event()
    wanted = short_once(2).train(never)
    kept = {"checkpoints": Checkpoints(tmp_path, keep=2, max_bytes=2**30)}
    with pytest.raises(CancelledError):
        short_once(2, **kept, callbacks=[After()], log_steps=5).train(cancel)
    # No halving is left: what memory could not do before it cannot do now.
    resumed = short_once(10**9, **kept)
    again = resumed.train(never)
    assert again.metrics == wanted.metrics
    assert all(torch.equal(again.weights[n], t) for n, t in wanted.weights.items())
    assert any(
        not torch.equal(toy.train(epochs=2).weights[n], t) for n, t in wanted.weights.items()
    )

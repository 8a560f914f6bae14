"""What is trained on one device and on another to be compared (test_devices.py). Each case gives
metrics, a sum over the trained weights and what else it wants to be equal.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autoglm.errors import CancelledError
from autoglm.modeling.attention import registry as attentions
from autoglm.modeling.causal_lm import load_causal_lm
from autoglm.modeling.chat import Chat
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import tasks
from autoglm.training.data import Encoded
from autoglm.training.texts import encode_turns
from autoglm.training.trial import Trained
from training import toy, toy_lm

Facts = dict[str, Any]
# Two devices draw no equal dice: nothing is dropped.
QUICK: dict[str, Any] = {"epochs": 2, "dropout": 0.0}


def _facts(trained: Trained) -> Facts:
    kinds = {weight.device.type for weight in trained.weights.values()}
    assert kinds == {"cpu"}, "what is stored lies on the CPU"
    total = sum(float(weight.double().abs().sum()) for weight in trained.weights.values())
    return {**trained.metrics, "weights": total, "steps": trained.num_steps}


def _toy(device: str, *, pooling: str = "mean", outputs: int = 3, **more: Any) -> Facts:
    start = toy.model(outputs, pooling=pooling)
    return _facts(toy.train(start=start, device=device, **{**QUICK, **more}))


def whole(device: str) -> Facts:
    return _toy(device, log_steps=3, label_smoothing=0.1, class_weights="balanced", ema=0.9)


def in_parts(device: str) -> Facts:
    # Not with gradient checkpointing: backward within backward ends a device made in Python.
    return _toy(device, accumulation=3, clip_value=0.05, pooling="attention")


def upper_half(device: str) -> Facts:
    cache = PrefixCache(2**24)
    events: list[Any] = []
    found = _toy(device, trainable_layers=1, cache=cache, events=events)
    kept = [event for event in events if event["kind"] == "prefix"]
    assert kept[0]["boundary"] == 1
    return found


def behind_the_cpu(device: str) -> Facts:
    """In one cache, states that were computed on the CPU answer for no other device."""
    cache = PrefixCache(2**24)
    _toy("cpu", trainable_layers=1, cache=cache)
    events: list[Any] = []
    found = _toy(device, trainable_layers=1, cache=cache, events=events)
    (kept,) = [event for event in events if event["kind"] == "prefix"]
    assert (kept["encoded"] == 0) == (device == "cpu")
    return found


def sparse_attention(device: str) -> Facts:
    found: Facts = {}
    for said in (
        {"name": "top_k", "k": 4},
        {"name": "block_top_k", "block_size": 4, "num_blocks": 2},
    ):
        start = toy.model()
        start.backbone.set_attn_implementation(attentions.use(said))
        made = _facts(toy.train(start=start, device=device, **QUICK))
        found |= {f"{said['name']} {key}": value for key, value in made.items()}
    return found


def head_alone(device: str) -> Facts:
    return _toy(device, trainable_layers=0, optimizer="adaptive_adam")


def adapters(device: str) -> Facts:
    return _toy(device, structure=StructureConfig(lora_rank=4), optimizer="muon")


def schedule_free(device: str) -> Facts:
    return _toy(device, optimizer="schedule_free_adamw", schedule="constant")


def kinds_of_task(device: str) -> Facts:
    encoded, chosen = toy.ids(40), toy.settings()
    names = ("O", "B-X", "I-X")
    has = torch.tensor([[float(5 in r or 7 in r), float(len(r) > 6)] for r in encoded])
    tags = [torch.tensor([-100, *(t % 3 for t in row[1:])]) for row in encoded]
    said: dict[str, tuple[Any, Any, str, tuple[str, ...], str]] = {
        "several": (has, tasks.MultiLabel, "micro_f1", ("x", "y"), "mean"),
        "number": (torch.tensor([len(r) / 12 for r in encoded]), tasks.Regression, "r2", ("v",), "mean"),
        "tags": (tags, tasks.Tagging, "entity_f1", names, "none"),
    }  # fmt: skip
    found: Facts = {}
    for name, (targets, task, metric, labels, pooling) in said.items():
        data = Encoded(ids=encoded, targets=targets, num_train=30, label_names=labels)
        made = _toy(
            device, pooling=pooling, outputs=len(labels), data=data, task=task(labels, chosen),
            metric=metric,
        )  # fmt: skip
        found |= {f"{name} {key}": value for key, value in made.items()}
    return found


def answers(device: str) -> Facts:
    with tempfile.TemporaryDirectory() as root:
        folder = toy_lm.folder(Path(root) / "m", "llama")
        trained = toy.train(
            data=encode_turns(Chat(folder, 32), *toy_lm.pairs(30), num_train=24),
            start=load_causal_lm(folder, {"attention": "sdpa"}),
            task=tasks.CausalLM((), {"label_smoothing": 0.0}),
            metric="negative_loss", device=device, **QUICK,
        )  # fmt: skip
        return _facts(trained)


def killed_and_resumed(device: str) -> Facts:
    """Stopped behind step 7, then on to the end."""

    class Stops:
        cancel = threading.Event()

        def apply(self, moment: str, state: Any) -> None:
            if moment == "step" and state.step == 7:
                self.cancel.set()

    with tempfile.TemporaryDirectory() as root:
        checkpoints = Checkpoints(Path(root), keep=2, max_bytes=2**30)

        def trainer() -> Any:
            return toy.trainer(
                start=toy.model(), checkpoints=checkpoints, algorithms=[Stops()],
                device=device, ema=0.9, optimizer="adaptive_adam", **QUICK,
            )  # fmt: skip

        try:
            trainer().train(Stops.cancel)
        except CancelledError:
            return _facts(trainer().train(threading.Event()))
        raise AssertionError("it was to be stopped")


CASES: Mapping[str, Callable[[str], Facts]] = {
    case.__name__: case
    for case in (
        whole, in_parts, upper_half, behind_the_cpu, head_alone, sparse_attention, adapters, schedule_free,
        kinds_of_task, answers, killed_and_resumed,
    )
}  # fmt: skip

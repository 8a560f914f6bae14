"""`training.freezing: progressive`: lower layers stop to learn, and are not paid for again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, LlamaConfig

from autoglm.errors import CancelledError
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training.forward import Forward
from autoglm.training.freezing import frozen_by_epoch, why_not_freezing
from training import toy

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
KIND: dict[str, Any] = {"has_adapters": False, "are_images": False}


def deep(num_layers: int = 4) -> Any:
    return toy.model(config=BertConfig(num_hidden_layers=num_layers, **SIZES))


def frozen(num_layers: int = 6, **said: Any) -> list[int]:
    settings = toy.settings(freezing="progressive", **said)
    return frozen_by_epoch(deep(num_layers).backbone, settings, **KIND)


def train(pause: Any = None, **more: Any) -> Any:
    said = {"epochs": 4, "freezing": "progressive", "start": deep(), **more}
    return toy.train(pause, **said)


def same(left: Any, right: Any) -> bool:
    return left.metrics == right.metrics and all(
        torch.equal(left.weights[name], weight) for name, weight in right.weights.items()
    )


def test_half_of_the_layers_that_learnt_learn_in_the_next_epoch() -> None:
    assert frozen(epochs=4) == [0, 3, 4, 5]
    assert frozen(epochs=6) == [0, 3, 4, 5, 5, 5]
    assert frozen(epochs=1) == [0]
    assert frozen(epochs=3, trainable_layers=3) == [3, 4, 5]
    assert frozen(num_layers=12, epochs=5, trainable_layers=99) == [0, 6, 9, 10, 11]
    assert frozen(trainable_layers=1) == frozen(trainable_layers=0) == []


def test_what_has_stopped_stays_as_it_was_and_the_rest_goes_on() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Look:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "epoch_end":
                seen.append(state.copy_weights())

    train(algorithms=[Look()], lr=1e-3)

    def moved(name: str) -> list[bool]:
        found = [weights for weights in seen]
        return [
            any(not torch.equal(b[n], a[n]) for n in b if n.startswith(name))
            for a, b in zip(found, found[1:], strict=False)
        ]

    assert moved("backbone.embeddings.") == [False, False, False]
    assert moved("backbone.encoder.layer.1.") == [False, False, False]
    assert moved("backbone.encoder.layer.2.") == [True, False, False]
    assert moved("backbone.encoder.layer.3.") == moved("classifier.") == [True, True, True]


def test_the_weights_that_come_out_hold_what_stopped_too() -> None:
    trained, whole = train(), train(freezing="none")
    assert trained.weights.keys() == whole.weights.keys()
    start = deep().state_dict()
    name = "backbone.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(trained.weights[name], start[name]), "it learnt in the first epoch"


def test_kept_states_train_as_those_computed_in_each_batch() -> None:
    """Without a cache the layers that stopped are computed in every batch, in eval mode."""
    kept, computed = train(dropout=0.0), train(dropout=0.0, cache=PrefixCache(0))
    assert kept.metrics == pytest.approx(computed.metrics, rel=1e-4)
    for name, weight in computed.weights.items():
        assert torch.allclose(kept.weights[name], weight, rtol=1e-4, atol=1e-5), name


def test_layers_that_stopped_are_encoded_once_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    freezes: list[int] = []
    freeze = Forward.freeze
    monkeypatch.setattr(
        Forward, "freeze", lambda self, num: (freezes.append(num), freeze(self, num))[1]
    )
    train(events=events)
    told = [event for event in events if event["kind"] == "prefix"]
    assert freezes == [event["boundary"] for event in told] == [2, 3]
    assert {event["rows"] for event in told} == {60}
    assert all(event["encoded"] for event in told)


@pytest.mark.parametrize("optimizer", ["adamw", "adaptive_adam", "muon"])
@pytest.mark.parametrize("step", [3, 13, 20])
def test_killed_in_any_epoch_it_comes_back_to_the_same_bytes(
    tmp_path: Path, optimizer: str, step: int
) -> None:
    cancel, said = threading.Event(), {"optimizer": optimizer, "layer_decay": 0.9}
    wanted, kept = train(**said), Checkpoints(tmp_path, keep=2, max_bytes=0)

    class Stop:
        def on_event(self, event: Any) -> None:
            if event["kind"] == "training" and event["step"] >= step:
                cancel.set()

    first = {**said, "epochs": 4, "freezing": "progressive", "start": deep()}
    with pytest.raises(CancelledError):
        toy.trainer(checkpoints=kept, callbacks=[Stop()], log_steps=1, **first).train(cancel)
    assert same(train(checkpoints=kept, **said), wanted)


def test_word_tables_that_were_cut_are_whole_again() -> None:
    trained = train()
    table = trained.weights["backbone.embeddings.word_embeddings.weight"]
    assert table.shape == deep().backbone.get_input_embeddings().weight.shape


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"ema": 0.9}, "training.ema"),
        ({"optimizer": "schedule_free_adamw", "schedule": "constant"}, "schedule_free_adamw"),
    ],
)
def test_where_layers_cannot_stop_all_learn_to_the_end(said: Any, reason: str) -> None:
    backbone = deep().backbone
    assert reason in why_not_freezing(backbone, toy.settings(**said), **KIND)
    assert same(train(**said), train(freezing="none", **said))


def test_adapters_and_backbones_that_cannot_be_cut_learn_to_the_end() -> None:
    adapters = {"structure": StructureConfig(lora_rank=2)}
    assert same(train(**adapters), train(freezing="none", **adapters))
    llama = toy.backbone(LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0,
    ))  # fmt: skip
    assert "cut apart" in why_not_freezing(llama, toy.settings(), **KIND)

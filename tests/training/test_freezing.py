"""`training.freezing: progressive`: lower layers stop to learn, and are not paid for again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, DebertaV2Config, ElectraConfig, LlamaConfig

from autoglm.errors import CancelledError
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import precision
from autoglm.training.forward import Forward
from autoglm.training.freezing import Freezing, why_uncut
from autoglm.training.frozen_part import FrozenPart
from training import toy

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip


def freezing(backbone: Any, **said: Any) -> Freezing:
    return Freezing(
        backbone=backbone, training=toy.settings(freezing="progressive", **said),
        has_adapters=False, are_images=False, why_whole=lambda: why_uncut(backbone),
    )  # fmt: skip


def deep(num_layers: int = 4) -> Any:
    return toy.model(config=BertConfig(num_hidden_layers=num_layers, **SIZES))


def frozen(num_layers: int = 6, **said: Any) -> list[int]:
    return freezing(deep(num_layers).backbone, **said).by_epoch()


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
    trained, whole = train(), train(freezing="auto")
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


def test_where_training_computes_in_half_precision_what_stopped_does_too(
    tmp_path: Path, bf16: dict[str, Any]
) -> None:
    """Rows that only score are encoded as they are scored."""
    said = {"trainable_layers": 4, "freezing": "progressive", "start": deep()}
    exact, half, computed = (
        toy.trainer(**said),
        toy.trainer(**said, **bf16),
        toy.trainer(**said, **bf16, cache=PrefixCache(0)),
    )
    for each in (exact, half, computed):
        each._prepare()
        each._forward.freeze(2)
        each._forward.freeze(3)
        each._model.eval()
    known, wanted = half._forward._states.parts, exact._forward._states.parts
    assert all(torch.equal(known[i], wanted[i]) for i in half._data.validation)
    assert not any(torch.equal(known[i], wanted[i]) for i in half._data.train)
    rows = sorted(range(8), key=lambda i: -len(half._data.ids[i]))
    with torch.no_grad(), precision.computing_in("bf16", "cpu"):
        left, right = half._forward.features(rows), computed._forward.features(rows)
    assert (left - right).abs().max() <= 2**-6 * right.abs().max()
    assert same(killed_at(13, tmp_path / "kept", **bf16), train(**bf16))


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


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_what_stops_later_is_encoded_from_what_had_stopped(
    bf16: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number_format: str
) -> None:
    spans: list[tuple[int, int]] = []
    encode = FrozenPart._encode

    def seen(self: FrozenPart, lane: Any, start: int, end: int, *more: Any) -> torch.Tensor:
        if lane.precision == number_format and (start, end) not in spans:
            spans.append((start, end))
        return encode(self, lane, start, end, *more)

    monkeypatch.setattr(FrozenPart, "_encode", seen)
    train(start=deep(6), **{**bf16, "precision": number_format})
    assert spans == [(0, None), (0, 3), (3, 4), (4, 5)], "the head's start, then what stopped"


def killed_at(step: int, folder: Path, **said: Any) -> Any:
    """Cancelled behind this step, and gone on from what it kept."""
    cancel, kept = threading.Event(), Checkpoints(folder, keep=2, max_bytes=0)

    class Stop:
        def on_event(self, event: Any) -> None:
            if event["kind"] == "training" and event["step"] >= step:
                cancel.set()

    first = {"epochs": 4, "freezing": "progressive", "start": deep(), **said}
    with pytest.raises(CancelledError):
        toy.trainer(checkpoints=kept, callbacks=[Stop()], log_steps=1, **first).train(cancel)
    return train(checkpoints=kept, **said)


@pytest.mark.parametrize("optimizer", ["adamw", "adaptive_adam", "muon"])
@pytest.mark.parametrize("step", [3, 13, 20])
def test_killed_in_any_epoch_it_comes_back_to_the_same_bytes(
    tmp_path: Path, optimizer: str, step: int
) -> None:
    said: dict[str, Any] = {"optimizer": optimizer, "layer_decay": 0.9, "clip_value": 1.0}
    assert same(killed_at(step, tmp_path, **said), train(**said))


def test_tables_that_all_layers_read_stop_with_the_lowest(tmp_path: Path) -> None:
    """DeBERTa's relative positions and the norm over them lie beside the layers."""
    config = DebertaV2Config(
        num_hidden_layers=4, relative_attention=True, pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm", **SIZES,
    )  # fmt: skip
    start, seen = toy.model(config=config), list[dict[str, torch.Tensor]]()

    class Look:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "epoch_end":
                seen.append(state.copy_weights())

    wanted = train(start=start, algorithms=[Look()])
    for name in ("backbone.encoder.rel_embeddings.weight", "backbone.encoder.LayerNorm.weight"):
        assert all(torch.equal(each[name], seen[0][name]) for each in seen[1:]), name
    assert same(killed_at(9, tmp_path, start=start), wanted)


def test_a_stop_while_states_are_encoded_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, cancel = train(), threading.Event()
    kept, freeze = Checkpoints(tmp_path, keep=2, max_bytes=0), Forward.freeze

    def stopped(self: Forward, num_frozen: int) -> Any:
        cancel.set()
        return freeze(self, num_frozen)

    said = {"epochs": 4, "freezing": "progressive", "start": deep()}
    trainer = toy.trainer(checkpoints=kept, **said)
    with monkeypatch.context() as patch:
        patch.setattr(Forward, "freeze", stopped)
        with pytest.raises(CancelledError):
            trainer.train(cancel)
    found = kept.newest()
    assert found is not None
    assert found.facts["epoch"] == 2
    assert same(train(checkpoints=kept), wanted)


def test_states_of_what_stopped_stay_out_of_the_cache_that_trials_share(tmp_path: Path) -> None:
    shared = PrefixCache(2**24, tmp_path / "shared")
    train(cache=shared, trainable_layers=3, lr=1e-3)
    known = sorted(path.name for path in (tmp_path / "shared").iterdir())
    train(cache=shared, trainable_layers=3, lr=2e-3)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == known


def test_a_hook_below_switches_kept_states_off_with_its_reason() -> None:
    events: list[Any] = []
    start = deep()
    start.backbone.embeddings.register_forward_hook(lambda *_: None)
    train(start=start, events=events)
    told = [event for event in events if event["kind"] == "prefix"]
    assert [event["boundary"] for event in told] == [0, 0]
    assert all("hook" in event["reason"] for event in told)


def test_what_an_algorithm_lets_learn_is_kept_too() -> None:
    """Without freezing, as ever."""

    class Unfreeze:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "epoch_end" and state.epoch == 1:
                layer = state.model.backbone.encoder.layer[2].requires_grad_(True)
                state.optimizer.add_param_group(
                    {"params": [*layer.parameters()], "names": [], "lr_scale": 1.0}
                )

    trained = train(freezing="auto", trainable_layers=1, algorithms=[Unfreeze()], lr=1e-3)
    assert any(name.startswith("backbone.encoder.layer.2.") for name in trained.weights)


def test_word_tables_that_were_cut_are_whole_again() -> None:
    trained = train()
    table = trained.weights["backbone.embeddings.word_embeddings.weight"]
    assert table.shape == deep().backbone.get_input_embeddings().weight.shape


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"ema": 0.9}, "training.ema"),
        ({"memory_budget": 2**36}, "training.memory_budget"),
        ({"optimizer": "schedule_free_adamw", "schedule": "constant"}, "schedule_free_adamw"),
    ],
)
def test_where_layers_cannot_stop_all_learn_to_the_end(said: Any, reason: str) -> None:
    assert reason in freezing(deep().backbone, **said).why_not()
    assert same(train(**said), train(freezing="auto", **said))


def test_adapters_and_backbones_that_cannot_be_cut_learn_to_the_end() -> None:
    adapters = {"structure": StructureConfig(lora_rank=2)}
    assert same(train(**adapters), train(freezing="auto", **adapters))
    llama = LlamaConfig(num_hidden_layers=2, pad_token_id=0, **SIZES)
    apart = ElectraConfig(num_hidden_layers=4, embedding_size=16, **SIZES)
    for config in (llama, apart):
        assert "cut" in freezing(toy.backbone(config)).why_not(), config.model_type

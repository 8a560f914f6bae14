"""Where training computes in bf16: what frozen layers say of which rows, in which format."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, DebertaV2Config

from autoglm.reuse.prefix_cache import PrefixCache, RowStates, joined
from autoglm.training.cost import cost_of
from autoglm.training.data import Encoded
from autoglm.training.folds import folded
from autoglm.training.rehearsal import rehearsed
from training import toy

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "num_hidden_layers": 4,
}  # fmt: skip
BERT = BertConfig(**SIZES)
# Between its embeddings and its layers stands a linear layer, so that its layers' sums are bf16.
PROJECTED = DebertaV2Config(embedding_size=16, **SIZES)


def named(data: Encoded) -> Encoded:
    return replace(data, keys=[str(i) for i in range(len(data.ids))])


@pytest.mark.parametrize(
    "said",
    [{}, {"cache": PrefixCache(0)}, {"start": toy.model(pooling="attention")}],
    ids=["kept", "not kept", "of a pooling that learns"],
)
def test_a_fold_of_which_a_share_is_learnt_from_trains(
    bf16: dict[str, Any], said: dict[str, Any]
) -> None:
    fold = folded(named(toy.rows(120, 100)), "1/3", seed=3)
    part = rehearsed(fold, 0.25, known=frozenset(map(str, range(90))), content="x")
    assert fold.num_half == len(fold.ids) == 120
    assert part.num_half == len(part.ids) < 120
    trained = toy.train(data=part, trainable_layers=1, epochs=2, **bf16, **said)
    assert trained.metrics["accuracy"] > 0.3


def test_what_is_not_kept_is_rounded_as_what_is(bf16: dict[str, Any]) -> None:
    """Of the head's start, whose features no cache holds."""
    exact, half = (
        toy.trainer(cache=PrefixCache(0), trainable_layers=1, **said)._forward
        for said in ({}, bf16)
    )
    left, right = exact.start_features(), half.start_features()
    data, apart = toy.rows(), (left - right).abs().amax(1)
    assert apart[list(data.validation)].max() < 2e-6, "other batches, the same format"
    assert 1e-5 < apart[list(data.train)].min() <= apart.max() < 2**-5


@pytest.mark.parametrize("config", [BERT, PROJECTED], ids=["fp32 sums", "bf16 sums"])
def test_states_are_read_inside_and_outside_a_training_step(
    bf16: dict[str, Any], config: Any
) -> None:
    """A fold scores rows that it keeps in training's format."""
    data = folded(toy.rows(), "1/3", seed=3)
    start = toy.model(config=config)
    kept, computed = (
        toy.train(
            data=data, start=start, trainable_layers=2, epochs=1, dropout=0.0, cache=c, **bf16
        )
        for c in (PrefixCache(2**24), PrefixCache(0))
    )
    assert kept.metrics["loss"] == pytest.approx(computed.metrics["loss"], rel=0.05)


def test_layers_that_put_out_bf16_hand_on_the_same_bytes(bf16: dict[str, Any]) -> None:
    start, found = toy.model(config=PROJECTED), []
    for boundaries in ([2, 3], [3]):
        part = toy.trainer(start=start, trainable_layers=2, **bf16)._forward._frozen
        assert part is not None
        found.append([part.states(boundary).parts for boundary in boundaries][-1])
    assert found[0][0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_kept_is_known_to_cost_nothing(bf16: dict[str, Any], precision: str) -> None:
    cache, start, data = PrefixCache(2**24), toy.model(config=BERT), toy.rows()

    def said_of(precision: str) -> str:
        settings = toy.settings(trainable_layers=2, precision=precision)
        model = {"structure": {"lora_rank": 0}}
        stage = SimpleNamespace(num_steps=6, settings={"training": settings, "model": model})
        chain: Any = SimpleNamespace(stages=[stage], boundaries=[6])
        return cost_of(
            chain, known=0, model=start, data=data, cache=cache, cache_key="toy",
            seconds_per_flop=1e-10,
        ).why[-1]  # fmt: skip

    said = {**bf16, "precision": precision, "cache": cache, "start": start, "trainable_layers": 2}
    assert "encoded once" in said_of(precision)
    toy.trainer(**said)._prepare()
    assert "are kept" in said_of(precision)
    other = "bf16" if precision != "bf16" else "fp32"
    assert "encoded once" in said_of(other), "of another format, its validation rows at most"


def test_in_memory_only_what_has_stopped_is_kept(bf16: dict[str, Any]) -> None:
    said = {"start": toy.model(config=BERT), "freezing": "progressive", "trainable_layers": 4}
    for precision in ({}, bf16):
        forward = toy.trainer(**said, **precision)._forward
        for boundary in (2, 3):
            forward.freeze(boundary)
        assert forward._frozen is not None
        assert forward._later._stores.keys() == {*forward._frozen.names(3)}


def test_states_of_two_formats_are_counted_together() -> None:
    parts = [torch.ones(1, 2), torch.zeros(2, 2)]
    one = RowStates(parts=parts[:1], encoded=1, cpu_seconds=2.0, saved_seconds=3.0)
    two = RowStates(parts=parts[1:], encoded=4, cpu_seconds=5.0, saved_seconds=6.0)
    whole = joined([one, two])
    assert (whole.encoded, whole.cpu_seconds, whole.saved_seconds) == (5, 7.0, 9.0)
    assert whole.of([1, 0]).tolist() == [[0, 0], [0, 0], [1, 1]]

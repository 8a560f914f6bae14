"""The cut word table: what comes out is what the whole table would have given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoglm.plugins import registry
from autoglm.training.data import Encoded
from training import toy

TABLE = "backbone.embeddings.word_embeddings.weight"
NAMES = ["adamw", "adaptive_adam", "schedule_free_adamw", "muon"]


def few_tokens() -> Encoded:
    """Rows that hold a third of the table's tokens."""
    data = toy.rows()
    held = [[token % 18 + 3 for token in row] for row in data.ids]
    return Encoded(
        ids=held, targets=data.targets, num_train=data.num_train, label_names=data.label_names
    )


def with_whole_table(name: str) -> str:
    """The same optimizer under a name that nobody vouches for."""
    make = registry.get("optimizer", name)

    def whole(groups: Any, *, lr: float) -> Any:
        return make(groups, lr=lr)

    registry.register("optimizer", f"{name}_whole", whole, replace=True)
    return f"{name}_whole"


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_table_learns_what_the_whole_one_does(name: str) -> None:
    said = {
        "weight_decay": 0.3, "ema": 0.9, "epochs": 4, "dropout": 0.0, "data": few_tokens(),
        "start": toy.model(head="mlp"),  # a linear head starts from the solution
    }  # fmt: skip
    cut = toy.train(optimizer=name, **said)
    whole = toy.train(optimizer=with_whole_table(name), **said)
    assert cut.best_epoch == whole.best_epoch > 0
    assert cut.weights.keys() == whole.weights.keys()
    for weight, wanted in whole.weights.items():
        assert torch.allclose(cut.weights[weight], wanted, rtol=1e-4, atol=1e-5), weight
    start = toy.model().state_dict()[TABLE]
    assert not torch.allclose(cut.weights[TABLE][40:], start[40:], atol=1e-4), "it decayed"


def test_rows_that_do_not_decay_come_back_as_they_were() -> None:
    trained = toy.train(weight_decay=0.0, data=few_tokens(), start=toy.model(head="mlp"))
    start = toy.model().state_dict()[TABLE]
    assert torch.equal(trained.weights[TABLE][21:], start[21:])
    assert not torch.equal(trained.weights[TABLE][3:21], start[3:21])


def test_moments_are_kept_of_the_tokens_that_occur_only() -> None:
    trainer = toy.trainer(data=few_tokens())
    assert trainer._begin().learning()[TABLE].shape[0] == 18 + 2  # a pad, and the row of ones
    frozen = toy.trainer(data=few_tokens(), trainable_layers=1)
    assert TABLE not in frozen._begin().learning()
    unknown = toy.trainer(data=few_tokens(), optimizer=with_whole_table("adamw"))
    assert unknown._begin().learning()[TABLE].shape[0] == 60

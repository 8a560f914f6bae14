"""What a task cannot feel is not asked; each removal says by what and why."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from autoglm.contracts.stage_chain import Progress, Stage, StageChain
from autoglm.errors import SearchError, TrainingError
from autoglm.loop.run_to_candidate import SEARCHABLE, searchable_keys
from autoglm.search.task_pruning import Pruned, by_probe, prune, tag_of
from autoglm.settings import Settings, leaf_keys

EVERY = {k: a for k, a in leaf_keys(Settings).items() if k.split(".")[0] in SEARCHABLE}
WIDE = {
    "lr": {"loguniform": [1e-5, 1e-2]},
    "dropout": {"uniform": [0.0, 0.5]},
    "kernel_size": {"choice": [3, 5]},
    "model.conv.channels": {"choice": [16, 32]},
    "cell": {"choice": ["gru", "lstm"]},
    "model.recurrent.hidden_size": {"choice": [64, 128]},
    "trainable_layers": {"choice": [0, 2]},
    "lora_rank": {"choice": [0, 8]},
    "pooling": {"choice": ["mean", "cls"]},
}


def pruned(
    space: Mapping[str, Any] = WIDE,
    *,
    task: str = "text-classification",
    backbone: str = "package:x",
    prior: Mapping[str, Any] | None = None,
) -> Pruned:
    keys = searchable_keys(backbone)
    others = {k: a for k, a in EVERY.items() if k not in keys}
    own = {"training.dropout": 0.1}
    return prune(
        space, keys, others=others, prior=prior or {}, task=task, backbone=backbone, own=own
    )


def keys_of(found: Pruned) -> set[str]:
    return {dimension.key for dimension in found.dimensions}


@pytest.mark.parametrize(
    ("task", "backbone", "kept"),
    [
        ("text-classification", "package:x", {"trainable_layers", "lora_rank", "pooling"}),
        ("token-classification", "package:x", {"trainable_layers", "lora_rank"}),
        ("image-classification", "conv", {"kernel_size", "channels", "pooling"}),
        ("sequence-modeling", "recurrent", {"cell", "hidden_size", "pooling"}),
    ],
)
def test_each_task_keeps_what_it_reads_and_the_rest_is_an_entry(
    task: str, backbone: str, kept: set[str]
) -> None:
    found = pruned(task=task, backbone=backbone)
    assert {key.rpartition(".")[2] for key in keys_of(found)} == {"lr", "dropout", *kept}
    assert len(found.removed) == len(WIDE) - len(found.dimensions)
    assert {removal.by for removal in found.removed} == {"task"}
    for removal in found.removed:
        assert tag_of(removal.key) in removal.evidence
        assert backbone in removal.evidence


def test_what_nobody_reads_is_refused_with_the_nearest_and_a_space_of_nothing_too() -> None:
    with pytest.raises(SearchError, match="Did you mean kernel_size"):
        pruned({"kernel_sizes": {"choice": [3]}}, backbone="conv", task="image-classification")
    with pytest.raises(SearchError, match=r"nothing is left.*convolution") as caught:
        pruned({"kernel_size": {"choice": [3, 5]}})
    assert (caught.value.code, caught.value.exit_code) == ("search.empty", 2)
    with pytest.raises(SearchError, match="empty"):
        pruned({})


def test_a_prior_freezes_or_narrows() -> None:
    found = pruned(
        prior={"dropout": 0.2, "lr": "loguniform(1e-4, 1)", "pooling": {"choice": ["cls", "max"]}}
    )
    assert found.fixed == {"training.dropout": 0.2}
    (removal,) = [r for r in found.removed if r.by == "prior"]
    assert (removal.key, removal.value) == ("training.dropout", 0.2)
    by_key = {d.key: d for d in found.dimensions}
    lr = by_key["training.lr"]
    assert (lr.low, lr.high, lr.is_log) == (1e-4, 1e-2, True)
    assert by_key["model.pooling"].choices == ("cls",)


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ({"dropout": 3}, "refuses 3"),
        ({"lr": {"uniform": [0.1, 0.2]}}, "nothing in common"),
        ({"pooling": {"choice": ["max"]}}, "no point of the space"),
        ({"droput": 0.1}, "Did you mean dropout"),
    ],
)
def test_a_wrong_prior_is_refused(prior: dict[str, Any], words: str) -> None:
    with pytest.raises(SearchError, match=words) as caught:
        pruned(prior=prior)
    assert caught.value.exit_code == 2


CHILD, PARENT = "model.structure.lora_rank", "training.trainable_layers"
CONDITIONAL = {
    "lr": {"loguniform": [1e-5, 1e-2]},
    "trainable_layers": {"choice": [0, 1, 2]},
    "lora_rank": {"choice": [4, 8], "when": {"trainable_layers": 0}},
    "lora_alpha": {"uniform": [8, 32], "when": {"lora_rank": {"above": 4}}},
}


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ({"trainable_layers": 2}, "asked when training.trainable_layers is 0; that stays at 2"),
        ({"trainable_layers": {"choice": [1, 2]}}, "no point of training.trainable_layers: [1, 2]"),
    ],
)
def test_what_is_never_asked_once_its_parent_is_frozen_or_narrowed_is_left_out_by_name(
    prior: dict[str, Any], words: str
) -> None:
    found = pruned(CONDITIONAL, prior=prior)
    entries = {r.key: r for r in found.removed if r.by == "condition"}
    assert entries.keys() == {CHILD, "model.structure.lora_alpha"}  # and what waits for it
    assert words in entries[CHILD].evidence
    assert not keys_of(found) & entries.keys()
    assert keys_of(pruned(CONDITIONAL, prior={"trainable_layers": 0})) >= entries.keys()


def test_what_a_condition_asks_of_may_be_what_the_task_takes_out() -> None:
    space = {**CONDITIONAL, "dropout": {"uniform": [0, 0.5], "when": {"kernel_size": [3]}},
             "kernel_size": {"choice": [3, 5]}}  # fmt: skip
    found = pruned(space)
    (never,) = [r for r in found.removed if r.by == "condition"]
    assert (never.key, never.value) == ("training.dropout", 0.1)
    assert "(by task)" in never.evidence
    with pytest.raises(SearchError, match="nobody reads a dimension .kernel_size"):
        pruned({name: said for name, said in space.items() if name != "kernel_size"})


@pytest.mark.parametrize(
    ("wide", "prior", "points"),
    [
        ("quniform(0, 0.4, 0.1)", "uniform(0.05, 0.3)", (0.1, 0.2, 0.3)),
        ("uniform(0, 0.4)", "quniform(0, 0.3, 0.1)", (0.0, 0.1, 0.2, 0.3)),
        ("quniform(0, 0.6, 0.1)", "quniform(0, 0.6, 0.15)", (0.0, 0.3, 0.6)),
        ("uniform(0, 0.3)", "uniform(0.3, 0.9)", (0.3,)),
        ("choice([0.1, 0.15, 0.2])", "quniform(0, 0.3, 0.1)", (0.1, 0.2)),
        ("quniform(0, 0.4, 0.1)", "uniform(0.11, 0.19)", None),
        ({"steps": [0.0, 0.8, 0.2]}, {"steps": [0.1, 0.9, 0.2]}, None),
    ],
)
def test_a_prior_keeps_to_the_grid(wide: Any, prior: Any, points: tuple[float, ...] | None) -> None:
    space = {**CONDITIONAL, "dropout": wide}
    if points is None:
        with pytest.raises(SearchError, match=r"training.dropout.*in common") as caught:
            pruned(space, prior={"dropout": prior})
        assert caught.value.code == "search.prior"
        return
    found = pruned(space, prior={"dropout": prior})
    (dropout,) = [d for d in found.dimensions if d.key == "training.dropout"]
    assert dropout.points() == points
    assert [dropout.point(dropout.told(point)) for point in points] == [*points]
    assert dropout.distribution()._contains(points[-1])


def test_whole_numbers_stay_on_both_grids_however_many_they_are() -> None:
    space = {"batch_size": "qrandint(8, 80000, 8)"}
    (size,) = pruned(space, prior={"batch_size": "qrandint(20, 70000, 12)"}).dimensions
    assert (size.low, size.high, size.step, size.is_whole) == (24, 69984, 24, True)


class Felt:
    """Scores that depend on some keys only."""

    def __init__(self, **by: float) -> None:
        self.by, self.asked = by, 0

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        assert params["training.trainable_layers"] == 0, "heads alone"
        stage = Stage(key="k", parent="", settings={}, num_steps=1, seed=0, data_order="")
        return StageChain(project="p", params=params, stages=(stage,))

    def cost(self, chain: StageChain) -> Any:
        raise AssertionError("nobody asks")

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        self.asked += 1
        moved = sum(by * float(chain.params.get(f"training.{n}", 0)) for n, by in self.by.items())
        if moved < -1:
            raise TrainingError("the loss is not finite.", code="training.diverged")
        metrics = {"accuracy": 0.8 + moved, "loss": 0.5 - moved}
        return Progress(
            key="k", step=1, num_steps=1, metrics=metrics, cpu_seconds=0, reused_steps=0, folder=""
        )  # fmt: skip


PROBED_SPACE = {
    "lr": {"loguniform": [1e-5, 1e-2]},
    "dropout": {"uniform": [0.0, 0.5]},
    "weight_decay": {"uniform": [0.0, 0.1]},
    "ema": {"choice": [0.5, 0.9]},
    "clip_norm": {"choice": [0.5, 1.0]},
}


def probe(runner: Felt) -> Pruned:
    own = {"training.trainable_layers": 2, "training.dropout": 0.1, "training.clip_norm": 1.0}
    found = pruned(PROBED_SPACE)
    return by_probe(found, runner, metric="accuracy", own=own, cancel=threading.Event())


def test_a_dimension_that_a_head_does_not_feel_is_left_out_with_the_figures() -> None:
    runner = Felt(dropout=-0.2, weight_decay=0.001)
    found = probe(runner)
    # Of ema nothing is known where the heads were not trained at all, of clip_norm by heads alone.
    kept = {"training.lr", "training.dropout", "training.ema", "training.clip_norm"}
    assert keys_of(found) == kept
    assert {(r.key, r.by, r.value) for r in found.removed} == {
        ("training.weight_decay", "probe", None)
    }
    assert "accuracy differs by 0.0001" in next(
        r.evidence for r in found.removed if r.key == "training.weight_decay"
    )
    assert runner.asked == 6


def test_what_others_wait_for_is_not_probed_away() -> None:
    space = {**PROBED_SPACE, "lora_rank": {"choice": [4, 8], "when": {"dropout": {"above": 0.2}}}}
    own = {"training.trainable_layers": 2, "training.dropout": 0.1}
    found = by_probe(
        pruned(space), Felt(dropout=-0.001, weight_decay=0.001), metric="accuracy", own=own, cancel=threading.Event()
    )  # fmt: skip
    assert {"training.dropout", "model.structure.lora_rank"} <= keys_of(found)
    assert "training.weight_decay" not in keys_of(found)


def test_a_trial_that_breaks_proves_nothing() -> None:
    found = probe(Felt(dropout=-9))
    assert "training.dropout" in keys_of(found)

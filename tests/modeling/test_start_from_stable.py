"""Training that starts from a model version keeps what its head knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training import toy

from autoglm.modeling.auto_model import load_model
from autoglm.modeling.modeling_autoglm import AutoGLMConfig, AutoGLMForSequenceClassification
from autoglm.training.head_start import start_head

SETTINGS = {"attention": "sdpa", "head": "linear", "pooling": "mean", "structure": {}}


def exported(folder: Path, head: str = "linear") -> torch.nn.Module:
    model = toy.model(3, head=head)
    model.config.id2label = dict(enumerate("abc"))
    model.save_pretrained(folder)
    return model.classifier


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_rows_of_labels_that_are_still_there_are_kept(tmp_path: Path, head: str) -> None:
    old = [*exported(tmp_path, head).parameters()]
    model = load_model(tmp_path, {**SETTINGS, "head": head}, labels=("b", "d", "a"))
    new = [*model.classifier.parameters()]
    assert model.known_outputs == [0, 2]
    for before, after in zip(old[-2:], new[-2:], strict=True):
        assert torch.equal(after[[0, 2]], before[[1, 0]])
    assert not torch.equal(new[-2][1], old[-2][2])
    for before, after in zip(old[:-2], new[:-2], strict=True):
        assert torch.equal(before, after)


def test_a_head_of_another_kind_or_without_a_known_label_starts_anew(tmp_path: Path) -> None:
    exported(tmp_path)
    assert load_model(tmp_path, {**SETTINGS, "head": "mlp"}, labels=("a", "b")).known_outputs == []
    assert load_model(tmp_path, SETTINGS, labels=("x", "y")).known_outputs == []


@pytest.mark.parametrize("pooling", ["attention", "auto"])
def test_what_attention_pooling_looks_for_is_kept_too(tmp_path: Path, pooling: str) -> None:
    model = toy.model(3, pooling="attention")
    torch.nn.init.normal_(model.pooling.query)
    model.config.id2label = dict(enumerate("abc"))
    model.save_pretrained(tmp_path)
    (tmp_path / "autoglm.json").write_text('{"pooling": "attention"}')
    again = load_model(tmp_path, {**SETTINGS, "pooling": pooling}, labels=("a", "b", "c"))
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_head_of_ones_own_begins_as_its_maker_made_it() -> None:
    head = torch.nn.Linear(32, 3)
    torch.nn.init.constant_(head.weight, 0.5)
    torch.nn.init.constant_(head.bias, -2.0)
    body = toy.backbone()
    said = AutoGLMConfig(backbone_config=body.config.to_diff_dict(), head="flat", num_labels=3)
    made = AutoGLMForSequenceClassification(said, backbone=body, head=head).classifier
    assert made.weight.unique().tolist() == [0.5]
    assert made.bias.unique().tolist() == [-2.0]


def test_the_trainer_starts_only_new_rows_from_the_closed_form() -> None:
    start = toy.model(3)
    start.known_outputs = [0, 2]
    kept = start.classifier.weight.detach().clone()
    trainer = toy.trainer(start=start)
    trainer._begin()
    parts = trainer._model, trainer._forward, trainer._data, trainer._task
    start_head(*parts, trainer._stop_if_asked)
    weight = trainer._model.classifier.weight
    assert torch.equal(weight[[0, 2]], kept[[0, 2]])
    assert not torch.equal(weight[1], kept[1])


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_head_is_drawn_alike_whatever_was_drawn_before(tmp_path: Path, head: str) -> None:
    toy.backbone().save_pretrained(tmp_path)

    def weights() -> list[torch.Tensor]:
        model = load_model(tmp_path, {**SETTINGS, "head": head}, labels=("a", "b"))
        return [*model.classifier.parameters()]

    first = weights()
    torch.rand(7)
    before = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)

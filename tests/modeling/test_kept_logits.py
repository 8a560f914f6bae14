"""What a model said of a row is what it would say again, and is not asked for twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from autoglm.modeling.kept_logits import KeptLogits
from autoglm.modeling.onnx_model import OnnxModel
from conftest import RoundTrip, learnable_rows

# The fifth and the sixth are alike, and the tokenizer knows no other word.
TEXTS = [*(row["text"] for row in learnable_rows(4)), "new", "new"]


@pytest.fixture
def folder(round_trip: RoundTrip, tmp_path: Path) -> Path:
    models = round_trip.project() / ".autoglm" / "default" / "models"
    (graph,) = models.rglob("model.onnx")
    return Path(shutil.copytree(graph.parent, tmp_path / "model"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of a graph was about."""
    counts: list[int] = []
    plain: Callable[..., Any] = OnnxModel.logits

    def counted(self: OnnxModel, rows: Sequence[Any], **more: Any) -> Any:
        counts.append(len(rows))
        return plain(self, rows, **more)

    monkeypatch.setattr(OnnxModel, "logits", counted)
    return counts


def test_a_row_is_asked_about_once_whoever_asks(
    folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    plain = OnnxModel(folder, threads=1)
    wanted, labels = plain.shares(TEXTS), [answer.label for answer in plain.predict(TEXTS)]
    asked.clear()
    first = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    answers = first.predict(TEXTS)
    assert asked == [5], "two of six rows are alike"
    assert [answer.label for answer in answers] == labels
    assert len(set(labels)) > 1, "else their order could not be told"
    for mine, theirs in zip(first.shares(TEXTS), wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    again = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    assert again.predict(TEXTS) == answers
    assert asked == [5], "shares, and a second run, ask nothing"
    assert "_session" not in vars(again), "nor is the graph opened"
    again.predict([*TEXTS[2:], "old"])
    assert asked == [5, 1]
    third = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    third.predict(TEXTS)
    assert asked == [5, 1, 2], "the two rows that were not asked about last are forgotten"


def test_another_graph_and_a_damaged_file_are_asked_again(
    folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    kept = tmp_path / "kept"
    answers = KeptLogits(folder, threads=1, kept=kept).predict(TEXTS)
    (file,) = kept.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    assert KeptLogits(folder, threads=1, kept=kept).predict(TEXTS) == answers
    assert asked == [5, 5]
    import onnx

    graph = onnx.load(folder / "model.onnx")
    weight = next(w for w in graph.graph.initializer if list(w.dims) == [2, 32])
    halved = np.ascontiguousarray(onnx.numpy_helper.to_array(weight) / 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(halved, weight.name))
    onnx.save(graph, folder / "model.onnx")
    other = KeptLogits(folder, threads=1, kept=kept).predict(TEXTS)
    assert other != answers
    assert asked == [5, 5, 5]
    assert len(list(kept.glob("*.safetensors"))) == 2


def test_without_room_to_keep_it_every_run_asks(
    folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    (tmp_path / "file").write_text("stands where a folder should be")
    model = KeptLogits(folder, threads=1, kept=tmp_path / "file")
    assert model.predict(TEXTS) == KeptLogits(folder, threads=1, kept=tmp_path / "file").predict(
        TEXTS
    )
    assert asked == [5, 5]
    assert model.predict([]) == []


def test_rows_that_are_gone_from_the_data_are_forgotten(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    KeptLogits(folder, threads=1, kept=kept).predict(TEXTS)
    KeptLogits(folder, threads=1, kept=kept).predict(TEXTS[:2])
    (file,) = kept.glob("*.safetensors")
    assert load_file(file)["logits"].shape == (2, 2)


def test_weights_beside_the_graph_tell_models_apart(
    folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    import onnx

    graph = onnx.load(folder / "model.onnx")
    for name, factor in (("a", 1), ("b", -1)):
        other = onnx.ModelProto()
        other.CopyFrom(graph)
        weight = next(w for w in other.graph.initializer if list(w.dims) == [2, 32])
        values = np.ascontiguousarray(factor * onnx.numpy_helper.to_array(weight))
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        shutil.copytree(folder, tmp_path / name)
        onnx.save(
            other, tmp_path / name / "model.onnx", save_as_external_data=True, size_threshold=200,
            location="model.onnx.data",
        )  # fmt: skip
    graphs = [(tmp_path / name / "model.onnx").read_bytes() for name in "ab"]
    assert graphs[0] == graphs[1]
    said = [
        KeptLogits(tmp_path / name, threads=1, kept=tmp_path / "kept").predict(TEXTS)
        for name in "ab"
    ]
    assert said[0] != said[1]

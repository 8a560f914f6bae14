"""What a model said of a row is what it would say again, and is not asked for twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    wanted = OnnxModel(folder, threads=1).shares(TEXTS)
    first = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    answers = first.predict(TEXTS)
    assert asked == [6, 5], "two of six rows are alike"
    assert first.shares(TEXTS)[0] == pytest.approx(wanted[0], abs=1e-6)
    again = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    assert again.predict(TEXTS) == answers
    assert asked == [6, 5], "shares, and a second run, ask nothing"
    again.predict([*TEXTS[2:], "old"])
    assert asked == [6, 5, 1]
    third = KeptLogits(folder, threads=1, kept=tmp_path / "kept")
    third.predict(TEXTS)
    assert asked == [6, 5, 1, 2], "the two rows that were not asked about last are forgotten"


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

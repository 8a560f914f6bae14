"""Images: read as the backbone's own preprocessor says, and learnt by a pretrained kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from autoglm.errors import DataError
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbones.onnx_dinov2 import PREPROCESSOR
from autoglm.modeling.export import export_folder
from autoglm.modeling.images import Pixels, Preprocessor
from autoglm.training import tasks
from autoglm.training.data import Encoded
from training import toy

SETTINGS = {"attention": "sdpa", "head": "linear", "pooling": "auto"}


def content(pixels: Any, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, kind)
    return stream.getvalue()


def folder_with(path: Path, document: dict[str, Any], num_channels: int) -> Path:
    path.mkdir(exist_ok=True)
    (path / "preprocessor_config.json").write_text(json.dumps(document))
    (path / "config.json").write_text(json.dumps({"num_channels": num_channels}))
    return path


@pytest.mark.parametrize("size", [(300, 413), (413, 300), (224, 224), (30, 50)])
def test_pixels_are_those_of_transformers_own_processor(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    said = {k: v for k, v in PREPROCESSOR.items() if k != "image_processor_type"}
    processor = BitImageProcessorPil(**said)
    wanted = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    found = Preprocessor.of(folder_with(tmp_path, PREPROCESSOR, 3)).pixels(content(pixels))
    assert found.dtype == np.float32
    assert np.abs(found - np.asarray(wanted)).max() < 1e-5


def test_grey_and_colour_become_what_the_backbone_has(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    plain = {"do_resize": False, "image_mean": [0.0], "image_std": [1.0]}
    one, three = (
        Preprocessor.of(folder_with(tmp_path / str(n), plain, n)).pixels(content(grey))
        for n in (1, 3)
    )
    assert (one.shape, three.shape) == ((1, 8, 8), (3, 8, 8))
    assert np.array_equal(one[0], three[2])
    assert one[0, -1, -1] == pytest.approx(63 / 255)
    coloured = content(np.stack([grey] * 3, axis=-1), "JPEG")
    path = tmp_path / "image.jpg"
    path.write_bytes(coloured)
    preprocessor = Preprocessor.of(tmp_path / "1")
    assert np.array_equal(preprocessor.pixels(coloured), preprocessor.pixels(path))


CUT = content(np.random.default_rng(0).integers(0, 255, (40, 40)))[:-500]


@pytest.mark.parametrize(
    "value", [b"", b"GIF89a", CUT, "nowhere.png"], ids=["empty", "head", "cut", "absent"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, value: Any) -> None:
    preprocessor = Preprocessor.of(folder_with(tmp_path, PREPROCESSOR, 3))
    with pytest.raises(DataError) as caught:
        preprocessor.pixels(value)
    assert caught.value.code == "data.not_an_image"


def test_a_pretrained_kind_learns_images_and_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        image_size=28, patch_size=7, num_channels=3, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, mlp_ratio=2, use_mask_token=False,
    )  # fmt: skip
    start = tmp_path / "start"
    Dinov2Model(config).save_pretrained(start)
    document = {**PREPROCESSOR, "size": {"shortest_edge": 28}, "do_center_crop": False}
    (start / "preprocessor_config.json").write_text(json.dumps(document))
    (start / "autoglm.json").write_text('{"pooling": "cls"}')
    draw = np.random.default_rng(0)
    targets = torch.tensor(draw.integers(0, 2, 60))
    values = [
        content(draw.integers(0, 120, (30, 30)) + 100 * target) for target in targets.tolist()
    ]
    pixels = Pixels(values, Preprocessor.of(start))
    data = Encoded(ids=pixels, targets=targets, num_train=48, label_names=("dark", "bright"))
    model = load_model(start, SETTINGS, labels=data.label_names)
    assert model.config.pooling == "cls"
    for trainable_layers in (0, 1, 9):
        trained = toy.train(
            data=data, start=model, epochs=2, trainable_layers=trainable_layers,
            gradient_checkpointing=trainable_layers == 9,
            task=tasks.Classification(data.label_names, toy.settings()),
        )  # fmt: skip
        assert trained.metrics["accuracy"] == 1.0
        assert any(n.startswith("backbone") for n in trained.weights) == (trainable_layers > 0)
    model.load_state_dict(trained.weights, strict=False)
    exported = export_folder(
        model, start, tmp_path / "out", labels=data.label_names, max_length=1, pad_id=0,
        inputs=values[:3],
    )  # fmt: skip
    assert exported.parity < 1e-4

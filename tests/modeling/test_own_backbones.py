"""Our own backbones: begun from a seed, deaf to padding, exported with their code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autoglm.errors import DataError, ModelError
from autoglm.modeling.attention.packed import lay_out
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbones.own import make_backbone
from autoglm.modeling.body import Body
from autoglm.modeling.export import export_folder
from autoglm.modeling.images import Pixels, Preprocessor
from autoglm.training.data import Encoded
from conftest import learnable_rows
from training import toy

TEXTS = [row["text"] for row in learnable_rows(60)]
CELLS = ("rnn", "gru", "lstm")
SMALL: dict[str, Any] = {"embedding_size": 12, "hidden_size": 10, "num_layers": 2}


def settings(**more: Any) -> dict[str, Any]:
    return {"attention": "sdpa", "head": "linear", "pooling": "auto", **more}


def recurrent(folder: Path, *, seed: int = 0, **sizes: Any) -> Any:
    make_backbone("recurrent", {**SMALL, **sizes}, folder, TEXTS, seed=seed)
    return load_model(folder, settings(recurrent={**SMALL, **sizes}), labels=["a", "b"])


def png(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(content, "PNG")
    return content.getvalue()


def bars(count: int, *, seed: int = 0) -> tuple[list[bytes], Tensor]:
    """Grey images with an upright bar, or one that lies."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 60, (count, 12, 12))
    targets = draw.integers(0, 2, count)
    for image, target, place in zip(images, targets, draw.integers(1, 11, count), strict=True):
        (image.T if target else image)[place, 2:10] = 250
    return [png(image) for image in images], torch.tensor(targets)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_rows_states_do_not_depend_on_its_pads(
    tmp_path: Path, cell: str, bidirectional: bool
) -> None:
    backbone = recurrent(tmp_path, cell=cell, bidirectional=bidirectional).backbone
    rows = [[5, 9, 3, 7, 8, 11, 4], [6, 2, 9], [3]]
    layout = lay_out([len(row) for row in rows])
    body = Body(backbone, pad_id=0)
    assert "each row by itself" in body.why_padded
    with torch.no_grad():
        alone = torch.cat([backbone(input_ids=torch.tensor([row]))[0][0] for row in rows])
        together = body.whole(rows, layout)
    assert alone.shape == (11, 10 * (1 + bidirectional))
    assert torch.allclose(together, alone, atol=1e-6)
    last = [backbone(input_ids=torch.tensor([[*row, 9]]))[0][0, 0] for row in rows]
    reads_on = not torch.allclose(torch.stack(last)[0], alone[0])
    assert reads_on == bidirectional, "the first state knows of the last token"


def test_the_backward_direction_is_torchs_own(tmp_path: Path) -> None:
    backbone = recurrent(tmp_path, num_layers=1).backbone
    (layer,) = backbone.layers
    torchs = torch.nn.LSTM(12, 10, batch_first=True, bidirectional=True)
    weights = dict(layer.forwards.state_dict())
    weights |= {f"{n}_reverse": w for n, w in layer.backwards.state_dict().items()}
    torchs.load_state_dict(weights)
    lengths = torch.tensor([6, 4, 1])
    ids = torch.tensor([[5, 9, 3, 7, 8, 11], [6, 2, 9, 1, 0, 0], [3, 0, 0, 0, 0, 0]])
    mask = (torch.arange(6)[None] < lengths[:, None]).long()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        backbone.embeddings(ids), lengths, batch_first=True
    )
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(torchs(packed)[0], batch_first=True)
    found = backbone(input_ids=ids, attention_mask=mask)[0]
    assert torch.allclose(found * mask[..., None], wanted, atol=1e-6)


def test_the_same_texts_and_seed_make_the_same_start(tmp_path: Path) -> None:
    first, again, other = (
        recurrent(tmp_path / name, seed=seed).backbone.state_dict()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(w, again[n]) for n, w in first.items())
    assert not torch.equal(first["embeddings.weight"], other["embeddings.weight"])
    make_backbone("recurrent", SMALL, tmp_path / "d", TEXTS[::-1], seed=3)
    for name in ("config.json", "tokenizer.json", "autoglm.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    seeded = load_model(tmp_path / "a", settings(), labels=["a", "b"], seed=4)
    assert torch.equal(seeded.backbone.embeddings.weight, other["embeddings.weight"])


def test_a_trials_sizes_come_from_its_section(tmp_path: Path) -> None:
    recurrent(tmp_path)
    section = {"cell": "gru", "hidden_size": 6, "num_layers": 3, "bidirectional": False}
    model = load_model(tmp_path, settings(recurrent=section), labels=["a", "b"])
    config = model.backbone.config
    assert (config.cell, config.num_hidden_layers, config.hidden_size) == ("gru", 3, 6)
    assert model.config.backbone_config["cell"] == "gru"
    assert model.config.pooling == "max", "what make_backbone wrote down"
    make_backbone("conv", {"kernel_size": 4}, tmp_path / "conv", [png([[1]])], seed=0)
    with pytest.raises(ModelError, match="must be odd"):
        load_model(tmp_path / "conv", settings(), labels=["a", "b"])


def test_every_part_of_a_random_start_learns(tmp_path: Path) -> None:
    start = recurrent(tmp_path)
    tokenizer = __import__("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    labels = [row["label"] == "sport" for row in learnable_rows(60)]
    data = Encoded(
        ids=[e.ids for e in tokenizer.encode_batch(TEXTS)],
        targets=torch.tensor(labels).long(),
        num_train=48,
        label_names=("money", "sport"),
    )
    trained = toy.train(data=data, start=start, trainable_layers=1, lr=1e-2, epochs=6)
    assert set(trained.weights) == set(start.state_dict())
    assert trained.metrics["accuracy"] >= 0.9
    checkpointed = toy.train(data=data, start=start, lr=1e-2, epochs=2, gradient_checkpointing=True)
    plain = toy.train(data=data, start=start, lr=1e-2, epochs=2)
    for name, tensor in plain.weights.items():
        assert torch.allclose(tensor, checkpointed.weights[name], atol=1e-5), name


def opened_without_us(folder: Path, kind: str, inputs: str) -> Any:
    """Logits of an exported folder where this package is not there."""
    script = (
        "import json, sys, torch\n"
        "sys.modules['autoglm'] = None\n"
        f"from transformers import {kind} as A\n"
        "model = A.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        f"print(json.dumps(model({inputs}).logits.tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True, text=True, check=False, env={"PATH": "", "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder.parent / "modules"), "HOME": str(folder.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("cell", CELLS)
def test_an_exported_recurrent_folder_brings_its_code(tmp_path: Path, cell: str) -> None:
    model = recurrent(tmp_path / "start", cell=cell)
    with torch.no_grad():
        model.classifier.weight.normal_()
    target = tmp_path / "out"
    exported = export_folder(
        model, tmp_path / "start", target, labels=["a", "b"], max_length=40, pad_id=0,
        inputs=[*TEXTS[:7], "one", " ".join(TEXTS[:3])],
    )  # fmt: skip
    assert exported.parity <= 1e-5
    again = load_model(target, settings(recurrent={**SMALL, "cell": cell}), labels=["x", "y"])
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], weight), "it goes on from these"
    if cell != "lstm":
        return  # the code that is carried is the same
    ids, mask = torch.tensor([[5, 6, 7], [3, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    wanted = model(ids, mask).logits
    call = f"torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()})"
    found = opened_without_us(target, "AutoModelForSequenceClassification", call)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_images_are_learnt_exported_and_answered_from_bytes(tmp_path: Path) -> None:
    values, targets = bars(60)
    sizes = {"num_layers": 3, "kernel_size": 3, "channels": 12}
    make_backbone("conv", sizes, tmp_path / "start", values[:48], seed=0)
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    assert (config["image_size"], config["num_channels"]) == (12, 1)
    data = Encoded(
        ids=Pixels(values, Preprocessor.of(tmp_path / "start")),
        targets=targets, num_train=48, label_names=("lies", "stands"),
    )  # fmt: skip
    start = load_model(tmp_path / "start", settings(conv=sizes), labels=data.label_names)
    trained = toy.train(data=data, start=start, lr=1e-2, epochs=4)
    assert trained.metrics["accuracy"] >= 0.9
    start.load_state_dict(trained.weights, strict=False)
    target = tmp_path / "out"
    exported = export_folder(
        start, tmp_path / "start", target, labels=data.label_names, max_length=1, pad_id=0,
        inputs=values[:5],
    )  # fmt: skip
    assert exported.parity <= 1e-4
    call = "pixel_values=torch.linspace(-1, 1, 288).view(2, 1, 12, 12)"
    found = opened_without_us(target, "AutoModelForImageClassification", call)
    wanted = start(pixel_values=torch.linspace(-1, 1, 288).view(2, 1, 12, 12)).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    from autoglm.modeling.onnx_model import OnnxModel

    classifier = OnnxModel(target, threads=1)
    classifier.warm()
    path = tmp_path / "one.png"
    path.write_bytes(values[0])
    said = [a.label for a in classifier.predict([*values[48:], path])]
    hits = [s == data.label_names[t] for s, t in zip(said, targets[48:].tolist(), strict=False)]
    assert sum(hits) / 12 == pytest.approx(trained.metrics["accuracy"])
    with pytest.raises(DataError) as caught:
        classifier.predict([b"not an image"])
    assert caught.value.code == "data.not_an_image"

"""What `model.backbone` may name is found without a network, or refused with the next step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoModel, MPNetConfig, T5Config, XLNetConfig

from autoglm.config.config_loader import bind
from autoglm.config.layers import command_line_layer
from autoglm.errors import ModelError, PluginError
from autoglm.loop.names import check_names
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbone_ref import resolve_backbone
from autoglm.settings import Layers, schema

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `them/tiny`, laid out as `hf download` does."""
    home = tmp_path / "hf"
    repo = home / "hub" / "models--them--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    shutil.copytree(tiny_backbone, folder)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    return folder


def test_a_hub_id_that_lies_in_the_cache_is_opened_and_a_folder_is_stronger(
    tmp_path: Path, cached: Path, tiny_backbone: Path
) -> None:
    assert resolve_backbone("them/tiny", tmp_path) == cached
    shutil.copytree(tiny_backbone, tmp_path / "them" / "tiny")
    assert resolve_backbone("them/tiny", tmp_path) == tmp_path / "them" / "tiny"


def test_a_project_is_made_and_trained_by_a_hub_id(
    tmp_path: Path, cached: Path, rows_file: Path
) -> None:
    def autoglm(*words: Any) -> None:
        command = [sys.executable, "-m", "autoglm.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    project = tmp_path / "project"
    autoglm("init", project, "--from", rows_file, "--backbone", "them/tiny")
    autoglm("train", project, "--out", tmp_path / "out", "--set", "training.threads=1",
            "--set", "training.epochs=1")  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_is_not_in_the_cache_is_refused_with_how_to_put_it_there(
    tmp_path: Path, cached: Path
) -> None:
    for ref, words in (
        ("bert-base-uncased", "hf download bert-base-uncased"),
        ("recurent", "Did you mean recurrent"),
        ("../nowhere", "Give a Hugging Face folder"),
    ):
        with pytest.raises(ModelError) as caught:
            resolve_backbone(ref, tmp_path)
        assert caught.value.code == "model.no_backbone"
        assert words in str(caught.value)
    with pytest.raises(ModelError) as caught:
        resolve_backbone("convbert", tmp_path)
    assert "Did you mean" not in str(caught.value)
    (cached / "model.safetensors").rename(cached / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights as safetensors"):
        resolve_backbone("them/tiny", tmp_path)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("model.backbone=recurent", ModelError, "model.backbone: .* Did you mean recurrent"),
        ("model.attention={name: top_k, kk: 3}", PluginError, "no option 'kk'. Did you mean k"),
        ("model.attention={name: sdpa, k: 3}", PluginError, "It has none"),
        ("search.space={attention: {choice: [sdpa, {name: block_top_k, blocks: 1}]}}",
         PluginError, "search.space.model.attention: .* Did you mean num_blocks"),
    ],
)  # fmt: skip
def test_config_check_refuses_what_it_can_tell(
    tmp_path: Path, cached: Path, said: str, error: type[Exception], words: str
) -> None:
    key = said.partition("=")[0]
    plain = [
        "project=p", "model.backbone=them/tiny", "data.text=t", "data.label=l",
        "data.source.url=sqlite:///x.db", "data.source.table=t", "data.source.key=id",
        "model.attention={name: top_k, k: 3}", "search.space={lr: {loguniform: [1e-5, 1e-3]}}",
    ]  # fmt: skip
    check_names(bind(schema(), [command_line_layer(plain)]).settings, Layers(folder=tmp_path))
    kept = [each for each in plain if not each.startswith(key)]
    layer = command_line_layer([*kept, said])
    with pytest.raises(error, match=words):
        check_names(bind(schema(), [layer]).settings, Layers(folder=tmp_path))


@pytest.mark.parametrize(
    ("config", "attention", "code", "words"),
    [
        (T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=60),
         "sdpa", "model.cannot_read", "an encoder or a decoder alone"),
        (MPNetConfig(**SIZES), "sdpa", "model.attention_not_called", "attention: eager"),
        (XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=60),
         "top_k", "model.attention_not_called", "attention: eager"),
    ],
)  # fmt: skip
def test_an_architecture_that_cannot_be_trained_so_is_refused_when_it_is_opened(
    tmp_path: Path, config: Any, attention: str, code: str, words: str
) -> None:
    AutoModel.from_config(config).save_pretrained(tmp_path)
    settings = {"attention": attention, "head": "linear", "pooling": "mean"}
    with pytest.raises(ModelError, match=words) as caught:
        load_model(tmp_path, settings, labels=("a", "b"), max_length=16)
    assert caught.value.code == code
    if code == "model.attention_not_called":
        eager = {**settings, "attention": "eager"}
        load_model(tmp_path, eager, labels=("a", "b"), max_length=16)

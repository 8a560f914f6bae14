"""What an exported folder is opened with: transformers' own class wherever it answers alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    Dinov2Config,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
)

from autoglm.modeling.auto_model import load_model
from autoglm.modeling.export import export_folder
from autoglm.modeling.images import PREPROCESSOR
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.edit import edit
from training import toy

SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
BACKBONES: dict[str, Any] = {
    "bert": BertConfig(**{**SMALL, "num_hidden_layers": 2}),
    "roberta": RobertaConfig(**{**SMALL, "pad_token_id": 1}),
    "electra": ElectraConfig(**SMALL, embedding_size=16),
    "modernbert": ModernBertConfig(**SMALL, **ENDS),
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=40, pad_token_id=0),
    "dinov2": Dinov2Config(
        image_size=28, patch_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        mlp_ratio=2, use_mask_token=False,
    ),
}  # fmt: skip
LABELS = ("a", "b", "c")
TOKENIZER = "tokenizer.json"
PLAIN, CODE = "transformers", "transformers+code"


def exported(
    tmp_path: Path, kind: str, pooling: str, *, head: str = "linear", bias: bool = True
) -> Any:
    model = toy.model(pooling=pooling, head=head, config=BACKBONES[kind])
    with torch.no_grad():
        for name, parameter in model.classifier.named_parameters():
            parameter.normal_()
            if not bias and name == "bias":
                parameter.zero_()
    start = tmp_path / "start"
    start.mkdir()
    if kind == "dinov2":
        (start / PREPROCESSOR).write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    else:
        Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(
            str(start / "tokenizer.json")
        )
    pad_id = int(getattr(model.backbone.config, "pad_token_id", 0) or 0)
    done = export_folder(
        model, start, tmp_path / "out", labels=LABELS, max_length=30, pad_id=pad_id, inputs=[]
    )
    facts = json.loads((tmp_path / "out" / "autoglm.json").read_text())
    assert facts["opens_with"] == done.opens_with
    return model, done


@pytest.mark.parametrize(
    ("kind", "pooling", "head", "bias", "opens_with"),
    [
        ("bert", "none", "linear", True, PLAIN),
        ("roberta", "none", "linear", True, PLAIN),
        ("llama", "last", "linear", False, PLAIN),
        ("dinov2", "cls", "linear", True, PLAIN),
        ("electra", "cls", "mlp", True, PLAIN),
        ("bert", "cls", "linear", True, CODE),
        ("bert", "mean", "linear", True, CODE),
        ("modernbert", "none", "linear", True, CODE),
        ("llama", "last", "linear", True, CODE),
        ("electra", "mean", "mlp", True, CODE),
    ],
)
def test_the_folder_opens_as_it_says_where_this_package_is_absent(
    tmp_path: Path, kind: str, pooling: str, head: str, bias: bool, opens_with: str
) -> None:
    model, done = exported(tmp_path, kind, pooling, head=head, bias=bias)
    assert done.opens_with == opens_with
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    carries_code = (tmp_path / "out" / "modeling_autoglm.py").is_file()
    assert carries_code == ("auto_map" in config) == (opens_with == CODE)
    assert not {"transformers_version", "_name_or_path"} & set(config)
    again = load_model(
        tmp_path / "out",
        {
            "attention": "sdpa",
            "head": "linear",
            "pooling": pooling if pooling != "none" else "auto",
        },
        labels=["x", "y"],
        is_per_token=pooling == "none",
    )
    new = again.backbone.state_dict()
    kept = {n: w for n, w in model.backbone.state_dict().items() if not n.startswith("pooler.")}
    assert all(torch.equal(new[name], weight) for name, weight in kept.items())


@pytest.mark.parametrize(
    ("kind", "pooling", "bias", "opener"),
    [
        ("qwen3", "none", True, "AutoModelForTokenClassification"),
        ("qwen3", "last", False, "AutoModelForSequenceClassification"),
        ("dinov2", "cls", True, "AutoModelForImageClassification"),
        ("gpt2", "none", True, "AutoModelForTokenClassification"),
    ],
)
def test_a_plain_folder_needs_no_code_of_ours(
    tmp_path: Path, kind: str, pooling: str, bias: bool, opener: str
) -> None:
    model, done = exported(tmp_path, kind, pooling, bias=bias)
    assert done.opens_with == PLAIN
    inputs: Any = {"input_ids": [[5, 6, 7], [8, 9, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    if kind == "dinov2":
        inputs = {"pixel_values": torch.linspace(-1, 1, 2352).view(1, 3, 28, 28).tolist()}
    script = (
        "import json, sys, torch\n"
        "sys.modules['autoglm'] = None\n"
        f"from transformers import {opener} as A\n"
        "model = A.from_pretrained(sys.argv[1]).eval()\n"
        "inputs = {n: torch.tensor(x) for n, x in json.load(sys.stdin).items()}\n"
        "print(json.dumps([model(**inputs).logits.tolist(), model.config.id2label]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, done.folder], input=json.dumps(inputs),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found, names = json.loads(ran.stdout.splitlines()[-1])
    assert tuple(names.values()) == LABELS
    with torch.no_grad():
        wanted = model(**{name: torch.tensor(x) for name, x in inputs.items()}).logits
    apart = (torch.tensor(found) - wanted).abs()
    assert float(apart[0].max()) < 1e-4
    if pooling == "last":
        assert float(apart[1].max()) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_heads_that_a_config_cannot_say_are_carried_by_the_folders_code(
    tmp_path: Path, kind: str
) -> None:
    model = toy.model(pooling="none", config=BACKBONES[kind])
    model.backbone = edit(model.backbone, StructureConfig(num_heads=1), sample=[[5, 6, 7, 8]])
    model.config.backbone_config = model.backbone.config.to_diff_dict()
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / TOKENIZER))
    done = export_folder(
        model, tmp_path, tmp_path / "out", labels=LABELS, max_length=30, pad_id=0, inputs=[]
    )
    assert done.opens_with == CODE
    script = (
        "import json, sys, torch\n"
        "sys.modules['autoglm'] = None\n"
        "from transformers import AutoModelForTokenClassification as A\n"
        "model = A.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "print(json.dumps(model(input_ids=torch.tensor([[5, 6, 7]])).logits.tolist()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, done.folder], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    found = torch.tensor(json.loads(ran.stdout.splitlines()[-1]))
    assert float((found - wanted).abs().max()) < 1e-4

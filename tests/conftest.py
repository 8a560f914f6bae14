"""What several areas need: a tiny real backbone, and rows that can be learnt."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = {
    "sport": [
        "goal",
        "match",
        "team",
        "coach",
        "league",
        "striker",
        "cup",
        "final",
        "referee",
        "stadium",
    ],
    "money": [
        "bank",
        "market",
        "shares",
        "profit",
        "trade",
        "euro",
        "budget",
        "loan",
        "investor",
        "price",
    ],
}
FILLER = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "on",
    "for",
    "with",
    "said",
    "today",
    "after",
    "before",
    "new",
    "old",
    "many",
]


def learnable_rows(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose label can be told from a few words."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("sport", "money")[number % 2]
        words = [*draw.choices(WORDS[label], k=4), *draw.choices(FILLER, k=6), f"n{seed}x{number}"]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers with a word tokenizer: everything is real but its size."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("backbone")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted({w for ws in (*WORDS.values(), FILLER) for w in ws}),
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    return path

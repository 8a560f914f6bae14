"""Backbones that begin at random: `conv` for images, `recurrent` for texts. No torch.

A start folder holds no weights: they are a function of its `config.json`, which has the seed
(`own_models.py` draws them). Its tokenizer is a function of the training texts alone.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoglm.modeling import images

OWN = ("conv", "recurrent")
PAD, UNKNOWN = "[PAD]", "[UNK]"
# A word that stands in one row says nothing about others.
MIN_ROWS, MAX_WORDS = 2, 30_000
LARGEST_IMAGE = 64


def make_backbone(
    name: str,
    sizes: Mapping[str, Any],
    folder: Path,
    rows: Sequence[Any],
    *,
    seed: int,
) -> None:
    """Fill `folder` with a start of `conv` or `recurrent`. `sizes` is the section `model.NAME`;
    `rows` are the training texts, or images as bytes or paths. The same arguments, the same bytes.

    Raises: DataError data.not_an_image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _conv(folder, rows) if name == "conv" else _recurrent(folder, rows)
    config |= {"model_type": f"autoglm_{name}", "seed": seed, **config_sizes(name, sizes)}
    _write(folder / "config.json", config)
    _write(folder / "autoglm.json", {"pooling": "max"})


def config_sizes(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The section's keys under the names that `config.json` has for them."""
    renamed = {"num_layers": "num_hidden_layers"}
    renamed |= {"channels": "hidden_size"} if name == "conv" else {"hidden_size": "direction_size"}
    return {renamed.get(key, key): value for key, value in sizes.items()}


def _recurrent(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    split = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = split.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update({word for word, _ in pieces})
    # By count, then by name: the order of the rows must not matter.
    frequent = sorted((-n, word) for word, n in counts.items() if n >= MIN_ROWS)[:MAX_WORDS]
    words = [PAD, UNKNOWN, *(word for _, word in frequent if word not in {PAD, UNKNOWN})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, split
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"vocab_size": len(words), "pad_token_id": 0}


def _conv(folder: Path, values: Sequence[bytes | str | Path]) -> dict[str, Any]:
    """The size that half of the images reach, at most 64; colours where one image has them."""
    sides, are_grey = [], True
    for value in values:
        with images.opened(value) as image:
            sides.append(min(image.size))
            are_grey = are_grey and image.mode in {"1", "L", "I", "I;16", "LA"}
    side = min(int(statistics.median_low(sides)), LARGEST_IMAGE) if sides else LARGEST_IMAGE
    num_channels = 1 if are_grey else 3
    document = {
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * num_channels,
        "image_std": [0.5] * num_channels,
    }
    _write(folder / images.PREPROCESSOR, document)
    return {"image_size": side, "num_channels": num_channels}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")

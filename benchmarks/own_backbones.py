"""What `conv` and `recurrent` learn from nothing.

`python -m benchmarks.own_backbones --data FOLDER [--only NAME …] [--seeds N] [--set KEY=VALUE …]`
trains each at its default sizes, keeps the epoch that is best on validation rows, and answers the
test rows: MNIST's 5,000 digits (4,000 to train on, 500 and 500, drawn once) with `conv`, TREC (its
own test rows; a tenth of the others for validation) with `recurrent`. One JSON line per seed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbones.own import make_backbone
from autoglm.modeling.images import Pixels, Preprocessor
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training.config import TrainingConfig
from autoglm.training.data import Encoded
from autoglm.training.forward import Forward
from autoglm.training.tasks import Classification
from autoglm.training.trainer import Trainer

SETTINGS: dict[str, dict[str, Any]] = {
    "conv": {"lr": 3e-3, "epochs": 5},
    "recurrent": {"lr": 4e-3, "epochs": 8, "dropout": 0.2},
}
# Train, validation and test rows, one behind the other: values, labels, and how many of each.
Rows = tuple[list[Any], list[str], tuple[int, int, int]]


def digits(data: Path) -> Rows:
    from PIL import Image

    with gzip.open(data / "mnist5k" / "mnist_5k.csv.gz", "rt") as stream:
        table = np.array([[int(x) for x in row] for row in csv.reader(stream)], np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    values = []
    for row in table[:, :784].reshape(-1, 28, 28):
        content = io.BytesIO()
        Image.fromarray(row).save(content, "PNG")
        values.append(content.getvalue())
    return values, [str(x) for x in table[:, 784]], (4000, 500, 500)


def questions(data: Path) -> Rows:
    lines = (data / "trec" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    known = [json.loads(lines[i]) for i in np.random.default_rng(0).permutation(len(lines))]
    test = (data / "trec" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [*known, *map(json.loads, test)]
    num_validation = len(known) // 10
    parts = (len(known) - num_validation, num_validation, len(test))
    return [r["text"] for r in rows], [r["label"] for r in rows], parts


def encoded(name: str, folder: Path, values: list[Any], targets: list[int], names: Any) -> Encoded:
    ids: Any
    if name == "conv":
        ids = Pixels(values, Preprocessor.of(folder))
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [encoding.ids for encoding in tokenizer.encode_batch(values)]
    return Encoded(ids=ids, targets=torch.tensor(targets), num_train=0, label_names=names)


def measure(name: str, rows: Rows, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    values, labels, (num_train, num_validation, num_test) = rows
    names = tuple(sorted(set(labels)))
    targets = [names.index(label) for label in labels]
    settings = {**asdict(TrainingConfig()), "keep": "best", **SETTINGS[name], **more}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_backbone(name, {}, folder, values[:num_train], seed=seed)
        model = load_model(
            folder, {"attention": "sdpa", "head": "linear", "pooling": "auto"}, labels=names
        )
        whole = encoded(name, folder, values, targets, names)
    seen = num_train + num_validation
    data = Encoded(
        ids=whole.ids.first(seen) if isinstance(whole.ids, Pixels) else whole.ids[:seen],
        targets=whole.targets[:seen],
        num_train=num_train,
        label_names=names,
    )
    started = time.perf_counter(), time.process_time()
    trained = Trainer(
        model,
        data,
        settings,
        task=Classification(names, settings),
        metric="accuracy",
        seed=seed,
        cache=PrefixCache(0),
        cache_key="",
        on_event=lambda _event: None,
    ).train(threading.Event())
    took = time.perf_counter() - started[0], time.process_time() - started[1]
    model.load_state_dict(trained.weights, strict=False)
    forward = Forward(
        model, whole.ids, num_frozen=0, cache=PrefixCache(0), cache_key="", stop=lambda: None
    )
    hits = 0
    with torch.no_grad():
        for batch in forward.in_batches(range(seen, seen + num_test)):
            wanted = torch.as_tensor(whole.targets)[batch]
            hits += int((forward.outputs(batch).argmax(-1) == wanted).sum())
    return {
        "backbone": name,
        "seed": seed,
        "test_accuracy": hits / num_test,
        "best_epoch": trained.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(took[0], 1),
        "cpu_seconds": round(took[1], 1),
        **SETTINGS[name],
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["conv", "recurrent"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    said = parser.parse_args()
    more = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in said.set)}
    for name in said.only:
        rows = digits(said.data) if name == "conv" else questions(said.data)
        for seed in range(said.seeds):
            print(json.dumps(measure(name, rows, seed, more)), flush=True)


if __name__ == "__main__":
    main()

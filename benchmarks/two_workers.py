"""A study by two workers of one thread each, and by one: wall time of the same trials.

`python -m benchmarks.two_workers [--data FOLDER] [--rounds N] [--trials N] [--json]`. trec, 800
rows, random points (the same for both), each from cold, from the moment that the workers have
loaded their libraries. The load is printed: without two idle cores the figure says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.parts import machine
from benchmarks.search import LIMITS, QUICK_ROWS, QUICK_VALIDATION, _app, _settings, rows_of

TARGET = 1.6


def measure(rows: list[dict[str, str]], num_workers: int, trials: int) -> dict[str, Any]:
    from autoglm.loop.run_to_candidate import open_trainers, search
    from autoglm.settings import from_snapshot

    said = {
        **_settings(1, "0"),
        **LIMITS,
        "search.workers": str(num_workers),
        "search.sampler": "random",
        "search.trials": str(trials),
    }
    with _app(rows, said) as (app, spec, _place):
        settings = from_snapshot(spec.config)
        open_trainers(spec, app, settings)  # returns when rows and weights are there
        started = time.monotonic()
        found = search(spec, settings, app)
        seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 1),
        "trials": len(found.trials),
        "cpu_seconds": round(found.cpu_seconds, 1),
        "best": found.best.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options, _ = parser.parse_known_args()
    if not (options.data / "trec").is_dir():
        print(json.dumps({"benchmark": "two_workers", "skipped": "no trec"}))
        return
    rows = rows_of(options.data, "trec", 0, QUICK_ROWS, QUICK_VALIDATION)
    ratios, rounds = [], []
    for _ in range(options.rounds):
        load = os.getloadavg()[0]
        one, two = (measure(rows, num, options.trials) for num in (1, 2))
        ratios.append(one["seconds"] / two["seconds"])
        rounds.append({"one": one, "two": two, "load": round(load, 1)})
        if not options.json:
            print(f"  one {one}  two {two}  load {load:.1f}  {ratios[-1]:.2f}x", flush=True)
    ratio = round(statistics.median(ratios), 2)
    facts = {"benchmark": "two_workers", "ratio": ratio, "target": TARGET, "ok": ratio >= TARGET}
    print(json.dumps({**facts, "rounds": rounds, "machine": machine()}))


if __name__ == "__main__":
    main()

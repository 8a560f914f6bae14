"""1 % of the rows changed, then a new run: what it costs beside the first one.

`python -m benchmarks.fresh [--data FOLDER] [--only trec …] [--seeds 0] [--threads 1]
[--set KEY=VALUE …] [--json]`: a project of 2,200 rows (1,980 training, 220 validation) and the test
rows goes once round the loop from cold. Then 22 of the 2,200 rows get another text and label in
the source, and it goes round again: with `model.start_from: stable`, with `backbone`, and as a
project of its own that never saw the old rows (`scratch`: the first run over, for the metric).
Counted are the CPU-seconds of the loop and of every process that it starts, libraries loaded
included, until the candidate is registered; the release is beside it, since it replays traffic for
as long as its policy says. Each part is a run of its own, and what is there is not run again: what
the first left behind lies in --scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.parts import machine, run_parts, stored
from benchmarks.rows import has
from benchmarks.search import MINILM, NUM_ROWS, OURS, SETS, SPACE, rows_of

RESULTS = Path(__file__).parent / "results" / "fresh"
SCRATCH = Path(tempfile.gettempdir()) / "autoglm-fresh"
NUM_CHANGED = NUM_ROWS // 100
# Share of the first run's CPU-seconds, and how far the metric may lie from a search from scratch.
TARGETS = {"stable": 0.1, "backbone": 1 / 3}
MOST_BELOW = 0.005
FIRST, SCRATCH_RUN = "first", "scratch"
SETTINGS = {
    "data.split.column": "part",
    "data.min_rows": "1",
    "evaluate.metric": "accuracy",
    "search.space": SPACE,
    "training.precision": "auto",
    **OURS,
}


def changed_rows(folder: Path, name: str, seed: int) -> list[dict[str, str]]:
    """`rows_of`, where 1 % of the training and validation rows say something else: text and label
    of rows of the training file that nobody has seen.
    """
    rows = rows_of(folder, name, seed)
    known = {row["label"] for row in rows}
    more = rows_of(folder, name, seed, NUM_ROWS + 2 * NUM_CHANGED)[NUM_ROWS:]
    others = [row for row in more if row["part"] != "test" and row["label"] in known]
    places = random.Random(seed + 1).sample(range(NUM_ROWS), NUM_CHANGED)
    for place, other in zip(places, others, strict=False):
        rows[place] = {**rows[place], "text": other["text"], "label": other["label"]}
    return rows


def child(part: str, options: argparse.Namespace, said: Mapping[str, str]) -> dict[str, Any]:
    """One run, in the state that the first one left, or from nothing."""
    name, seed, kind = part.split(".")
    place = options.scratch / f"{name}.{seed}"
    settings = {**SETTINGS, **said, "training.threads": str(options.threads)}
    settings["training.seed"] = seed
    old, new = (rows(options.data, name, int(seed)) for rows in (rows_of, changed_rows))
    if kind in {FIRST, SCRATCH_RUN}:
        shutil.rmtree(place / "now", ignore_errors=True)
        _made(place / "now", old if kind == FIRST else new)
    else:
        if not (place / "kept").exists():
            raise SystemExit(f"{place} is gone: delete {name}.{seed}.{FIRST}.json and call again.")
        shutil.rmtree(place / "now")
        shutil.copytree(place / "kept", place / "now")
        settings["model.start_from"] = kind
        _change(place / "now" / "p" / "data.db", old, new)
    found = _gone_round(place / "now", settings)
    if kind == FIRST:
        shutil.rmtree(place / "kept", ignore_errors=True)
        shutil.copytree(place / "now", place / "kept")
    return {**found, "settings": settings}


def _made(place: Path, rows: list[dict[str, str]]) -> None:
    from autoglm.cli.commands import app as commands

    place.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "rows.jsonl").write_text(lines, encoding="utf-8")
    init = ["init", f"{place}/p", "--from", f"{place}/rows.jsonl", "--backbone", MINILM]
    commands([*init, "--key", "id", "--text", "text", "--label", "label"], standalone_mode=False)


def _change(path: Path, old: list[dict[str, str]], new: list[dict[str, str]]) -> None:
    """In the source, as its owner would."""
    others = [row for was, row in zip(old, new, strict=True) if row != was]
    connection = sqlite3.connect(path)
    with connection:
        update = "update rows set text = :text, label = :label where id = :id"
        connection.executemany(update, others)
    connection.close()


def _gone_round(place: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    from autoglm.loop.app import App
    from autoglm.loop.run_loop import go_round, open_runs
    from autoglm.project import Project

    spent, started = Spent(), time.monotonic()
    events: list[Mapping[str, Any]] = []
    assignments = [f"{key}={value}" for key, value in settings.items()]
    project = Project(f"{place}/p", assignments=assignments)
    with project.own("benchmark"):

        def seen(event: Mapping[str, Any]) -> None:
            spent.see(event)
            events.append(event)

        app = App(project=project, on_event=seen)
        try:
            runs = open_runs(app)
            try:
                result = go_round(app, runs)
            finally:
                runs.close()
        finally:
            app.close()
    if result["status"] != "succeeded":
        raise SystemExit(json.dumps(result, default=str))
    ended = [e for e in events if str(e["kind"]).startswith("trial_") and "seconds" in e]
    return {
        "cpu_seconds": round(sum(spent.by_step.values()), 1),
        "release_cpu_seconds": round(_cpu() - sum(spent.by_step.values()), 1),
        "wall_seconds": round(time.monotonic() - started, 1),
        "by_step": spent.by_step,
        "test": result["evaluation"]["accuracy"],
        "stable_test": _value(result["report"]["stable"].get("accuracy")),
        "validation": result["best"]["value"],
        "best": result["best"]["params"],
        "num_trials": result["num_trials"],
        "stopped_by": result["stopped_by"],
        "refresh": [e for e in events if e["kind"] == "refresh"],
        "verdict": result["rollout"]["verdict"],
        "trials": [
            {"number": e["number"], "value": e.get("value"), "params": e.get("params")}
            for e in ended
        ],
    }


def _value(score: Mapping[str, Any] | None) -> float | None:
    return None if score is None else score["value"]


class Spent:
    """CPU-seconds of this process and of all that it started, by the step of the run, until the
    last of them has ended: the candidate is registered then.
    """

    def __init__(self) -> None:
        self._since, self._name = 0.0, "before"
        self.by_step: dict[str, float] = {}

    def see(self, event: Mapping[str, Any]) -> None:
        if event["kind"] in {"step_started", "step_finished"}:
            now = _cpu()
            known = self.by_step.get(self._name, 0.0)
            self.by_step[self._name] = round(known + now - self._since, 1)
            self._since = now
            self._name = event["step"] if event["kind"] == "step_started" else "between"


def _cpu() -> float:
    """Of the living and, where their parent has waited for them, of the dead."""
    import psutil

    mine = os.times()
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def judged(found: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """Shares of the first run's seconds and distances from scratch, and what is not reached."""
    of = {part: kept["result"] for part, kept in found.items()}
    seconds = {part: sum(result["by_step"].values()) for part, result in of.items()}
    ratios: dict[str, float] = {}
    missed: list[str] = []
    for part in sorted(p.rsplit(".", 1)[0] for p in found if p.endswith(f".{FIRST}")):
        first = seconds[f"{part}.{FIRST}"]
        for kind, target in TARGETS.items():
            if (name := f"{part}.{kind}") not in found:
                continue
            ratios[f"{name}_share"] = share = round(seconds[name] / first, 3)
            if share > target:
                missed.append(f"{name}: {share:.3f} of the first run, {target:.3f} asked")
            if (scratch := f"{part}.{SCRATCH_RUN}") not in found:
                continue
            below = of[name]["test"] - of[scratch]["test"]
            ratios[f"{name}_test"] = round(below, 4)
            if below < -MOST_BELOW:
                missed.append(f"{name}: {100 * below:+.1f} pt of a search from scratch, -0.5 asked")
    return ratios, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="projects, kept")
    parser.add_argument("--only", nargs="+", choices=SETS, default=["trec"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--kinds", nargs="+", default=[FIRST, *TARGETS, SCRATCH_RUN])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--set", dest="said", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        said = dict(line.split("=", 1) for line in options.said)
        print(json.dumps(child(options.part, options, said)))
        return
    sets = [name for name in options.only if has(options.data, name)]
    parts = [f"{n}.{s}.{kind}" for n in sets for s in options.seeds for kind in options.kinds]
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    asked += ["--scratch", str(options.scratch)] if options.scratch != SCRATCH else []
    asked += ["--set", *options.said] if options.said else []
    run_parts("benchmarks.fresh", options.results, parts, asked)
    ratios, missed = judged(stored(options.results))
    for line in missed if not options.json else []:
        print(f"  not reached: {line}")
    facts = {"benchmark": "fresh", "ratios": ratios, "targets": TARGETS, "ok": not missed}
    print(json.dumps({**facts, "machine": machine()}))


if __name__ == "__main__":
    main()

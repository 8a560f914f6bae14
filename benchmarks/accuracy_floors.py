"""What the default project reaches on real data, against what a linear model reaches.

`python -m benchmarks.accuracy_floors --data FOLDER [--only NAME …] [--quick] [--json]`: for each
data set `autoglm init --from`, `autoglm run --json` at the default budget (10 minutes),
`autoglm predict --input` on rows that were put aside. `--quick` gives the search one minute.
The linear model is TF-IDF (1-2 grams) with logistic regression on the same rows, in the same run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Data set → metric and the least that is accepted of it.
FLOORS = {
    "trec": ("accuracy", 0.90),
    "sst2": ("accuracy", 0.82),
    "sms_spam": ("macro_f1", 0.95),
    "bbc_news": ("accuracy", 0.95),
}
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def split(folder: Path) -> tuple[list[Row], list[Row]]:
    """Train and test rows: the official ones, else by the text's digest (a fifth is test)."""
    if (folder / "test.jsonl").exists():
        return read(folder / "train.jsonl"), read(folder / "test.jsonl")
    rows = read(next(folder.glob("all.jsonl*")))
    aside = [
        int.from_bytes(hashlib.blake2b(r["text"].encode()).digest(), "big") % 5 == 0 for r in rows
    ]
    train = [r for r, is_test in zip(rows, aside, strict=True) if not is_test]
    return train, [r for r, is_test in zip(rows, aside, strict=True) if is_test]


def score(metric: str, truth: list[str], answers: list[str]) -> float:
    from sklearn.metrics import accuracy_score, f1_score

    if metric == "accuracy":
        return float(accuracy_score(truth, answers))
    return float(f1_score(truth, answers, average="macro"))


def linear(train: list[Row], test: list[Row]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit([r["text"] for r in train], [r["label"] for r in train])
    return list(model.predict([r["text"] for r in test]))


def autoglm(*arguments: object) -> str:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(name: str, data: Path, work: Path, more: list[str]) -> dict[str, Any]:
    metric, floor = FLOORS[name]
    train, test = split(data / name)
    for file, rows in (("train.jsonl", train), ("test.jsonl", test)):
        (work / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    autoglm("init", work / "p", "--from", work / "train.jsonl")
    document = json.loads(autoglm("run", work / "p", "--json", *more))
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = autoglm("predict", work / "p", "--input", work / "test.jsonl", "--json").splitlines()
    truth = [row["label"] for row in test]
    return {
        "data": name,
        "metric": metric,
        "value": score(metric, truth, [json.loads(line)["label"] for line in lines]),
        "linear": score(metric, truth, linear(train, test)),
        "floor": floor,
        "trials": document["num_trials"],
        "best": document["best"],
        "run_seconds": round(seconds, 1),
        "search_seconds": document["seconds"]["search"],
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=FLOORS, default=list(FLOORS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    options = parser.parse_args()
    more = ["--set", "search.budget=1min"] if options.quick else []
    if not options.json:
        print(f"{platform.platform()} · Python {platform.python_version()}")
    ratios: dict[str, float] = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as work:
            found = measure(name, options.data, Path(work), more)
        ratios[f"{name}_over_linear"] = round(found["value"] / found["linear"], 4)
        ratios[name] = round(found["value"], 4)
        if not options.json:
            print(json.dumps(found), flush=True)
    targets = {name: FLOORS[name][1] for name in options.only}
    ok = all(ratios[name] >= target for name, target in targets.items())
    print(
        json.dumps({"benchmark": "accuracy_floors", "ratios": ratios, "targets": targets, "ok": ok})
    )


if __name__ == "__main__":
    main()

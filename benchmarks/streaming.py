"""The data path: events a second from a filled log to the Delta table, beside peers; commits.

    python -m benchmarks.streaming            # SQLite, Kafka, Quix Streams, Bytewax, 1,000 commits
    python -m benchmarks.streaming --long     # also the memory of 5 million events

100,000 events of about 200 bytes, 4 partitions, 5,000 keys; each is decoded, its text stripped and
put in lower case, and hashed; 10,000 rows a commit; one process. Peers read the same topic of the
same broker in the same run, each in a virtual environment that is made for it; in turn, medians of
`--rounds`. The time is from the first message to the last commit, for ours and the peers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
import venv
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent, Partition
from autoglm.contracts.event_columns import EventColumns
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.plugins.kinds import Broker, FetchedBatch, Processed
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.config import BrokerConfig
from autoglm.streaming.consumer_group import Committed, Consumer
from autoglm.streaming.processor import ProcessorChain, RowProcessor
from benchmarks.parts import machine

NUM_EVENTS, NUM_KEYS, BATCH = 100_000, 5_000, 10_000
NUM_STOPPED = 600_000
NUM_LONG, NUM_COMMITS, ROWS_PER_COMMIT = 5_000_000, 1_000, 100
TOPIC = "changes"
PEER_ATTEMPTS = 3
PEERS = {
    "quix": ["quixstreams==3.28.1", "deltalake", "pyarrow"],
    "bytewax": ["bytewax[kafka]==0.21.1", "deltalake", "pyarrow"],
}
RESULTS = Path(__file__).with_name("results") / "streaming.json"


class Normalised:
    """Port Processor: the text stripped, in lower case, and its SHA-1."""

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        import pyarrow as pa

        assert isinstance(batch, EventColumns)
        texts = [text.strip().lower() for text in batch.table["text"].to_pylist()]
        digests = pa.array([hashlib.sha1(text.encode()).hexdigest() for text in texts])
        rows = batch.set("text", pa.array(texts)).set("digest", digests)
        return Processed(rows=rows, dead=[])


def fill(broker: Broker, count: int, *, batch: int = BATCH) -> float:
    """Seconds to append `count` events."""
    epoch, started = broker.new_epoch(TOPIC, "bench"), time.perf_counter()
    for base in range(0, count, batch):
        now = datetime.now(UTC)
        events = tuple(
            ChangeEvent(
                project="bench",
                source="bench",
                key=str(version % NUM_KEYS),
                op="upsert",
                version=version,
                row={
                    "id": version % NUM_KEYS,
                    "text": f"  Row {version} " + "Some Words of a Text " * 7,
                    "label": "ab"[version % 2],
                    "digest": "",
                },
                committed_at=now,
            )
            for version in range(base, base + batch)
        )
        made = ChangeBatch(
            project="bench", source="bench", events=events, position=str(base), traceparent=""
        )
        broker.append(TOPIC, made, producer="bench", epoch=epoch)
    return time.perf_counter() - started


def consumer(broker: Broker, folder: Path, **more: Any) -> Consumer:
    table = DeltaFeatureTable(folder, project="bench", key="id", text="text", label="label")
    first = RowProcessor(text="text", label="label", max_text_bytes=1_000_000)
    chain = ProcessorChain([first, Normalised()])
    options = {"batch_rows": BATCH, **more}
    return Consumer(broker, table, chain, project="bench", group="bench", topic=TOPIC, **options)


class Watched:
    """A broker, and when the first events came out of it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.first: tuple[float, float] | None = None
        self.before = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def fetch(self, *where: Any, **more: Any) -> FetchedBatch | None:
        found = self._broker.fetch(*where, **more)
        if self.first is None and found is not None:
            self.first, self.before = _now(), len(found.events)
        return found


def drained(broker: Broker, folder: Path, count: int) -> dict[str, Any]:
    """Events a second of one process, from the first that came, which do not count themselves."""
    watched, last = Watched(broker), [(0.0, 0.0)]

    def committed(_done: Committed) -> None:
        last[0] = _now()

    done = consumer(watched, folder, on_commit=committed).drain(threading.Event())
    assert (done.rows, done.dead) == (count, 0), done
    assert watched.first is not None
    seconds, cpu_seconds = (b - a for a, b in zip(watched.first, last[0], strict=True))
    return _figures(count - watched.before, seconds, cpu_seconds)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _figures(count: int, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """Of the process alone: what the broker's own process takes is in the seconds, not the CPU."""
    return {
        "events_per_s": round(count / seconds),
        "events_per_cpu_s": round(count / cpu_seconds),
        "seconds": round(seconds, 2),
    }


def sqlite(folder: Path, rounds: int) -> dict[str, Any]:
    with closing(SqliteBroker(folder / "broker.db", partitions=4)) as broker:
        seconds = fill(broker, NUM_EVENTS)
        found = [drained(broker, folder / f"table{n}", NUM_EVENTS) for n in range(rounds)]
    return {**_medians(found), "append_events_per_s": round(NUM_EVENTS / seconds)}


def kafka(folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Ours and the peers on one broker, in turn."""
    from tests.integrations.kafka_servers import tansu

    from autoglm.integrations.kafka import KafkaBroker

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("kafka", *PEERS)}
    pythons = {
        name: environment(Path(tempfile.gettempdir()) / f"bench-{name}", packages)
        for name, packages in PEERS.items()
    }
    with tansu(folder) as address:
        config = BrokerConfig(kind="kafka", bootstrap=address)
        with closing(KafkaBroker(config, project="bench", partitions=4)) as broker:
            seconds = fill(broker, NUM_EVENTS)
        for number in range(rounds):
            with closing(KafkaBroker(config, project="bench", partitions=4)) as broker:
                found["kafka"].append(drained(broker, folder / f"kafka{number}", NUM_EVENTS))
            for name, python in pythons.items():
                arguments = [address, TOPIC, str(folder / f"{name}{number}"), str(NUM_EVENTS)]
                took = _peer(name, python, arguments)
                found[name].append(_figures(NUM_EVENTS, took["seconds"], took["cpu_seconds"]))
    medians = {name: _medians(each) for name, each in found.items()}
    medians["kafka"]["append_events_per_s"] = round(NUM_EVENTS / seconds)
    return medians


def _peer(name: str, python: str, arguments: list[str]) -> dict[str, Any]:
    """What it said at its end; one that broke down, as Quix Streams does at times, runs again."""
    script = str(Path(__file__).parent / "streaming_peers" / f"{name}_peer.py")
    for attempt in range(PEER_ATTEMPTS):
        place = [*arguments[:2], f"{arguments[2]}_{attempt}", *arguments[3:]]
        done = subprocess.run(
            [python, script, *place], stdout=subprocess.PIPE, text=True, check=False
        )
        if said := done.stdout.splitlines():
            found: dict[str, Any] = json.loads(said[-1])
            return found
        print(f"  {name} ended with {done.returncode} and no figures", flush=True)
    raise SystemExit(f"{name} gave no figures in {PEER_ATTEMPTS} attempts.")


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """And every round's events a second."""
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    return {**middle, "rounds_events_per_s": [each["events_per_s"] for each in rounds]}


def environment(folder: Path, packages: Sequence[str]) -> str:
    """The Python of an environment with these packages; made once."""
    python = str(folder / "bin" / "python")
    stamp = folder / ".made"
    if not stamp.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        stamp.touch()
    return python


def commits(folder: Path, _rounds: int) -> dict[str, Any]:
    """Milliseconds of a commit over 1,000 of them, compaction on."""
    moments: list[float] = []

    def committed(_done: Committed) -> None:
        moments.append(time.perf_counter())

    with closing(SqliteBroker(folder / "broker.db", partitions=4)) as broker:
        fill(broker, NUM_COMMITS * ROWS_PER_COMMIT, batch=ROWS_PER_COMMIT * 10)
        moments.append(time.perf_counter())
        worker = consumer(broker, folder / "table", batch_rows=ROWS_PER_COMMIT, on_commit=committed)
        worker.drain(threading.Event())
    taken = sorted(1000 * (b - a) for a, b in zip(moments, moments[1:], strict=False))
    return {
        "commits": len(taken),
        "p50_ms": round(taken[len(taken) // 2], 1),
        "p99_ms": round(taken[int(len(taken) * 0.99)], 1),
        "max_ms": round(taken[-1], 1),
    }


def stopped(folder: Path, _rounds: int) -> dict[str, Any]:
    """Processors that were away for ten minutes of 1,000 events a second, and what catching up
    took; MiB are the most that was resident.
    """
    with closing(SqliteBroker(folder / "broker.db", partitions=4)) as broker:
        for _ in range(NUM_STOPPED // NUM_EVENTS):
            fill(broker, NUM_EVENTS)
        waited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        found = drained(broker, folder / "table", NUM_STOPPED)
        table = DeltaFeatureTable(
            folder / "table", project="bench", key="id", text="text", label="label"
        )
        places = [Partition(group="bench", topic=TOPIC, number=number) for number in range(4)]
        left = sum(
            broker.end_offset(TOPIC, place.number) - table.next_offset(place) for place in places
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"events": NUM_STOPPED, "left": left, "waiting_mib": waited, "peak_mib": peak, **found}


def memory(folder: Path, _rounds: int) -> dict[str, Any]:
    """The most that was resident while 5 million events went through the log to the table."""
    peaks = []
    with closing(SqliteBroker(folder / "broker.db", partitions=4)) as broker:
        for _ in range(NUM_LONG // NUM_EVENTS):
            fill(broker, NUM_EVENTS)
            consumer(broker, folder / "table").drain(threading.Event())
            broker.retain(TOPIC)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    for thread in threading.enumerate():
        if thread.name == "compaction":
            thread.join()
    return {"events": NUM_LONG, "first_mib": peaks[0], "peak_mib": peaks[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="also 5 million events")
    parser.add_argument(
        "--only", default="", help="one part: sqlite, kafka, commits, stopped, memory"
    )
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()
    parts = ["sqlite", "kafka", "commits", "stopped", *(["memory"] if said.long else [])]
    found: dict[str, Any] = {}
    for part in [said.only] if said.only else parts:
        with tempfile.TemporaryDirectory() as folder:
            made = globals()[part](Path(folder), said.rounds)
        found |= made if part == "kafka" else {part: made}
    for name, figures in found.items():
        print(f"  {name:<10}" + "  ".join(f"{k} {_shown(v)}" for k, v in figures.items()))
    if {"kafka", "quix", "bytewax"} <= set(found):
        ours = found["kafka"]["events_per_s"]
        for peer in ("quix", "bytewax"):
            print(f"  {ours / found[peer]['events_per_s']:.2f} times {peer}")
    print("  load " + " ".join(f"{load:.1f}" for load in os.getloadavg()))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    document = {**kept, **found, "machine": machine(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _shown(value: Any) -> str:
    return " ".join(map(_shown, value)) if isinstance(value, list) else f"{value:,}"


if __name__ == "__main__":
    main()

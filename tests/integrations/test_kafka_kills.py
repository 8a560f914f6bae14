"""Kafka as the broker: whoever is killed or sleeps, each change is in the table once, in order."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from integrations.kafka_child import FENCED, REFUSED
from integrations.kafka_servers import noida

POINTS = [
    "hop2.before_kafka_commit",
    "hop2.after_kafka_commit",
    "hop3.before_process",
    "hop3.after_process",
    "hop4.before_commit",
    "hop4.after_commit",
    "hop5.before_hint",
    "hop5.after_hint",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with noida(tmp_path_factory.mktemp("noida")) as found:
        yield found


def stored(folder: Path) -> list[dict[str, Any]]:
    from deltalake import DeltaTable

    columns = ["_key", "_version", "_partition", "_offset", "id", "label"]
    rows: list[dict[str, Any]] = (
        DeltaTable(str(folder / "table")).to_pyarrow_table(columns=columns).to_pylist()
    )
    return rows


class Rows:
    """The source: rows are added, and some are changed; every state lasts until it was polled."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.connection = sqlite3.connect(folder / "source.db", isolation_level=None)
        self.connection.execute(
            "create table rows (id integer primary key, text text, label text, changed_at integer)"
        )
        self.count, self._draw = 0, draw

    def add(self, count: int) -> None:
        self.connection.executemany(
            "insert into rows values (?, ?, 'a', ?)",
            [(i, f"text {i}", i) for i in range(self.count, self.count + count)],
        )
        self.count += count

    def check(self, folder: Path) -> None:
        found = stored(folder)
        assert sorted(row["id"] for row in found) == list(range(self.count))
        found.sort(key=lambda row: (row["_partition"], row["_offset"]))
        by_key: dict[str, list[int]] = {}
        for row in found:
            by_key.setdefault(row["_key"], []).append(row["_version"])
        assert all(versions == sorted(versions) for versions in by_key.values())


def kill_often(folder: Path, address: str, *, wanted: int, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    rows, counts = Rows(folder, draw), {"kills": 0, "zombies": 0, "refused": 0}
    command = [
        sys.executable, str(Path(__file__).with_name("kafka_child.py")), str(folder), address,
    ]  # fmt: skip
    rows.add(200)
    while counts["kills"] < wanted:
        point = POINTS[counts["kills"] % len(POINTS)]
        environment = {**os.environ, "AUTOGLM_FAILPOINT": f"{point}:kill@{draw.randint(1, 2)}"}
        code = subprocess.run(command, env=environment, check=False).returncode
        assert code in (0, -9)
        counts["kills"] += code == -9
        rows.add(120)
        if counts["kills"] % 5 == 2 and code == -9:
            sleeper = subprocess.Popen(command, stderr=subprocess.PIPE)
            time.sleep(draw.uniform(1.0, 3.0))
            sleeper.send_signal(signal.SIGSTOP)
            subprocess.run(command, check=True)
            rows.add(120)
            sleeper.send_signal(signal.SIGCONT)
            said = sleeper.communicate(timeout=120)[1].decode()
            assert sleeper.returncode in (0, FENCED, REFUSED), said
            counts["zombies"] += 1
            counts["refused"] += sleeper.returncode != 0
            if sleeper.returncode == REFUSED:
                print(said)
    subprocess.run(command, check=True)
    rows.check(folder)
    rows.connection.close()
    print(
        f"kafka: {counts['kills']} kills, {counts['zombies']} zombies ({counts['refused']} refused),"
        f" {rows.count} changes: 0 lost, 0 doubled, 0 out of order"
    )
    return counts


def test_kills_at_every_hop_of_kafka_neither_lose_nor_double_nor_reorder(
    address: str, tmp_path: Path
) -> None:
    assert kill_often(tmp_path, address, wanted=4, seed=5)["zombies"] >= 1


@pytest.mark.soak
def test_kills_by_the_hundred_on_kafka_neither_lose_nor_double_nor_reorder(
    address: str, tmp_path: Path
) -> None:
    kill_often(
        tmp_path,
        address,
        wanted=int(os.environ.get("KILLS", "60")),
        seed=int(os.environ.get("SEED", "0")),
    )

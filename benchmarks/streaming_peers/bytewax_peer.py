"""Bytewax: topic → decode, normalise, sha1 → Delta in batches of 10,000. In a venv of its own."""

import hashlib
import json
import sys
import time
from datetime import timedelta

import bytewax.operators as op
import pyarrow as pa
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from deltalake import write_deltalake

BOOTSTRAP, TOPIC, FOLDER = sys.argv[1:4]
times: list[float] = []


def work(message):
    if not times:
        times.extend([time.perf_counter(), time.process_time()])
    document = json.loads(message.value)
    text = document["row"]["text"].strip().lower()
    return {
        "key": message.key.decode(),
        "version": document["version"],
        "text": text,
        "sha": hashlib.sha1(text.encode()).hexdigest(),
    }


class Table(StatelessSinkPartition):
    def write_batch(self, items):
        for _key, rows in items:
            write_deltalake(FOLDER, pa.Table.from_pylist(rows), mode="append")
        times[2:] = [time.perf_counter(), time.process_time()]


class Delta(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Table()


flow = Dataflow("peer")
source = KafkaSource([BOOTSTRAP], [TOPIC], tail=False, batch_size=2000)
rows = op.map("work", op.input("in", flow, source), work)
keyed = op.key_on("one", rows, lambda _row: "all")
batches = op.collect("batch", keyed, timeout=timedelta(seconds=10), max_size=10_000)
op.output("out", batches, Delta())
run_main(flow)
print(json.dumps({"seconds": times[2] - times[0], "cpu_seconds": times[3] - times[1]}))

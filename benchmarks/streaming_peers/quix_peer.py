"""Quix Streams: topic → decode, normalise, sha1 → Delta in batches of 10,000. In its own venv."""

import hashlib
import json
import sys
import time
import uuid

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from quixstreams import Application
from quixstreams.sinks import BatchingSink

BOOTSTRAP, TOPIC, FOLDER, COUNT = sys.argv[1:5]
times: list[float] = []


def work(document):
    if not times:
        times.extend([time.perf_counter(), time.process_time()])
    text = document["row"]["text"].strip().lower()
    sha = hashlib.sha1(text.encode()).hexdigest()
    return {"version": document["version"], "text": text, "sha": sha}


class Delta(BatchingSink):
    written = 0

    def write(self, batch):
        rows = [{"key": str(item.key), **item.value} for item in batch]
        write_deltalake(FOLDER, pa.Table.from_pylist(rows), mode="append")
        times[2:] = [time.perf_counter(), time.process_time()]
        Delta.written += len(rows)


app = Application(
    broker_address=BOOTSTRAP,
    consumer_group=uuid.uuid4().hex,
    auto_offset_reset="earliest",
    commit_every=10_000,
    commit_interval=5,
    loglevel="WARNING",
)
frame = app.dataframe(app.topic(TOPIC, value_deserializer="json", key_deserializer="str"))
frame.apply(work).sink(Delta())
app.run(count=int(COUNT), timeout=90)
rows = DeltaTable(FOLDER).to_pyarrow_table(columns=["version"]).num_rows
assert rows == int(COUNT), rows
print(json.dumps({"seconds": times[2] - times[0], "cpu_seconds": times[3] - times[1]}))

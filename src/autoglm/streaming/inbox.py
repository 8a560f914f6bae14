"""Batches that somebody pushed, each a file that is on the disk before the sender hears of it.

The API writes, the stream process reads; each renames only what is its own. A file is called
`NUMBER.BATCH.CONTENT.json`, two digests behind the number; what was collected stays as an empty
`.done` for a week (the newest 10,000), so that a batch sent twice is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm import fail_points
from autoglm.errors import ConflictError, StorageError, from_system

RECEIPT_SECONDS = 7 * 24 * 3600
MAX_RECEIPTS, MAX_WAITING_BYTES = 10_000, 1 << 30

_before_rename = fail_points.declare("hop1.before_rename", "a pushed batch is written, not named")
_after_rename = fail_points.declare("hop1.after_rename", "a pushed batch is durable, not answered")


_one_writer = threading.Lock()  # a request makes an inbox of its own


@dataclass(frozen=True, slots=True)
class Stored:
    """`number` orders batches; `is_new` is False for one that was here before."""

    number: int
    is_new: bool


class Inbox:
    """One writing process, whose threads take turns; one reading process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, batch: str, events: Sequence[Mapping[str, Any]]) -> Stored:
        """Returns when the batch would survive a power cut. Idempotent by `batch`.

        Raises: ConflictError push.batch_conflict for other content under a known name, StorageError
        push.inbox_full, storage.full.
        """
        data = json.dumps({"batch": batch, "events": list(events)}).encode()
        name, content = _short(batch.encode("utf-8", "surrogatepass")), _short(data)
        with _one_writer:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return self._put(name, content, data)
            except OSError as error:
                raise from_system(error) or StorageError(f"{self.folder}: {error}.") from error

    def _put(self, name: str, content: str, data: bytes) -> Stored:
        newest, waiting = 0, 0
        for path in self._all():
            number, known, held, _ending = path.name.split(".")
            if known == name and held != content:
                raise ConflictError(
                    "another batch of this name was accepted before.",
                    code="push.batch_conflict",
                    retryable=False,
                    next_step="Give each batch a name of its own; send the same one only again.",
                )
            if known == name:
                return Stored(int(number), False)
            newest, waiting = max(newest, int(number)), waiting + _size(path)
        if waiting + len(data) > MAX_WAITING_BYTES:
            raise StorageError(
                f"{waiting:,} bytes wait to be collected.",
                code="push.inbox_full",
                next_step="Send it again later; is `autoglm up` collecting?",
            )
        staging = self.folder / f".{uuid.uuid4().hex}"
        with staging.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _before_rename()
        staging.rename(self.folder / f"{newest + 1:012d}.{name}.{content}.json")
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        _after_rename()
        return Stored(newest + 1, True)

    def _all(self) -> set[Path]:
        """Looked for twice: what is renamed during one look may be missed by it, never by both."""
        return {path for _look in range(2) for path in self.folder.glob("[0-9]*.*.*.*")}

    def after(self, number: int) -> Iterator[tuple[int, Path]]:
        """Batches behind `number` that wait, in their order."""
        for path in sorted(self.folder.glob("[0-9]*.json")):
            if (found := int(path.name.partition(".")[0])) > number:
                yield found, path

    def forget(self, number: int) -> None:
        """Everything up to `number` is stored elsewhere: keep receipts, for a week."""
        for path in sorted(self.folder.glob("[0-9]*.json")):
            if int(path.name.partition(".")[0]) > number:
                break
            done = path.with_suffix(".done")
            path.rename(done)
            os.truncate(done, 0)
        # The newest stays: the next number is counted from it.
        receipts = sorted(self.folder.glob("[0-9]*.done"))[:-1]
        for index, path in enumerate(receipts):
            is_old = path.stat().st_mtime < time.time() - RECEIPT_SECONDS
            if is_old or index < len(receipts) - MAX_RECEIPTS:
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # collected just now
        return 0


def _short(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

"""What others push to `POST /api/v1/events`, from the inbox where the API put it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.inbox import Inbox
from autoglm.streaming.row_key import RowKey

LOOK_SECONDS = 0.1
# Versions: the batch's number in the upper bits, the event's place in it below.
BATCH_SHIFT = 32


class PushSource:
    """Port Source; also `follow` and `acknowledge`."""

    def __init__(
        self,
        config: SourceConfig,
        *,
        project: str,
        base: Path,
        batch_rows: int,
        columns: Sequence[str] = (),
    ) -> None:
        del columns
        self._key, self._batch_rows = RowKey.of(config.key), batch_rows
        self._inbox = Inbox(base / (config.path or "inbox"))
        self.name = "push"
        self._make = Maker(project, self.name)

    @property
    def promise(self) -> str:
        return "takes what is pushed to /api/v1/events: each accepted batch once, in their order"

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """Raises: SourceError source.bad_inbox."""
        number, taken = _read(position)
        for found, path in self._inbox.after(number - 1 if taken else number):
            events = list(self._events(found, path))
            start = taken if found == number else 0
            for begin in range(start, len(events), self._batch_rows):
                end = begin + self._batch_rows
                is_last = end >= len(events)
                after = f"{found}" if is_last else f"{found}:{end}"
                yield self._make.batch(events[begin:end], after)

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, again and again; ends when cancelled."""
        while not cancel.is_set():
            for batch in self.read(position):
                position = batch.position
                yield batch
            cancel.wait(LOOK_SECONDS)

    def acknowledge(self, position: str) -> None:
        """Batches that are stored whole become receipts."""
        number, taken = _read(position)
        self._inbox.forget(number - 1 if taken else number)

    def _events(self, number: int, path: Path) -> Iterator[ChangeEvent]:
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        try:
            said: list[dict[str, Any]] = json.loads(path.read_bytes())["events"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path} is not what the API wrote: {error}.",
                code="source.bad_inbox",
                next_step="Look at it and move it away.",
            ) from error
        for index, event in enumerate(said):
            version = (number << BATCH_SHIFT) + index
            row = {str(name): plain(value) for name, value in event.get("row", {}).items()}
            try:
                named = self._named(event, row)
            except ValueError as error:
                yield self._dead(path, index, event, "source.bad_key", str(error), version, at)
                continue
            key = self._key.name_of(named)
            if not key:
                cause = f"neither key nor {self._key}"
                yield self._dead(path, index, event, "source.null_key", cause, version, at)
            elif event.get("op") == "delete":
                yield self._make.delete(key, version, at)
            else:
                yield self._make.upsert(key, named | row, version, at)

    def _named(self, event: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        """The key's columns. Raises: ValueError for a key that does not say them."""
        if "key" not in event:
            return {name: row[name] for name in self._key.columns if name in row}
        if not self._key.is_composite:
            return {self._key.columns[0]: event["key"]}
        return self._key.said_in(str(event["key"]))

    def _dead(
        self, path: Path, index: int, event: object, code: str, cause: str, version: int,
        at: datetime,
    ) -> ChangeEvent:  # fmt: skip
        where = f"{path.name}:{index}"
        return self._make.dead(where, event, code=code, cause=cause, version=version, at=at)


def _read(position: str) -> tuple[int, int]:
    """(number of the batch, events of it that are stored; 0: all)."""
    number, _, taken = position.partition(":")
    return int(number or 0), int(taken or 0)

"""Where a reader of a database's log is, as text that is stored with the batch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from autoglm.streaming.row_key import RowKey


@dataclass(frozen=True, slots=True)
class Part:
    """Keys above `above` (by bytes) were read in a snapshot of their own: `xmin:xmax:open`.

    What was visible there is not taken from the log again. Nothing visible there was committed
    at or after `until`.
    """

    above: str
    snapshot: str
    until: int

    def has_seen(self, xid: int) -> bool:
        """Whether the transaction (32 bits of its number, as the log says it) was visible."""
        low, high, still_open = self.snapshot.split(":")
        xmax = int(high)
        full = xmax - _signed(xmax - xid)
        if full < int(low):
            return True
        return full < xmax and str(full) not in still_open.split(",")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """`lsn`: all transactions that end at or before it are read. `within`: of the transaction
    that commits there, `count` changes too; of an unfinished snapshot that many rows.
    `version` is the newest that was given. `after` is the key that an unfinished snapshot got to,
    None when it is finished; `last` is the same key as events spell it (the server writes a time in
    another way).
    """

    server: str = ""
    lsn: int = 0
    within: int = 0
    count: int = 0
    version: int = 0
    after: str | None = ""
    parts: tuple[Part, ...] = ()
    last: str = ""

    @classmethod
    def read(cls, text: str) -> LogPosition:
        if not text:
            return cls()
        data: dict[str, Any] = json.loads(text)
        return cls(**{**data, "parts": tuple(Part(**part) for part in data["parts"])})

    def write(self) -> str:
        return json.dumps(asdict(self))

    def part_of(self, key: str, row_key: RowKey) -> Part | None:
        """The part that read this key, where that was not the first snapshot."""
        place = row_key.place(key) if self.parts else ()
        own = [part for part in self.parts if place > row_key.place(part.above)]
        return own[-1] if own else None


def _signed(distance: int) -> int:
    """The shorter way round between two 32-bit numbers."""
    distance &= 0xFFFFFFFF
    return distance - (1 << 32) if distance >= 1 << 31 else distance

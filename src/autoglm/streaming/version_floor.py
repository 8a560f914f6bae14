"""Versions that grow in the feature table, whoever gave the ones before.

A source counts from its own beginning. Under a new name (a renamed table, another kind, a new
topic) it would count below what the table holds of the same keys, and what is lower never becomes
the latest row. So its versions are raised by a base, which lies beside the source's position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoglm.contracts.change_event import ChangeBatch, Partition
from autoglm.plugins.kinds import Broker

MAX_EVENTS = 10_000
_FORM = re.compile(r"@(\d+):(-?\d+)@")


@dataclass(frozen=True, kw_only=True, slots=True)
class RaisedPosition:
    """`position` is the source's own; `base` is added to its versions, `newest` is the highest sum
    that was given so far (-1: none, or not known).
    """

    base: int = 0
    newest: int = -1
    position: str = ""

    @classmethod
    def read(cls, text: str) -> RaisedPosition:
        """A position that an older release stored has no base and does not know its newest."""
        form = _FORM.match(text)
        if form is None:
            return cls(position=text)
        return cls(base=int(form[1]), newest=int(form[2]), position=text[form.end() :])

    def write(self) -> str:
        return f"@{self.base}:{self.newest}@{self.position}"

    def above(self, newest: int) -> RaisedPosition:
        """With a base such that whatever comes is newer than `newest`, where that is not ours."""
        if newest <= self.newest:
            return self
        return replace(self, base=newest + 1, newest=newest)

    def after(self, batch: ChangeBatch) -> tuple[RaisedPosition, ChangeBatch]:
        """The position behind `batch` of the source, and the batch as it is stored."""
        base = self.base
        events = batch.events
        if base:
            events = tuple(replace(event, version=event.version + base) for event in events)
        newest = max((event.version for event in events), default=-1)
        raised = replace(self, position=batch.position, newest=max(self.newest, newest))
        return raised, replace(batch, events=events, position=raised.write())


def newest_waiting(broker: Broker, offsets: Mapping[Partition, int]) -> int:
    """The highest version behind `offsets`, -1 where nothing waits. Reads all that waits."""
    newest = -1
    for partition, start in offsets.items():
        offset, end = start, broker.end_offset(partition.topic, partition.number)
        while offset < end:
            fetched = broker.fetch(partition.topic, partition.number, offset, max_events=MAX_EVENTS)
            if fetched is None:
                break
            newest = max(newest, *(event.version for event in fetched.events))
            offset = fetched.range.end
    return newest

"""Messages of a topic that others can write to: ours come back exactly, anything else by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeEvent
from autoglm.streaming.json_message import MALFORMED, to_events, to_key, to_value

OURS = {
    "op": "upsert", "version": 7, "committed_at": "2026-01-02T03:04:05+00:00", "source": "s",
    "trace": "t", "row": {"id": 1},
}  # fmt: skip


def sent(*values: bytes | None) -> list[ChangeEvent]:
    found = to_events(
        [b"k"] * len(values), values, partition=0, offsets=range(len(values)), project="p"
    )
    return list(found)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"no JSON",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'"upsert"',
        b"null",
        json.dumps(OURS).encode() + b"," + json.dumps(OURS).encode(),
        *(
            json.dumps({**OURS, **changed}).encode()
            for changed in (
                {"op": "truncate"},
                {"op": ["upsert"]},
                {"op": "dead"},
                {"version": "7"},
                {"version": True},
                {"version": None},
                {"committed_at": "soon"},
                {"committed_at": 3},
                {"row": []},
                {"source": None},
                {"trace": 5},
            )
        ),
        *(
            json.dumps({k: v for k, v in OURS.items() if k != left_out}).encode()
            for left_out in OURS
        ),
    ],
)
def test_a_message_that_is_none_of_ours_is_known_as_that_and_spoils_no_other(value: Any) -> None:
    ours = json.dumps(OURS).encode()
    first, strange, last = sent(ours, value, ours)
    assert [e.row for e in (first, last)] == [{"id": 1}, {"id": 1}]
    assert [e.version for e in (first, last)] == [7, 7]
    assert set(strange.row) == {MALFORMED}
    assert strange.offset == 1


def test_what_we_send_comes_back_as_it_was() -> None:
    events = [
        ChangeEvent(
            project="p", source="s", key="k", op=op, version=i, row=row,
            committed_at=datetime(2026, 1, 2, tzinfo=UTC), partition=0, offset=i, traceparent="t",
        )
        for i, (op, row) in enumerate(
            [
                ("upsert", {"id": 1, "text": "naïve"}),
                ("delete", {}),
                ("dead", {"raw": "{", "cause": "no JSON", "code": "data.not_json"}),
                ("upsert", {"id": 2**70, "text": None}),
            ]
        )
    ]  # fmt: skip
    for part in (events, events[:1], events[1:2], events[2:3]):
        found = to_events(
            [to_key(e) for e in part], [_with_trace(e) for e in part], partition=0,
            offsets=[e.offset for e in part], project="p",
        )  # fmt: skip
        assert list(found) == part


def _with_trace(event: ChangeEvent) -> bytes:
    return to_value(event, event.source, event.traceparent)

"""Messages of a topic that others can write to: ours come back exactly, anything else by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoglm.contracts.change_event import ChangeEvent
from autoglm.streaming import json_message
from autoglm.streaming.json_columns import read_messages
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
                {"committed_at": "0001-01-01T00:00:00+23:59"},
                {"committed_at": "9999-12-31T23:59:59-23:59"},
                {"row": []},
                {"source": None},
                {"source": "\ud800"},
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


def test_a_key_or_a_column_that_is_no_text_is_left_to_the_processor() -> None:
    """Other programs send whole numbers as four bytes, say: the log must be read on behind them."""
    odd = json.dumps({**OURS, "row": {"\ud800": 1}}).encode()
    keys = [b"k", b"\xff\xfe", "\ud800".encode("utf-8", "surrogatepass")]
    found = to_events(keys, [odd] * 3, partition=0, offsets=range(3), project="p")
    assert [e.key for e in found] == ["k", "\udcff\udcfe", "\ud800"]
    assert [e.row for e in found] == [{"\ud800": 1}] * 3


def _with_trace(event: ChangeEvent) -> bytes:
    return to_value(event, event.traceparent)


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3))
ODD_NUMBERS = st.one_of(st.integers(2**63, 2**70), st.floats(), st.booleans())
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["2026-01-02", "12:00", "1", "null"]))
ODD_TEXTS = st.one_of(st.none(), st.sampled_from(["\ud800", "a\x00b"]), st.integers())
TIMES = st.sampled_from(
    ["2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05Z"]
)
ODD_TIMES = st.sampled_from(["soon", "2026-01-02", "2026-01-02T03:04:05", "2026-W01-1T00:00+00:00"])


def mostly(usual: Any, odd: Any) -> Any:
    """`odd` once in a while: most lists of messages then have none, some have one."""
    return st.integers(0, 200).flatmap(lambda n: usual if n else odd)


@st.composite
def messages(draw: Any) -> list[bytes]:
    names = draw(st.lists(st.sampled_from(["id", "text", "flag", "größe"]), unique=True))
    kinds = {
        "id": mostly(NUMBERS, ODD_NUMBERS), "text": mostly(TEXTS, ODD_TEXTS),
        "flag": mostly(st.booleans(), st.sampled_from([0, None, "true"])),
        "größe": mostly(NUMBERS, st.floats()),
    }  # fmt: skip
    document = st.fixed_dictionaries(
        {
            "op": mostly(st.sampled_from(["upsert", "delete"]), st.sampled_from(["dead", "x", 3])),
            "version": mostly(NUMBERS, ODD_NUMBERS),
            "committed_at": mostly(TIMES, ODD_TIMES),
            "source": mostly(TEXTS, ODD_TEXTS),
            "trace": mostly(TEXTS, ODD_TEXTS),
            "row": mostly(
                st.fixed_dictionaries({name: kinds[name] for name in names}),
                st.one_of(st.just({}), st.just([]), st.fixed_dictionaries({"id": NUMBERS, "_key": TEXTS})),
            ),
        }
    )  # fmt: skip
    found = [json.dumps(d).encode() for d in draw(st.lists(document, min_size=1, max_size=12))]
    odd = [b"", b" ", b"{}", b"{", found[0] + found[0], found[0][:-1] + b',"row":{}}',
           found[0].replace(b",", b",\n"), b'{"op":"upsert","row":{"text":"\xff"}}',
           *(json.dumps({**OURS, "row": {}, name: "?"}).encode().replace(b"?", b"\xff")
             for name in ("op", "source", "trace"))]  # fmt: skip
    return [draw(mostly(st.just(each), st.sampled_from(odd))) for each in found]


@settings(max_examples=300, deadline=None)
@given(messages())
@example([json.dumps(OURS).encode() + json.dumps(OURS).encode(), b" "])
@example([json.dumps({**OURS, "row": {"id": 1, "text": "2026-01-02"}}).encode()] * 2)
@example([json.dumps({**OURS, "row": {"_key": 1}}).encode()])
@example([json.dumps({**OURS, "source": "\ud800", "row": {}}).encode()])
@example([json.dumps(OURS).encode(), json.dumps(OURS).encode().replace(b"upsert", b"upser\xff")])
@example([json.dumps(OURS).encode(), json.dumps(OURS).encode().replace(b'"s"', b'"\xff"')])
@example([json.dumps(OURS).encode(), json.dumps(OURS).encode().replace(b'"t"', b'"\xff"')])
@example([json.dumps(OURS).encode(), json.dumps(OURS).encode().replace(b"2026", b"0000")])
def test_arrow_reads_a_message_as_python_does_or_leaves_it(values: list[bytes]) -> None:
    said = read_messages(["k"] * len(values), values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_message, "FEW", 10**9)
        wanted = sent(*values)
    if said is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_message, "FEW", 0)
        found = sent(*values)
    assert [_shown(e) for e in found] == [_shown(e) for e in wanted]


def _shown(event: ChangeEvent) -> str:
    """Without the time at which a message was found to be none of ours."""
    return repr(replace(event, committed_at=NOON) if MALFORMED in event.row else event)


def test_rows_of_texts_whole_numbers_and_booleans_are_read_by_arrow() -> None:
    rows = [{"id": i, "text": "naïve\n\U0001f600", "flag": i % 2 == 0} for i in range(40)]
    values = [json.dumps({**OURS, "row": row}).encode() for row in rows]
    assert read_messages(["k"] * 40, values) is not None
    assert [e.row for e in sent(*values)] == rows

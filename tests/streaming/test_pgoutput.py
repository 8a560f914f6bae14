"""The decoder against bytes that no server would send, and against what it means to compare."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.log_position import LogPosition, Part
from autoglm.streaming.collectors.log_reader import LogReader
from autoglm.streaming.collectors.pgoutput import Decoder, Insert, converter
from autoglm.streaming.row_key import RowKey

RELATION = (
    b"R" + struct.pack("!i", 7) + b"public\0rows\0d" + struct.pack("!h", 2)
    + b"\1id\0" + struct.pack("!ii", 20, -1) + b"\0text\0" + struct.pack("!ii", 25, -1)
)  # fmt: skip


def insert(number: str, text: str) -> bytes:
    values = [value.encode() for value in (number, text)]
    cells = b"".join(b"t" + struct.pack("!i", len(value)) + value for value in values)
    return b"I" + struct.pack("!i", 7) + b"N" + struct.pack("!h", 2) + cells


@given(st.integers(-(2**63), 2**63 - 1), st.text())
def test_a_row_is_read_as_it_was_written(number: int, text: str) -> None:
    decoder = Decoder()
    decoder.decode(RELATION)
    message = decoder.decode(insert(str(number), text))
    assert isinstance(message, Insert)
    assert message.row == {"id": number, "text": text}


@settings(max_examples=300)
@example(data=b"B" + struct.pack("!qqi", 0, 2**58, 0), cut=0)  # begun after the year 9999
@given(st.binary(max_size=60), st.integers(0, 40))
def test_broken_bytes_are_refused_by_name_and_never_become_a_row(data: bytes, cut: int) -> None:
    decoder = Decoder()
    decoder.decode(RELATION)
    whole = insert("12", "some text")
    with pytest.raises(ValueError):  # noqa: PT011
        decoder.decode(whole[: min(cut, len(whole) - 1)])
    try:
        decoder.decode(data)
    except ValueError:
        return


@given(st.lists(st.one_of(st.none(), st.text())))
def test_an_array_of_texts_becomes_the_json_of_its_list(values: list[str | None]) -> None:
    import json

    def quoted(value: str | None) -> str:
        if value is None:
            return "NULL"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    convert = converter(1009)
    assert convert is not None
    assert json.loads(convert("{" + ",".join(map(quoted, values)) + "}")) == values


@pytest.mark.parametrize(
    ("snapshot", "xid", "is_seen"),
    [
        ("100:110:100,105", 99, True),
        ("100:110:100,105", 100, False),
        ("100:110:100,105", 104, True),
        ("100:110:100,105", 105, False),
        ("100:110:100,105", 110, False),
        ("4294967290:4294967300:4294967299", 2**32 - 1, True),  # the log says 32 bits of a number
        ("4294967290:4294967300:4294967299", 3, False),
        ("4294967290:4294967300:4294967299", 2, True),
        ("4294967290:4294967300:4294967299", 5, False),
    ],
)
def test_a_snapshot_says_which_transactions_it_had_seen(
    snapshot: str, xid: int, is_seen: bool
) -> None:
    assert Part(above="k", snapshot=snapshot, until=1).has_seen(xid) == is_seen


def _has_seen(position: LogPosition, key: str, xid: int) -> bool:
    part = position.part_of(key, RowKey.of("id"))
    return part is not None and part.has_seen(xid)


def test_of_several_snapshots_the_one_that_read_the_key_counts() -> None:
    parts = (Part("b", "10:10:", 1), Part("d", "20:20:", 1))
    position = LogPosition(server="s", lsn=1, parts=parts)
    assert [_has_seen(position, key, 15) for key in ("a", "b", "c", "d", "e")] == [
        False, False, False, False, True,
    ]  # fmt: skip
    assert LogPosition.read(position.write()) == position


def test_few_rows_of_megabytes_fill_a_batch_too() -> None:
    known = LogPosition("s", 1, 0, 0, 1, None, ())
    reader = LogReader(
        known, Maker("p", "s"), key=RowKey.of("id"), table="rows", number=7, truncate="stop",
        look_up=lambda _column, _key: None,
    )  # fmt: skip
    decoder, filled = Decoder(), []
    reader.take(decoder.decode(RELATION))
    reader.take(decoder.decode(b"B" + struct.pack("!qqi", 100, 0, 5)))
    for number in range(20):
        reader.take(decoder.decode(insert(str(number), "x" * 10_000_000)))
        if reader.is_full(10_000):
            filled.append(len(reader.events))
            reader.taken()
    assert filled == [7, 7]

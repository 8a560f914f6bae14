"""From a row to its table version; what two versions differ in; a row taken out for good."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autoglm.contracts.change_event import ChangeEvent, DeadLetter, OffsetRange, Partition
from autoglm.datasets.comparison import compare
from autoglm.datasets.erasure import collect_garbage, erase, last_erasure
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.datasets.row_history import RowHistory
from autoglm.errors import DataError
from autoglm.observability.tracing import new_traceparent, trace_id_of

PARTITION = Partition(group="g", topic="t", number=0)


class Filled:
    """A table with commits of its own; `versions` names the commit of each offset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = DeltaFeatureTable(folder, project="p", key="id", text="text", label="label")
        self.traces: list[str] = []
        self.versions: list[int] = []

    def add(self, *rows: tuple[str, dict[str, Any] | None], dead: tuple[str, ...] = ()) -> int:
        trace, start = new_traceparent(), len(self.versions)
        events = [
            ChangeEvent(
                project="p", source="s", key=key, op="upsert" if row else "delete",
                version=start + i, row=row or {}, committed_at=datetime(2026, 1, 1, tzinfo=UTC),
                partition=0, offset=start + i, traceparent=trace,
            )
            for i, (key, row) in enumerate(rows)
        ]  # fmt: skip
        letters = [
            DeadLetter(
                project="p", key=key, raw="{}", cause="no text", code="data.empty_text",
                partition=0, offset=start + len(rows) + i, traceparent=trace,
            )
            for i, key in enumerate(dead)
        ]  # fmt: skip
        end = start + len(rows) + len(dead)
        version = self.table.commit(
            events,
            letters,
            {PARTITION: OffsetRange(start=start, end=end)},
            positions={"s": str(end)},
            traceparent=trace,
        )
        self.traces += [trace_id_of(trace)] * (end - start)
        self.versions += [version] * (end - start)
        return version


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path / "table")


def row(number: int, label: str = "a") -> tuple[str, dict[str, Any]]:
    return str(number), {"id": number, "text": f"text {number}", "label": label}


def history(filled: Filled) -> RowHistory:
    return RowHistory(table=filled.table, group="g", topic="t")


def test_each_of_a_thousand_rows_in_forty_batches_leads_to_its_version_and_trace(
    filled: Filled,
) -> None:
    for start in range(0, 1000, 25):
        filled.add(*(row(number) for number in range(start, start + 25)))
    filled.table._compact()
    found = history(filled).of_many([str(number) for number in range(1000)])
    for number in range(1000):
        (change,) = found[str(number)]
        assert (change.table_version, change.trace_id) == (
            filled.versions[number],
            filled.traces[number],
        )
    for number in range(0, 1000, 100):
        version = found[str(number)][0].table_version
        keys, before = (
            filled.table.read(at, columns=["_key"])["_key"].to_pylist()
            for at in (version, version - 1)
        )
        assert str(number) in keys
        assert str(number) not in before


def test_a_rows_changes_come_in_order_dead_ones_and_deletes_too(filled: Filled) -> None:
    filled.add(row(1), row(2), dead=("1",))
    filled.add(row(1, "b"))
    filled.add(("1", None))
    changes = history(filled).of("1")
    assert sorted(c.op for c in changes) == ["dead", "delete", "upsert", "upsert"]
    alive = [c for c in changes if c.op != "dead"]
    assert [c.op for c in alive] == ["upsert", "upsert", "delete"]
    assert [c.row.get("label") for c in alive] == ["a", "b", None]
    (dead,) = [c for c in changes if c.op == "dead"]
    assert (dead.code, dead.cause) == ("data.empty_text", "no text")
    assert history(filled).of("3") == []


def test_two_versions_differ_in_what_came_went_and_changed(filled: Filled) -> None:
    before = filled.add(row(1), row(2), row(3), row(4))
    new_text = {"id": 3, "text": "other", "label": "a"}
    after = filled.add(row(2, "b"), ("3", new_text), ("4", None), ("5", row(5, "c")[1]))
    found = compare(filled.table, before, after)
    assert (found.added, found.removed) == (("5",), ("4",))
    assert (found.changed, found.relabelled) == (("3",), ("2",))
    assert found.labels == {"a": (4, 2), "b": (0, 1), "c": (0, 1)}
    assert compare(filled.table, after, after).is_empty


def test_an_erased_row_is_gone_from_every_file_once_garbage_is_collected(filled: Filled) -> None:
    secret = {"id": 1, "text": "a very private text", "label": "a"}
    old = filled.add(("1", secret), row(2), dead=("1",))
    filled.table.pin(old, "somebody")
    filled.add(row(3))
    erased = erase(filled.table, "1")
    assert erased.changes == 2
    assert filled.table.read()["_key"].to_pylist() == ["2", "3"]
    assert filled.table.num_dead() == 0
    assert filled.table.next_offset(PARTITION) == 4, "what was read is not read again"
    assert filled.table.read(old).num_rows == 2, "until garbage is collected"
    assert last_erasure(filled.table) == erased.version
    assert collect_garbage(filled.table, [], is_dry_run=True)
    assert collect_garbage(filled.table, [old])
    with pytest.raises(DataError) as caught:
        filled.table.read(old)
    assert caught.value.code == "data.version_gone"
    bytes_left = b"".join(f.read_bytes() for f in filled.folder.rglob("*") if f.is_file())
    assert b"very private" not in bytes_left
    filled.add(row(4))
    assert filled.table.read()["_key"].to_pylist() == ["2", "3", "4"]


def test_garbage_leaves_what_is_kept_and_pinned(filled: Filled) -> None:
    versions = [filled.add(row(number)) for number in range(4)]
    filled.table._compact()
    filled.table.pin(versions[0], "a run")
    assert collect_garbage(filled.table, [versions[2]])
    assert filled.table.read(versions[0]).num_rows == 1
    assert filled.table.read(versions[2]).num_rows == 3
    assert filled.table.read().num_rows == 4
    filled.table.unpin("a run")
    assert filled.table.pins() == {}


@pytest.mark.parametrize("key", ["9", "' or 1 = 1 --", "'; drop table x"])
def test_a_key_that_is_not_there_erases_nothing(filled: Filled, key: str) -> None:
    with pytest.raises(DataError, match="no row"):
        erase(filled.table, key)
    filled.add(row(1))
    with pytest.raises(DataError, match="no row") as caught:
        erase(filled.table, key)
    assert caught.value.code == "data.no_such_row"
    assert filled.table.read().num_rows == 1


def test_a_key_with_quotes_is_erased_alone(filled: Filled) -> None:
    name = 'o\'brien "x" \\ 100%'
    filled.add((name, row(1)[1]), row(2))
    assert erase(filled.table, name).changes == 1
    assert filled.table.read()["_key"].to_pylist() == ["2"]


def test_versions_are_found_in_a_file_that_an_erasure_wrote_anew(filled: Filled) -> None:
    filled.add(*map(row, range(5)), dead=("letter",))
    erase(filled.table, "4")
    assert filled.table.newest_versions(["1", "9", "letter"]) == {"1": 1}

"""The table's log names the sources' positions and quotes nothing of them."""

from __future__ import annotations

import json
from pathlib import Path

from deltalake import CommitProperties, write_deltalake

from autoglm.contracts.change_event import OffsetRange
from autoglm.datasets.feature_table import DeltaFeatureTable
from feature_tables import PARTITION, TRACE, made, table_at

KEY = "ada@example.com"
LONG = json.dumps({f"{number}-{KEY}": number for number in range(5000)})


def add(table: DeltaFeatureTable, source: str, position: str) -> None:
    start = table.next_offset(PARTITION)
    table.commit(
        [made("1", start, id=1, text="one", label="a")],
        [],
        {PARTITION: OffsetRange(start=start, end=start + 1)},
        positions={source: position},
        traceparent=TRACE,
    )


def log_of(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("_delta_log/*.json"))]


def test_a_position_that_holds_keys_leaves_none_in_the_log(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    for position in (LONG, json.dumps({KEY: 1})):
        add(table, "full", position)
    assert not any(KEY in entry or len(entry) > 10_000 for entry in log_of(tmp_path))


def test_one_position_has_one_name_and_another_has_another(tmp_path: Path) -> None:
    table, names = table_at(tmp_path), []
    for position in ("1", "2", "1"):
        add(table, "s", position)
        found = table.provenance()
        assert found is not None
        names.append(found.positions["s"])
    assert names[0] == names[2] != names[1]


def test_what_older_commits_quoted_is_read_and_not_carried_on(tmp_path: Path) -> None:
    add(table_at(tmp_path), "other", "1")
    table = table_at(tmp_path)
    handle = table.open()
    facts = {"positions": json.dumps({"old": LONG}), "traceparent": TRACE, "rows": "0", "dead": "0"}
    rows = handle.to_pyarrow_table().slice(0, 0)
    write_deltalake(handle, rows, mode="append", commit_properties=CommitProperties(facts))
    before = table.provenance()
    add(table, "new", "1")
    after = table.provenance()
    assert before is not None
    assert after is not None
    assert set(after.positions) == {"old", "new"}
    assert after.positions["old"] == before.positions["old"] != LONG
    assert KEY not in log_of(tmp_path)[-1]

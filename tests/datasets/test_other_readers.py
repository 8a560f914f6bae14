"""A column comes, or becomes wider, and other readers of Delta see the same."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from autoglm import fail_points
from autoglm.datasets.erasure import collect_garbage, erase
from autoglm.datasets.feature_table import COMPACTED_ROWS, DeltaFeatureTable
from autoglm.datasets.row_history import RowHistory
from autoglm.errors import StorageError
from feature_tables import PARTITION, add, rows, table_at


@pytest.fixture
def table(tmp_path: Path) -> DeltaFeatureTable:
    return table_at(tmp_path / "table")


def column(table: DeltaFeatureTable, name: str, version: int | None = None) -> dict[str, Any]:
    latest = table.read(version, columns=["_key", name])
    return dict(zip(latest["_key"].to_pylist(), latest[name].to_pylist(), strict=True))


def by_ours(folder: Path) -> list[dict[str, Any]]:
    """Every entry of the log."""
    return table_at(folder).open().to_pyarrow_table().to_pylist()


def by_polars(folder: Path) -> list[dict[str, Any]]:
    polars = pytest.importorskip("polars")
    return polars.read_delta(str(folder)).to_dicts()


def by_duckdb(folder: Path) -> list[dict[str, Any]]:
    """By its own reader of Delta, which shares nothing with ours."""
    duckdb = pytest.importorskip("duckdb")
    shipped = pytest.importorskip("duckdb_extension_delta").__path__[0]
    name = f"extensions/v{duckdb.__version__}/delta.duckdb_extension"
    settings = {"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"}
    with duckdb.connect(config=settings) as connection:
        connection.execute(f"load '{shipped}/{name}'")
        found = connection.execute(f"select * from delta_scan('{folder}')")
        rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
        return rows


def alike(entries: list[dict[str, Any]]) -> list[list[tuple[str, Any]]]:
    """In one order; times as numbers, since each reader has a zone object of its own."""
    plain = [
        sorted((k, v.timestamp() if isinstance(v, datetime) else v) for k, v in entry.items())
        for entry in entries
    ]
    return sorted(plain, key=repr)


def test_whole_numbers_become_fractions_when_the_first_one_comes(
    table: DeltaFeatureTable,
) -> None:
    before = add(table, *rows(1, 2, price=3), *rows(3))
    after = add(table, *rows(4, price=2.5))
    assert column(table, "price") == {"1": 3.0, "2": 3.0, "3": None, "4": 2.5}
    assert column(table, "price", before) == {"1": 3, "2": 3, "3": None}
    assert table.open(before).schema().to_arrow() is not None
    assert pa.schema(table.open().schema()).field("price").type == pa.float64()
    assert table.next_offset(PARTITION) == 4
    assert [each.version for each in table.versions()] == [after, before], "no rows, no version"
    changes = RowHistory(table=table, group="g", topic="t").of_many(["1", "4"])
    assert [changes[key][0].table_version for key in "14"] == [before, after]
    add(table, *rows(5, price=7))  # whole numbers go on coming
    assert column(table, "price")["5"] == 7.0


def test_several_columns_widen_at_once_and_new_ones_come_with_them(
    table: DeltaFeatureTable,
) -> None:
    add(table, *rows(1, price=3, size=4))
    add(table, *rows(2, price=0.5, size=0.25, colour="red"))
    latest = table.read(columns=["price", "size", "colour"]).to_pylist()
    assert latest == [
        {"price": 3.0, "size": 4.0, "colour": None},
        {"price": 0.5, "size": 0.25, "colour": "red"},
    ]


def test_a_fraction_is_no_reason_to_rename_the_classes_of_a_label(
    table: DeltaFeatureTable,
) -> None:
    add(table, {"id": 1, "text": "x", "label": 1}, {"id": 2, "text": "y", "label": 2})
    add(table, {"id": 3, "text": "z", "label": 1.5})
    assert column(table, "label") == {"1": 1, "2": 2}
    assert table.dead()["_code"].to_pylist() == ["data.mixed_labels"]


def test_stopped_between_widening_and_rows_the_rows_come_once(table: DeltaFeatureTable) -> None:
    add(table, *rows(1, price=3))
    fail_points.arm("hop4.before_commit:raise")
    try:
        with pytest.raises(StorageError):
            add(table, *rows(2, price=0.5))
    finally:
        fail_points.arm("")
    assert column(table, "price") == {"1": 3.0}
    assert table.next_offset(PARTITION) == 1
    add(table, *rows(2, price=0.5))
    assert column(table, "price") == {"1": 3.0, "2": 0.5}


@pytest.mark.parametrize("reader", [by_polars, by_duckdb])
def test_other_readers_of_delta_see_what_we_see(
    table: DeltaFeatureTable, tmp_path: Path, reader: Callable[[Path], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "table"

    def agree(count: int) -> None:
        theirs, ours = reader(folder), by_ours(folder)
        assert len(ours) == count
        assert alike(theirs) == alike(ours)

    add(table, *rows(1, 2, price=3))
    add(table, *rows(3, 4, colour="blue"))
    agree(4)
    add(table, *rows(5, price=2.5))
    agree(5)
    assert {type(row["price"]) for row in reader(folder)} == {float, type(None)}
    table._compact()
    agree(5)
    erase(table, "2")
    agree(4)
    collect_garbage(table, [])
    agree(4)
    assert math.isclose(sum(row["price"] or 0 for row in reader(folder)), 5.5)


def test_a_compaction_writes_small_compressed_groups_so_that_it_holds_few_rows_at_a_time(
    table: DeltaFeatureTable, tmp_path: Path
) -> None:
    for start in (0, 40_000):
        add(table, *rows(*range(start, start + 40_000)))
    before = {*(tmp_path / "table").rglob("*.parquet")}
    table._compact()
    (made,) = {*(tmp_path / "table").rglob("*.parquet")} - before
    facts = parquet.ParquetFile(made).metadata
    assert facts.num_rows == 80_000
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    assert max(group.num_rows for group in groups) <= COMPACTED_ROWS
    assert {group.column(0).compression for group in groups} == {"ZSTD"}


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_compaction_that_is_killed_changes_no_row_and_hinders_no_other(
    table: DeltaFeatureTable, tmp_path: Path, point: str
) -> None:
    child = [sys.executable, str(Path(__file__).with_name("kill_child.py")), tmp_path / "table"]
    arming = {**os.environ, "AUTOGLM_FAILPOINT": f"hop6.{point}_compaction:kill"}
    killed = subprocess.run([*child, "5"], env=arming, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert len(by_ours(tmp_path / "table")) == 10
    subprocess.run([*child, "1"], check=True, timeout=300)
    assert len(by_ours(tmp_path / "table")) == 12
    (part,) = {file.parent for file in (tmp_path / "table").rglob("*.parquet")}
    assert part.name == "_op=upsert"
    assert len(table.open().file_uris()) == 1
    assert table.next_offset(PARTITION) == 12

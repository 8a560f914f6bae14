"""Rows that several columns name together: one spelling of their key, whoever reads them."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoglm.cli.commands import app
from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import ConfigError, DataError, SourceError
from autoglm.loop.change_to_dataset import collect_changes
from autoglm.loop.explain import explain_row
from autoglm.loop.upkeep import erase_row
from autoglm.project import Project
from autoglm.settings import load_settings
from autoglm.streaming.collectors.folder import FolderSource
from autoglm.streaming.collectors.push import PushSource
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.inbox import Inbox
from autoglm.streaming.row_key import RowKey

KEY = ("shop", "id")


def read(source: Any, position: str = "") -> tuple[list[ChangeEvent], str]:
    events: list[ChangeEvent] = []
    for batch in source.read(position):
        events += batch.events
        position = batch.position
    return events, position


def shown(events: list[ChangeEvent]) -> list[tuple[str, str]]:
    return [(event.op, event.key) for event in events]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2))
def test_a_key_says_its_parts_and_no_two_rows_share_one(parts: list[str]) -> None:
    key = RowKey.of(KEY)
    name = key.name(parts)
    assert key.parts(name) == tuple(parts)
    assert json.loads(name) == parts
    assert key.spelled(json.dumps(parts, indent=1)) == name
    assert key.name_of(dict(zip(KEY, parts, strict=True))) == name


@pytest.mark.parametrize("missing", [{"shop": "de"}, {"shop": "de", "id": None}, {"shop": "", "id": 7}, {"shop": "de", "id": b""}])  # fmt: skip
def test_a_part_that_is_missing_leaves_the_row_without_a_name(missing: dict[str, Any]) -> None:
    assert RowKey.of(KEY).name_of(missing) == ""


@pytest.mark.parametrize("name", ["7", "de", '["de"]', '{"shop": "de"}'])
def test_a_position_of_another_key_stops_by_name(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        RowKey.of(KEY).parts(name)
    assert caught.value.code == "source.key_changed"


@pytest.mark.parametrize("said", ['["de", null]', "[" * 100_000, '["de"]', "de", '{"id": 7}'])
def test_what_no_row_is_called_is_not_taken_for_another(said: str) -> None:
    assert RowKey.of(KEY).spelled(said) == said


PROJECT = """\
project: p
model: {backbone: conv}
data: {source: {kind: push, key: KEY}, text: body, label: topic}
"""


def test_a_configuration_says_one_column_or_several(tmp_path: Path) -> None:
    file = tmp_path / "autoglm.yaml"
    file.write_text(PROJECT.replace("KEY", "[shop, id]"))
    assert load_settings(tmp_path).settings.data.source.key == KEY
    assert load_settings(tmp_path, assignments=['data.source.key=["a", "b"]']).settings.data.source.key == ("a", "b")  # fmt: skip
    assert (
        load_settings(tmp_path, assignments=["data.source.key=id"]).settings.data.source.key == "id"
    )
    for wrong in ("[]", "[id, id]", "[id, '']", "{a: 1}"):
        file.write_text(PROJECT.replace("KEY", wrong))
        with pytest.raises(ConfigError, match="key"):
            load_settings(tmp_path)


def shop(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "s.db", isolation_level=None)
    connection.execute("create table rows (shop text, id int, text text, at int)")
    connection.execute(
        "insert into rows values ('de', 7, 'a', 1), ('de', 8, 'b', 2), ('fr', 7, 'c', 2)"
    )
    return connection


def polled(folder: Path, **said: Any) -> SqlPollSource:
    config = SourceConfig(url="sqlite:///s.db", table="rows", key=KEY, **said)
    return SqlPollSource(config, project="p", base=folder, batch_rows=2)


@pytest.mark.parametrize("cursor", ["", "at"])
def test_a_polled_table_names_its_rows_by_both_columns(cursor: str, tmp_path: Path) -> None:
    with closing(shop(tmp_path)) as connection:
        events, position = read(polled(tmp_path, cursor=cursor))
        assert shown(events) == [
            ("upsert", '["de","7"]'), ("upsert", '["de","8"]'), ("upsert", '["fr","7"]'),
        ]  # fmt: skip
        connection.execute("update rows set text = 'new', at = 3 where shop = 'fr'")
        connection.execute("delete from rows where shop = 'de' and id = 7")
        events, position = read(polled(tmp_path, cursor=cursor), position)
        deletes = [] if cursor else [("delete", '["de","7"]')]
        assert shown(events) == [("upsert", '["fr","7"]'), *deletes]

        connection.execute("insert into rows values ('fr', 7, 'twin', 4)")
        with pytest.raises(SourceError, match="shop = fr, id = 7") as caught:
            read(polled(tmp_path, cursor=cursor), position)
        assert caught.value.code == "source.duplicate_key"
        connection.execute("update rows set id = null where text = 'twin'")
        with pytest.raises(SourceError, match="without shop, id") as caught:
            read(polled(tmp_path, cursor=cursor), position)
        assert caught.value.code == "source.null_key"


def test_files_of_a_folder_name_their_rows_by_both_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("shop,id,text\nde,7,a\nde,,b\n")
    (tmp_path / "b.jsonl").write_text('{"shop": "fr", "id": 7, "text": "c"}\n')
    pq.write_table(pa.table({"shop": ["it"], "id": [7], "text": ["d"]}), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("shop,text\nde,x\n")

    def watched() -> FolderSource:
        config = SourceConfig(kind="folder", path=".", key=KEY)
        return FolderSource(config, project="p", base=tmp_path, batch_rows=100)

    events, position = read(watched())
    assert sorted(shown(events)) == [
        ("dead", "a.csv:3"), ("dead", "d.csv"), ("upsert", '["de","7"]'), ("upsert", '["fr","7"]'),
        ("upsert", '["it","7"]'),
    ]  # fmt: skip
    codes = {event.key: event.row["code"] for event in events if event.op == "dead"}
    assert codes == {"a.csv:3": "source.null_key", "d.csv": "source.no_column"}
    (tmp_path / "b.jsonl").unlink()
    assert shown(read(watched(), position)[0]) == [("delete", '["fr","7"]')]


def test_pushed_rows_are_named_by_both_columns_or_by_a_key_that_says_them(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").put("b", [
        {"row": {"shop": "de", "id": 7, "body": "x"}}, {"key": '["fr", 7]', "row": {"body": "y"}},
        {"op": "delete", "row": {"shop": "de", "id": 7}}, {"op": "delete", "key": '["fr","7"]'},
        {"key": "7", "row": {}}, {"row": {"shop": "de"}},
    ])  # fmt: skip
    config = SourceConfig(kind="push", key=KEY)
    events, _position = read(PushSource(config, project="p", base=tmp_path, batch_rows=100))
    assert shown(events[:4]) == [
        ("upsert", '["de","7"]'), ("upsert", '["fr","7"]'), ("delete", '["de","7"]'),
        ("delete", '["fr","7"]'),
    ]  # fmt: skip
    assert (events[1].row["shop"], events[1].row["id"]) == ("fr", 7)
    assert [e.row["code"] for e in events[4:]] == ["source.bad_key", "source.null_key"]


def test_a_person_may_spell_a_key_with_blanks_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "autoglm.yaml").write_text(
        "project: p\nmodel: {backbone: conv}\n"
        "data: {source: {url: 'sqlite:///s.db', table: rows, key: [shop, id]}, text: text, label: at}\n"
    )
    shop(tmp_path).close()
    project = Project(tmp_path)
    project.engine.dispose()
    collect_changes(project, threading.Event(), lambda _event: None)
    found = explain_row(project, '["de", 7]')
    assert (found["key"], [c["op"] for c in found["changes"]]) == ('["de","7"]', ["upsert"])
    assert erase_row(project, '["de", "7"]').changes == 1
    with pytest.raises(DataError, match=r"no row with the key .*udcff"):
        explain_row(project, r'["\udcff", 7]')
    with pytest.raises(DataError, match=r"JSON arrays of the values of shop, id"):
        explain_row(project, '["de","7"]')


def test_a_table_whose_primary_key_has_several_columns_becomes_a_project_with_that_key(
    tmp_path: Path,
) -> None:
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute(
            "create table rows (shop text, id int, body text, topic text, primary key (shop, id))"
        )
        connection.executemany(
            "insert into rows values (?, ?, ?, ?)",
            [("de", n, f"some words {n}", "ab"[n % 2]) for n in range(20)],
        )
    made = CliRunner().invoke(app, [
        "init", str(tmp_path / "p"), "--source", f"sqlite:///{tmp_path}/s.db", "--table", "rows",
        "--backbone", "conv", "--json",
    ])  # fmt: skip
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["key"] == ["shop", "id"]
    assert load_settings(tmp_path / "p").settings.data.source.key == KEY

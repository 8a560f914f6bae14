"""The suite for plugin authors, on every source of the product that needs no server of others."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.plugins.kinds import Source
from autoglm.streaming.collectors.folder import FolderSource
from autoglm.streaming.collectors.push import PushSource
from autoglm.streaming.collectors.sql_poll import SqlPollSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.inbox import Inbox
from autoglm.testing.source_suite import SourceSuite
from servers import MariaDb, Postgres

_names = itertools.count()


class SqliteWorld:
    def __init__(self, folder: Path, **said: Any) -> None:
        self._folder, self._clock = folder, itertools.count(1)
        self._config = SourceConfig(url="sqlite:///a.db", table="rows", key="id", **said)
        self._do("create table rows (id integer primary key, text text, changed integer)")

    def open(self, *, batch_rows: int = 100) -> Source:
        return SqlPollSource(
            self._config, project="suite", base=self._folder, batch_rows=batch_rows
        )

    def upsert(self, key: str, text: str) -> None:
        self._do("insert or replace into rows values (?, ?, ?)", int(key), text, next(self._clock))

    def delete(self, key: str) -> None:
        self._do("delete from rows where id = ?", int(key))

    def _do(self, statement: str, *values: Any) -> None:
        connection = sqlite3.connect(self._folder / "a.db")
        connection.execute(statement, values)
        connection.commit()
        connection.close()


class TestFullDiff(SourceSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> SqliteWorld:
        return SqliteWorld(tmp_path, mode="full_diff")


class TestCursor(SourceSuite):
    sees_deletes = False

    @pytest.fixture
    def world(self, tmp_path: Path) -> SqliteWorld:
        return SqliteWorld(tmp_path, cursor="changed")


class FolderWorld:
    """A file per row."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._clock = folder / "in", itertools.count(1)
        self._folder.mkdir()
        (self._folder / "empty.csv").write_text("id\n")

    def open(self, *, batch_rows: int = 100) -> Source:
        config = SourceConfig(kind="folder", path="in", key="id")
        return FolderSource(
            config, project="suite", base=self._folder.parent, batch_rows=batch_rows
        )

    def upsert(self, key: str, text: str) -> None:
        staging = self._folder / f".{key}"
        staging.write_text(json.dumps({"id": int(key), "text": text}) + "\n")
        os.utime(staging, ns=(0, next(self._clock)))
        staging.rename(self._folder / f"{key}.jsonl")

    def delete(self, key: str) -> None:
        (self._folder / f"{key}.jsonl").unlink()


class TestFolder(SourceSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FolderWorld:
        return FolderWorld(tmp_path)


class PushWorld:
    def __init__(self, folder: Path) -> None:
        self._folder, self._batches = folder, itertools.count()

    def open(self, *, batch_rows: int = 100) -> Source:
        config = SourceConfig(kind="push", key="id")
        return PushSource(config, project="suite", base=self._folder, batch_rows=batch_rows)

    def upsert(self, key: str, text: str) -> None:
        self._put({"key": key, "row": {"text": text}})

    def delete(self, key: str) -> None:
        self._put({"op": "delete", "key": key})

    def _put(self, event: dict[str, Any]) -> None:
        Inbox(self._folder / "inbox").put(f"b{next(self._batches)}", [event])


class TestPush(SourceSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> PushWorld:
        return PushWorld(tmp_path)


class PostgresWorld:
    """`kind` postgres listens; sql polls by transaction."""

    def __init__(self, server: Postgres, kind: str) -> None:
        self._table, self._kind = f"suite_{next(_names)}", kind
        said: dict[str, Any] = {"kind": kind, "url": server.url, "table": self._table, "key": "id"}
        if kind == "sql":
            said["url"] = server.url.replace("postgresql:", "postgresql+psycopg:")
            said |= {"mode": "snapshot_cursor", "cursor": "changed_in"}
        self._config = SourceConfig(**said)
        self._connection = server.connect()
        self._connection.execute(f"create table {self._table} (id bigint primary key, text text)")
        self._connection.execute(getattr(self.open(), "setup_sql"))  # noqa: B009

    def open(self, *, batch_rows: int = 100) -> Source:
        from autoglm.integrations.postgres import PostgresSource

        made = PostgresSource if self._kind == "postgres" else SqlPollSource
        return made(self._config, project="suite", base=Path(), batch_rows=batch_rows)

    def upsert(self, key: str, text: str) -> None:
        self._connection.execute(
            f"insert into {self._table} values (%s, %s) on conflict (id) do update set text = %s",
            (int(key), text, text),
        )

    def delete(self, key: str) -> None:
        self._connection.execute(f"delete from {self._table} where id = %s", (int(key),))

    def close(self) -> None:
        source: Any = self.open()
        if self._kind == "postgres":
            source.drop()
        self._connection.close()


class TestPostgres(SourceSuite):
    @pytest.fixture
    def world(self, postgres: Postgres) -> Iterator[PostgresWorld]:
        world = PostgresWorld(postgres, "postgres")
        yield world
        world.close()


class TestSnapshotCursor(SourceSuite):
    sees_deletes = False

    @pytest.fixture
    def world(self, postgres: Postgres) -> Iterator[PostgresWorld]:
        world = PostgresWorld(postgres, "sql")
        yield world
        world.close()


class MariaDbWorld:
    def __init__(self, server: MariaDb) -> None:
        self._server, self._table = server, f"suite_{next(_names)}"
        self._config = SourceConfig(kind="mysql", url=server.url, table=self._table, key="id")
        self._do(f"create table {self._table} (id bigint primary key, text text)")

    def open(self, *, batch_rows: int = 100) -> Source:
        from autoglm.integrations.mysql import MysqlSource

        return MysqlSource(self._config, project="suite", base=Path(), batch_rows=batch_rows)

    def upsert(self, key: str, text: str) -> None:
        statement = f"insert into {self._table} values (%s, %s) on duplicate key update text = %s"
        self._do(statement, int(key), text, text)

    def delete(self, key: str) -> None:
        self._do(f"delete from {self._table} where id = %s", int(key))

    def _do(self, statement: str, *values: Any) -> None:
        with self._server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)


class TestMariaDb(SourceSuite):
    @pytest.fixture
    def world(self, mariadb: MariaDb) -> MariaDbWorld:
        return MariaDbWorld(mariadb)

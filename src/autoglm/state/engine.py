"""Opens a project's state file: WAL, synchronous=FULL, every transaction BEGIN IMMEDIATE."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from autoglm.errors import StorageError

# Each entry runs once, in order, in one transaction with its number. Only ever append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "create table event (stream text not null, seq integer not null, kind text not null,"
        " data text not null, at text not null, primary key (stream, seq)) without rowid",
        "create table alias (name text primary key, digest text not null, fence integer not null)",
        "create table alias_history (id integer primary key, name text, digest text, expected text,"
        " at text)",
        "create table model_version (digest text primary key, number integer unique, record text)",
        "create table admission (cause text primary key, run_id text unique, outcome text not null,"
        " reason text, trigger_event text, run_spec text, status text not null, at text)",
        "create table rollout (rollout_id text primary key, record text not null)",
        "create table counter (name text primary key, value integer not null)",
    ),
)


def open_state(path: Path, *, read_only: bool = False) -> Engine:
    """An engine on `path`, migrated. Raises: StorageError when the file cannot be opened."""
    if read_only and not path.exists():
        raise StorageError(
            f"{path} does not exist yet.",
            code="storage.missing",
            next_step="Run `autoglm run`, or `autoglm search run`, first.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only the `file:` form is an address in which some characters mean something.
    url = (
        f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true" if read_only else f"sqlite:///{path}"
    )
    # isolation_level None: pysqlite would open DEFERRED transactions, whose reads are not locked.
    engine = create_engine(url, connect_args={"timeout": 30, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        if not read_only:
            cursor.execute("pragma journal_mode=wal")
        cursor.execute("pragma synchronous=full")
        cursor.execute("pragma foreign_keys=on")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: object) -> None:
        connection.exec_driver_sql("begin" if read_only else "begin immediate")  # type: ignore[attr-defined]

    if not read_only:
        try:
            _migrate(engine)
        except DBAPIError as error:
            raise StorageError(
                f"{path} cannot be opened: {error.orig}.",
                code="storage.unusable",
                next_step="Check disk space and permissions.",
            ) from error
    return engine


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("create table if not exists migration (number integer primary key)")
        )
        done = connection.execute(
            text("select coalesce(max(number), 0) from migration")
        ).scalar_one()
        for number, statements in enumerate(MIGRATIONS[done:], start=done + 1):
            for statement in statements:
                connection.execute(text(statement))
            connection.execute(text("insert into migration values (:number)"), {"number": number})

"""Opening a user's database for reading, and saying plainly what is wrong with it."""

from __future__ import annotations

import difflib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    Engine,
    TableClause,
    column,
    create_engine,
    event,
    false,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import table as sql_table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autoglm.errors import SourceError, SourceLockedError

BUSY_SECONDS = 10


def open_database(url: str, base: Path) -> Engine:
    """An engine that only reads where the driver knows how. SQLite paths start at `base`.

    Raises: SourceError source.bad_url, source.missing.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SourceError(
            f"{url!r} is no database address.",
            code="source.bad_url",
            next_step="Write one like sqlite:///app.db or postgresql+psycopg://user@host/db.",
        ) from error
    if parsed.get_backend_name() != "sqlite":
        try:
            return create_engine(parsed)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise SourceError(
                f"no driver for {parsed.drivername}: {error}.",
                code="source.no_driver",
                next_step="pip install the driver that the address names.",
            ) from error
    path = (base / (parsed.database or "")).resolve()
    if not path.is_file():
        raise SourceError(f"{path} does not exist.", code="source.missing")
    engine = create_engine(
        f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true",
        connect_args={"timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        # Broken UTF-8 must reach the processor, which makes it a dead letter; it is no outage.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")

    return engine


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn the driver's errors into ours; `where` names database and table without secrets."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error)
        if re.search(r"no such table|doesn't exist|does not exist", cause):
            raise SourceError(f"{where}: {cause}.", code="source.no_table") from error
        if re.search(r"locked|busy|timeout", cause, re.IGNORECASE):
            raise SourceLockedError(
                f"{where} is locked: {cause}.",
                next_step="Somebody writes for longer than we wait; try again.",
            ) from error
        raise SourceError(f"{where} cannot be read: {cause}.", code="source.unreadable") from error


def place_of(table: str) -> tuple[str, str | None]:
    """(name, schema) of `name` or `schema.name`."""
    schema, _, name = table.rpartition(".")
    return name, schema or None


def table_clause(table: str, columns: Sequence[str]) -> TableClause:
    """To ask for these columns of `name` or `schema.name`."""
    name, schema = place_of(table)
    return sql_table(name, *(column(found) for found in columns), schema=schema)


def column_names(engine: Engine, table: str, where: str) -> list[str]:
    """Raises: SourceError source.no_table with the nearest table's name."""
    name, schema = place_of(table)
    with readable(where):
        inspector = inspect(engine)
        if not inspector.has_table(name, schema=schema):
            tables = [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]
            raise SourceError(
                f"{where} has no table {table!r}.",
                code="source.no_table",
                next_step=_nearest(name, tables),
            )
        # Asked by a query: the inspector warns of each type that it does not know.
        query = select(text("*")).select_from(table_clause(table, ())).where(false())
        with engine.connect() as connection:
            return list(map(str, connection.execute(query).keys()))


def is_unique(engine: Engine, table: str, key: Sequence[str]) -> bool:
    """Whether the database itself holds that the columns of `key` name a row."""
    name, schema = place_of(table)
    inspector = inspect(engine)
    try:
        held: list[Any] = [
            inspector.get_pk_constraint(name, schema)["constrained_columns"],
            *(found["column_names"] for found in inspector.get_unique_constraints(name, schema)),
            *(
                found["column_names"]
                for found in inspector.get_indexes(name, schema)
                if found["unique"]
                and not any("where" in o for o in found.get("dialect_options", {}))
            ),
        ]
    except (SQLAlchemyError, NotImplementedError):  # a view holds nothing
        return False
    return any(columns and set(columns) <= set(key) for columns in held)


def refuse_twins(engine: Engine, table: str, key: Sequence[str], where: str) -> None:
    """Two rows of one key would be one row here, and each overwrite the other.

    Raises: SourceError source.duplicate_key.
    """
    found = table_clause(table, key).c
    with readable(where), engine.connect() as connection:
        twice = connection.execute(
            select(*found)
            .where(*(column.is_not(None) for column in found))
            .group_by(*found)
            .having(func.count() > 1)
            .limit(1)
        ).first()
    if twice is not None:
        raise duplicate_key(where, key, twice)


def duplicate_key(where: str, key: Sequence[str], values: Sequence[object]) -> SourceError:
    shown = ", ".join(f"{name} = {plain(v)}" for name, v in zip(key, values, strict=True))
    return SourceError(
        f"{where} has two rows with {shown}.",
        code="source.duplicate_key",
        next_step="Choose a column for data.source.key that names one row, or several that do"
        " together (a list), and give them a unique index.",
    )


def require_columns(wanted: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Raises: SourceError source.no_column with the nearest column's name."""
    for name in wanted:
        if name not in columns:
            raise SourceError(
                f"{where} has no column {name!r}.",
                code="source.no_column",
                next_step=_nearest(name, columns),
            )


def _nearest(name: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, options, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(options) or 'none'}."


def plain(value: Any) -> Any:
    """A driver's value as JSON knows it: numbers and text stay, lists and maps
    become JSON, the rest text.
    """
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "surrogateescape")
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else str(value)

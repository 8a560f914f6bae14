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

from sqlalchemy import Engine, create_engine, event, false, inspect, select, text
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


def column_names(engine: Engine, table: str, where: str) -> list[str]:
    """Raises: SourceError source.no_table with the nearest table's name."""
    with readable(where):
        inspector = inspect(engine)
        tables = [*inspector.get_table_names(), *inspector.get_view_names()]
        if table not in tables:
            raise SourceError(
                f"{where} has no table {table!r}.",
                code="source.no_table",
                next_step=_nearest(table, tables),
            )
        # Asked by a query: the inspector warns of each type that it does not know.
        query = select(text("*")).select_from(sql_table(table)).where(false())
        with engine.connect() as connection:
            return list(map(str, connection.execute(query).keys()))


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

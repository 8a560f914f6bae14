"""PostgreSQL polled without a gap: by transaction id, and only what every older transaction left.

A sequence or a time is taken before its transaction commits, so a poll may pass a row by that
becomes visible afterwards with a lower number. Here a row carries the transaction that wrote it
(`xid8`), and a poll takes only rows of transactions below the oldest one still open: nothing lower
can appear any more. The technique is described at event-driven.io, "How Postgres sequences issues
can impact your messaging guarantees".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Text,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.types import UserDefinedType

from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import place_of, table_clause
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

SETUP = """\
-- What `mode: snapshot_cursor` needs. The column is filled by the trigger, also for rows there now.
begin;
alter table {table} add column if not exists {cursor} xid8 not null default pg_current_xact_id();
create or replace function {function}() returns trigger language plpgsql as
  $$ begin new.{cursor} := pg_current_xact_id(); return new; end $$;
drop trigger if exists {trigger} on {table};
create trigger {trigger} before insert or update on {table}
  for each row execute function {function}();
alter table {table} enable always trigger {trigger};
create index if not exists {index} on {table} ({cursor});
commit;
"""


@dataclass(frozen=True, slots=True)
class XidPosition:
    """After the row `key` of transaction `xid`. `base` is added to a transaction's id to make a
    version, so that versions grow when a table was polled in another mode before.
    """

    xid: int = 0
    key: str = ""
    base: int = 0

    @classmethod
    def read(cls, position: str) -> XidPosition:
        data = json.loads(position)
        return cls(int(data["xid"]), data["key"], int(data["base"]))

    def write(self) -> str:
        return json.dumps({"xid": str(self.xid), "key": self.key, "base": self.base})

    @staticmethod
    def is_one(position: str) -> bool:
        return position.startswith("{")


def setup_sql(config: SourceConfig) -> str:
    """The statements that a table needs once; whoever owns it runs them."""
    name, _schema = place_of(config.table)
    return SETUP.format(
        table=_quoted_table(config.table),
        cursor=_quoted(config.cursor),
        function=_quoted(f"{name}_{config.cursor}"[:63]),
        trigger=_quoted(f"{name}_{config.cursor}"[:63]),
        index=_quoted(f"{name}_{config.cursor}_idx"[:63]),
    )


def read_rows(
    connection: Connection,
    config: SourceConfig,
    columns: Sequence[str],
    known: XidPosition,
    *,
    where: str,
    batch_rows: int,
) -> Iterator[tuple[Mapping[str, Any], XidPosition]]:
    """Rows in the order of transactions, then keys, after `known`; each with its position.

    Raises: SourceError source.no_snapshot_cursor, source.cursor_ahead.
    """
    _check_cursor(connection, config, known, where)
    source, row_key = table_clause(config.table, columns), RowKey.of(config.key)
    cursor = source.c[config.cursor]
    key = [cast(source.c[name], Text) for name in row_key.columns]
    passed = row_key.parts(known.key) if known.key else [""] * len(key)
    after = _xid8(known.xid)
    # One statement is one snapshot: rows and the bound are of the same moment.
    query = (
        select(*source.c, *key)
        .where(cursor >= after)  # says less than the pair; it is what an index can answer
        .where(cursor < func.pg_snapshot_xmin(func.pg_current_snapshot()))
        .where(
            # Without a name it is behind nothing; whoever reads it stops, each time anew.
            or_(
                tuple_(cursor, *key) > tuple_(after, *(literal(each, Text) for each in passed)),
                *(part.is_(None) for part in key),
            )
        )
        .order_by(cursor, *key)
    )
    options = {"stream_results": True, "yield_per": batch_rows}
    with connection.execution_options(**options).execute(query) as rows:
        for values in rows:
            content = dict(zip(columns, values, strict=False))  # behind them stands the key
            name = row_key.name([text or "" for text in values[len(columns) :]])
            place = XidPosition(int(content[config.cursor]), name, known.base)
            yield content, place


def _check_cursor(
    connection: Connection, config: SourceConfig, known: XidPosition, where: str
) -> None:
    if connection.dialect.name != "postgresql":
        raise SourceError(
            f"{where}: snapshot_cursor is PostgreSQL's; this is {connection.dialect.name}.",
            code="source.no_snapshot_cursor",
            next_step="Set data.source.mode: lag_window, or full_diff.",
        )
    found = connection.execute(
        text(
            "select format_type(atttypid, atttypmod) from pg_attribute where attrelid ="
            " cast(:name as regclass) and attname = :column and attnum > 0"
        ).bindparams(name=_quoted_table(config.table), column=config.cursor)
    ).scalar()
    if found != "xid8":
        raise SourceError(
            f"{where}: column {config.cursor!r} is {found}, snapshot_cursor needs xid8.",
            code="source.no_snapshot_cursor",
            next_step="`autoglm source setup` prints the SQL that adds it.",
        )
    source = table_clause(config.table, [config.cursor])
    # A dump that was restored elsewhere brings the ids of the other server along.
    newest = func.pg_snapshot_xmax(func.pg_current_snapshot())
    ahead = exists(select(source).where(source.c[config.cursor] >= newest))
    is_ahead = connection.execute(select(or_(ahead, _xid8(known.xid) >= newest))).scalar_one()
    if is_ahead:
        raise SourceError(
            f"{where}: {config.cursor} or the stored position ({known.xid}) is ahead of the"
            " server's transactions: the database was restored on another server.",
            code="source.cursor_ahead",
            next_step=f"Run `update {config.table} set {config.cursor} = default` and start from"
            " an empty state folder.",
        )


class _Xid8(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_options: Any) -> str:
        return "xid8"


def _xid8(number: int) -> Any:
    return cast(literal(str(number), Text), _Xid8)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted_table(table: str) -> str:
    name, schema = place_of(table)
    return ".".join(_quoted(part) for part in (schema, name) if part)

"""A PostgreSQL table that is listened to: what must be there, asked through a cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import duplicate_key
from autoglm.streaming.row_key import RowKey

# Else the log names the partition that a row lies in, and not the table.
BY_ROOT = "publish_via_partition_root = true"
BYTEA, INET, BPCHAR = 17, 869, 1042
# What events spell in another way than a cast to text does is compared as its own type.
WRITTEN_OTHERWISE = {
    16: "boolean", BYTEA: "bytea", INET: "inet", BPCHAR: "bpchar", 700: "real",
    701: "double precision", 1082: "date", 1083: "time",
    1114: "timestamp", 1184: "timestamptz", 1266: "timetz",
}  # fmt: skip


class LogTable:
    """`table` is `name` or `schema.name`; `columns` must be there beside the key."""

    def __init__(self, table: str, *, key: RowKey, columns: Sequence[str]) -> None:
        schema, _, self.name = table.rpartition(".")
        self.schema, self.where = schema or "public", f"table {table}"
        self._said, self._key, self._columns = table, key, columns
        self._text = f"{_quoted(self.schema)}.{_quoted(self.name)}"

    def check(self, cursor: Any, slot: str) -> int:
        """The table's number. `slot` is the publication's name too.

        Raises: SourceError source.no_table, source.no_publication, source.no_identity.
        """
        cursor.execute(
            "select c.oid, c.relreplident, exists (select from pg_publication_tables p where"
            " p.pubname = %s and p.schemaname = n.nspname and p.tablename = c.relname),"
            " exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid"
            " where p.pubname = %s and r.prrelid = c.oid)"
            " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relname = %s and n.nspname = %s",
            (slot, slot, self.name, self.schema),
        )
        row = cursor.fetchone()
        if row is None:
            raise SourceError(
                f"the database has no {self.where}: dropped or renamed.",
                code="source.no_table",
                next_step="Bring it back, or change data.source.table and, to go on with the same"
                f" slot, set data.source.slot: {slot}.",
            )
        oid, identity, is_published, is_named = row
        if not is_published:
            raise SourceError(
                f"{self.where} is not in a publication {slot}"
                + (f" under its own name: it lacks {BY_ROOT}." if is_named else "."),
                code="source.no_publication",
                next_step=f"alter publication {_quoted(slot)} set ({BY_ROOT});"
                if is_named
                else "`autoglm source setup` prints the SQL for the table's owner.",
            )
        if identity != "f":
            self._check_identity(cursor, oid, identity)
        return int(oid)

    def _check_identity(self, cursor: Any, oid: int, identity: str) -> None:
        cursor.execute(
            "select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid"
            " and a.attnum = any(i.indkey) where i.indrelid = %s::oid and"
            " case when %s = 'd' then i.indisprimary else i.indisreplident end",
            (oid, identity),
        )
        said = {str(row[0]) for row in cursor.fetchall()}
        if missing := [name for name in self._key.columns if name not in said]:
            self.columns(cursor)
            raise SourceError(
                f"{self.where}: a delete does not say {missing[0]}, which is not in the table's"
                " replica identity.",
                code="source.no_identity",
                next_step=f"alter table {self._said} replica identity full;",
            )

    def columns(self, cursor: Any) -> list[tuple[str, int]]:
        """(name, type) of every column. Raises: SourceError source.no_column."""
        columns = self._there(cursor)
        names = [name for name, _kind in columns]
        for wanted in (*self._key.columns, *self._columns):
            if wanted not in names:
                raise SourceError(
                    f"{self.where} has no column {wanted!r}.",
                    code="source.no_column",
                    next_step=f"Bring it back: reading goes on where it was. There are:"
                    f" {', '.join(names)}.",
                )
        return columns

    def _there(self, cursor: Any) -> list[tuple[str, int]]:
        cursor.execute(
            "select attname, atttypid::int8 from pg_attribute where attrelid = %s::regclass and"
            " attnum > 0 and not attisdropped order by attnum",
            (self._text,),
        )
        return [(str(name), int(kind)) for name, kind in cursor.fetchall()]

    def is_partitioned(self, cursor: Any) -> bool:
        cursor.execute("select relkind = 'p' from pg_class where oid = to_regclass(%s)",
                       (self._text,))  # fmt: skip
        return bool((cursor.fetchone() or (False,))[0])

    def is_unique(self, cursor: Any) -> bool:
        """Whether an index holds that the key names a row."""
        cursor.execute(
            "select array(select a.attname::text from pg_attribute a where a.attrelid = i.indrelid"
            " and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])) from pg_index i"
            " where i.indrelid = %s::regclass and i.indisunique and i.indisvalid"
            " and i.indpred is null and i.indexprs is null",
            (self._text,),
        )
        return any(set(names) <= set(self._key.columns) for (names,) in cursor.fetchall())

    def refuse_twins(self, cursor: Any, keys: Sequence[str] | None = None) -> None:
        """Two rows of one key would be one row here, and each overwrite the other.

        Raises: SourceError source.duplicate_key.
        """
        texts = [f"{_quoted(name)}::text".replace("%", "%%") for name in self._key.columns]
        key, table = ", ".join(texts), self._text.replace("%", "%%")
        only, asked = f"({key}) is not null", list[list[str]]()
        if keys is not None:
            known = dict(self._there(cursor))
            types = [known.get(name, 0) for name in self._key.columns]
            kinds = [WRITTEN_OTHERWISE.get(each, "text") for each in types]
            by_column = zip(*map(self._key.parts, keys), strict=True)
            asked = [
                [written(each, part) for part in column]
                for each, column in zip(types, by_column, strict=True)
            ]
            compared = ", ".join(
                text if kind == "text" else text.removesuffix("::text")
                for text, kind in zip(texts, kinds, strict=True)
            )
            listed = ", ".join(f"%s::text[]::{kind}[]" for kind in kinds)
            only = f"({compared}) in (select * from unnest({listed}))"
        cursor.execute(
            f"select {key} from {table} where {only} group by {key} having count(*) > 1 limit 1",
            asked,
        )
        if (twice := cursor.fetchone()) is not None:
            raise duplicate_key(self.where, self._key.columns, twice)


def written(type_oid: int, text: str) -> str:
    """A key's part of an event, as the server reads a value of its type."""
    return text if type_oid != BYTEA else "\\x" + text.encode("utf-8", "surrogateescape").hex()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

"""A file of rows → a SQLite source, as `autoglm init --from` makes it; and guesses of columns."""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from sqlalchemy import inspect, select

from autoglm.contracts.task import TASKS, TaskForm
from autoglm.errors import DataError, SourceError
from autoglm.streaming.collectors.database import (
    column_names,
    open_database,
    place_of,
    plain,
    readable,
    require_columns,
    table_clause,
)

SAMPLE_ROWS = 2000
CURSOR = "changed_at"
TEXT_NAMES = ("text", "body", "content", "sentence", "review", "question", "message", "title")
INPUT_NAMES = {"tokens": ("tokens", "words"), "image": ("image", "path", "file", "img")}
ANSWER_NAMES = {
    "tags": ("tags", "ner_tags", "pos_tags", "labels"),
    "labels": ("labels", "tags", "topics", "categories"),
    "number": ("score", "rating", "stars", "value", "price"),
    "text": ("answer", "response", "completion", "output", "target"),
}
PROMPT_NAMES = ("prompt", "question", "instruction", "input")
LABEL_NAMES = ("label", "topic", "category", "class", "target", "sentiment", "intent", "emotion")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns count; `cursor` is empty where there is none. `keys` are those of a primary key
    of several columns, `key` its first.
    """

    text: str
    label: str
    key: str
    cursor: str
    keys: tuple[str, ...] = ()


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL, JSON or Parquet file (`.gz` of the text ones), streaming.

    Raises: SourceError source.missing, source.unreadable, source.not_utf8, source.bad_json,
    source.bad_csv, source.unknown_format.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist or is no file.", code="source.missing")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from parquet_rows(path)
            return
        if suffix not in {".csv", ".tsv", ".jsonl", ".json"}:
            raise SourceError(
                f"{path}: {suffix or 'no'} ending is not known.",
                code="source.unknown_format",
                next_step="Use .csv, .tsv, .jsonl, .json or .parquet, or .gz of a text one.",
            )
        with opened(path) as stream:
            lines = _lines(stream, path)
            yield from _json(lines, path) if "json" in suffix else _csv(lines, path, suffix)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path} cannot be read: {error}.", code="source.unreadable") from error


def opened(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.GzipFile(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _lines(stream: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{path}:{number}: invalid UTF-8 at byte {error.start + 1} of the line.",
                code="source.not_utf8",
                next_step="Convert the file to UTF-8.",
            ) from error


def _json(lines: Iterator[str], path: Path) -> Iterator[Row]:
    first = next(lines, "")
    if first.lstrip().startswith("["):
        try:
            rows = json.loads(first + "".join(lines))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: {error}.", code="source.bad_json") from error
        numbered: Iterable[tuple[int, Any]] = enumerate(rows, start=1)
    else:
        numbered = _json_lines(chain([first], lines), path)
    for number, row in numbered:
        if not isinstance(row, dict):
            raise SourceError(f"{path}:{number}: a row must be an object.", code="source.bad_json")
        yield row


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path}:{number}: {error}.", code="source.bad_json") from error


def _csv(lines: Iterator[str], path: Path, suffix: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        names = next(reader, None)
        if names is not None and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"{path}:1: the header names {twice!r} twice.", code="source.bad_csv")
        for values in reader:
            if not values:
                continue
            if names is None or len(values) != len(names):
                raise SourceError(
                    f"{path}:{reader.line_num}: {len(values)} fields, the header has"
                    f" {len(names or [])}.",
                    code="source.bad_csv",
                )
            yield {n: v if v != "" else None for n, v in zip(names, values, strict=True)}
    except csv.Error as error:
        raise SourceError(f"{path}:{reader.line_num}: {error}.", code="source.bad_csv") from error


def parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise SourceError(f"{path}: {error}.", code="source.unreadable") from error


def guess_columns(
    sample: Sequence[Row],
    *,
    text: str | None = None,
    label: str | None = None,
    key: str | None = None,
    where: str = "the data",
    form: TaskForm = TASKS["text-classification"],
) -> Columns:
    """Which columns hold text and label, and whether one names the row (key `""`: none does).

    Raises: DataError data.no_such_column, data.no_label, data.no_text, data.one_class,
    data.mixed_labels.
    """
    names = list(dict.fromkeys(name for row in sample for name in row))
    for name in (text, label, key):
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise DataError(
                f"{where} has no column {name!r}.",
                code="data.no_such_column",
                next_step=f"Did you mean {near[0]!r}?"
                if near
                else f"There are: {', '.join(names)}.",
            )
    values = {name: [r[name] for r in sample if r.get(name) is not None] for name in names}
    label = label or _named(ANSWER_NAMES.get(form.answers, ()), values)
    inputs = PROMPT_NAMES if form.answers == "text" else INPUT_NAMES.get(form.reads, ())
    text = text or _named(inputs, values)
    label = label or _guess_label(values, text, where)
    text = text or _guess_text(values, label, where)
    if form.answers == "label":
        _check_labels(values[label], label, where)
    if key is None:
        ids = values.get("id", [])
        is_key = len(ids) == len(sample) and len(set(map(str, ids))) == len(ids)
        key = "id" if is_key and "id" not in (text, label) else ""
    return Columns(text=text, label=label, key=key, cursor="")


def _named(names: Sequence[str], values: Mapping[str, list[Any]]) -> str | None:
    """The first column of one of these names that has values."""
    return next((n for w in names for n in values if n.lower() == w and values[n]), None)


def _guess_label(values: dict[str, list[Any]], text: str | None, where: str) -> str:
    def is_like(name: str) -> bool:
        distinct = len({str(v) for v in values[name]})
        return name != text and 1 <= distinct <= max(2, min(500, len(values[name]) // 2))

    by_name = [n for w in LABEL_NAMES for n in values if n.lower() == w and n != text and values[n]]
    others = [
        n
        for n in values
        if is_like(n) and not n.lower().endswith("id") and n.lower() not in TEXT_NAMES
    ]
    if not by_name and len(others) != 1:
        raise DataError(
            f"which column of {where} is the label? Candidates: {', '.join(others) or 'none'}.",
            code="data.no_label",
            next_step="Say it with --label COLUMN.",
        )
    return (by_name or others)[0]


def _guess_text(values: dict[str, list[Any]], label: str, where: str) -> str:
    lengths = {
        name: sum(len(v) for v in column if isinstance(v, str)) / max(1, len(column))
        for name, column in values.items()
        if name != label and any(isinstance(v, str) for v in column)
    }
    by_name = [n for w in TEXT_NAMES for n in lengths if n.lower() == w]
    if not lengths:
        raise DataError(
            f"{where} has no column with text.",
            code="data.no_text",
            next_step="Say it with --text COLUMN.",
        )
    return by_name[0] if by_name else max(lengths, key=lambda n: lengths[n])


def _check_labels(labels: Sequence[Any], name: str, where: str) -> None:
    kinds: dict[type, Any] = {}
    for value in labels:
        kinds.setdefault(type(value), value)
    if len(kinds) > 1:
        shown = " and ".join(f"{kind.__name__} {value!r}" for kind, value in kinds.items())
        raise DataError(
            f"labels in column {name!r} of {where} mix types: {shown}.",
            code="data.mixed_labels",
            next_step="Make all labels text or all of them whole numbers.",
        )
    if len({str(v) for v in labels}) == 1:
        raise DataError(
            f"column {name!r} of {where} holds one label only, {labels[0]!r}.",
            code="data.one_class",
            next_step="A classifier needs two labels.",
        )


def import_file(
    file: Path,
    database: Path,
    table: str,
    *,
    text: str | None,
    label: str | None,
    key: str | None,
    task: str = "text-classification",
) -> tuple[Columns, int]:
    """Write the rows of `file` into a new SQLite file: whole, or not at all.

    Adds `id` where no column names a row, and `changed_at`, kept growing by triggers. Returns the
    columns and the number of rows. Raises: SourceError, DataError.
    """
    rows = read_rows(file)
    sample = list(islice(rows, SAMPLE_ROWS))
    if not sample:
        raise SourceError(f"{file} has no rows.", code="source.no_rows")
    asked = {"text": text, "label": label, "key": key}
    columns = guess_columns(sample, **asked, where=str(file), form=TASKS[task])
    names = list(dict.fromkeys(name for row in sample for name in row if name != CURSOR))
    _refuse_twins([*names, CURSOR], str(file))
    is_new = not database.parent.exists()
    staging = database.with_name(f".{database.name}.{os.getpid()}")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        staging.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(staging)) as connection:
            count = _fill(connection, table, columns, names, chain(sample, rows))
        staging.replace(database)
    except sqlite3.IntegrityError as error:
        raise DataError(
            f"{file}: column {columns.key!r} does not name a row: {error}.",
            code="data.duplicate_key",
            next_step="Choose another with --key, or leave it out.",
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise SourceError(f"{database}: {error}.", code="source.unwritable") from error
    finally:
        staging.unlink(missing_ok=True)
        if is_new and database.parent.exists() and not any(database.parent.iterdir()):
            database.parent.rmdir()
    key_column = columns.key or "id"
    return Columns(text=columns.text, label=columns.label, key=key_column, cursor=CURSOR), count


def _refuse_twins(names: Sequence[str], where: str) -> None:
    """SQLite, like most databases, knows no case; `rowid` is its own."""
    seen: dict[str, str] = {"rowid": "rowid"}
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: {error}.", code="data.unstorable") from error
        twin = seen.setdefault(name.casefold(), name)
        if twin != name or name.casefold() == "rowid":
            raise DataError(
                f"{where}: the columns {twin!r} and {name!r} are one to a database.",
                code="data.duplicate_column",
                next_step="Rename one of them.",
            )


def _fill(
    connection: sqlite3.Connection,
    table: str,
    columns: Columns,
    names: list[str],
    rows: Iterable[Row],
) -> int:
    quoted = [_quote(name) for name in names]
    own = [] if columns.key else ["id integer primary key"]
    if own:
        quoted = [q for q, n in zip(quoted, names, strict=True) if n != "id"]
        names = [n for n in names if n != "id"]
    fields = ", ".join([*own, *quoted, f"{CURSOR} integer not null default 0"])
    connection.executescript(
        f"create table {_quote(table)} ({fields});"
        + (
            f"create unique index by_key on {_quote(table)} ({_quote(columns.key)});"
            if not own
            else ""
        )
        + f"create index by_change on {_quote(table)} ({CURSOR});"
        "create table change_counter (value integer not null);"
    )
    places = ", ".join("?" for _ in range(len(names) + 1))
    count = 0
    for count, row in enumerate(rows, start=1):
        values = [_storable(row.get(name)) for name in names]
        if columns.key and row.get(columns.key) is None:
            raise DataError(
                f"row {count} has no {columns.key}.",
                code="data.no_key",
                next_step="Choose another column with --key, or leave it out.",
            )
        try:
            connection.execute(
                f"insert into {_quote(table)} ({', '.join([*quoted, CURSOR])}) values ({places})",
                [*values, count],
            )
        except (OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"row {count}: {error}.", code="data.unstorable") from error
    connection.execute("insert into change_counter values (?)", (count,))
    connection.executescript(_triggers(table))
    connection.commit()
    return count


def _triggers(table: str) -> str:
    """Every insert and update takes the next number; SQLite has one writer, so without gaps."""
    change = (
        "update change_counter set value = value + 1;"
        f"update {_quote(table)} set {CURSOR} = (select value from change_counter)"
        " where rowid = new.rowid;"
    )
    changed = f"new.{CURSOR} is old.{CURSOR}"
    return (
        f"create trigger on_insert after insert on {_quote(table)} begin {change} end;"
        f"create trigger on_update after update on {_quote(table)} when {changed}"
        f" begin {change} end;"
    )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _storable(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return plain(value)


def inspect_source(
    url: str,
    table: str,
    base: Path,
    *,
    text: str | None,
    label: str | None,
    key: str | None,
    cursor: str | None,
    task: str = "text-classification",
) -> Columns:
    """Columns of a table in an existing database, from a sample. Raises: SourceError, DataError."""
    engine, where = open_database(url, base), f"table {table}"
    try:
        names = column_names(engine, table, where)
        if cursor:
            require_columns([cursor], names, where)
        source = table_clause(table, names)
        with readable(where), engine.connect() as connection:
            primary = inspect(connection).get_pk_constraint(*place_of(table))["constrained_columns"]
            rows = connection.execute(select(*source.c).limit(SAMPLE_ROWS)).all()
    finally:
        engine.dispose()
    sample = [{n: plain(v) for n, v in zip(names, row, strict=True)} for row in rows]
    if not sample:
        raise SourceError(f"{where} has no rows yet.", code="source.no_rows")
    asked = {"text": text, "label": label, "key": key}
    guessed = guess_columns(sample, **asked, where=where, form=TASKS[task])
    keys = tuple(map(str, primary)) if key is None else ()
    found = keys[0] if keys else guessed.key
    if not found:
        raise DataError(
            f"no column of {where} names a row.",
            code="data.no_key",
            next_step="Say it with --key COLUMN.",
        )
    return Columns(
        text=guessed.text,
        label=guessed.label,
        key=found,
        cursor=cursor or "",
        keys=keys if len(keys) > 1 else (),
    )

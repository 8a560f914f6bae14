"""Rows of a file, and what in it is no row: nothing ends the reading but the file's own end.

`file_import` refuses a file with one bad line, because a person waits for the answer; here a file
is one of many that somebody drops, so a bad line is a dead letter and the next one is read.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain
from autoglm.streaming.file_import import Row, opened, parquet_rows

ENDINGS = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}


@dataclass(frozen=True, slots=True)
class Found:
    """A row, or raw text with the reason why it is none. `line` is 0 for the file as a whole.

    `is_cut`: it is the last line and has no end; somebody may still be writing it. `hides_rows`:
    behind the bad text there may be rows that nobody can tell now.
    """

    line: int
    row: Row | None = None
    raw: str = ""
    code: str = ""
    cause: str = ""
    is_cut: bool = False
    hides_rows: bool = False


def read_found(path: Path, *, key: Sequence[str] = ()) -> Iterator[Found]:
    """Everything in `path`; of a header that lacks a column of `key` only that.

    Raises: OSError for a file that cannot be opened.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in ENDINGS:
        yield Found(0, code="source.unknown_format", cause=f"{suffix or 'no'} ending is not known")
        return
    line = 0
    try:
        for found in _read(path, suffix, key):
            line = found.line
            row = found.row
            if row is not None:
                row = {str(name): plain(value) for name, value in row.items()}
                found = Found(found.line, row)
            yield found
    except SourceError as error:
        yield Found(0, code=error.code, cause=f"behind line {line}: {error.message}")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeError, RecursionError) as error:
        yield Found(0, code="source.unreadable", cause=f"behind line {line}: {error}")


def _read(path: Path, suffix: str, key: Sequence[str]) -> Iterator[Found]:
    if suffix == ".parquet":
        yield from (Found(n, row) for n, row in enumerate(parquet_rows(path), start=1))
        return
    with opened(path) as stream:
        lines = _lines(stream)
        if suffix in (".csv", ".tsv"):
            yield from _csv(lines, "\t" if suffix == ".tsv" else ",", key)
        elif suffix == ".json":
            yield from _json(lines)
        else:
            yield from _json_lines(lines)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Broken UTF-8 passes as surrogates. A byte order mark says UTF-16."""
    head = stream.read(4)
    rest: IO[bytes] = _Joined(head, stream)  # type: ignore[assignment]
    is_wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding, errors = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
    yield from io.TextIOWrapper(rest, encoding, errors, newline="\n")


class _Joined(io.RawIOBase):
    """What was read already, then the rest."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = head, stream

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._stream.read(size)

    read = read1


def _json(lines: Iterator[str]) -> Iterator[Found]:
    """A list of objects, or an object per line."""
    first = next(lines, "")
    if not first.lstrip().startswith("["):
        yield from _json_lines(iter([first, *lines]))
        return
    text = first + "".join(lines)
    try:
        rows: list[Any] = json.loads(text)
    except ValueError as error:
        yield Found(0, raw=text, code="source.bad_json", cause=str(error), is_cut=True)
        return
    for number, row in enumerate(rows, start=1):
        yield _object(row, number, json.dumps(row))


def _json_lines(lines: Iterator[str]) -> Iterator[Found]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if any("\udc80" <= character <= "\udcff" for character in line):
            yield Found(number, raw=line, code="source.not_utf8", cause="invalid UTF-8")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            is_cut = not line.endswith("\n")
            yield Found(number, None, line, "source.bad_json", str(error), is_cut)
            continue
        yield _object(row, number, line)


def _object(row: Any, number: int, raw: str) -> Found:
    if isinstance(row, dict):
        return Found(number, row)
    return Found(number, raw=raw, code="source.bad_json", cause="a row must be an object")


def _csv(lines: Iterator[str], delimiter: str, key: Sequence[str]) -> Iterator[Found]:
    csv.field_size_limit(sys.maxsize)
    used: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            used.append(line)
            yield line

    reader = csv.reader(remembered(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        used.clear()
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield _bad_record(reader.line_num, used, str(error))
            continue
        if values is None:
            return
        if names is None:
            names = values
            if len(set(names)) < len(names):
                cause = "the header names a column twice"
                yield Found(0, raw="".join(used), code="source.bad_csv", cause=cause)
                return
            if cause := no_key(key, names):
                yield Found(0, raw="".join(used), code="source.no_column", cause=cause)
                return
        elif len(values) == len(names):
            row = {n: v if v != "" else None for n, v in zip(names, values, strict=True)}
            yield Found(reader.line_num, row, is_cut=not used[-1].endswith("\n"))
        elif values:
            cause = f"{len(values)} fields, the header has {len(names)}"
            yield _bad_record(reader.line_num, used, cause)


def _bad_record(line: int, used: list[str], cause: str) -> Found:
    """A quote that is never closed, or closed by the next one, takes the lines between along."""
    is_cut = not used or not used[-1].endswith("\n")
    raw, hides_rows = "".join(used), len(used) > 1
    return Found(line, None, raw, "source.bad_csv", cause, is_cut, hides_rows)


def no_key(key: Sequence[str], names: Collection[str]) -> str:
    """Which column of the key `names` lack, `""` for none."""
    missing = next((column for column in key if column not in names), None)
    return "" if missing is None else f"no column {missing!r}; there are: {', '.join(names)}"

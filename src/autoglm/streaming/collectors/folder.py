"""A folder of CSV, TSV, JSONL, JSON and Parquet files: new, changed and removed ones.

The rows of all files together are the table; where two files hold one key, the last file by name
counts. What the file system reports is a hint when to look; what changed is told by content.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import stat as modes
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autoglm.contracts.change_event import ChangeBatch, ChangeEvent
from autoglm.contracts.record import digest
from autoglm.errors import SourceError
from autoglm.streaming.collectors.events import Maker
from autoglm.streaming.collectors.file_rows import Found, no_key, read_found
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.row_key import RowKey

LOOK_MILLISECONDS = 5_000  # even without a hint
# A last line without an end is looked at again until its file is this old.
YOUNG_SECONDS = 2
IGNORED = (".tmp", ".part", ".swp", "~")


@dataclass
class _File:
    """`rows` maps key → digest of its last row, `bad` holds the digests of what is no row.

    `stat` is size and time of change; empty when the file must be read again.
    """

    sha: str = ""
    stat: list[int] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    # key → its last line, of this look only
    lines: dict[str, int] = field(default_factory=dict, compare=False)

    def stored(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "lines"}


@dataclass(frozen=True, slots=True)
class _Dead:
    """What is no row; `name` tells it apart from others, whatever line it moves to."""

    name: str
    where: str
    raw: str
    code: str
    cause: str


@dataclass
class _Position:
    """`done` is what an interrupted look has already given: key → digest, "" for a delete;
    the names of dead ones behind a zero byte.
    """

    version: int = 0
    files: dict[str, _File] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> _Position:
        if not text:
            return cls()
        data = json.loads(zlib.decompress(base64.b64decode(text)))
        files = {path: _File(**known) for path, known in data["files"].items()}
        return cls(data["version"], files, data["done"])

    def write(self) -> str:
        files = {path: known.stored() for path, known in self.files.items()}
        data = {"version": self.version, "files": files, "done": self.done}
        return base64.b64encode(zlib.compress(json.dumps(data).encode(), 1)).decode()

    def rows(self) -> dict[str, str]:
        """What the table holds."""
        rows = {key: name for key, (_path, name) in _target(self.files).items()} | self.done
        return {key: name for key, name in rows.items() if name}


class FolderSource:
    """Port Source; also `follow`."""

    def __init__(
        self,
        config: SourceConfig,
        *,
        project: str,
        base: Path,
        batch_rows: int,
        columns: Sequence[str] = (),
    ) -> None:
        del columns  # a row without them is a dead letter: it names file and line
        self._key, self._batch_rows = RowKey.of(config.key), batch_rows
        self._folder = (base / config.path).resolve()
        self.name = f"folder/{config.path}"
        self._make = Maker(project, self.name)

    @property
    def promise(self) -> str:
        return (
            f"watches the files in {self._folder}: sees each row's last state before a look, rows"
            " and files that were removed too; a bad row is a dead letter"
        )

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, then again whenever something moves; ends when cancelled."""
        from watchfiles import watch

        for batch in self.read(position):
            position = batch.position
            yield batch
        hints = watch(
            self._folder, stop_event=cancel, rust_timeout=LOOK_MILLISECONDS,
            yield_on_timeout=True, raise_interrupt=False,
        )  # fmt: skip
        for _hint in hints:
            for batch in self.read(position):
                position = batch.position
                yield batch

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """Raises: SourceError source.missing, source.folder_emptied, source.unreadable."""
        known = _Position.read(position)
        paths = self._paths(known)
        files: dict[str, _File] = {}
        dead: list[_Dead] = []
        for path in paths:
            files[path] = self._look(path, known, dead)
        if files == known.files and not known.done:
            return
        batch: list[ChangeEvent] = []
        for event, name in self._changes(known, files, dead):
            known.version = event.version
            batch.append(event)
            known.done[name[0]] = name[1]
            if len(batch) == self._batch_rows:
                yield self._make.batch(batch, known.write())
                batch = []
        finished = _Position(known.version, files)
        yield self._make.batch(batch, finished.write())

    def _paths(self, known: _Position) -> list[str]:
        if not self._folder.is_dir():
            raise SourceError(f"{self._folder} is no folder.", code="source.missing")
        # `rglob` would pass by a folder that it may not enter, and its rows would be deleted.
        paths = sorted(
            (Path(folder) / name).relative_to(self._folder).as_posix()
            for folder, _folders, names in os.walk(self._folder, onerror=self._refuse)
            for name in names
            if not name.startswith(".") and not name.endswith(IGNORED)
        )
        if known.files and not paths:
            raise SourceError(
                f"all {len(known.files)} files of {self._folder} are gone; a disk that is not"
                " mounted looks the same.",
                code="source.folder_emptied",
                next_step="Bring them back; to forget their rows, put an empty .csv there.",
            )
        return paths

    def _refuse(self, error: OSError) -> None:
        raise SourceError(
            f"{error.filename} cannot be read: {error.strerror or error}.",
            code="source.unreadable",
            retryable=True,
            next_step="Check its owner and mode; it is tried again.",
        ) from error

    def _look(self, path: str, known: _Position, dead: list[_Dead]) -> _File:
        """The file as it is now; `dead` gets what is no row and was not told before."""
        file, before = self._folder / path, known.files.get(path, _File())
        try:
            if cause := _no_file(file):
                found = Found(0, code="source.unreadable", cause=cause)
                now = _File(before.sha, [], before.rows)  # looked at again, nothing is gone
                self._tell(path, now, [(found, "")], before, known, dead)
                return now
            stat = _stat(file)
            if before.stat == stat:
                return before
            sha = _digest_of(file)
            if before.sha == sha and before.stat:
                return _File(sha, stat, before.rows, before.bad)
            now = self._parse(path, before, known, dead)
            is_steady = _stat(file) == stat
        except OSError as error:
            self._refuse(error)
            raise
        now.sha = sha
        now.stat = stat if is_steady and now.stat else []
        return now

    def _parse(self, path: str, before: _File, known: _Position, dead: list[_Dead]) -> _File:
        file, now = self._folder / path, _File(stat=[1])
        letters: list[tuple[Found, str]] = []
        columns: set[str] = set()
        for found in read_found(file, key=self._key.columns):
            if found.is_cut and _is_growing(file):
                now.stat = []
                return now
            row = found.row
            if row is None:
                letters.append((found, found.raw))
                continue
            columns |= row.keys()
            key = self._key.name_of(row)
            if not key:
                nameless = Found(found.line, code="source.null_key", cause=f"no {self._key}")
                letters.append((nameless, json.dumps(row)))
                continue
            now.rows[key], now.lines[key] = digest(row, size=8), found.line
        if columns and (cause := no_key(self._key.columns, sorted(columns))):
            letters = [(Found(0, code="source.no_column", cause=cause), "")]
        is_whole = now.rows and not any(f.line == 0 or f.hides_rows for f, _raw in letters)
        if letters and not is_whole:  # what cannot be told is not gone
            now.rows = before.rows | now.rows
        self._tell(path, now, letters, before, known, dead)
        return now

    def _tell(
        self,
        path: str,
        now: _File,
        letters: list[tuple[Found, str]],
        before: _File,
        known: _Position,
        dead: list[_Dead],
    ) -> None:
        """Note the letters of a file; `dead` gets those that are new."""
        for found, raw in letters:
            name = digest([path, found.code, raw or found.cause], size=8)
            now.bad.append(name)
            if name not in before.bad and f"\0{name}" not in known.done:
                where = f"{path}:{found.line}" if found.line else path
                dead.append(_Dead(name, where, raw, found.code, found.cause))

    def _changes(
        self, known: _Position, files: dict[str, _File], dead: list[_Dead]
    ) -> Iterator[tuple[ChangeEvent, tuple[str, str]]]:
        """What leads from the table as it is to the files as they are, with its note in `done`."""
        have, want = known.rows(), _target(files)
        version = known.version
        by_path: dict[str, set[str]] = {}
        for key, (path, name) in want.items():
            if have.get(key) != name:
                by_path.setdefault(path, set()).add(key)
        for path in sorted(by_path):
            wanted, lines = by_path[path], files[path].lines
            for found in read_found(self._folder / path):
                key = "" if found.row is None else self._key.name_of(found.row)
                if found.row is None or key not in wanted:
                    continue
                name = digest(found.row, size=8)
                is_last = lines.get(key, found.line) == found.line
                if name == files[path].rows[key] and is_last:  # else it is being changed just now
                    version += 1
                    wanted.discard(key)
                    yield self._make.upsert(key, found.row, version), (key, name)
            for key in wanted:
                files[path].stat = []
                if key in have:
                    files[path].rows[key] = have[key]
                else:
                    del files[path].rows[key]
        for key in sorted(have.keys() - want.keys()):
            version += 1
            yield self._make.delete(key, version), (key, "")
        for bad in dead:
            version += 1
            made = self._make.dead(
                bad.where, bad.raw, code=bad.code, cause=bad.cause, version=version
            )
            yield made, (f"\0{bad.name}", "")


def _target(files: dict[str, _File]) -> dict[str, tuple[str, str]]:
    """Key → the file that holds it last by name, and the row's digest."""
    return {key: (path, name) for path in sorted(files) for key, name in files[path].rows.items()}


def _no_file(file: Path) -> str:
    """Why it cannot be opened as a file, `""` if it can: a pipe would never end."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP) or not file.is_symlink():
            raise
        return "the link leads nowhere"
    return "" if modes.S_ISREG(mode) else "it is no regular file"


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_growing(file: Path) -> bool:
    """Wait until a fresh file is old enough to be taken as it is; whether it changed meanwhile."""
    before, end = _stat(file), time.monotonic() + YOUNG_SECONDS
    # A time ahead of our clock says nothing about the age.
    while 0 <= time.time() - before[1] / 1e9 < YOUNG_SECONDS and time.monotonic() < end:
        if _stat(file) != before:
            return True
        time.sleep(0.05)
    return _stat(file) != before

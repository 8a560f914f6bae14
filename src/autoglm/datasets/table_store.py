"""Where the feature table lies: in a folder, or at an object store by address (`s3://BUCKET/PREFIX`).

Readers know a table by `DatasetVersion.uri` alone. What opens it, keys among it, is the process's
(`connect_table`): it stands in no record.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autoglm.config.masking import hidden, sounds_secret
from autoglm.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.dataset import Dataset

PINS = "_pins"
SCHEMES = ("s3", "s3a")
# Of other characters some are read as parts of an address, at others deltalake panics.
_PLACE = re.compile(r"[a-z0-9][a-z0-9.-]*(?:/[A-Za-z0-9._=-]+)+/?")
# A store that is gone is told within seconds; who works for it tries again by himself.
PATIENCE = {"connect_timeout": "5s", "timeout": "30s", "max_retries": "4", "retry_timeout": "20s"}
# What object_store reads of S3; the name of an option that it does not know is a mistake.
_OPTIONS = {
    *PATIENCE,
    *("access_key_id", "secret_access_key", "session_token", "skip_signature", "request_payer"),
    *("region", "endpoint", "endpoint_url", "virtual_hosted_style_request", "s3_express"),
    *("role_arn", "role_session_name", "web_identity_token_file", "metadata_endpoint"),
    *("imdsv1_fallback", "container_credentials_relative_uri", "container_credentials_full_uri"),
    *("server_side_encryption", "sse_kms_key_id", "sse_bucket_key_enabled"),
    *("sse_customer_key_base64", "checksum_algorithm", "unsigned_payload"),
    *("allow_http", "allow_invalid_certificates", "user_agent", "proxy_url", "proxy_excludes"),
    *("proxy_ca_certificate", "pool_idle_timeout", "pool_max_idle_per_host"),
}
_CLIENT_OPTIONS = {*PATIENCE, "allow_http", "allow_invalid_certificates", "user_agent"} | {
    name for name in _OPTIONS if name.startswith(("proxy", "pool"))
}
_FROM_STORE = re.compile(r"S3 error|Error performing|sending request|timed out")
_CODES = re.compile(r"\b40[0134] [A-Z]|credentials|InvalidAccessKey")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|↳")

_connected: dict[str, Mapping[str, str]] = {}


class TableStore(Protocol):
    """Files of one table. Says where it is and how it is opened; knows nothing of rows."""

    uri: str

    def open(self, version: int | None = None) -> DeltaTable:
        """A handle of the caller's own. Raises: what deltalake raises (see `translated`)."""
        ...

    def create(self, **how: Any) -> DeltaTable: ...

    def newest(self) -> int:
        """Number of the newest commit, -1 without a table. Reads no rows, lists no older log."""
        ...

    def prepare(self) -> None:
        """Before the table is made."""
        ...

    def rows_of(self, handle: DeltaTable) -> Dataset:
        """The files of a handle, to be read by pyarrow."""
        ...

    def turn(self, *, alone: bool = False) -> AbstractContextManager[None]:
        """Appends go side by side; who writes the log anew is alone, or others' commits would make
        it begin again for ever. Nothing depends on it but that: the log itself refuses.
        """
        ...

    def pins(self) -> dict[int, list[str]]: ...
    def pin(self, version: int, by: str) -> None: ...
    def unpin(self, by: str) -> None: ...
    def num_bytes(self, names: Sequence[str]) -> int: ...
    def translated(self, error: Exception) -> StorageError | None:
        """`error` in our words; None when it is not the store's."""
        ...


def is_address(place: Path | str) -> bool:
    return isinstance(place, str) and "://" in place


def connect_table(address: str, options: Mapping[str, str]) -> None:
    """From now on this process opens tables of the bucket of `address` with `options`; without
    any, with what the environment's AWS_ variables say. An empty address is no address.

    Raises: ConfigError for another kind of address, keys in it, an option that does not exist.
    """
    if not address:
        return
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES or not _PLACE.fullmatch(rest):
        raise ConfigError(
            f"storage.table: {hidden(address, ())!r} is no address s3://BUCKET/PREFIX.",
            code="config.wrong_value",
            next_step="Leave it empty for the project's own folder; keys stand in storage.options,"
            " and a prefix is made of letters, digits and . _ = - /.",
        )
    for name in options:
        if _plain(name) not in _OPTIONS:
            near = difflib.get_close_matches(_plain(name), _OPTIONS, n=1)
            raise ConfigError(
                f"storage.options: there is no option {name!r}.",
                code="config.unknown_key",
                next_step=f"Did you mean {near[0]}?" if near else "docs/data.md names them.",
            )
    _connected[_bucket(address)] = {_plain(name): str(value) for name, value in options.items()}


def open_store(place: Path | str) -> TableStore:
    """Nothing is asked yet."""
    if is_address(place):
        return ObjectStore(str(place), _connected.get(_bucket(str(place)), {}))
    return FolderStore(Path(place))


def _bucket(address: str) -> str:
    return address.partition("://")[2].partition("/")[0]


def _plain(option: str) -> str:
    return option.lower().removeprefix("aws_")


class FolderStore:
    """Port TableStore on a local disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, str(folder)
        self._newest = -1

    def open(self, version: int | None = None) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(self.folder, version=version)

    def create(self, **how: Any) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable.create(self.folder, **how)

    def newest(self) -> int:
        """Looks for one file's name only."""
        log = self.folder / "_delta_log"
        if self._newest < 0 or not (log / f"{self._newest:020}.json").exists():
            names = [path.stem for path in log.glob("*.json")] if log.is_dir() else []
            self._newest = max((int(name) for name in names if name.isdigit()), default=-1)
        while self._newest >= 0 and (log / f"{self._newest + 1:020}.json").exists():
            self._newest += 1
        return self._newest

    def prepare(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)

    def rows_of(self, handle: DeltaTable) -> Dataset:
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        # Not deltalake's own files, which are Python's: a reader's thread that still lets go of one
        # while the process ends would abort it.
        files = SubTreeFileSystem(str(self.folder), LocalFileSystem())
        return handle.to_pyarrow_dataset(filesystem=files)

    @contextmanager
    def turn(self, *, alone: bool = False) -> Iterator[None]:
        with open(self.folder / "_turn.lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def pins(self) -> dict[int, list[str]]:
        try:
            stored = json.loads((self.folder / f"{PINS}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {int(number): names for number, names in stored.items()}

    def pin(self, version: int, by: str) -> None:
        pins = self.pins()
        if by not in pins.get(version, ()):
            self._write({**pins, version: sorted({*pins.get(version, ()), by})})

    def unpin(self, by: str) -> None:
        left = {v: [name for name in names if name != by] for v, names in self.pins().items()}
        self._write({version: names for version, names in left.items() if names})

    def _write(self, pins: Mapping[int, Sequence[str]]) -> None:
        staging = self.folder / f"{PINS}.json.{os.getpid()}"
        with open(staging, "w", encoding="utf-8") as file:
            json.dump({str(number): names for number, names in sorted(pins.items())}, file)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(self.folder / f"{PINS}.json")

    def num_bytes(self, names: Sequence[str]) -> int:
        files = [self.folder / name for name in names]
        return sum(file.stat().st_size for file in files if file.is_file())

    def translated(self, error: Exception) -> StorageError | None:
        return None


class ObjectStore:
    """Port TableStore at an S3-compatible store that knows conditional puts.

    A commit is one put of the log's next file `If-None-Match: *`: of two writers one is refused.
    A pin is an object of its own, so that no pin is lost when two are set at once.
    """

    def __init__(self, address: str, options: Mapping[str, str]) -> None:
        self.uri = address.rstrip("/")
        said = {**PATIENCE, **options}
        endpoint = options.get("endpoint_url") or options.get("endpoint", "")
        if endpoint.startswith("http://"):
            said.setdefault("allow_http", "true")
        self._options = {k if k in _CLIENT_OPTIONS else f"aws_{k}": v for k, v in said.items()}
        # Whatever the environment says: a commit that is not a conditional put is no commit.
        self._options |= {"aws_conditional_put": "etag", "aws_s3_allow_unsafe_rename": "false"}
        self._secrets = [v for k, v in self._options.items() if sounds_secret(k) or "key" in k]
        self._looking: DeltaTable | None = None

    def open(self, version: int | None = None) -> DeltaTable:
        return self._opened(self.uri, version)

    def _opened(self, address: str, version: int | None = None) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(address, version=version, storage_options=self._options)

    def create(self, **how: Any) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable.create(self.uri, storage_options=self._options, **how)

    def newest(self) -> int:
        """One question: which files of the log come after the last one that was seen."""
        from deltalake.exceptions import TableNotFoundError

        try:
            if self._looking is None:
                self._looking = self._opened(self.uri)
            else:
                self._looking.update_incremental()
        except TableNotFoundError:
            self._looking = None
            return -1
        return int(self._looking.version())

    def prepare(self) -> None:
        """A store has no folders."""

    def rows_of(self, handle: DeltaTable) -> Dataset:
        return handle.to_pyarrow_dataset()

    def turn(self, *, alone: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def _files(self) -> Any:
        from deltalake.fs import DeltaStorageHandler
        from pyarrow.fs import PyFileSystem

        return PyFileSystem(DeltaStorageHandler(self.uri, self._options))

    def _listed(self, folder: str) -> list[tuple[str, int]]:
        from pyarrow.fs import FileSelector, FileType

        found = self._files().get_file_info(
            FileSelector(folder, recursive=True, allow_not_found=True)
        )
        return [(file.path, file.size) for file in found if file.type == FileType.File]

    def pins(self) -> dict[int, list[str]]:
        pins: dict[int, list[str]] = {}
        for path, _ in self._listed(PINS):
            number, _, by = Path(path).name.partition("-")
            pins.setdefault(int(number), []).append(bytes.fromhex(by).decode())
        return {number: sorted(names) for number, names in sorted(pins.items())}

    def pin(self, version: int, by: str) -> None:
        from deltalake._internal import DeltaFileSystemHandler

        # Not by pyarrow's stream: it hands over buffers, which this one does not take.
        files: Any = DeltaFileSystemHandler(self.uri, self._options)
        file = files.open_output_stream(f"{PINS}/{version}-{by.encode().hex()}")
        file.write(by.encode())
        file.close()

    def unpin(self, by: str) -> None:
        for path, _ in self._listed(PINS):
            if path.endswith(f"-{by.encode().hex()}"):
                self._files().delete_file(path)

    def num_bytes(self, names: Sequence[str]) -> int:
        return sum(info.size or 0 for info in self._files().get_file_info(list(names)))

    def translated(self, error: Exception) -> StorageError | None:
        text = hidden(" ".join(_COLOURS.sub("", str(error)).split()), self._secrets)
        if not _FROM_STORE.search(text):
            return None
        if _CODES.search(text):
            return StorageError(
                f"{self.uri}: the store refuses: {text[:500]}.",
                code="storage.refused",
                retryable=False,
                next_step="Check storage.table, and the keys and the region of storage.options.",
            )
        return StorageError(
            f"{self.uri} does not answer: {text[:500]}.",
            code="storage.unreachable",
            next_step="Check the store; it goes on where the table stands as soon as it is back.",
        )

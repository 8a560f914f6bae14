"""What the frozen part says of each row: computed once for trials, epochs, folds and later runs.

    FOLDER/KEY/SHA256.safetensors   states (tokens, width), keys (rows, 16), lengths (rows)
    FOLDER/KEY/about.json           CPU-seconds that it cost, how often it was asked for

KEY names the frozen part (`modeling.frozen`), a row's key its token ids; a segment is named by its
content, so a damaged one is a miss. Rows are encoded in blocks of one shape: what is said of a row
does not depend, to the bit, on the rows beside it, and a changed data set pays for its changed rows
alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
import uuid
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from autoglm.observability.logging import get_logger
from autoglm.recovery import file_lock
from autoglm.reuse import eviction
from autoglm.reuse.eviction import ABOUT, LOCK
from autoglm.reuse.keys import ROW_KEY_BYTES

# Tokens of one block: enough for the matmuls, and few changed rows do not have many more encoded.
BLOCK_TOKENS, LONG = 1024, 128
# The same of a block of rows of one length.
ALIKE_TOKENS = 256
SEGMENT_BYTES = 2**26
# Held alone by who makes states.
ENCODING = ".encoding"


@dataclass(frozen=True, slots=True)
class EncodeBlock:
    """Rows, longest first, and the tokens that fill the block up."""

    rows: Sequence[int]
    num_fill: int = 0


Divide = Callable[[Sequence[int], Sequence[int]], Iterator[EncodeBlock]]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A frozen part: `encode` gives the states of the rows of a block: one per token, or one per
    row where it `is_pooled`. It is handed what the part named `below` says of these rows where that
    is known, else None. `divide` makes blocks in which what `encode` says of a row does not depend
    on the others.
    """

    key: str
    width: int
    encode: Callable[[EncodeBlock, Tensor | None], Tensor]
    below: str = ""
    is_pooled: bool = False
    divide: Divide = field(default_factory=lambda: blocks)
    seconds_below: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RowStates:
    """(tokens, width) per row; `encoded` of them were not known before and took `cpu_seconds`.
    `saved_seconds` is what the known ones took when they were made.
    """

    parts: Sequence[Tensor]
    encoded: int = 0
    cpu_seconds: float = 0.0
    saved_seconds: float = 0.0

    def of(self, rows: Sequence[int]) -> Tensor:
        """(tokens, width) of these rows, one behind the other."""
        return torch.cat([self.parts[i] for i in rows])


def joined(states: Sequence[RowStates]) -> RowStates:
    """Rows one behind the other."""
    return RowStates(
        parts=[part for each in states for part in each.parts],
        encoded=sum(each.encoded for each in states),
        cpu_seconds=sum(each.cpu_seconds for each in states),
        saved_seconds=sum(each.saved_seconds for each in states),
    )


@dataclass(kw_only=True)
class _Store:
    """What is known under one key. Tensors are views of mapped files, or lie in memory."""

    known: dict[bytes, Tensor] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    num_bytes: int = 0
    # Tokens that were encoded, and what one took on average.
    num_tokens: int = 0
    seconds_per_token: float = 0.0


class PrefixCache:
    """At most `max_bytes`, in `folder`, or in memory without one. What saves the fewest CPU-seconds
    per byte goes first; what a process has in use (`begin` to the next `begin`) never goes.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes, self._folder = max_bytes, folder
        self._stores: OrderedDict[str, _Store] = OrderedDict()
        self._locks: dict[str, int] = {}
        self._at_work = threading.RLock()
        weakref.finalize(self, _release, self._locks)
        self._memo: dict[str, Any] = {}

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def why_too_large(self, num_tokens: int, width: int) -> str:
        """Why so many states are not kept; empty when they are."""
        if not self.is_on:
            return "cache.prefix is off"
        wanted = 4 * num_tokens * width
        if wanted <= self._max_bytes:
            return ""
        sizes = (f"{size / 2**20:,.1f} MiB" for size in (wanted, self._max_bytes))
        return "{} of states pass cache.bytes ({})".format(*sizes)

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave under this name before: each trial asks for digests of weights."""
        if name not in self._memo:
            self._memo[name] = make()
        return self._memo[name]

    def keep_only(self, keys: Collection[str]) -> None:
        """In memory nothing else is known any more."""
        with self._at_work:
            for key in self._stores.keys() - {*keys}:
                del self._stores[key]

    def begin(self) -> None:
        """What was in use until now may go."""
        with self._at_work:
            _release(self._locks)

    def has(self, key: str) -> bool:
        """Whether anything is known under `key`."""
        return bool(self._stores.get(key, _Store()).known) or any(self._segments(key))

    def states(
        self, prefix: Prefix, row_keys: Sequence[bytes], lengths: Sequence[int]
    ) -> RowStates:
        """What `prefix` says of each row; only unknown rows are encoded, and kept. `lengths` counts
        the tokens of a row. Rows alike are encoded once. Threads wait for each other.
        """
        with self._at_work:
            return self._states(prefix, row_keys, lengths)

    def _states(
        self, prefix: Prefix, row_keys: Sequence[bytes], lengths: Sequence[int]
    ) -> RowStates:
        store = self._opened(prefix.key)
        if any(key not in store.known for key in row_keys):
            with self._encoding(prefix.key):
                self._opened(prefix.key)  # what another process encoded while we waited
                return self._with_missing(prefix, store, row_keys, lengths)
        return self._with_missing(prefix, store, row_keys, lengths)

    def _with_missing(
        self,
        prefix: Prefix,
        store: _Store,
        row_keys: Sequence[bytes],
        lengths: Sequence[int],
    ) -> RowStates:
        missing = list({k: i for i, k in enumerate(row_keys) if k not in store.known}.values())
        known_tokens = sum(n for k, n in zip(row_keys, lengths, strict=True) if k in store.known)
        saved = known_tokens * store.seconds_per_token
        started = time.process_time()
        for rows in _segments_of(missing, lengths, prefix.width):
            self._add(prefix, store, rows, row_keys, lengths)
        spent = time.process_time() - started + (prefix.seconds_below if missing else 0.0)
        if missing:
            self._stores.move_to_end(prefix.key)  # not what it was made from
            self._evict()
        self._note(prefix.key, store, spent, sum(lengths[i] for i in missing))
        return RowStates(
            parts=[store.known[key] for key in row_keys],
            encoded=len(missing),
            cpu_seconds=spent,
            saved_seconds=saved,
        )

    @contextlib.contextmanager
    def _encoding(self, key: str) -> Iterator[None]:
        """Of several processes one encodes what is missing under `key`; the others wait for it."""
        with contextlib.ExitStack() as held:
            if self._folder is not None:
                with contextlib.suppress(OSError):  # without a disk nobody can be waited for
                    held.enter_context(file_lock.alone(self._folder / key / ENCODING))
            yield

    def _add(
        self,
        prefix: Prefix,
        store: _Store,
        rows: Sequence[int],
        row_keys: Sequence[bytes],
        lengths: Sequence[int],
    ) -> None:
        below = self._opened(prefix.below).known if prefix.below else {}
        is_below = all(row_keys[i] in below for i in rows)
        parts: dict[int, Tensor] = {}
        for block in prefix.divide(rows, lengths):
            handed = torch.cat([below[row_keys[i]] for i in block.rows]) if is_below else None
            states = prefix.encode(block, handed)
            sizes = [1 if prefix.is_pooled else lengths[i] for i in block.rows]
            parts |= zip(block.rows, torch.split(states, sizes), strict=True)
        flat = torch.cat([parts[i] for i in rows])
        tensors = {
            "states": flat,
            "keys": torch.from_numpy(
                np.frombuffer(b"".join(row_keys[i] for i in rows), np.uint8)
                .reshape(-1, ROW_KEY_BYTES)
                .copy()
            ),
            "lengths": torch.tensor([len(parts[i]) for i in rows]),
        }
        if not self._written(prefix.key, store, tensors):
            _take(store, tensors)

    def _written(self, key: str, store: _Store, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the segment lies on disk (and is mapped from there)."""
        if self._folder is None:
            return False
        content = save(dict(tensors))
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        staging = self._folder / key / f".{uuid.uuid4().hex}.part"
        try:
            with staging.open("wb") as stream:
                stream.write(content)
            staging.rename(staging.with_name(name))
        except OSError as error:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            get_logger().warning("prefix states stay in memory", cause=str(error))
            return False
        self._map(store, staging.with_name(name), is_checked=True)
        return name in store.seen

    def _opened(self, key: str) -> _Store:
        """What is known under `key` in memory and on disk, marked as in use."""
        store = self._stores.setdefault(key, _Store())
        self._stores.move_to_end(key)
        if self._folder is None:
            return store
        try:
            if key not in self._locks:
                self._locks[key] = file_lock.take(self._folder / key / LOCK, fcntl.LOCK_SH)
        except OSError as error:
            get_logger().warning("no prefix cache on disk", cause=str(error))
            return store
        about = eviction.about(self._folder / key)
        store.seconds_per_token = about.get("seconds_per_token", store.seconds_per_token)
        store.num_tokens = about.get("num_tokens", store.num_tokens)
        for path in self._segments(key):
            if path.name not in store.seen:
                self._map(store, path, is_checked=False)
        return store

    def _map(self, store: _Store, path: Path, *, is_checked: bool) -> None:
        try:
            if not is_checked:
                with path.open("rb") as stream:
                    sha = hashlib.file_digest(stream, "sha256").hexdigest()
                if sha != path.stem:
                    raise ValueError(f"its content is {sha[:12]}…")
            tensors = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            get_logger().warning("prefix segment dropped", segment=path.name, cause=str(error))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return
        store.seen.add(path.name)
        _take(store, tensors)

    def _segments(self, key: str) -> Iterator[Path]:
        if self._folder is not None and key:
            yield from sorted((self._folder / key).glob("*.safetensors"))

    def _note(self, key: str, store: _Store, spent: float, num_tokens: int) -> None:
        # Of all that were encoded: one changed row has a whole block to pay for.
        if num_tokens:
            seconds = store.num_tokens * store.seconds_per_token + spent
            store.num_tokens += num_tokens
            store.seconds_per_token = seconds / store.num_tokens
        if self._folder is None:
            return
        folder = self._folder / key
        about = eviction.about(folder)
        facts = {
            "cpu_seconds": about.get("cpu_seconds", 0.0) + spent,
            "uses": about.get("uses", 0) + 1,
            "seconds_per_token": store.seconds_per_token,
            "num_tokens": store.num_tokens,
            "used_at": time.time(),
        }
        staging = folder / f".{os.getpid()}.about"
        with contextlib.suppress(OSError):  # a full disk costs the order of eviction, no more
            staging.write_text(json.dumps(facts))
            staging.rename(folder / ABOUT)

    def _evict(self) -> None:
        if self._folder is None or not self._folder.is_dir():
            while sum(s.num_bytes for s in self._stores.values()) > self._max_bytes:
                if len(self._stores) == 1:
                    return
                self._stores.popitem(last=False)
            return
        for key in eviction.evict(self._folder, self._max_bytes):
            self._stores.pop(key, None)


def packed_blocks(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[EncodeBlock]:
    """`rows` in blocks of BLOCK_TOKENS tokens; a row of more than LONG stands alone. Matrices of
    one shape are multiplied in one order.
    """
    alike = _by_length(rows, lengths)
    for length in [n for n in alike if n > LONG]:
        yield from (EncodeBlock([row]) for row in alike.pop(length))
    num_left = sum(map(len, alike.values()))
    while num_left:
        block: list[int] = []
        room = BLOCK_TOKENS
        for length, left in alike.items():
            num = min(len(left), room // max(1, length))
            block += left[:num]
            del left[:num]
            room -= num * length
        num_left -= len(block)
        yield EncodeBlock(block, room)


def blocks(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[EncodeBlock]:
    """`rows` in blocks of rows of one length, and of one number of rows per length: a block that is
    not full repeats its first row.
    """
    for length, alike in _by_length(rows, lengths).items():
        size = max(1, ALIKE_TOKENS // max(1, length))
        for start in range(0, len(alike), size):
            block = alike[start : start + size]
            yield EncodeBlock([*block, *[block[0]] * (size - len(block))])


def lone_blocks(rows: Sequence[int], _lengths: Sequence[int]) -> Iterator[EncodeBlock]:
    """Each row by itself, where the values of others decide what shape a product has."""
    yield from (EncodeBlock([row]) for row in rows)


def _by_length(rows: Sequence[int], lengths: Sequence[int]) -> dict[int, list[int]]:
    """Longest first."""
    alike: dict[int, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda i: -lengths[i]):
        alike[lengths[row]].append(row)
    return alike


def _segments_of(
    rows: Sequence[int], lengths: Sequence[int], width: int
) -> Iterator[Sequence[int]]:
    """`rows` in parts whose states fill a segment, rows of like length together."""
    part: list[int] = []
    num_bytes = 0
    for row in sorted(rows, key=lambda i: -lengths[i]):
        part.append(row)
        num_bytes += 4 * lengths[row] * width
        if num_bytes >= SEGMENT_BYTES:
            yield part
            part, num_bytes = [], 0
    if part:
        yield part


def _release(locks: dict[str, int]) -> None:
    while locks:
        os.close(locks.popitem()[1])


def _take(store: _Store, tensors: Mapping[str, Tensor]) -> None:
    raw = tensors["keys"].numpy().tobytes()
    keys = [raw[i : i + ROW_KEY_BYTES] for i in range(0, len(raw), ROW_KEY_BYTES)]
    parts = torch.split(tensors["states"], tensors["lengths"].tolist())
    store.known.update(zip(keys, parts, strict=True))
    store.num_bytes += tensors["states"].nbytes


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids (batch, length) and their mask."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask

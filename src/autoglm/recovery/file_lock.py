"""Files that processes of one machine hold, alone or beside each other. What is held ends with the
process, however it ends. The file may be removed by who holds it alone; then it is made anew.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.05


def no_stop() -> None:
    """Wait as long as it takes."""


@contextmanager
def alone(path: Path, *, stop: Callable[[], None] = no_stop) -> Iterator[None]:
    """Nobody else holds `path` inside. While it waits, `stop` is asked, which may raise."""
    with _released(take(path, fcntl.LOCK_EX, stop=stop)):
        yield


@contextmanager
def beside(path: Path, *, stop: Callable[[], None] = no_stop) -> Iterator[None]:
    """Nobody holds `path` alone inside."""
    with _released(take(path, fcntl.LOCK_SH, stop=stop)):
        yield


@contextmanager
def alone_if_free(path: Path) -> Iterator[bool]:
    """Whether nobody holds `path`, and until the end nobody else does. What cannot be asked (no
    disk, no permission) counts as held.
    """
    try:
        handle = _try(path, fcntl.LOCK_EX)
    except OSError:
        handle = None
    if handle is None:
        yield False
        return
    with _released(handle):
        yield True


def take(path: Path, how: int, *, stop: Callable[[], None] = no_stop) -> int:
    """A descriptor that holds `path` (LOCK_EX alone, LOCK_SH beside others) until it is closed."""
    while (handle := _try(path, how)) is None:
        stop()
        time.sleep(POLL_SECONDS)
    return handle


def _try(path: Path, how: int) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)  # held by another, or of a file that is no longer there
    return None


@contextmanager
def _released(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)

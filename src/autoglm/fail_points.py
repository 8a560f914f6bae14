"""Named places where a test may kill, stop or break the process. Off in production at no cost.

`AUTOGLM_FAILPOINT=hop4.before_commit:kill` kills the process the first time it comes by;
`…:kill@3` the third time; actions are `kill` (SIGKILL), `raise` (OSError: no space left), `exit`.
Several are separated by commas. Each point is declared where it stands, so `DECLARED` is the list
that a harness enumerates.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

DECLARED: dict[str, str] = {}
_armed: dict[str, tuple[str, int]] = {}


def declare(name: str, what: str) -> Callable[[], None]:
    """Return the point itself: one look-up when nothing is armed."""
    DECLARED[name] = what

    def point() -> None:
        if _armed:
            _reach(name)

    return point


def arm(spec: str) -> None:
    """Replace what is armed by `spec` (the form of the environment variable; empty disarms)."""
    _armed.clear()
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        name, _, action = part.partition(":")
        action, _, nth = action.partition("@")
        if action not in {"kill", "raise", "exit"}:
            raise ValueError(f"{part!r}: action must be kill, raise or exit")
        _armed[name] = (action, int(nth or 1))


def _reach(name: str) -> None:
    if name not in _armed:
        return
    action, left = _armed[name]
    if left > 1:
        _armed[name] = (action, left - 1)
        return
    del _armed[name]
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(70)
    raise OSError(errno.ENOSPC, f"No space left on device (fail point {name})")


arm(os.environ.get("AUTOGLM_FAILPOINT", ""))

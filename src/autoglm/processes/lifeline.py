"""Children end with their parent: they hold its pipe as standard input and leave when it closes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def watch(on_parent_gone: Callable[[], None] | None = None) -> None:
    """Call `on_parent_gone` (default: leave at once) when standard input ends."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            continue
        if on_parent_gone is None:
            os._exit(0)
        on_parent_gone()

    threading.Thread(target=wait, daemon=True, name="lifeline").start()

"""Puts one batch into an inbox; the test kills it at a fail point."""

from __future__ import annotations

import sys
from pathlib import Path

from autoglm.streaming.inbox import Inbox

if __name__ == "__main__":
    folder, batch = sys.argv[1:]
    Inbox(Path(folder)).put(batch, [{"key": batch, "row": {"text": "x"}}])

"""The training worker's process.

JSON lines: requests on standard input, answers and events on the descriptor that was standard
output. When the input ends, the parent is gone and so is this process, at once.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.cores import cores
from autoglm.errors import AutoGLMError, TrainingError
from autoglm.observability import logging as logs

if TYPE_CHECKING:
    from autoglm.training.worker import Worker


def main() -> None:
    # Libraries print to standard output; the protocol gets a descriptor of its own.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A million objects come with torch, and stay: looking for garbage among them was a fifth of the
    # start.
    gc.disable()
    import torch

    from autoglm.training.worker import Worker

    gc.freeze()
    gc.enable()
    options = json.loads(sys.stdin.readline())
    logs.configure("trainer", project=options["project"], folder=Path(options["logs"]))
    torch.set_num_threads(options["threads"] or cores())
    os.nice(options["nice"])
    lock = threading.Lock()

    def send(message: Mapping[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")

    folders = Path(options["workspace"]), Path(options["cache"])
    worker = Worker(folders[0], lambda event: send({"event": event}), cache=folders[1])
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, worker), daemon=True).start()
    send({"ready": True})
    while True:
        request = requests.get()
        try:
            send({"id": request["id"], "value": worker.answer(request)})
        except AutoGLMError as error:
            send({"id": request["id"], "error": error.to_json(), "kind": type(error).__name__})
        except Exception as error:
            logs.get_logger().exception("request broke", call=request["call"])
            broken = TrainingError(f"{type(error).__name__}: {error}", code="training.broken")
            send({"id": request["id"], "error": broken.to_json(), "kind": "TrainingError"})


def _read(requests: queue.SimpleQueue[dict[str, Any]], worker: Worker) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["call"] == "cancel":
            worker.cancel(request["cancels"])
        else:
            requests.put(request)
    os._exit(0)


if __name__ == "__main__":
    main()

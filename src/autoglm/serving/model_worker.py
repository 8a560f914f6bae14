"""One model version answering on a Unix socket: JSON lines in and out, batched by padded tokens.

`{"id", "inputs"}` (texts, or lists of tokens) → `{"id", "answers": [{label, score}]}` or
`{"id", "error"}`; of an input that is at fault itself also `{"code", "next_step"}`. The socket
appears once the model is warm; when standard input ends, the parent is gone and so is this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from autoglm.errors import DataError
from autoglm.modeling.onnx_model import OnnxModel
from autoglm.observability import logging as logs

MAX_LINE = 4 * 2**20


class Batcher:
    """Waiting requests are answered together as far as the token budget goes; no timer."""

    def __init__(self, model: OnnxModel, token_budget: int, max_queue: int) -> None:
        self._model, self._token_budget = model, token_budget
        self._max_queue = max_queue
        self._waiting: deque[tuple[list[Any], asyncio.Future[Any]]] = deque()
        self._num_waiting = 0
        self._arrived = asyncio.Event()

    async def answer(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """Raises: RuntimeError when the queue is full."""
        if self._waiting and self._num_waiting + len(inputs) > self._max_queue:
            raise RuntimeError("queue_full")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, future))
        self._num_waiting += len(inputs)
        self._arrived.set()
        answers: list[dict[str, Any]] = await future
        return answers

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            taken = self._take()
            try:
                found = await loop.run_in_executor(None, self._predict, [t for t, _ in taken])
                for (_, future), answers in zip(taken, found, strict=True):
                    if future.done():
                        continue
                    if isinstance(answers, DataError):
                        future.set_exception(answers)
                    else:
                        future.set_result(answers)
            except Exception as error:
                logs.get_logger().exception("a batch broke")
                for _, future in taken:
                    if not future.done():
                        future.set_exception(RuntimeError(str(error)))
            if not self._waiting:
                self._arrived.clear()

    def _take(self) -> list[tuple[list[str], asyncio.Future[Any]]]:
        """A rough count is enough."""
        taken = [self._waiting.popleft()]
        room = self._token_budget - sum(map(_about_tokens, taken[0][0]))
        while self._waiting and room > 0:
            room -= sum(map(_about_tokens, self._waiting[0][0]))
            if room > 0:
                taken.append(self._waiting.popleft())
        self._num_waiting -= sum(len(inputs) for inputs, _ in taken)
        return taken

    def _predict(self, groups: list[list[Any]]) -> list[list[dict[str, Any]] | DataError]:
        try:
            answers = iter(self._model.predict([one for group in groups for one in group]))
        except DataError as error:
            # What one user sent must not cost the others their answers.
            return [error] if len(groups) == 1 else [self._predict([g])[0] for g in groups]
        return [[next(answers).to_json() for _ in group] for group in groups]


def _about_tokens(one: Any) -> int:
    """Four characters of a text make a token."""
    return len(one) // 4 if isinstance(one, str) else len(one)


async def serve(model: OnnxModel, arguments: argparse.Namespace) -> None:
    batcher = Batcher(model, arguments.token_budget, arguments.max_queue)
    running = asyncio.create_task(batcher.run())

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(_reply(batcher, json.loads(line), writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        writer.close()

    Path(arguments.socket).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connected, arguments.socket, limit=MAX_LINE)
    async with server:
        await asyncio.gather(server.serve_forever(), running)


async def _reply(batcher: Batcher, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    try:
        answer = {"id": request["id"], "answers": await batcher.answer(request["inputs"])}
    except DataError as error:
        said = {"error": error.message, "code": error.code, "next_step": error.next_step}
        answer = {"id": request["id"], **said}
    except Exception as error:
        answer = {"id": request["id"], "error": str(error)}
    if not writer.is_closing():
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--token-budget", type=int, required=True)
    parser.add_argument("--max-queue", type=int, required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs.configure("model_worker", project=arguments.project, folder=arguments.logs)
    model = OnnxModel(arguments.folder, threads=arguments.threads)
    model.warm()
    asyncio.run(serve(model, arguments))


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        continue
    os._exit(0)


if __name__ == "__main__":
    main()

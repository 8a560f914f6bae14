"""Model workers as children of the gateway: started warm, spoken to by JSON lines, restarted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from autoglm.errors import DataError, ServingError
from autoglm.serving.config import ServingConfig

START_SECONDS = 120
POLL_SECONDS = 0.02
MAX_REVIVALS = 10
_numbers = itertools.count(1)


class Worker:
    """The worker of one version. `ask` starts it again if it died."""

    def __init__(
        self, folder: str, *, sockets: Path, config: ServingConfig, project: str, logs: Path
    ) -> None:
        self._folder, self._sockets, self._config = folder, sockets, config
        self._project, self._logs = project, logs
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._is_stopping = False
        self._reviving: asyncio.Task[None] | None = None
        self.num_starts = 0

    @property
    def is_warm(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    async def start(self) -> None:
        """Returns when the model has answered once. Raises: ServingError serving.worker_failed."""
        async with self._starting:
            if self.is_warm:
                return
            await self._end_process()
            socket = self._sockets / f"w{next(_numbers)}.sock"
            self.num_starts += 1
            with (self._logs / "model_worker.stderr").open("ab") as stderr:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "autoglm.serving.model_worker",
                    "--folder", self._folder,
                    "--socket", str(socket),
                    "--threads", str(self._config.threads),
                    "--token-budget", str(self._config.token_budget),
                    "--max-queue", str(self._config.max_queue),
                    "--project", self._project,
                    "--logs", str(self._logs),
                    stdin=asyncio.subprocess.PIPE, stdout=stderr, stderr=stderr,
                )  # fmt: skip
            await self._connect(socket)

    async def _connect(self, socket: Path) -> None:
        assert self._process is not None
        for _ in range(int(START_SECONDS / POLL_SECONDS)):
            if self._process.returncode is not None:
                break
            if socket.exists():
                with contextlib.suppress(OSError):
                    reader, self._writer = await asyncio.open_unix_connection(
                        str(socket), limit=2**22
                    )
                    self._listener = asyncio.create_task(self._listen(reader))
                    return
            await asyncio.sleep(POLL_SECONDS)
        await self._end_process()
        raise ServingError(
            f"the worker of {self._folder} does not come up.",
            code="serving.worker_failed",
            next_step=f"See {self._logs / 'model_worker.stderr'}.",
        )

    async def ask(self, inputs: list[Any], timeout: float) -> list[dict[str, Any]]:
        """Answers in order. Raises: ServingError serving.worker_died | timeout | queue_full;
        DataError for inputs that no worker could answer.
        """
        if not self.is_warm:
            await self.start()
        assert self._writer is not None
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._writer.write(json.dumps({"id": number, "inputs": inputs}).encode() + b"\n")
            answer = await asyncio.wait_for(future, timeout)
        except TimeoutError as error:
            raise ServingError("the worker took too long.", code="serving.timeout") from error
        except OSError as error:
            raise ServingError(
                f"the worker went away: {error}.", code="serving.worker_died"
            ) from error
        finally:
            self._pending.pop(number, None)
        if "code" in answer:
            raise DataError(answer["error"], code=answer["code"], next_step=answer["next_step"])
        if "error" in answer:
            is_full = answer["error"] == "queue_full"
            code = "serving.queue_full" if is_full else "serving.worker_failed"
            raise ServingError(answer["error"], code=code)
        answers: list[dict[str, Any]] = answer["answers"]
        return answers

    async def stop(self) -> None:
        """Drain what is under way, then end the process."""
        self._is_stopping = True
        for _ in range(int(30 / POLL_SECONDS)):
            if not self._pending:
                break
            await asyncio.sleep(POLL_SECONDS)
        await self._end_process()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._pending.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ServingError("the worker died.", code="serving.worker_died"))
        if not self._is_stopping:
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """A worker that died idle is wanted by the next request, and by `/ready`."""
        for attempt in range(MAX_REVIVALS):
            await asyncio.sleep(min(2.0**attempt - 1, 30))
            if self._is_stopping or self.is_warm:
                return
            with contextlib.suppress(ServingError):
                await self.start()
                return

    async def _end_process(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

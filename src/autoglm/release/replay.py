"""Held-out rows as traffic, where there are no users: labelled, seeded, and marked as replayed."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

ANSWERS_KEPT = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayReport:
    sent: int
    answered: int
    failed: int
    correct: int


class ReplayedTraffic:
    """`clients` ask one after the other, endlessly, in seeded order, until stopped. `rows` are
    (input, answer) as JSON has them: a text or a list of tokens, and what is true of it.
    """

    def __init__(
        self, address: str, rows: Sequence[tuple[Any, Any]], *, seed: int, clients: int
    ) -> None:
        self._address, self._rows, self._seed, self._clients = address, list(rows), seed, clients
        self._stop = threading.Event()
        self._sent = self._answered = self._correct = 0
        self._said: dict[str, deque[tuple[Any, Any]]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="replayed-traffic")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; wait for the answers that are under way."""
        self._stop.set()
        self._thread.join()

    def report(self) -> ReplayReport:
        """Every request is counted; what was not answered with 200 failed."""
        return ReplayReport(
            sent=self._sent,
            answered=self._answered,
            failed=self._sent - self._answered,
            correct=self._correct,
        )

    def said(self) -> dict[str, list[tuple[Any, Any]]]:
        """What is true and what was answered, as JSON has it, by model version; the newest."""
        return {version: list(pairs) for version, pairs in self._said.items()}

    def _run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        requests = enumerate(self._endless())
        async with httpx.AsyncClient(base_url=self._address, timeout=60) as client:
            await asyncio.gather(*(self._client(client, requests) for _ in range(self._clients)))

    def _endless(self) -> Iterator[tuple[Any, Any]]:
        order = random.Random(self._seed)
        while True:
            rows = order.sample(self._rows, len(self._rows))
            yield from rows

    async def _client(
        self, client: httpx.AsyncClient, requests: Iterator[tuple[int, tuple[Any, Any]]]
    ) -> None:
        while not self._stop.is_set():
            number, (asked, label) = next(requests)
            self._sent += 1
            headers = {"x-autoglm-key": f"replay-{number}", "x-autoglm-replayed": "1"}
            try:
                body = {"text" if isinstance(asked, str) else "tokens": asked}
                reply = await client.post("/api/v1/predict", json=body, headers=headers)
                if reply.status_code != 200:
                    continue
                answer = reply.json()
                self._answered += 1
                self._correct += answer["label"] == label
                said = self._said.setdefault(answer["model_version"], deque(maxlen=ANSWERS_KEPT))
                said.append((label, answer["label"]))
                feedback = {"request_id": answer["request_id"], "label": label}
                await client.post("/api/v1/feedback", json=feedback)
            except httpx.TransportError:
                await asyncio.sleep(0.05)

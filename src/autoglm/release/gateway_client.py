"""The gateway's admin socket, as the controller sees it: routes in, blocks out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from autoglm.contracts.measurement import Block
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.rollout import RouteTable
from autoglm.errors import ReleaseError


class GatewayClient:
    """Port MetricProvider, and the way to set routes. Every call raises ReleaseError
    release.gateway_unreachable when the gateway does not answer.
    """

    def __init__(self, admin_socket: Path, *, project: str) -> None:
        self._project = project
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(admin_socket)),
            base_url="http://gateway",
            timeout=120,
        )

    def set_routes(self, routes: RouteTable) -> None:
        """Returns when the table is in force: every version it names is warm."""
        self._call("PUT", "/admin/routes", to_json(routes))

    def routes(self) -> RouteTable | None:
        table = self._call("GET", "/admin/routes")
        return from_json(RouteTable, table) if table is not None else None

    def measure(self, query: str, *, window: timedelta) -> Block:
        """The block since the route table in force was applied (`query` must be "block")."""
        if query != "block":
            raise ValueError(f"the gateway measures blocks, not {query!r}")
        return from_json(Block, self._call("GET", "/admin/block"))

    def close(self) -> None:
        self._client.close()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            reply = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ReleaseError(
                f"the gateway does not answer: {error}.",
                code="release.gateway_unreachable",
                next_step="See gateway.jsonl in the logs.",
            ) from error
        if reply.is_error:
            raise ReleaseError(
                f"{method} {path}: {reply.text[:300]}", code="release.gateway_refused"
            )
        return reply.json()

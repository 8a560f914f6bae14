"""Entry of the gateway process: two listeners, one loop."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from autoglm.contracts.record import from_json
from autoglm.observability import logging as logs
from autoglm.serving.config import ServingConfig
from autoglm.serving.gateway import Gateway
from autoglm.serving.gateway_app import admin_app, public_app


async def serve(arguments: argparse.Namespace) -> None:
    config = from_json(ServingConfig, json.loads(arguments.config))
    sockets = Path(arguments.sockets)
    gateway = Gateway(
        project=arguments.project,
        state=Path(arguments.state),
        sockets=sockets,
        logs=Path(arguments.logs),
        config=config,
    )
    listener = listen(config.host, arguments.port)
    admin = sockets / "admin.sock"
    admin.unlink(missing_ok=True)
    control = Path(arguments.control) if arguments.control else None
    common = {"log_config": None, "access_log": False, "lifespan": "off"}
    servers = [
        uvicorn.Server(uvicorn.Config(public_app(gateway, control), **common)),  # type: ignore[arg-type]
        uvicorn.Server(uvicorn.Config(admin_app(gateway), uds=str(admin), **common)),  # type: ignore[arg-type]
    ]
    for server in servers:
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    threading.Thread(target=_end_with_parent, args=(loop, servers), daemon=True).start()
    await gateway.restore()
    host, port = listener.getsockname()[:2]
    tasks = [
        asyncio.create_task(servers[0].serve(sockets=[listener])),
        asyncio.create_task(servers[1].serve()),
    ]
    while not (servers[0].started and servers[1].started):
        await asyncio.sleep(0.01)
    staging = sockets / ".address"
    staging.write_text(f"http://{host}:{port}")
    staging.replace(sockets / "address")
    await asyncio.gather(*tasks)
    await gateway.close()
    os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """Where users reach us; port 0 is a free one."""
    listener = socket.create_server((host, port), backlog=1024)
    # Its connections inherit this, and asyncio would not set it: an answer's head and body are two
    # writes, and the second would wait 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _end_with_parent(loop: asyncio.AbstractEventLoop, servers: list[uvicorn.Server]) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        continue

    def leave() -> None:
        for server in servers:
            server.should_exit = True

    loop.call_soon_threadsafe(leave)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("project", "state", "sockets", "logs", "config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--control", default="")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure("gateway", project=arguments.project, folder=Path(arguments.logs))
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()

"""An S3-compatible store for tests: moto's, in a process of its own.

    python -m s3_server PORT     (0: a free one; the line that it prints first)

One thread: moto looks for a file and writes it in two steps, a store does so in one.
`GET /_commits` says how many log entries came with a condition, and how many without.
A test asks for weather by `PUT /_weather?KIND=COUNT`:

    lost      so many log entries are stored, but the answer says 500
    refused   so many requests are answered by 403
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

KEYS = {
    "access_key_id": "AKIAEXAMPLE",
    "secret_access_key": "a-secret-of-the-store",
    "region": "us-east-1",
}


class Weather:
    """WSGI around moto: what may happen on the way."""

    def __init__(self, app: Any) -> None:
        self._app, self._left = app, {"lost": 0, "refused": 0}
        self._commits = {"conditional": 0, "blind": 0}

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/_weather":
            said = urllib.parse.parse_qs(environ["QUERY_STRING"])
            self._left |= {kind: int(counts[0]) for kind, counts in said.items()}
            start("200 OK", [])
            return [b""]
        if self._takes("refused"):
            start("403 Forbidden", [])
            key = KEYS["access_key_id"].encode()  # AWS repeats it
            return [b"<Error><Code>InvalidAccessKeyId</Code><Id>" + key + b"</Id></Error>"]
        if path == "/_commits":
            start("200 OK", [])
            return [json.dumps(self._commits).encode()]
        is_commit = environ["REQUEST_METHOD"] == "PUT" and path.endswith(".json")
        if is_commit:
            self._commits["conditional" if environ.get("HTTP_IF_NONE_MATCH") else "blind"] += 1
        if is_commit and self._takes("lost"):
            list(self._app(environ, lambda *_: None))
            start("500 Internal Server Error", [])
            return [b"<Error><Code>InternalError</Code></Error>"]
        return self._app(environ, start)  # type: ignore[no-any-return]

    def _takes(self, kind: str) -> bool:
        self._left[kind] -= 1
        return self._left[kind] >= 0


class Store:
    """A running one. `options` are those of `storage.options`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.options = {"endpoint_url": self.url, **KEYS}

    def weather(self, **counts: int) -> None:
        httpx.put(f"{self.url}/_weather", params=counts).raise_for_status()

    def commits(self) -> dict[str, int]:
        found: dict[str, int] = httpx.get(f"{self.url}/_commits").json()
        return found

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=KEYS["region"],
            aws_access_key_id=KEYS["access_key_id"],
            aws_secret_access_key=KEYS["secret_access_key"],
        )

    def names(self, prefix: str) -> list[str]:
        found = self.client().list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        return [each["Key"] for each in found]


@contextmanager
def running(port: int = 0) -> Iterator[Store]:
    command = [sys.executable, str(Path(__file__)), str(port)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout is not None
        yield Store(int(child.stdout.readline()))
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Weather(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=False)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

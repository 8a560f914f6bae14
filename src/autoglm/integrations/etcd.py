"""etcd v3 as a config centre, over its HTTP gateway (JSON, base64 keys and values).

A key is `PREFIX/training/lr` or `PREFIX/training.lr`; its value is a scalar as in YAML, or a map
in braces. Tested against etcd 3.4.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from autoglm.config.centre import remote_broken
from autoglm.config.config import CentreConfig
from autoglm.errors import ConfigError
from autoglm.integrations.http_config import open_client, unreachable


class EtcdCentre:
    """Port ConfigCentre."""

    def __init__(self, config: CentreConfig, profile: str) -> None:
        del profile
        self._prefix = config.prefix.rstrip("/") + "/"
        self._config = config
        self._client = open_client(config)
        self._closed = threading.Event()

    def load(self) -> tuple[Mapping[str, Any], str]:
        answer = self._ask("/v3/kv/range", self._range())
        try:
            tree = {
                _key(_text(pair["key"]), self._prefix): _text(pair.get("value", ""))
                for pair in answer.get("kvs", [])
            }
            return tree, str(int(answer["header"]["revision"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _broken(self._config.url, error) from error

    def watch(self, revision: str) -> Iterator[str]:
        """Without a `revision` it starts at what is there now, and reports that first."""
        if not revision:
            _tree, revision = self.load()
            yield revision
        create = {"create_request": {**self._range(), "start_revision": int(revision) + 1}}
        try:
            with self._client.stream(
                "POST", "/v3/watch", json=create, headers=self._token(), timeout=None
            ) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if self._closed.is_set():
                        return
                    result = json.loads(line).get("result", {}) if line else {}
                    if result.get("canceled"):
                        raise ConfigError(
                            "etcd ended the watch.",
                            code="config.unreachable",
                            next_step="It is asked again; compact its history less often.",
                        )
                    if result.get("events"):
                        yield str(result["header"]["revision"])
        except httpx.HTTPError as error:
            raise _unreachable(self._config.url, error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _broken(self._config.url, error) from error

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    def _range(self) -> dict[str, str]:
        start = self._prefix.encode()
        return {"key": _coded(start), "range_end": _coded(start[:-1] + bytes([start[-1] + 1]))}

    def _token(self) -> dict[str, str]:
        if not self._config.user:
            return {}
        who = {"name": self._config.user, "password": self._config.password}
        try:
            answer = self._client.post("/v3/auth/authenticate", json=who)
            answer.raise_for_status()
            return {"Authorization": str(answer.json()["token"])}
        except httpx.HTTPError as error:
            raise _unreachable(self._config.url, error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _broken(self._config.url, error) from error

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.post(path, json=body, headers=self._token())
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPError as error:
            raise _unreachable(self._config.url, error) from error
        except ValueError as error:
            raise _broken(self._config.url, error) from error


def _key(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).strip("/").replace("/", ".")


def _text(coded: str) -> str:
    return base64.b64decode(coded, validate=True).decode("utf-8")


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unreachable(url: str, error: Exception) -> ConfigError:
    return unreachable(f"etcd at {url}", error)


def _broken(url: str, error: Exception) -> ConfigError:
    return remote_broken(f"etcd at {url}", str(error))

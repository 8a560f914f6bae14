"""Consul, Spring Config and Nacos as config centres: one driver, three dialects.

Contract-tested against recorded answers, not against living servers.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import httpx

from autoglm.config.centre import remote_broken
from autoglm.config.config import CentreConfig
from autoglm.config.masking import masked
from autoglm.config.properties_reader import read_properties
from autoglm.config.yaml_reader import read_yaml
from autoglm.errors import ConfigError

LONG_POLL_SECONDS = 30


def open_client(config: CentreConfig, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """Raises: ConfigError for an address that cannot be one."""
    try:
        return httpx.Client(
            base_url=config.url,
            timeout=config.timeout.total_seconds(),
            headers=dict(headers or {}),
            trust_env=False,
            # Reading the machine's certificates takes longer than all the rest.
            verify=config.url.startswith("https"),
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            masked(f"config.centre.url = {str(config.url)!r} is no address: {error}."),
            code="config.wrong_value",
            next_step="Write it like http://127.0.0.1:2379.",
        ) from error


def unreachable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        masked(f"{name} does not answer: {error}."),
        code="config.unreachable",
        next_step="Start it, or set config.centre.required: false to go on with the last copy.",
    )


class Dialect(Protocol):
    """How one server is asked: `load` → (tree, revision); `wait` returns when it may differ."""

    def load(self, client: httpx.Client) -> tuple[Mapping[str, Any], str]: ...
    def wait(self, client: httpx.Client, revision: str, stop: threading.Event) -> None: ...


class HttpCentre:
    """Port ConfigCentre for any dialect."""

    def __init__(self, config: CentreConfig, dialect: Dialect, headers: Mapping[str, str]) -> None:
        self._name, self._dialect = f"{config.kind} at {config.url}", dialect
        self._client = open_client(config, headers)
        self._closed = threading.Event()

    def load(self) -> tuple[Mapping[str, Any], str]:
        try:
            return self._dialect.load(self._client)
        except httpx.HTTPError as error:
            raise unreachable(self._name, error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise remote_broken(self._name, str(error)) from error

    def watch(self, revision: str) -> Iterator[str]:
        while not self._closed.is_set():
            _tree, newest = self.load()
            if newest != revision:
                revision = newest
                yield revision
            try:
                self._dialect.wait(self._client, revision, self._closed)
            except httpx.HTTPError as error:
                raise unreachable(self._name, error) from error

    def close(self) -> None:
        self._closed.set()
        self._client.close()


class ConsulDialect:
    """Keys below a prefix; blocking queries by index."""

    def __init__(self, config: CentreConfig) -> None:
        self._path = f"/v1/kv/{config.prefix.strip('/')}/"
        self._prefix = config.prefix.strip("/") + "/"

    def load(self, client: httpx.Client) -> tuple[Mapping[str, Any], str]:
        answer = client.get(self._path, params={"recurse": "true"})
        revision = answer.headers.get("X-Consul-Index", "0")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return {}, revision
        answer.raise_for_status()
        tree = {}
        for pair in _list(answer.json()):
            name = pair["Key"].removeprefix(self._prefix).strip("/").replace("/", ".")
            if name and pair["Value"] is not None:
                tree[name] = base64.b64decode(pair["Value"], validate=True).decode("utf-8")
        return tree, revision

    def wait(self, client: httpx.Client, revision: str, stop: threading.Event) -> None:
        del stop  # closing the client ends the request
        wait = {"recurse": "true", "index": revision, "wait": f"{LONG_POLL_SECONDS}s"}
        client.get(self._path, params=wait, timeout=LONG_POLL_SECONDS + 10)


class SpringDialect:
    """`GET /app/profile/label`: of several property sources the first that says a key wins."""

    def __init__(self, config: CentreConfig, profile: str) -> None:
        parts = [p for p in config.prefix.split("/") if p]
        if not parts:
            raise ConfigError(
                "config.centre.prefix is empty; Spring Config asks by application.",
                code="config.wrong_value",
                next_step="Write app, app/profile or app/profile/label.",
            )
        app, said, *label = [*parts, profile] if len(parts) == 1 else parts
        self._path = "/" + "/".join([app, said, *label])
        self._pause = config.poll_interval.total_seconds()

    def load(self, client: httpx.Client) -> tuple[Mapping[str, Any], str]:
        answer = client.get(self._path)
        answer.raise_for_status()
        document = answer.json()
        tree: dict[str, Any] = {}
        for source in _list(document["propertySources"]):
            for name, value in source["source"].items():
                tree.setdefault(name, value)
        said = hashlib.blake2b(answer.content, digest_size=8).hexdigest()
        return tree, str(document.get("version") or "") + "-" + said

    def wait(self, client: httpx.Client, revision: str, stop: threading.Event) -> None:
        del client, revision
        stop.wait(self._pause)


def _list(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"a list was awaited, this is {type(value).__name__}")
    return value


class NacosDialect:
    """`prefix` is `group/dataId`; the content is YAML, or properties by its name. Long polling."""

    def __init__(self, config: CentreConfig) -> None:
        group, _, data_id = config.prefix.strip("/").rpartition("/")
        self._group, self._data_id = group or "DEFAULT_GROUP", data_id

    def load(self, client: httpx.Client) -> tuple[Mapping[str, Any], str]:
        where = {"dataId": self._data_id, "group": self._group}
        answer = client.get("/nacos/v1/cs/configs", params=where)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return {}, ""
        answer.raise_for_status()
        is_properties = self._data_id.endswith(".properties")
        read = read_properties if is_properties else read_yaml
        leaves = read(answer.text, name=self._data_id)
        tree: dict[str, Any] = {}
        for leaf in leaves:
            node = tree
            for part in leaf.path[:-1]:
                node = node.setdefault(f"[{part}]", {})
            node[f"[{leaf.path[-1]}]"] = leaf.value
        return tree, hashlib.md5(answer.content, usedforsecurity=False).hexdigest()

    def wait(self, client: httpx.Client, revision: str, stop: threading.Event) -> None:
        del stop
        listening = f"{self._data_id}\x02{self._group}\x02{revision}\x01"
        client.post(
            "/nacos/v1/cs/configs/listener",
            data={"Listening-Configs": listening},
            headers={"Long-Pulling-Timeout": str(LONG_POLL_SECONDS * 1000)},
            timeout=LONG_POLL_SECONDS + 10,
        )


def consul(config: CentreConfig, profile: str) -> HttpCentre:
    del profile
    headers = {"X-Consul-Token": config.password} if config.password else {}
    return HttpCentre(config, ConsulDialect(config), headers)


def spring(config: CentreConfig, profile: str) -> HttpCentre:
    headers = {}
    if config.user:
        pair = f"{config.user}:{config.password}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return HttpCentre(config, SpringDialect(config, profile), headers)


def nacos(config: CentreConfig, profile: str) -> HttpCentre:
    del profile
    return HttpCentre(config, NacosDialect(config), {})

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

from annotated_types import Gt

from autoglm.config.schema import Address, Key, Secret


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreConfig:
    kind: Annotated[str, Key("etcd, consul, spring, nacos, or a plugin's. Empty: none.")] = ""
    url: Annotated[Address, Key("Where it answers, `http://host:port`.")] = ""
    prefix: Annotated[
        str, Key("Key prefix (etcd, consul), `app/profile/label` (spring), `group/dataId` (nacos).")
    ] = "autoglm"
    required: Annotated[
        bool, Key("Refuse to start without it; else the last good copy on disk is used.")
    ] = False
    timeout: Annotated[timedelta, Key("Longest time one question to it may take.")] = timedelta(
        seconds=2
    )
    poll_interval: Annotated[
        timedelta, Gt(timedelta(0)), Key("Pause between two questions where it cannot push.")
    ] = timedelta(seconds=5)
    user: Annotated[str, Key("User name; empty: none is sent.")] = ""
    password: Annotated[Secret, Key("Password, or Consul's token.")] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigConfig:
    centre: Annotated[CentreConfig, Key("A remote place that says values too.")] = field(
        default_factory=CentreConfig
    )

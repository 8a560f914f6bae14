from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from annotated_types import Ge, Gt, Le

from autoglm.config.schema import Key


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    host: Annotated[str, Key("Address to listen on; off loopback a token is needed.")] = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535), Key("Port; 0 takes a free one.")] = 8400
    threads: Annotated[int, Ge(1), Key("CPU threads of one model worker.")] = 1
    token_budget: Annotated[int, Ge(16), Key("Padded tokens of one forward pass.")] = 512
    max_queue: Annotated[int, Ge(1), Key("Waiting texts per worker before 503.")] = 1024
    timeout: Annotated[
        timedelta, Gt(timedelta(0)), Key("Longest time one prediction may take, retry included.")
    ] = timedelta(seconds=30)

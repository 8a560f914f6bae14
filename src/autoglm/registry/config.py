from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from autoglm.config.schema import Bytes, Key, Secret, live


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    budget: Annotated[Bytes, Ge(0), live("A run that would pass this on disk is refused.")] = (
        20 * 2**30
    )
    table: Annotated[
        str, Key("Address of the feature table, `s3://BUCKET/PREFIX`; empty: the project's folder.")
    ] = ""
    options: Annotated[
        Mapping[str, Secret],
        Key("Of the table's store: endpoint_url, region, access_key_id, secret_access_key, …"),
    ] = field(default_factory=dict)
    keep_versions: Annotated[
        int, Ge(1), live("Model versions kept beside those with an alias.")
    ] = 5

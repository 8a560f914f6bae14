"""What a section says of a key beside its type: what it does, and whether it may change live.

A section is a frozen keyword-only dataclass; a field reads
`lr: Annotated[float, Gt(0), Key("Learning rate of AdamW at its peak.")] = 5e-4`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Key:
    """`what` is the line of the reference page; `is_reloadable` keys may change while `up` runs."""

    what: str
    is_reloadable: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """The field's number may be written with a unit: `bytes` (4GiB) or `share` (5%)."""

    name: str


Bytes = Annotated[int, Unit("bytes")]
Share = Annotated[float, Unit("share")]

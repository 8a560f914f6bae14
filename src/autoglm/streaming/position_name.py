"""A position as a batch of the log carries it: short ones whole, long ones by their digest.

`full_diff` and folders know a digest per row (2 MB for 100,000 of them). What is read again is the
producer's record, which each new one replaces; a batch only has to say which position it led to.
"""

from __future__ import annotations

from hashlib import sha256

MAX_BYTES = 256


def name_of(position: str) -> str:
    whole = position.encode()
    return position if len(whole) <= MAX_BYTES else f"sha256:{sha256(whole).hexdigest()}"

"""What reused work is named by: a digest of all that it depends on. No torch."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

ROW_KEY_BYTES = 16


def row_key(tokens: Sequence[int]) -> bytes:
    """Of a row of token ids: where it stands in its data set does not count."""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=ROW_KEY_BYTES).digest()

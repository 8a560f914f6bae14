"""An exported model that is asked about each row once, by whichever run.

Stable is scored beside every candidate, on test rows that are mostly those of the run before: what
it said of them is kept, by its graph's content and the row's tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from autoglm.contracts.record import digest
from autoglm.modeling.onnx_model import BATCH_TOKENS, OnnxModel
from autoglm.reuse.kept_arrays import keep_arrays, read_arrays
from autoglm.reuse.keys import ROW_KEY_BYTES, row_key


class KeptLogits(OnnxModel):
    """As `OnnxModel`; `kept` is the folder where logits (rows, labels) lie. Images and rows with an
    answer for each token are asked about each time.
    """

    def __init__(self, folder: Path, *, threads: int, kept: Path) -> None:
        super().__init__(folder, threads=threads, may_rest=True)
        shas = []
        for path in sorted(folder.glob("model.onnx*")):  # some keep their weights beside the graph
            with path.open("rb") as stream:
                shas.append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
        self._kept, self._key = kept, digest("logits", shas, onnxruntime.__version__)
        self._is_known = self.form.reads == "text" and self.form.answers != "tags"
        self._known: dict[bytes, NDArray[np.float32]] | None = None

    def logits(
        self, rows: Sequence[Any], *, token_budget: int = BATCH_TOKENS
    ) -> list[NDArray[np.float32]]:
        if not self._is_known or not rows:
            return super().logits(rows, token_budget=token_budget)
        if self._known is None:
            self._known = self._read()
        keys = [row_key(row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        if missing:
            said = super().logits([*missing.values()], token_budget=token_budget)
            self._known |= zip(missing, said, strict=True)
        if missing or self._known.keys() != set(keys):
            self._keep(keys)
        return [self._known[key] for key in keys]

    def _read(self) -> dict[bytes, NDArray[np.float32]]:
        arrays: Any = read_arrays(self._kept, self._key)
        if arrays is None:
            return {}
        keys = arrays["keys"].tobytes()
        names = [keys[i : i + ROW_KEY_BYTES] for i in range(0, len(keys), ROW_KEY_BYTES)]
        return dict(zip(names, arrays["logits"], strict=True))

    def _keep(self, keys: Sequence[bytes]) -> None:
        """Of the rows that were asked about now: others are gone from the data set."""
        assert self._known is not None
        self._known = {key: self._known[key] for key in keys}
        arrays: dict[str, Any] = {
            "keys": np.frombuffer(b"".join(self._known), np.uint8),
            "logits": np.stack([*self._known.values()]),
        }
        keep_arrays(self._kept, self._key, arrays)

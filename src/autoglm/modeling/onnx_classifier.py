"""A model version answering by its graph: tokenizers or Pillow, ONNX Runtime, no torch.

The folder: config.json, model.safetensors, tokenizer.json, model.onnx, autoglm.json {labels,
max_length, pad_id, pooling, opens_with, parity}, modeling_autoglm.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.errors import ModelError
from autoglm.modeling.images import PREPROCESSOR, Preprocessor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEEDED = ("autoglm.json", "model.onnx")
IMAGES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`score` is the softmax probability of `label`."""

    label: str
    score: float


class OnnxClassifier:
    """Opens a model folder. `threads` 0 takes the cores there are.

    Raises: ModelError model.folder_incomplete.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        is_of_images = (folder / PREPROCESSOR).is_file()
        needed = (*NEEDED, PREPROCESSOR if is_of_images else "tokenizer.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {', '.join(missing)}.",
                code="model.folder_incomplete",
                next_step="Export the model version again.",
            )
        facts = json.loads((folder / "autoglm.json").read_text(encoding="utf-8"))
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        self._pad_id, self._max_length = int(facts["pad_id"]), int(facts["max_length"])
        self._preprocessor = Preprocessor.of(folder) if is_of_images else None
        self._tokenizer: Any = None if is_of_images else _tokenizer(folder, self._max_length)
        self._session = _session(folder / "model.onnx", threads or os.cpu_count() or 1)

    def encode(self, texts: Sequence[Any]) -> list[Any]:
        """Token ids of each text, cut at the folder's max_length; pixels of each image, which is
        given as bytes or as a path. Raises: DataError data.not_an_image.
        """
        if self._preprocessor is not None:
            return [self._preprocessor.pixels(image) for image in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def seen(self, texts: Sequence[str]) -> list[str]:
        """Each text as far as the model reads it: up to the end of its last token."""
        if self._preprocessor is not None:
            return list(texts)
        encodings = self._tokenizer.encode_batch(list(texts))
        ends = [max((end for _, end in e.offsets), default=0) for e in encodings]
        return [text[:end] for text, end in zip(texts, ends, strict=True)]

    def logits(self, encodings: Sequence[Any], *, token_budget: int = 4096) -> NDArray[np.float32]:
        """(texts, labels) in the order of `encodings`; batches of at most `token_budget` padded
        tokens, made of texts of like length; images by a fixed number.
        """
        import numpy as np

        if self._preprocessor is not None:
            return self._logits_of_pixels(encodings)
        out = np.empty((len(encodings), len(self.labels)), np.float32)
        order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
        for batch in _batches(order, [len(e) for e in encodings], token_budget):
            length = max(len(encodings[i]) for i in batch)
            ids = np.full((len(batch), length), self._pad_id, np.int64)
            mask = np.zeros((len(batch), length), np.int64)
            for row, i in enumerate(batch):
                ids[row, : len(encodings[i])] = encodings[i]
                mask[row, : len(encodings[i])] = 1
            out[batch] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return out

    def _logits_of_pixels(self, encodings: Sequence[Any]) -> NDArray[np.float32]:
        import numpy as np

        out = np.empty((len(encodings), len(self.labels)), np.float32)
        for start in range(0, len(encodings), IMAGES_AT_ONCE):
            pixels = np.stack(list(encodings[start : start + IMAGES_AT_ONCE]))
            out[start : start + len(pixels)] = self._session.run(None, {"pixel_values": pixels})[0]
        return out

    def predict(self, texts: Sequence[Any]) -> list[Answer]:
        """One answer per text, in order."""
        import numpy as np

        logits = self.logits(self.encode(texts)).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        shares = shares / shares.sum(axis=1, keepdims=True) if len(logits) else shares
        best = shares.argmax(axis=1) if len(logits) else []
        return [Answer(label=self.labels[k], score=float(shares[i, k])) for i, k in enumerate(best)]

    def warm(self) -> None:
        """Answer once, so that the first user does not pay for it."""
        from io import BytesIO

        if self._preprocessor is None:
            self.predict(["warm"])
            return
        from PIL import Image

        dot = BytesIO()
        Image.new("L", (1, 1)).save(dot, "PNG")
        self.predict([dot.getvalue()])


def _batches(order: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        # `order` is sorted: the newest text is the longest of its batch.
        if not batches or (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _tokenizer(folder: Path, max_length: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would burn a core while nobody asks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )

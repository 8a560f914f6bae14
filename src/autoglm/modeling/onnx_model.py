"""A model version answering by its graph: tokenizers or Pillow, ONNX Runtime, no torch.

The folder: config.json, model.safetensors, tokenizer.json, model.onnx, autoglm.json {task, labels,
max_length, pad_id, pooling, opens_with, parity}, modeling_autoglm.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.contracts.task import TASKS, TaskForm, answer_to_json
from autoglm.cores import cores
from autoglm.errors import ModelError
from autoglm.modeling.encoding import encode, first_tokens, open_tokenizer
from autoglm.modeling.images import DOT, PREPROCESSOR, Preprocessor, image_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEEDED = ("autoglm.json", "model.onnx")
IMAGES_AT_ONCE = 32
# Padded tokens of a forward pass. With 4,096 short texts took 1.7 times as long, long ones 1.4.
BATCH_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`label` is what the task answers (contracts.task). `score` is the model's probability of it:
    of a label; of the least sure one of labels; on average, of tags; None of a number.
    """

    label: Any
    score: float | None

    def to_json(self) -> dict[str, Any]:
        return {"label": answer_to_json(self.label), "score": self.score}


class OnnxModel:
    """Opens a model folder. `threads` 0 takes the cores there are. The graph of one that `may_rest`
    is opened when it is first asked.

    Raises: ModelError model.folder_incomplete.
    """

    def __init__(self, folder: Path, *, threads: int, may_rest: bool = False) -> None:
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
        self.form: TaskForm = TASKS[facts.get("task", "text-classification")]
        self._pad_id = int(facts["pad_id"])
        self._preprocessor = Preprocessor.of(folder) if is_of_images else None
        self._tokenizer: Any = (
            None if is_of_images else open_tokenizer(folder, int(facts["max_length"]), self.form)
        )
        self._graph, self._threads = folder / "model.onnx", threads or cores()
        if not may_rest:
            _ = self._session

    @cached_property
    def _session(self) -> Any:
        return _session(self._graph, self._threads)

    def encode(self, inputs: Sequence[Any]) -> list[Any]:
        """The tokenizer's encoding of each text or row of tokens, cut at the folder's max_length;
        the pixels of each image, given as bytes or as a path. Raises: DataError data.not_an_image.
        """
        if self._preprocessor is not None:
            return [self._preprocessor.pixels(image) for image in inputs]
        return encode(self._tokenizer, inputs)

    def pixels(self, cells: Sequence[Any]) -> list[Any]:
        """What the model sees of images in base64."""
        return self.encode([image_of(cell) for cell in cells])

    def rows(self, encodings: Sequence[Any]) -> list[Any]:
        """What `logits` takes: token ids, or pixels."""
        return list(encodings) if self._preprocessor is not None else [e.ids for e in encodings]

    def seen(self, texts: Sequence[str]) -> list[str]:
        """Each text as far as the model reads it: up to the end of its last token."""
        ends = [max((end for _, end in e.offsets), default=0) for e in self.encode(texts)]
        return [text[:end] for text, end in zip(texts, ends, strict=True)]

    def logits(
        self, rows: Sequence[Any], *, token_budget: int = BATCH_TOKENS
    ) -> list[NDArray[np.float32]]:
        """(labels,) per row of token ids, in order; (length, labels) where each token is answered
        for. Batches have at most `token_budget` padded tokens, of rows of like length.
        """
        import numpy as np

        if self._preprocessor is not None:
            return self._logits_of_pixels(rows)
        out: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for batch in _batches(order, [len(row) for row in rows], token_budget):
            length = max(len(rows[i]) for i in batch)
            ids = np.full((len(batch), length), self._pad_id, np.int64)
            mask = np.zeros((len(batch), length), np.int64)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])] = rows[i]
                mask[row, : len(rows[i])] = 1
            said = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
            for row, i in enumerate(batch):
                out[i] = said[row, : len(rows[i])] if said.ndim == 3 else said[row]
        return out

    def _logits_of_pixels(self, rows: Sequence[Any]) -> list[NDArray[np.float32]]:
        import numpy as np

        out: list[Any] = []
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            pixels = np.stack(list(rows[start : start + IMAGES_AT_ONCE]))
            out += list(self._session.run(None, {"pixel_values": pixels})[0])
        return out

    def predict(self, inputs: Sequence[Any]) -> list[Answer]:
        """One answer per input (a text, or tokens), in order. A text for a task of tokens is
        divided at white space; tokens for a task of texts are joined by it.
        """
        inputs = [self._as_read(one) for one in inputs]
        encodings = self.encode(inputs)
        logits = self.logits(self.rows(encodings))
        if self.form.answers == "tags":
            rows = zip(inputs, encodings, logits, strict=True)
            return [self._tags(len(tokens), e, scores) for tokens, e, scores in rows]
        answering = {"labels": self._labels, "number": self._number}
        make = answering.get(self.form.answers, self._label)
        return [make(scores) for scores in logits]

    def shares(self, inputs: Sequence[Any]) -> list[dict[str, float]]:
        """Of each input a share per label: together 1, or each for itself where any of several
        labels is answered. Raises: ValueError where a row's answer is no label and no labels.
        """
        if self.form.answers not in {"label", "labels"}:
            raise ValueError(f"there are no shares of {self.form.answers}")
        rows = self.logits(self.rows(self.encode([self._as_read(one) for one in inputs])))
        make = _softmax if self.form.answers == "label" else _sigmoid
        return [dict(zip(self.labels, make(row).tolist(), strict=True)) for row in rows]

    def _as_read(self, one: Any) -> Any:
        if self._preprocessor is not None:
            return one if isinstance(one, Path) else image_of(one)
        if self.form.reads == "tokens":
            return tuple(one.split() if isinstance(one, str) else one)
        return one if isinstance(one, str) else " ".join(one)

    def _label(self, logits: NDArray[np.float32]) -> Answer:
        shares = _softmax(logits)
        best = int(shares.argmax())
        return Answer(label=self.labels[best], score=float(shares[best]))

    def _labels(self, logits: NDArray[np.float32]) -> Answer:
        import numpy as np

        said = logits > 0
        sure = 1 / (1 + np.exp(-np.abs(logits.astype(np.float64))))
        names = (name for name, is_said in zip(self.labels, said, strict=True) if is_said)
        return Answer(label=frozenset(names), score=float(sure.min()))

    def _number(self, logits: NDArray[np.float32]) -> Answer:
        return Answer(label=float(logits[0]), score=None)

    def _tags(self, num_tokens: int, encoding: Any, logits: NDArray[np.float32]) -> Answer:
        """A token that was not read (behind max_length, or without any id) is outside."""
        outside = "O" if "O" in self.labels else self.labels[0]
        tags, shares = [outside] * num_tokens, _softmax(logits)
        sure = []
        for place, word in first_tokens(encoding):
            tags[word] = self.labels[int(shares[place].argmax())]
            sure.append(float(shares[place].max()))
        score = sum(sure) / len(sure) if sure else 0.0
        return Answer(label=tuple(tags), score=score)

    def warm(self) -> None:
        """Answer once, so that the first user does not pay for it."""
        self.predict([DOT if self._preprocessor is not None else "warm"])


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    shares: NDArray[np.float64] = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    wide = np.exp(-np.abs(logits.astype(np.float64)))
    shares: NDArray[np.float64] = np.where(logits > 0, 1 / (1 + wide), wide / (1 + wide))
    return shares


def _batches(order: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        # `order` is sorted: the newest text is the longest of its batch.
        if not batches or (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


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

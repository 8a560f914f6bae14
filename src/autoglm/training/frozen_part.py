"""What the backbone says of the rows before anything was learnt, by way of the prefix cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autoglm.contracts.record import digest
from autoglm.modeling.attention.packed import lay_out, on_one_thread, packed_on_one_thread
from autoglm.modeling.frozen import frozen_keys, named_in
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.reuse.keys import row_key
from autoglm.reuse.prefix_cache import (
    Divide,
    EncodeBlock,
    Prefix,
    PrefixCache,
    RowStates,
    blocks,
    joined,
    lone_blocks,
    packed_blocks,
)
from autoglm.training.devices import name_on
from autoglm.training.precision import computing_in


@dataclass(frozen=True, slots=True)
class Lane:
    """Rows whose frozen part is computed in one number format. The cache knows what is said of all
    rows of a lane by one name, so that where anything is known of it, most is.
    """

    name: str
    precision: str
    rows: range


def kept_in(precision: str) -> str:
    """The format of kept states that training in `precision` learns from. fp16 holds no number
    above 65,504, so what it reads was computed in fp32.
    """
    return precision if precision == "bf16" else "fp32"


def lanes(num_rows: int, num_half: int, precision: str) -> list[Lane]:
    """The first `num_half` rows, which are learnt from, are computed as training computes inside
    its batches; the others, which only score, in fp32, as what is released answers.
    """
    half = kept_in(precision)
    if half == "fp32" or not num_half:
        return [Lane("fp32", "fp32", range(num_rows))]
    scored = Lane(f"fp32 beside {half}", "fp32", range(num_half, num_rows))
    return [Lane(half, half, range(num_half)), *([scored] if scored.rows else [])]


class FrozenPart:
    """Of one model's start, whose weights `start_name` names, so that they are digested once; or,
    without a name, of what has stopped to learn. States at the boundaries `also` will be asked for
    too: they are kept on the way to a deeper one. In which format: see `lanes`.
    """

    def __init__(
        self,
        model: AutoGLMForSequenceClassification,
        ids: Sequence[Sequence[int]],
        body: Any,
        *,
        cache: PrefixCache,
        start_name: str | None,
        stop: Callable[[], None],
        also: Sequence[int] = (),
        num_half: int = 0,
        precision: str = "fp32",
    ) -> None:
        self._model, self._ids, self._body, self._also = model, ids, body, sorted({*also})
        self._lanes = lanes(len(ids), num_half, precision)
        self._cache, self._stop = cache, stop
        self._lengths, self._device = [len(row) for row in ids], model.backbone.device
        self._is_cuttable = not body.why_whole
        # Now: later the word table may be cut and layers may learn.
        make = partial(frozen_keys, model.backbone)
        name = name_on(self._device.type, f"{start_name}/parts")
        self._keys: list[str] = cache.remembered(name, make) if start_name else make()

    def renumber(self, ids: Sequence[Sequence[int]]) -> None:
        """Tokens have other numbers in a table that was cut; they are the same words."""
        assert self._row_keys, "rows are named by the numbers they had"
        self._ids = ids

    @cached_property
    def _row_keys(self) -> list[bytes]:
        return [row_key(row) for row in self._ids]

    @torch.no_grad()
    def states(self, boundary: int) -> RowStates:
        """(tokens, hidden) entering layer `boundary`."""
        return joined([self._states(lane, boundary) for lane in self._lanes])

    def names(self, boundary: int) -> list[str]:
        """What the cache knows `states` by."""
        return [named_in(self._keys[boundary], lane.name) for lane in self._lanes]

    def _states(self, lane: Lane, boundary: int) -> RowStates:
        return self._kept(lane, self._prefix(lane, boundary, self._keys[boundary]))

    def _kept(self, lane: Lane, prefix: Prefix) -> RowStates:
        rows = slice(lane.rows.start, lane.rows.stop)
        return self._cache.states(prefix, self._row_keys[rows], self._lengths[rows])

    @torch.no_grad()
    def pooled(self) -> RowStates | None:
        """(1, hidden) of each row as the head gets it; None where the pooling itself learns."""
        pooling = self._model.config.pooling
        if pooling == "none" or any(True for _ in self._model.pooling.parameters()):
            return None
        key = digest(self._keys[-1], pooling, "pooled")
        parts = [(lane, self._prefix(lane, None, key, is_pooled=True)) for lane in self._lanes]
        return joined([self._kept(lane, prefix) for lane, prefix in parts])

    def _prefix(
        self, lane: Lane, boundary: int | None, key: str, *, is_pooled: bool = False
    ) -> Prefix:
        """States are made from the deepest boundary below that is known."""
        key, keys = named_in(key, lane.name), [named_in(each, lane.name) for each in self._keys]
        spent = 0.0 if self._cache.has(key) else self._on_the_way(lane, boundary)
        depths = range(boundary if boundary is not None else len(keys))
        known = [i for i in reversed(depths) if i and self._cache.has(keys[i])]
        start = known[0] if known and self._is_cuttable else 0
        return Prefix(
            key=key,
            width=int(self._model.backbone.config.hidden_size),
            encode=partial(self._encode, lane, start, boundary, is_pooled),
            below=keys[start] if start else "",
            is_pooled=is_pooled,
            divide=self._divide,
            seconds_below=spent,
        )

    @property
    def _divide(self) -> Divide:
        if self._body.has_experts:
            return lone_blocks
        return packed_blocks if self._body.attends_row_by_row else blocks

    def _on_the_way(self, lane: Lane, boundary: int | None) -> float:
        """Keep what other trials will ask for below `boundary`; the CPU-seconds that it took."""
        end = boundary if boundary is not None else len(self._keys)
        wanted = [b for b in self._also if 0 < b < min(end, len(self._keys))]
        width = int(self._model.backbone.config.hidden_size)
        if not self._is_cuttable or not wanted:
            return 0.0
        if self._cache.why_too_large((1 + len(wanted)) * sum(self._lengths), width):
            return 0.0
        return self._states(lane, wanted[-1]).cpu_seconds  # by way of the others

    def _encode(
        self,
        lane: Lane,
        start: int,
        end: int | None,
        is_pooled: bool,
        block: EncodeBlock,
        states: Tensor | None,
    ) -> Tensor:
        self._stop()
        rows = [lane.rows[i] for i in block.rows]
        lengths = [self._lengths[i] for i in rows]
        fill = _fill(block.num_fill, lengths[-1])
        computing = computing_in(lane.precision, self._device.type)
        # A padded row's attention is not ours to reach: all of it on one thread.
        with on_one_thread() if self._body.why_padded else packed_on_one_thread(), computing:
            layout = lay_out([*lengths, *fill], self._device, is_exact=True)
            flat: Tensor
            if states is not None:
                states = F.pad(states, (0, 0, 0, block.num_fill)).to(self._device)
                flat = self._body.between(states, layout, start=start, end=end)
            else:
                pad_id = self._body.pad_id
                ids = [*(self._ids[i] for i in rows), *([pad_id] * n for n in fill)]
                run = self._body.whole if end is None else partial(self._body.lower, end=end)
                flat = run(ids, layout)
            flat = flat[: sum(lengths)]
            return (self._each_pooled(flat.float(), lengths) if is_pooled else flat).cpu()

    def _each_pooled(self, flat: Tensor, lengths: Sequence[int]) -> Tensor:
        """(rows, hidden). One by one: a pad more or less may change the last bit of a mean."""
        rows = [row[None] for row in torch.split(flat, list(lengths))]
        return torch.cat([self._model.pooled(x, x.new_ones(x.shape[:2]).long()) for x in rows])


def _fill(num_tokens: int, length: int) -> list[int]:
    """Lengths of rows of so many tokens that are not longer than `length`."""
    whole, rest = divmod(num_tokens, max(1, length))
    return [max(1, length)] * whole + [rest] * bool(rest)

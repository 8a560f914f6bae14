"""A backbone as the trainer sees it: rows of token ids in, one hidden state per token out.

Without pads where the backbone allows it (`attention/packed.py`), else padded; cut in two where
the lower half is frozen. A check on a few rows decides, not a list of families.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoglm.modeling.attention import packed
from autoglm.modeling.attention.packed import Layout, lay_out, pack_as

# Of the largest value: what packing may change by summing in another order.
TOLERANCE = 1e-4
# Lengths of the rows that both ways are compared by.
EXAMPLE = (9, 5, 2)


class Body:
    """Wraps `backbone`. `why_padded` is empty when rows are packed. Layouts are longest row first.

    `position_offset` is the first position's number (BERT 0; RoBERTa's is behind its pad).
    """

    def __init__(self, backbone: Any, *, pad_id: int, num_frozen: int = 0) -> None:
        self.pad_id = pad_id
        self._attention = str(backbone.config._attn_implementation)
        self._offset = 0
        self.why_padded = self._try_packing(backbone)
        if not self.why_padded:
            backbone.set_attn_implementation(packed.register(self._attention))
        self._whole, self.num_frozen = backbone, num_frozen
        self._slices: dict[tuple[int, int | None], Any] = {}
        self.is_cut = num_frozen > 0 and not self.why_whole
        self.attends_row_by_row = self._attends_row_by_row()

    def cut_at(self, num_frozen: int) -> None:
        """The boundary moves up; 0 where what lies below it is not kept."""
        self.num_frozen, self.is_cut = num_frozen, num_frozen > 0 and not self.why_whole

    @property
    def has_experts(self) -> bool:
        """Whether products are as large as the tokens are many that were sent to an expert."""
        names = (name for name, _ in self._whole.named_modules())
        return any(name.rpartition(".")[2] == "experts" for name in names)

    @cached_property
    def why_whole(self) -> str:
        """Why this backbone cannot be cut in two; empty when both halves, one behind the other, say
        what the whole says: some do more than their embeddings and layers, in some other place.
        """
        if not can_cut(self._whole):
            return "its layers cannot be cut apart"
        was_training = self._whole.training
        self._whole.eval()
        rows, layout = self._example()
        try:
            with torch.no_grad():
                wanted = self.whole(rows, layout)
                at = max(1, self.num_frozen or len(self._whole.encoder.layer) // 2)
                lower = self._run(self._slice(0, at), rows, layout)
                apart = (self.between(lower, layout, start=at) - wanted).abs().max()
        except Exception as error:
            return f"its layers cannot be cut apart: {type(error).__name__}"
        finally:
            self._whole.train(was_training)
        if not apart <= TOLERANCE * wanted.abs().max():
            return f"cut in two it says something else: {float(apart):.2g} apart"
        return ""

    @torch.no_grad()
    def _attends_row_by_row(self) -> bool:
        """Whether torch's flash kernel of a CPU attends: it works head by head, so that what it
        says of a row has the same bytes whichever rows of its length are beside it. Products of
        many heads at once may not, which torch takes too where values are narrower than keys.
        """
        is_torchs = self._attention == "sdpa" and self._whole.device.type == "cpu"
        if self.why_padded or not is_torchs:
            return False
        was_training = self._whole.training
        self._whole.eval()
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                self.whole(*self._example())
        except RuntimeError:  # it has none for these sizes
            return False
        finally:
            self._whole.train(was_training)
        return True

    def _example(self) -> tuple[list[list[int]], Layout]:
        """A few rows of any tokens, and their layout."""
        size = min(int(getattr(self._whole.config, "vocab_size", 100)), 1000)
        tokens = [t for t in range(size) if t != self.pad_id]
        ids = [tokens[(7 * i) % len(tokens)] for i in range(sum(EXAMPLE))]
        ends = [sum(EXAMPLE[: n + 1]) for n in range(len(EXAMPLE))]
        rows = [ids[end - length : end] for length, end in zip(EXAMPLE, ends, strict=True)]
        return rows, lay_out(EXAMPLE, self._whole.device)

    def whole(self, rows: Sequence[Sequence[int]], layout: Layout) -> Tensor:
        """(tokens, hidden) of `rows`, which are in the layout's order."""
        return self._run(self._whole, rows, layout)

    @torch.no_grad()
    def lower(
        self, rows: Sequence[Sequence[int]], layout: Layout, *, end: int | None = None
    ) -> Tensor:
        """(tokens, hidden) entering layer `end`, or the first that learns."""
        return self._run(self._slice(0, end or self.num_frozen), rows, layout)

    def upper(self, flat: Tensor, layout: Layout) -> Tensor:
        """(tokens, hidden) of what `lower` gave."""
        return self.between(flat, layout, start=self.num_frozen)

    def between(
        self, flat: Tensor, layout: Layout, *, start: int, end: int | None = None
    ) -> Tensor:
        """(tokens, hidden) entering layer `end`, or leaving the last, of those entering `start`."""
        layers = self._slice(start, end)
        if not self.why_padded:
            layers.embeddings.hidden = flat[None]
            pack_as(layout)
            out: Tensor = layers(inputs_embeds=flat[None], attention_mask=None)[0][0]
            return out
        hidden, mask = layout.padded(flat)
        layers.embeddings.hidden = hidden
        return _unpadded(layers(inputs_embeds=hidden, attention_mask=mask)[0], mask)

    def _slice(self, start: int, end: int | None) -> Any:
        """A module over the same parameters: the layers from `start` to `end`, with the embeddings
        below them when they begin at the bottom.
        """
        if (start, end) not in self._slices:
            layers = _with_layers(self._whole, start, end)
            if start:
                layers.embeddings = _Handed()
            self._slices[start, end] = layers
        return self._slices[start, end]

    def _run(self, module: Any, rows: Sequence[Sequence[int]], layout: Layout) -> Tensor:
        ids = self._flat(rows)
        if not self.why_padded:
            return self._packed(module, ids, layout)
        return self._padded(module, ids, layout)

    def _flat(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([token for row in rows for token in row]).to(self._whole.device)

    def _packed(self, module: Any, ids: Tensor, layout: Layout) -> Tensor:
        pack_as(layout)
        out: Tensor = module(
            input_ids=ids[None],
            position_ids=layout.positions + self._offset,
            attention_mask=None,
        )[0][0]
        return out

    def _padded(self, module: Any, ids: Tensor, layout: Layout) -> Tensor:
        padded, mask = layout.padded(ids)
        padded = padded.masked_fill(mask == 0, self.pad_id)
        return _unpadded(module(input_ids=padded, attention_mask=mask)[0], mask)

    @torch.no_grad()
    def _try_packing(self, backbone: Any) -> str:
        """Why this backbone cannot be packed; empty when both ways say the same."""
        was_training = backbone.training
        backbone.eval()
        self._whole = backbone
        rows, layout = self._example()
        ids = self._flat(rows)
        wanted = self._padded(backbone, ids, layout)
        reason = ""
        try:
            backbone.set_attn_implementation(packed.register(self._attention))
            for offset in (0, self.pad_id + 1):
                self._offset = offset
                apart = (self._packed(backbone, ids, layout) - wanted).abs().max()
                if apart <= TOLERANCE * wanted.abs().max():
                    break
            else:
                self._offset = 0
                reason = f"packed rows differ by {float(apart):.2g} from padded ones"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            backbone.set_attn_implementation(self._attention)
            backbone.train(was_training)
        return reason


class PixelBody:
    """As `Body`, for pixels (channels, height, width) of one size: every image makes
    `num_states` states, so there is nothing to pack. `example` is one image.
    """

    why_padded, is_cut, why_whole = "", False, "images are not kept"

    @torch.no_grad()
    def __init__(self, backbone: Any, example: Any) -> None:
        self._backbone = backbone
        was_training = backbone.training
        backbone.eval()
        self.num_states = int(self._states([example]).shape[1])
        backbone.train(was_training)

    def whole(self, rows: Sequence[Any], layout: Layout) -> Tensor:
        """(states of all rows, hidden)."""
        del layout
        return self._states(rows).flatten(0, 1)

    def _states(self, rows: Sequence[Any]) -> Tensor:
        pixels = torch.stack([torch.as_tensor(row) for row in rows])
        states: Tensor = self._backbone(pixel_values=pixels.to(self._backbone.device))[0]
        return states


def _unpadded(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, mask.flatten().nonzero().flatten())


class _Handed(nn.Module):
    """Stands where the embeddings stood and gives back what it was handed."""

    hidden: Tensor

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.hidden


def can_cut(backbone: Any) -> bool:
    """Whether a frozen lower part can be taken off: embeddings, then layers, nothing after them."""
    encoder = getattr(backbone, "encoder", None)
    return hasattr(backbone, "embeddings") and hasattr(encoder, "layer")


def _with_layers(backbone: Any, start: int, end: int | None) -> Any:
    """A second module over the same parameters with a slice of the layers, and no pooler."""
    half = _shallow(backbone)
    half.encoder = _shallow(backbone.encoder)
    half.encoder.layer = nn.ModuleList(list(backbone.encoder.layer)[start:end])
    if getattr(half, "pooler", None) is not None:
        half.pooler = None
    return half


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin

"""Rows → what the head says, by the shortest way there is.

everything learns           rows → backbone → pooling → head
lower layers are frozen     rows → lower half, once (prefix cache) → upper half → pooling → head
only the head learns        rows → backbone → pooling, once → head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.modeling.attention.packed import lay_out
from autoglm.modeling.body import Body, PixelBody
from autoglm.modeling.frozen import freeze_lowest, mark_of, why_not_frozen
from autoglm.modeling.images import Pixels
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.observability.logging import get_logger
from autoglm.reuse.prefix_cache import PrefixCache, RowStates
from autoglm.training.freezing import STATES_BYTES
from autoglm.training.frozen_part import FrozenPart, lanes
from autoglm.training.precision import computing_in
from autoglm.training.vocabulary import Vocabulary

EVAL_ROWS = 64
# Answers that are judged at once: of 150,000 words that is 150 MB.
JUDGED_TOKENS = 256
Judge = Callable[[Tensor, Tensor], Tensor]


class Forward:
    """`stop` is called between batches and raises when training is to end; for `firsts` and
    `num_half` see `Encoded`; `precision` is the format that training computes in.
    """

    def __init__(
        self,
        model: AutoGLMForSequenceClassification,
        ids: Sequence[Any],
        *,
        num_frozen: int,
        cache: PrefixCache,
        cache_key: str,
        stop: Callable[[], None],
        firsts: Sequence[int] | None = None,
        boundaries: Sequence[int] = (),
        num_half: int = 0,
        precision: str = "fp32",
    ) -> None:
        self._num_half, self._precision = num_half, precision
        self._model, self._ids, self._stop, self._firsts = model, ids, stop, firsts
        self.num_frozen, self._cache = num_frozen, cache
        self._later = PrefixCache(STATES_BYTES)
        self._hidden_size = int(model.backbone.config.hidden_size)
        self._device = model.backbone.device
        pad_id = int(getattr(model.backbone.config, "pad_token_id", 0) or 0)
        self._body: Any
        self._frozen: FrozenPart | None = None
        # Why states of frozen layers are computed in each batch; empty where nothing is frozen too.
        self.why_not_kept = ""
        if isinstance(ids, Pixels):
            self._body = PixelBody(model.backbone, ids[0])
            self._lengths = [self._body.num_states] * len(ids)
        else:
            self._lengths = [len(row) for row in ids]
            if num_frozen:
                self.why_not_kept = why_not_frozen(model.backbone, num_frozen) or (
                    cache.why_too_large(sum(self._lengths), self._hidden_size)
                )
            num_cut = 0 if self.why_not_kept else num_frozen
            self._body = Body(model.backbone, pad_id=pad_id, num_frozen=num_cut)
            if num_cut and not self._body.is_cut:
                self.why_not_kept = self._body.why_whole
            if cache.is_on:
                self._frozen = self._frozen_part(cache, cache_key, also=boundaries)
        if self._body.why_padded:
            get_logger().info("rows are padded, not packed", reason=self._body.why_padded)
        self.eval_rows = EVAL_ROWS
        self._states: RowStates | None = None
        self._pooled: Tensor | None = None
        self._at_start: Tensor | None = None

    def _frozen_part(
        self, cache: PrefixCache, start_name: str | None, *, also: Sequence[int] = ()
    ) -> FrozenPart:
        return FrozenPart(
            self._model,
            self._ids,
            self._body,
            cache=cache,
            start_name=start_name,
            stop=self._stop,
            also=also,
            num_half=self._num_half,
            precision=self._precision,
        )

    def renumber(self, vocabulary: Vocabulary) -> None:
        """The model's word table was cut: tokens go by their new numbers."""
        self._ids = vocabulary.of(self._ids)
        if self._frozen is not None:
            self._frozen.renumber(self._ids)
        self._body.pad_id = int(vocabulary.numbers[self._body.pad_id])

    def set_gradient_checkpointing(self, is_on: bool) -> None:
        """Whether layers are computed again in the backward pass, in place of being kept."""
        switch = "enable" if is_on else "disable"
        # Renamed in transformers 5: the old name warns there, the new one was missing before.
        backbone = self._model.backbone
        new = getattr(backbone, f"activation_checkpointing_{switch}", None)
        (new or getattr(backbone, f"gradient_checkpointing_{switch}"))()

    def prepare(self) -> RowStates | None:
        """States at the boundary, encoded once for all trials that cut here."""
        self._mark = mark_of(self._model.backbone, self.num_frozen) if self.num_frozen else []
        if not self._body.is_cut:
            return None
        assert self._frozen is not None, "a body is cut where states are kept"
        self._model.eval()
        self._states = self._frozen.states(self.boundary)
        return self._states

    @property
    def boundary(self) -> int:
        """The first layer that learns, where states below it are kept; else 0."""
        return int(self._body.num_frozen) if self._body.is_cut else 0

    def why_whole(self) -> str:
        """Why the backbone cannot be cut in two; empty when it can."""
        return str(self._body.why_whole)

    def freeze(self, num_frozen: int) -> RowStates | None:
        """The `num_frozen` lowest layers have stopped to learn: their states, encoded once. They
        are of use to this trial only, and those of a lower boundary to nobody any more.
        """
        backbone = self._model.backbone
        freeze_lowest(backbone, num_frozen)
        self.num_frozen, self._states = num_frozen, None
        self.why_not_kept = why_not_frozen(backbone, num_frozen) or self._why_not_kept_later()
        self._body.cut_at(0 if self.why_not_kept else num_frozen)
        if self._body.is_cut:
            self._frozen = self._frozen_part(self._later, None)
        found = self.prepare()
        known = self._frozen.names(num_frozen) if found is not None and self._frozen else []
        self._later.keep_only(known)
        return found

    def _why_not_kept_later(self) -> str:
        if not self._cache.is_on:
            return self._cache.why_too_large(0, 0)
        return self._later.why_too_large(sum(self._lengths), self._hidden_size)

    def check_frozen(self, by: str) -> None:
        """What an algorithm reaches below the boundary for makes kept states untrue."""
        if self._states is None and self._pooled is None:
            return
        backbone, num_frozen = self._model.backbone, self.num_frozen
        reason = why_not_frozen(backbone, num_frozen)
        if not reason and mark_of(backbone, num_frozen) != self._mark:
            reason = f"{by} wrote to what is frozen"
        if reason:
            self._states = self._pooled = self._at_start = None
            self.why_not_kept = reason
            get_logger().warning("frozen states are not used any more", reason=reason)

    def keep_features(self) -> None:
        """Nothing below the head learns: what it is handed is computed once."""
        self._pooled = self.start_features()

    @torch.no_grad()
    def start_features(self) -> Tensor:
        """Pooled (rows, hidden) of every row before anything was learnt, in the rows' order.

        They answer for the backbone until `leave_start`: all trials of a start share them.
        """
        if self._at_start is None:
            self._model.eval()
            kept = self._frozen.pooled() if self._frozen is not None else None
            if kept is None:
                self._at_start = self._computed()
            else:
                self._at_start = kept.of(range(len(self._ids))).to(self._device)
        return self._at_start

    def leave_start(self) -> None:
        self._at_start = None

    def _computed(self) -> Tensor:
        pooled = torch.empty(len(self._ids), self._hidden_size, device=self._device)
        for lane in lanes(len(self._ids), self._num_half, self._precision):
            for rows in self.in_batches(lane.rows):
                self._stop()
                with computing_in(lane.precision, self._device.type):
                    pooled[rows] = self.features(rows).float()
        return pooled

    def features(self, rows: Sequence[int]) -> Tensor:
        """(rows, hidden), or (tokens, hidden) where tokens are answered for: of those; `rows` are
        longest first.
        """
        known = self._pooled if self._pooled is not None else self._at_start
        if known is not None:
            return known[rows]
        layout = lay_out([self._lengths[i] for i in rows], self._device)
        flat: Tensor
        if self._states is not None:
            states = self._states.of(rows).to(self._device)
            if not torch.is_autocast_enabled(self._device.type):
                states = states.float()
            flat = self._body.upper(states, layout)
        else:
            flat = self._body.whole([self._ids[i] for i in rows], layout)
        if self._model.config.pooling == "none":
            return flat if self._firsts is None else self._asked(flat, rows)
        return self._model.pooled(*layout.padded(flat))

    def _asked(self, flat: Tensor, rows: Sequence[int]) -> Tensor:
        """Of (tokens, hidden) those that the head is asked at."""
        assert self._firsts is not None, "without it every token is answered for"
        places: list[int] = []
        start = 0
        for i in rows:
            places += range(start + self._firsts[i], start + self._lengths[i])
            start += self._lengths[i]
        return flat.index_select(0, torch.tensor(places).to(self._device))

    def outputs(self, rows: Sequence[int]) -> Tensor:
        """(rows or tokens, outputs)."""
        return self._model.classify(self.features(rows))

    def judged(self, rows: Sequence[int], labels: Tensor, judge: Judge) -> Tensor:
        """What `judge` makes of outputs and labels; the outputs themselves, as wide as a
        vocabulary, are never there all at once.
        """
        features = torch.split(self.features(rows), JUDGED_TOKENS)
        slices = zip(features, torch.split(labels, JUDGED_TOKENS), strict=True)
        return torch.cat([judge(self._model.classify(part), known) for part, known in slices])

    def in_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """`rows` in batches of like length, longest first."""
        order = sorted(rows, key=lambda i: -self._lengths[i])
        starts = range(0, len(order), self.eval_rows)
        return [order[start : start + self.eval_rows] for start in starts]


def set_training_mode(model: AutoGLMForSequenceClassification) -> None:
    """Dropout in what learns; what is frozen stays in eval mode."""
    model.eval()
    for module in model.modules():
        own = list(module.parameters(recurse=True))
        if own and all(p.requires_grad for p in own):
            module.train()
    model.dropout.train()
    if any("lora_" in name for name, _ in model.named_parameters()):
        model.backbone.train()  # adapters learn in every layer
    if all(p.requires_grad for p in _read_parameters(model.backbone)):
        model.backbone.train()


def _read_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """Without a pooler's, which nobody reads here."""
    return [p for n, p in backbone.named_parameters() if not n.startswith("pooler.")]

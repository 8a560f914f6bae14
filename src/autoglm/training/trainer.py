"""One trial: our own loop.

frozen part in eval mode, its output taken from the prefix cache
head ← closed-form solution on pooled features
score validation rows                                  (epoch 0: the closed form alone)
for each epoch:
for each batch of like length, in seeded order:
cancelled? → stop
lr ← schedule(step);  loss ← forward;  backward;  clip;  AdamW
every half second: report progress
score validation rows; keep the weights if they are the best so far
the best epoch's weights are the trial's result
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoglm.errors import CancelledError, TrainingError
from autoglm.evaluation.evaluator import find_evaluator
from autoglm.evaluation.metrics import METRICS, confusion
from autoglm.modeling.auto_model import Halves, freeze_below
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification, pool
from autoglm.plugins import registry
from autoglm.reuse.prefix_cache import PrefixCache, TokenStates, encode_rows, pad_ids
from autoglm.training.closed_form import ridge_head

REPORT_SECONDS = 0.5
EVAL_ROWS = 64
# Batches are cut from windows of this many batches sorted by length: little padding, still random.
WINDOW = 16
OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows as token ids with label indices; train rows come first, `num_train` of them."""

    ids: list[list[int]]
    labels: Tensor
    num_train: int
    label_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        return len(self.label_names)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`weights` are the tensors that differ from the start; `metrics` of the validation rows."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    best_epoch: int


class Trainer:
    """Trains one copy of `start`. `cache_key` names the start's weights and the rows."""

    def __init__(
        self,
        start: AutoGLMForSequenceClassification,
        data: Encoded,
        settings: Mapping[str, Any],
        *,
        metric: str,
        seed: int,
        cache: PrefixCache,
        cache_key: str,
        on_event: OnEvent,
    ) -> None:
        self._settings, self._data, self._metric, self._seed = settings, data, metric, seed
        self._cache, self._cache_key, self._on_event = cache, cache_key, on_event
        self._model = copy.deepcopy(start)
        self._cancel = threading.Event()
        self._num_frozen = freeze_below(self._model, int(settings["trainable_layers"]))
        self._schedule = registry.get("schedule", str(settings["schedule"]))
        self._states: TokenStates | None = None
        self._pooled: Tensor | None = None
        self._halves = Halves(self._model, self._num_frozen) if self._can_cache() else None

    def train(self, cancel: threading.Event) -> Trained:
        """Raises: CancelledError between optimizer steps; TrainingError when the loss is lost."""
        self._cancel = cancel
        torch.manual_seed(self._seed)
        self._fill_cache()
        self._start_head()
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = self._optimizer()
        metrics = self._evaluate()
        best, best_epoch, weights = metrics, 0, self._weights()
        step, started, reported = 0, time.monotonic(), 0.0
        epochs = int(self._settings["epochs"])
        num_steps = epochs * math.ceil(self._data.num_train / int(self._settings["batch_size"]))
        for epoch in range(1, epochs + 1):
            self._training_mode()
            for rows in self._batches(epoch):
                self._stop_if_asked()
                for group in optimizer.param_groups:
                    group["lr"] = self._rate(step, num_steps)
                loss = nn.functional.cross_entropy(self._logits(rows), self._data.labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, float(self._settings["clip_norm"]))
                optimizer.step()
                step += 1
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    self._report(step, num_steps, epoch, loss.item(), reported - started)
            metrics = self._evaluate()
            if metrics[self._metric] > best[self._metric]:
                best, best_epoch, weights = metrics, epoch, self._weights()
        if not math.isfinite(best["loss"]):
            raise TrainingError("the loss is not finite.", code="training.diverged")
        return Trained(weights=weights, metrics=best, best_epoch=best_epoch)

    def _can_cache(self) -> bool:
        num_tokens = sum(len(row) for row in self._data.ids)
        hidden_size = self._model.backbone.config.hidden_size
        return (
            self._num_frozen > 0
            and Halves.can_cut(self._model)
            and self._cache.fits(num_tokens, hidden_size)
        )

    def _fill_cache(self) -> None:
        """States at the boundary, encoded once for all trials that cut here."""
        if self._halves is None:
            return
        self._model.eval()
        key = f"{self._cache_key}/{self._num_frozen}"
        self._states = self._cache.get(key)
        if self._states is None:
            hidden_size = self._model.backbone.config.hidden_size
            self._states = encode_rows(self._data.ids, hidden_size, self._lower)
            self._cache.put(key, self._states)

    def _lower(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """One batch through the frozen half; an encode of minutes can be stopped between two."""
        self._stop_if_asked()
        assert self._halves is not None, "only asked for when the backbone was cut"
        return self._halves.lower(input_ids, mask)

    def _stop_if_asked(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("training was stopped.", next_step="The run can be resumed.")

    @torch.no_grad()
    def _start_head(self) -> None:
        self._model.eval()
        num_rows = len(self._data.ids)
        order = sorted(range(num_rows), key=lambda i: len(self._data.ids[i]))
        pooled = torch.empty(num_rows, self._model.backbone.config.hidden_size)
        for start in range(0, num_rows, EVAL_ROWS):
            self._stop_if_asked()
            rows = order[start : start + EVAL_ROWS]
            pooled[rows] = self._features(rows)
        train = slice(0, self._data.num_train)
        weight, bias = ridge_head(pooled[train], self._data.labels[train], self._data.num_labels)
        self._model.classifier.weight.copy_(weight)
        self._model.classifier.bias.copy_(bias)
        if self._is_head_only():
            self._pooled = pooled

    def _is_head_only(self) -> bool:
        return not any(p.requires_grad for p in self._model.backbone.parameters())

    def _features(self, rows: Sequence[int]) -> Tensor:
        """Pooled (rows, hidden), by the shortest way there is."""
        if self._pooled is not None:
            return self._pooled[rows]
        if self._halves is not None and self._states is not None:
            return self._halves.upper(*self._states.padded(rows))
        ids, mask = pad_ids([self._data.ids[i] for i in rows], 0)
        hidden = self._model.backbone(input_ids=ids, attention_mask=mask)[0]
        return pool(hidden, mask, self._model.config.pooling)

    def _logits(self, rows: Sequence[int]) -> Tensor:
        return self._model.classify(self._features(rows))

    def _training_mode(self) -> None:
        """Dropout in what learns; what is frozen stays in eval mode."""
        self._model.eval()
        rate = float(self._settings["dropout"])
        for module in self._model.modules():
            if isinstance(module, nn.Dropout) and (module.p > 0 or module is self._model.dropout):
                module.p = rate or 1e-12
        self._model.dropout.train()
        layers = self._model.backbone
        for module in layers.modules():
            parameters = list(module.parameters())
            if parameters and all(p.requires_grad for p in parameters):
                module.train()

    def _optimizer(self) -> torch.optim.Optimizer:
        named = [(n, p) for n, p in self._model.named_parameters() if p.requires_grad]
        decay = float(self._settings["weight_decay"])
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
        make = registry.get("optimizer", self._settings["optimizer"])
        optimizer: torch.optim.Optimizer = make(groups, lr=float(self._settings["lr"]))
        return optimizer

    def _rate(self, step: int, num_steps: int) -> float:
        peak = float(self._settings["lr"])
        warm = max(1, round(float(self._settings["warmup"]) * num_steps))
        if step < warm:
            return peak * (step + 1) / warm
        return peak * float(self._schedule(step - warm, max(1, num_steps - warm)))

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(self._data.num_train, generator=generator).tolist()
        size = int(self._settings["batch_size"])
        batches: list[list[int]] = []
        for start in range(0, len(order), size * WINDOW):
            window = sorted(
                order[start : start + size * WINDOW], key=lambda i: len(self._data.ids[i])
            )
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self._model.eval()
        first, last = self._data.num_train, len(self._data.ids)
        order = sorted(range(first, last), key=lambda i: len(self._data.ids[i]))
        logits = torch.empty(last - first, self._data.num_labels)
        for start in range(0, len(order), EVAL_ROWS):
            rows = order[start : start + EVAL_ROWS]
            logits[[i - first for i in rows]] = self._logits(rows)
        truth = self._data.labels[first:]
        counts = confusion(
            truth.numpy().astype(np.intp),
            logits.argmax(1).numpy().astype(np.intp),
            self._data.num_labels,
        )
        scores = {name: metric(counts) or 0.0 for name, metric in METRICS.items()}
        if self._metric not in scores:
            scores[self._metric] = self._evaluated(truth, logits.argmax(1))
        return {**scores, "loss": float(nn.functional.cross_entropy(logits, truth))}

    def _evaluated(self, truth: Tensor, answers: Tensor) -> float:
        """The value of a plugin's evaluator; NaN when it is undefined on these rows."""
        names = self._data.label_names
        score = find_evaluator(self._metric).evaluate(
            [names[i] for i in truth.tolist()], [names[i] for i in answers.tolist()]
        )
        return math.nan if score.value is None else float(score.value)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of every tensor that learns."""
        learning = {n for n, p in self._model.named_parameters() if p.requires_grad}
        state = self._model.state_dict()
        return {n: t.detach().clone().contiguous() for n, t in state.items() if n in learning}

    def _report(self, step: int, num_steps: int, epoch: int, loss: float, seconds: float) -> None:
        self._on_event(
            {
                "kind": "training",
                "step": step,
                "num_steps": num_steps,
                "epoch": epoch,
                "loss": loss,
                "samples_per_second": step * int(self._settings["batch_size"]) / max(seconds, 1e-9),
            }
        )

"""One trial: our own loop.

lower half frozen → its output from the prefix cache
head ← closed form on pooled features; score the validation rows           (epoch 0)
`start`
for each epoch:
    layers that stop to learn now (training.freezing) → their output, once
    for each batch, in the order of (seed, epoch):
        cancelled? → stop
        rate of each group ← lr · warm-up or schedule · the group's scale
        `batch`         an algorithm may change state.rows
        for each part of the batch: loss → backward
        `gradients`     norms measured, gradients clipped
        optimizer step
        `step`          state.loss, state.norms
        due? → a line of the record (callbacks: kind `training`), a checkpoint
    score the validation rows; keep the weights if `training.keep` says so
    `epoch_end`         (callbacks: kind `evaluation`); an algorithm may set state.should_stop
`end`
the kept epoch's weights are the trial's result

At each moment algorithms are called in the order of `training.algorithms`, ours (average of
weights, early stopping) behind them; they may change the state they are handed. Callbacks are told
afterwards, in the order of `training.callbacks`, and get plain numbers.

Killed anywhere, the same call goes on from the newest checkpoint to the same bytes.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autoglm.errors import CancelledError, CheckpointCorruptError, ModelError
from autoglm.modeling.adapters import adapt
from autoglm.modeling.auto_model import freeze_below
from autoglm.modeling.dropout import FastDropout, quicken
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.observability.logging import get_logger
from autoglm.plugins import registry
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache, RowStates
from autoglm.training import checkpoint, devices, gradients, memory, precision
from autoglm.training.copies import copy_of, own_what_learns
from autoglm.training.data import Encoded, batches, pieces, share
from autoglm.training.decisions import Decisions
from autoglm.training.diagnosis import diverged, first_bad_weight
from autoglm.training.forward import Forward, set_training_mode
from autoglm.training.freezing import Freezing
from autoglm.training.head_start import start_head
from autoglm.training.kept_epoch import KeptEpoch
from autoglm.training.memory_plan import memory_plan, planned_for
from autoglm.training.parameter_groups import parameter_groups
from autoglm.training.parts import are_ours, own_parts, schedule, speaking_for
from autoglm.training.record import Record
from autoglm.training.schedules import rates
from autoglm.training.scoring import Scorer
from autoglm.training.state import TrainingState
from autoglm.training.trial import Pause, Trained
from autoglm.training.vocabulary import cut_vocabulary

OnEvent = Callable[[Mapping[str, Any]], None]


class Trainer:
    """Trains one copy of `start`. `settings` is the section `training`; `metrics` are told beside
    `metric`, which picks the epoch; `cache_key` names the start's weights and the rows; without
    `checkpoints` a killed trial begins anew. Of `structure` only the adapters are the trainer's;
    the start has the rest.
    """

    def __init__(
        self,
        start: AutoGLMForSequenceClassification,
        data: Encoded,
        settings: Mapping[str, Any],
        *,
        task: Any,
        metric: str,
        metrics: Sequence[str] = (),
        seed: int,
        cache: PrefixCache,
        cache_key: str,
        on_event: OnEvent,
        checkpoints: Checkpoints | None = None,
        decisions: Decisions | None = None,
        structure: StructureConfig | None = None,
        algorithms: Sequence[Any] = (),
        callbacks: Sequence[Any] = (),
        boundaries: Sequence[int] = (),
    ) -> None:
        self._device = devices.choose(str(settings["device"]))
        self._settings, self._metric, self._seed = settings, metric, seed
        self._data = data = data.on(self._device)
        self._task, self._checkpoints, self._cache = task, checkpoints, cache
        self._precision = _format_of(settings, self._device.type, decisions)
        self._scaler = precision.Scaler(self._precision, self._device.type)
        self._scorer = Scorer(task, [metric, *metrics], self._tell)
        knows = bool(start.known_outputs)
        self._kept = KeptEpoch(settings, metric, num_rows=len(data.validation), knows=knows)
        self._algorithms, self._callbacks, self._on_event = algorithms, callbacks, on_event
        devices.free_unused(self._device)
        devices.forget_peak(self._device)
        self._own_parts = own_parts(start.config)
        is_shared = not self._own_parts and are_ours(algorithms)
        self._model = copy_of(start, self._device, is_shared=is_shared)
        self._cancel = threading.Event()
        num_frozen = freeze_below(self._model, int(settings["trainable_layers"]))
        torch.manual_seed(seed)
        has_adapters = adapt(self._model, structure or StructureConfig()) is not None
        if has_adapters:
            num_frozen = 0  # adapters stand in every layer
        if not any(p.requires_grad for p in self._model.parameters()):
            raise ModelError(
                f"training.trainable_layers = {settings['trainable_layers']} leaves nothing to"
                " learn: the lm_head is the table of token embeddings.",
                code="model.nothing_learns",
                next_step="Set model.structure.lora_rank, or let layers learn.",
            )
        rate = float(settings["dropout"])
        quicken(self._model, rate)
        # Nothing is dropped before an lm_head: it was not pretrained so.
        self._model.dropout = nn.Identity() if data.firsts is not None else FastDropout(rate)
        self._forward = Forward(
            self._model,
            data.ids,
            num_frozen=num_frozen,
            cache=cache,
            cache_key=cache_key,
            stop=self._stop_if_asked,
            firsts=data.firsts,
            boundaries=boundaries,
            num_half=data.num_half,
            precision=self._precision,
        )
        self._frozen_by_epoch = Freezing(
            backbone=self._model.backbone,
            training=settings,
            has_adapters=has_adapters,
            are_images=data.are_images,
            why_whole=self._forward.why_whole,
        ).by_epoch()
        self._optimizer = registry.get("optimizer", str(settings["optimizer"]))
        rows = () if data.are_images else data.ids
        self._vocabulary = cut_vocabulary(self._model, rows, optimizer=self._optimizer)
        own_what_learns(self._model, is_shared=is_shared)
        if self._vocabulary is not None:
            self._forward.renumber(self._vocabulary)
        # Read once: the step loop reads no settings.
        self._rate = rates(settings, schedule(str(settings["schedule"])))
        self._clip = {"norm": float(settings["clip_norm"]), "value": float(settings["clip_value"])}
        self._optimizer_name = f"optimizer:{settings['optimizer']}"
        self._accumulation = int(settings["accumulation"])
        self._decisions = decisions
        self._known: RowStates | None = None
        self._resumed_steps = 0

    def train(self, cancel: threading.Event, *, pause: Pause | None = None) -> Trained:
        """Raises: CancelledError between optimizer steps (what was done is kept); TrainingError
        training.diverged with step, rows and layer, training.evaluator when no epoch could be
        scored; PluginError of a part that broke.
        """
        self._cancel = cancel
        self._prepare()
        self._decide()
        torch.manual_seed(self._seed)
        state = self._begin()
        record = Record(self._settings, state, self._tell)
        timer = checkpoint.Due(self._settings)
        if not self._resume(state, record, pause):
            start_head(self._model, self._forward, self._data, self._task, self._stop_if_asked)
            self._score(state, epoch=0)
            self._at("start", state)
        self._forward.leave_start()
        last = num_epochs = int(self._settings["epochs"])
        if pause is not None:
            last = min(last, pause.epoch)
        while state.epoch <= last and not state.should_stop:
            self._epoch(state, record, timer)
        if pause is not None:
            self._keep(state, record, pause)
        if last == num_epochs or state.should_stop:
            self._at("end", state)
            self._scorer.check(self._metric, state.best_metrics)
        best = {name: weight.cpu() for name, weight in state.best_weights.items()}
        vocabulary = self._vocabulary
        return Trained(
            weights=best if vocabulary is None else vocabulary.whole(best),
            metrics=state.best_metrics,
            best_epoch=state.best_epoch,
            num_steps=state.step,
            is_stopped=state.should_stop,
            saved=self._saved(state),
            peak=devices.peak(self._device),
        )

    def _prepare(self) -> None:
        self._cache.begin()
        self._known = self._forward.prepare()
        self._tell_prefix(self._known)

    def _freeze(self, state: TrainingState, record: Record, timer: checkpoint.Due) -> None:
        """What has stopped to learn by this epoch; after a resume too, to the same bytes."""
        num_frozen = self._frozen_by_epoch[state.epoch - 1] if self._frozen_by_epoch else 0
        if num_frozen <= self._forward.num_frozen:
            return
        try:
            self._tell_prefix(self._forward.freeze(num_frozen))
        except CancelledError:
            self._save(state, record, timer)
            raise
        if not state.batch and hasattr(state.optimizer, "forget_norms"):
            state.optimizer.forget_norms()

    def _tell_prefix(self, known: RowStates | None) -> None:
        """Of states below the boundary, or of why there are none."""
        if known is None:
            if reason := self._forward.why_not_kept:
                self._tell({"kind": "prefix", "boundary": 0, "reason": reason})
            return
        spent, facts = round(known.cpu_seconds, 3), {"encoded": known.encoded}
        facts |= {"rows": len(known.parts), "boundary": self._forward.boundary}
        self._tell({"kind": "prefix", **facts, "cpu_seconds": spent})

    def _begin(self) -> TrainingState:
        if isinstance(self._data.targets, Tensor):
            self._task.see(self._data.targets[: self._data.num_train])
        else:
            self._task.see(torch.cat(list(self._data.targets[: self._data.num_train])))
        groups = parameter_groups(
            self._model,
            weight_decay=float(self._settings["weight_decay"]),
            layer_decay=float(self._settings["layer_decay"]),
        )
        with speaking_for(self._optimizer_name):
            optimizer = self._optimizer(groups, lr=float(self._settings["lr"]))
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"it makes {type(optimizer).__name__}, no torch.optim.Optimizer")
        weights_of = getattr(self._task, "row_weights", lambda data: data.num_answers)
        self._row_weights = weights_of(self._data)
        if not self._reads_backbone() and not self._task.is_per_token:
            self._forward.keep_features()
        per_epoch = math.ceil(self._data.num_train / int(self._settings["batch_size"]))
        return TrainingState(
            model=self._model,
            optimizer=optimizer,
            num_steps=int(self._settings["epochs"]) * per_epoch,
            parts=self._accumulation,
        )

    def _epoch(self, state: TrainingState, record: Record, timer: checkpoint.Due) -> None:
        lengths = self._data.lengths[: self._data.num_train]
        size = int(self._settings["batch_size"])
        order = batches(lengths, size, seed=self._seed, epoch=state.epoch)
        self._freeze(state, record, timer)
        set_training_mode(self._model)
        _set_mode(state.optimizer, is_training=True)
        record.begin()
        for rows in order[state.batch :]:
            if self._cancel.is_set():
                self._save(state, record, timer)
            self._stop_if_asked()
            state.rows = rows
            with memory.told_of(len(rows)):
                self._step(state)
            record.add(state)
            if record.is_due(state):
                self._write_down(state, record)
            if timer.is_due(state.step):
                self._save(state, record, timer)
        self._write_down(state, record)
        self._score(state, epoch=state.epoch)
        self._at("epoch_end", state)
        state.epoch, state.batch = state.epoch + 1, 0

    def _step(self, state: TrainingState) -> None:
        optimizer = state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self._rate(state.step, state.num_steps) * group.get("lr_scale", 1.0)
        self._at("batch", state)
        optimizer.zero_grad(set_to_none=True)
        state.loss = self._backward_or_halved(state)
        self._at("gradients", state)
        self._scaler.unscale(optimizer)
        state.norms = gradients.clip(optimizer, **self._clip, may_skip=self._scaler.is_on)
        with speaking_for(self._optimizer_name):
            self._scaler.step(optimizer, state.norms.total)
        state.step, state.batch = state.step + 1, state.batch + 1
        self._at("step", state)

    def _backward_or_halved(self, state: TrainingState) -> Tensor:
        """Out of memory, once: the same batch in twice as many parts, from the same dice."""
        dice = devices.random_state(self._device)
        try:
            return self._backward(state)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if state.has_halved or len(state.rows) == 1:
                raise memory.out_of_memory(len(state.rows), error) from error
        state.has_halved, state.parts = True, 2 * state.parts
        state.optimizer.zero_grad(set_to_none=True)
        devices.set_random_state(dice)
        devices.free_unused(self._device)
        self._tell({"kind": "halved", "step": state.step, "accumulation": state.parts})
        return self._backward_or_halved(state)

    def _backward(self, state: TrainingState) -> Tensor:
        """Gradients of the batch's mean loss, computed in parts; the loss, detached."""
        rows, parts = state.rows, pieces(state.rows, state.parts)
        whole = torch.zeros((), device=self._device)
        for part in parts:
            with precision.computing_in(self._precision, self._device.type):
                loss = self._task.loss(self._outputs(part), self._data.batch(part))
            loss = loss if len(parts) == 1 else loss * share(part, rows, self._row_weights)
            self._scaler.backward(loss)
            whole = whole + loss.detach()
        return whole

    def _outputs(self, rows: Sequence[int]) -> Tensor:
        """A project's own attention or head that breaks is named."""
        with speaking_for(self._own_parts) if self._own_parts else nullcontext():
            return self._forward.outputs(rows)

    def _write_down(self, state: TrainingState, record: Record, *, is_told: bool = True) -> None:
        """The record's next line; the one place where the loop waits for numbers."""
        if (bad := record.gather()) is not None:
            raise diverged(state, self._forward, self._task, self._data, bad)
        if is_told:
            record.tell(state)

    def _reads_backbone(self) -> bool:
        learning = {n for n, p in self._model.named_parameters() if p.requires_grad}
        return any(not name.startswith("classifier.") for name in learning)

    def _score(self, state: TrainingState, *, epoch: int) -> None:
        """The validation rows, with averaged weights where there are any; in smaller batches when
        memory does not do for those.
        """
        self._model.eval()
        _set_mode(state.optimizer, is_training=False)
        with ExitStack() as stack:
            for algorithm in self._algorithms:
                if epoch and hasattr(algorithm, "scored"):
                    stack.enter_context(algorithm.scored(state))
            state.metrics = self._evaluated()
            if self._kept.takes(state, epoch=epoch):
                state.best_metrics, state.best_epoch = state.metrics, epoch
                state.best_weights = {}  # not two of them at a time
                state.best_weights = state.copy_weights()
        scores = {f"eval_{name}": value for name, value in state.metrics.items()}
        self._tell({"kind": "evaluation", "step": state.step, "epoch": epoch, **scores})

    def _evaluated(self) -> dict[str, float]:
        while True:
            try:
                return self._evaluate()
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                if self._forward.eval_rows == 1:
                    raise memory.out_of_memory(1, error) from error
            self._forward.eval_rows //= 2
            devices.free_unused(self._device)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        order, outputs, row_of = [], [], []
        judge = getattr(self._task, "judge", None)
        for rows in self._forward.in_batches(self._data.validation):
            self._stop_if_asked()
            if judge is None:
                outputs.append(self._outputs(rows))
            else:
                labels = self._data.batch(rows)["labels"]
                outputs.append(self._forward.judged(rows, labels, judge))
            if self._task.is_per_token:
                row_of += [i for i in rows for _ in self._data.targets[i]]
            order += rows
        known, whole = self._data.batch(order), torch.cat(outputs)
        loss = {} if judge else {"loss": float(self._task.loss(whole, known))}
        batch = {**{n: t.cpu() for n, t in known.items()}, "row_of": torch.tensor(row_of)}
        said = whole.cpu()
        return {**self._scorer.add(self._task.scores(said, batch), said, batch), **loss}

    def _save(self, state: TrainingState, record: Record, timer: checkpoint.Due) -> None:
        if self._checkpoints is None:
            return
        self._write_down(state, record, is_told=False)
        self._check_weights(state)
        with timer.measured():
            self._stored(self._checkpoints, state, record)

    def _check_weights(self, state: TrainingState) -> None:
        """What is kept can be gone on from: the last step may have broken the weights."""
        if first_bad_weight(state):
            bad = state.step, list(state.rows)
            raise diverged(state, self._forward, self._task, self._data, bad)

    def _stored(self, place: Checkpoints, state: TrainingState, record: Record) -> bool:
        """Without room on disk training goes on: what is not kept is trained again."""
        try:
            checkpoint.save(place, state, record, self._algorithms, self._scaler)
        except (OSError, SafetensorError) as error:
            get_logger().warning("a state of training is not kept", cause=str(error))
            return False
        return True

    def _resume(self, state: TrainingState, record: Record, pause: Pause | None) -> bool:
        """From a checkpoint of this very piece of work, else from the stage before it."""
        places = [self._checkpoints] if self._checkpoints is not None else []
        for place in [*places, *(pause.starts if pause is not None else ())]:
            found = place.newest()
            if found is not None:
                try:
                    checkpoint.load(found, state, record, self._algorithms, self._scaler)
                except CheckpointCorruptError as error:
                    get_logger().warning("a checkpoint is passed over", cause=error.message)
                    continue
                self._resumed_steps = state.step if place is not self._checkpoints else 0
                self._tell({"kind": "trial_resumed", "step": state.step, "epoch": state.epoch})
                return True
        return False

    def _keep(self, state: TrainingState, record: Record, pause: Pause) -> None:
        """Not where nothing follows: a schedule that has come down to 0 cannot go on."""
        is_over = state.step >= state.num_steps and self._rate(state.step, state.num_steps) == 0
        if pause.keep is None or state.should_stop or is_over:
            return
        self._check_weights(state)
        if not self._stored(pause.keep, state, record):
            pause.keep.clear()

    def _saved(self, state: TrainingState) -> dict[str, float]:
        """CPU-seconds that kept states saved: each epoch would have asked for them again."""
        if self._known is None:
            return {}
        tokens = sum(self._data.lengths)
        per_token = (self._known.saved_seconds + self._known.cpu_seconds) / max(1, tokens)
        epochs = (state.step - self._resumed_steps) / max(1, state.num_steps)
        asked = 1 + epochs * int(self._settings["epochs"])
        return {"cache": max(0.0, asked * tokens * per_token - self._known.cpu_seconds)}

    def _decide(self) -> None:
        """What is measured of the memory: once per run, then read."""
        decisions = self._decisions
        decided = decisions.decided if decisions is not None else lambda _name, measure: measure()
        is_checkpointed = bool(self._settings["gradient_checkpointing"])
        budget = int(self._settings["memory_budget"])
        if budget:
            asked = self._model, self._forward, self._task, self._data, self._settings
            name = f"memory {planned_for(self._model, self._settings, self._precision)}"
            name = devices.name_on(self._device.type, name)
            chosen = decided(name, lambda: asdict(memory_plan(*asked)))
            self._accumulation = max(self._accumulation, int(chosen["accumulation"]))
            is_checkpointed = bool(chosen["gradient_checkpointing"])
            rows = -(-int(self._settings["batch_size"]) // self._accumulation)
            self._forward.eval_rows = min(self._forward.eval_rows, rows)
        self._forward.set_gradient_checkpointing(is_checkpointed)

    def _at(self, moment: str, state: TrainingState) -> None:
        for algorithm in self._algorithms:
            with speaking_for(f"algorithm:{type(algorithm).__name__}"):
                algorithm.apply(moment, state)
            self._forward.check_frozen(type(algorithm).__name__)

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._on_event(event)
        for callback in self._callbacks:
            with speaking_for(f"callback:{type(callback).__name__}"):
                callback.on_event(copy.deepcopy(dict(event)))

    def _stop_if_asked(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("training was stopped.", next_step="The run can be resumed.")


def _format_of(settings: Mapping[str, Any], device: str, decisions: Decisions | None) -> str:
    """Measured once per machine, then read."""
    said = str(settings["precision"])
    if said == "fp32":
        return said
    return precision.choose(said, precision.speeds(device, decisions), device)


def _set_mode(optimizer: torch.optim.Optimizer, *, is_training: bool) -> None:
    """Schedule-free optimizers keep one set of weights for steps and another for scoring."""
    change = getattr(optimizer, "train" if is_training else "eval", None)
    if callable(change):
        change()

"""Rows in memory ─► a trained model in memory, by the trainer of every run; no project, no worker.

What several fits of one process can share they share: weights of the start, token ids by text,
hidden states by row (reuse.prefix_cache). So five folds tokenise and encode each row once.
"""

from __future__ import annotations

import copy
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.task import TASKS
from autoglm.modeling.adapters import load_trained
from autoglm.modeling.attention import registry as attentions
from autoglm.modeling.auto_model import freeze_below, load_model
from autoglm.modeling.encoding import encode, open_tokenizer
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.plugins import registry
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import parts
from autoglm.training.data import Encoded, targets_of
from autoglm.training.forward import Forward
from autoglm.training.trainer import Trainer

STATES_BYTES = 2**30
TEXTS_KEPT = 200_000
STARTS_KEPT = 2
# Rows by which pruning judges what is important.
SAMPLE_ROWS = 128


class _Kept(OrderedDict[Any, Any]):
    """Values by key, made once; the oldest go when there are more than `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most, self._lock = most, threading.RLock()

    def of(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self:
                self.keep(key, make())
            self.move_to_end(key)
            return self[key]

    def keep(self, key: Any, value: Any) -> Any:
        with self._lock:
            self[key] = value
            while len(self) > self._most:
                self.popitem(last=False)
        return value


class _Decided(_Kept):
    """What was decided by measuring, for as long as the process lives (see `Decisions`)."""

    def decided(self, name: str, measure: Callable[[], Any], *, of_machine: str = "") -> Any:
        return self.of(of_machine or name, measure)


_states = PrefixCache(STATES_BYTES)
_texts, _starts, _tokenizers = _Kept(TEXTS_KEPT), _Kept(STARTS_KEPT), _Kept(4)
_decided = _Decided(64)
# torch's dice and the layout of the rows at hand (attention/packed.py) are the whole process's.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`model` and `training` are the sections of a run's configuration."""

    folder: Path
    task: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    max_length: int
    metric: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`metrics` are of the validation rows at the kept epoch; `name` is that of the weights: the
    layers below the boundary are the start's, those above are not.
    """

    recipe: Recipe
    name: str
    model: AutoGLMForSequenceClassification
    num_frozen: int
    metrics: Mapping[str, float]
    best_epoch: int
    num_steps: int

    @torch.no_grad()
    def outputs(self, texts: Sequence[str]) -> Tensor:
        """What the head says of each text: (rows, outputs)."""
        # A copy: whoever lays rows out without pads changes the model's attention for good.
        ids, model = _ids(self.recipe, texts), copy.deepcopy(self.model)
        said = torch.empty(len(ids), int(model.config.num_labels))
        with _one_at_a_time:
            forward = Forward(
                model,
                ids,
                num_frozen=self.num_frozen,
                cache=_states,
                cache_key=self.name,
                stop=lambda: None,
            )
            forward.prepare()
            model.eval()
            for rows in forward.in_batches(range(len(ids))):
                said[rows] = forward.outputs(rows).float()
        return said


def fit(
    recipe: Recipe,
    train: tuple[Sequence[str], Sequence[Any]],
    validation: tuple[Sequence[str], Sequence[Any]],
    *,
    labels: tuple[str, ...],
    on_event: Callable[[Mapping[str, Any]], None],
) -> Fitted:
    """Texts and answers (contracts.task) → a model. Raises: ModelError, TrainingError, PluginError;
    whoever interrupts it loses it. Fits in several threads wait for each other.
    """
    answers = [*train[1], *validation[1]]
    ids = _ids(recipe, [*train[0], *validation[0]])
    data = Encoded(
        ids=ids,
        targets=targets_of(answers, (), labels),
        num_train=len(train[0]),
        label_names=labels or ("number",),
        half="none",  # other fits, and those who ask what was learnt, find the same states
    )
    sample = [ids[i] for i in range(min(SAMPLE_ROWS, data.num_train))]
    state_key, structure = _state_key(recipe, sample), _structure(recipe)
    with _one_at_a_time:
        start = _start(recipe, data, sample, state_key)
        trained = Trainer(
            start,
            data,
            recipe.training,
            task=registry.get("task", recipe.task)(data.label_names, recipe.training),
            metric=recipe.metric,
            seed=recipe.seed,
            cache=_states,
            cache_key=state_key,
            on_event=on_event,
            decisions=_decided,  # type: ignore[arg-type]  # the same, without a file
            structure=structure,
            algorithms=parts.algorithms(recipe.training),
            callbacks=parts.callbacks(recipe.training),
        ).train(threading.Event())
    model = copy.deepcopy(start)
    with tempfile.TemporaryDirectory() as adapter:
        load_trained(model, structure, trained.weights, adapter=Path(adapter))
    num_frozen = freeze_below(model, int(recipe.training["trainable_layers"]))
    return Fitted(
        recipe=recipe,
        name=uuid.uuid4().hex,
        model=model.requires_grad_(False).eval(),
        num_frozen=0 if structure.lora_rank else num_frozen,
        metrics=trained.metrics,
        best_epoch=trained.best_epoch,
        num_steps=trained.num_steps,
    )


def _start(
    recipe: Recipe, data: Encoded, sample: Sequence[Sequence[int]], state_key: str
) -> AutoGLMForSequenceClassification:
    task = registry.get("task", recipe.task)
    is_of_numbers = task.problem_type == "regression"
    unit = data.unit if is_of_numbers else (0.0, 1.0)
    key = digest(state_key, recipe.model, data.label_names, unit, recipe.max_length, recipe.seed)

    def load() -> Any:
        return load_model(
            recipe.folder,
            recipe.model,
            labels=data.label_names,
            problem_type=task.problem_type,
            is_per_token=task.is_per_token,
            unit=unit,
            sample=sample,
            max_length=recipe.max_length,
            seed=recipe.seed,
            is_exported=False,
        )

    made: AutoGLMForSequenceClassification = _starts.of(key, load)
    return made


def _structure(recipe: Recipe) -> StructureConfig:
    return from_json(StructureConfig, recipe.model["structure"])


def _state_key(recipe: Recipe, sample: Sequence[Sequence[int]]) -> str:
    """What the states of a row below the boundary depend on, beside the row and the boundary."""
    attention, structure = recipe.model["attention"], recipe.model["structure"]
    # An attention that was registered anew under its name is another.
    part = id(attentions.find(attention).function)
    # Pruning judges by the sample: another fold's start is another.
    edits = [] if structure == to_json(StructureConfig()) else [sample, recipe.seed]
    return digest(list(_stamp(recipe.folder)), attention, part, structure, edits)


def _stamp(folder: Path) -> tuple[str, ...]:
    """The folder's weights and tokenizer as they lie there now."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return (str(folder.resolve()), digest(facts))


def _ids(recipe: Recipe, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; only those that nobody asked for before are tokenised."""
    stamp = _stamp(recipe.folder)
    where = (*stamp, recipe.max_length)
    tokenizer = _tokenizers.of(
        where, lambda: open_tokenizer(recipe.folder, recipe.max_length, TASKS[recipe.task])
    )
    known = {text: _texts.get((where, text)) for text in dict.fromkeys(texts)}
    new = [text for text, ids in known.items() if ids is None]
    for text, encoding in zip(new, encode(tokenizer, new), strict=True):
        known[text] = _texts.keep((where, text), encoding.ids)
    return [list(known[text] or ()) for text in texts]

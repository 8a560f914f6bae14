"""The training worker keeps torch, weights, tokens and cached prefixes warm; see worker_main."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import FOLD, Stage, StageChain
from autoglm.datasets.dataset_version import load_rows
from autoglm.datasets.table_store import connect_table
from autoglm.datasets.tokenised import Tokens, tokenised
from autoglm.errors import CancelledError
from autoglm.evaluation.roles import MEASURED
from autoglm.modeling.adapters import load_trained
from autoglm.modeling.auto_model import layers_of, load_model
from autoglm.modeling.backbones.own import OWN, make_backbone
from autoglm.modeling.causal_lm import export_causal_lm, load_causal_lm
from autoglm.modeling.chat import Chat
from autoglm.modeling.encoding import encode, open_tokenizer, prefix_of
from autoglm.modeling.export import export_folder
from autoglm.modeling.images import Pixels, Preprocessor, image_of
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig, edits_of
from autoglm.observability import logging as logs
from autoglm.plugins import project_files, registry
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.recovery.file_lock import alone, beside
from autoglm.reuse.eviction import PREFIX
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import devices, parts, precision, stages
from autoglm.training.cost import cost_of, seconds_per_flop
from autoglm.training.data import Encoded, targets_of
from autoglm.training.decisions import MACHINE, Decisions
from autoglm.training.folds import folded
from autoglm.training.freezing import PROGRESSIVE, Freezing, why_uncut
from autoglm.training.rehearsal import Rehearsal
from autoglm.training.texts import encode_turns, score_folder
from autoglm.training.trainer import Trainer
from autoglm.training.trial import Pause

PARITY_ROWS = 64
# Rows as folds and shares divide them, in memory.
PARTS_KEPT = 32
# Starts of trials in memory: a search over structure goes back and forth between a few.
MODELS_KEPT = 3
CHECKPOINTS_KEPT = 2
# Rows by which pruning judges what is important.
SAMPLE_ROWS = 128


class Worker:
    """One open run at a time."""

    def __init__(self, workspace: Path, send: Any, *, cache: Path) -> None:
        self._workspace, self._send, self._cache_folder = workspace, send, cache
        self._cancel, self._cancelled = threading.Event(), 0
        self._opened, self._is_alone = "", False
        self._chat: Chat | None = None
        self._models: dict[str, AutoGLMForSequenceClassification] = {}
        self._parts: dict[tuple[str, float], Encoded] = {}
        self._told_reasons: set[str] = set()

    def answer(self, request: Mapping[str, Any]) -> Any:
        self._cancel.clear()
        if self._cancelled >= request["id"]:
            self._cancel.set()
        return getattr(self, f"_do_{request['call']}")(request)

    def cancel(self, request_id: int) -> None:
        """From the reading thread. One that comes too late must not hit the next call."""
        self._cancelled = request_id
        self._cancel.set()

    def _do_open(self, request: Mapping[str, Any]) -> Any:
        spec, start = from_json(RunSpec, request["spec"]), Path(request["start"])
        name = digest(spec.run_id, request["start"])
        if name == self._opened:
            return None
        logs.set_trace(spec.traceparent)
        self._opened = ""  # what fails to open leaves nothing open
        storage = spec.config["storage"]
        connect_table(storage.get("table", ""), storage.get("options", {}))
        self._spec, self._start, self._base = spec, start, Path(request["base"])
        self._start_name = str(request["start_name"])
        self._origin, self._made_by = str(request["origin"]), request["made_by"]
        room = int(spec.config["cache"]["bytes"]) * spec.config["cache"]["prefix"]
        self._cache = PrefixCache(room, self._cache_folder / PREFIX)
        project_files.open_parts(spec)
        if spec.config["model"]["backbone"] in OWN and not start.exists():
            self._make_start(spec, start)
        self._models, self._parts = {}, {}
        self._data, self._inputs = self._encode(spec, start)
        learnt = request.get("learnt")
        learnt = None if learnt is None else from_json(DatasetVersion, learnt)
        self._rehearsal = Rehearsal(spec.dataset, learnt)
        # What cannot be had is told before any trial.
        devices.choose(str(spec.config["training"]["device"]))
        self._model_of(spec.config["model"])
        self._opened = name
        logs.get_logger().info("opened", run_id=spec.run_id, rows=len(self._data.ids))
        return None

    def _loaded(self, settings: Mapping[str, Any]) -> AutoGLMForSequenceClassification:
        max_length = int(self._spec.config["data"]["max_length"])
        rows = {"sample": self._sample(), "max_length": max_length, "made_by": self._made_by}
        if self._chat is not None:
            return load_causal_lm(self._start, settings, **rows)
        task = registry.get("task", settings["task"])
        return load_model(
            self._start,
            settings,
            labels=self._spec.dataset.outputs,
            problem_type=task.problem_type,
            is_per_token=task.is_per_token,
            unit=self._data.unit if task.problem_type == "regression" else (0.0, 1.0),
            head_seed=self._spec.seed,
            **rows,
        )

    def _model_of(self, settings: Mapping[str, Any]) -> AutoGLMForSequenceClassification:
        """The start of trials with this section `model`; the last few stay in memory."""
        key = digest(settings)
        if key not in self._models:
            made = self._loaded(settings)
            for oldest in list(self._models)[: 1 - MODELS_KEPT]:
                del self._models[oldest]
            self._models[key] = made
        return self._models[key]

    def _make_start(self, spec: RunSpec, folder: Path) -> None:
        """The start of a backbone of our own: its tokenizer comes from the training rows."""
        name, rows = spec.config["model"]["backbone"], load_rows(spec.dataset, "train").inputs
        if spec.dataset.form.reads == "image":
            rows = list(map(image_of, rows))
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        make_backbone(name, spec.config["model"][name], staging, rows, seed=spec.seed)
        staging.rename(folder)

    def _sample(self) -> Any:
        """Rows of token ids by which pruning judges; none of images."""
        rows = range(min(SAMPLE_ROWS, self._data.num_train))
        return [] if self._data.are_images else [self._data.ids[i] for i in rows]

    def _encode(self, spec: RunSpec, folder: Path) -> tuple[Encoded, list[Any]]:
        """Rows as the trainer takes them, and a few inputs for the exported graph's check."""
        train, validation = (load_rows(spec.dataset, name) for name in ("train", "validation"))
        inputs, answers = [*train.inputs, *validation.inputs], [*train.answers, *validation.answers]
        keys = [*train.keys, *validation.keys]
        encodings: Sequence[Any]
        max_length = int(spec.config["data"]["max_length"])
        self._chat = Chat(folder, max_length) if spec.dataset.form.answers == "text" else None
        if self._chat is not None:
            data = encode_turns(self._chat, inputs, answers, num_train=len(train))
            return replace(data, keys=keys), list(data.ids[len(train) :][:PARITY_ROWS])
        if spec.dataset.form.reads == "image":
            inputs = list(map(image_of, inputs))
            ids: Any = Pixels(inputs, Preprocessor.of(folder))
            encodings = ids
        else:
            encodings = self._tokens(spec, folder, max_length, inputs)
            ids = [encoding.ids for encoding in encodings]
        data = Encoded(
            ids=ids,
            targets=targets_of(answers, encodings, spec.dataset.labels),
            num_train=len(train),
            label_names=spec.dataset.outputs,
            keys=keys,
        )
        return data, inputs[len(train) :][:PARITY_ROWS]

    def _tokens(
        self, spec: RunSpec, folder: Path, max_length: int, inputs: Sequence[Any]
    ) -> Sequence[Tokens]:
        """Train and validation rows, in the order of `inputs`."""
        form = spec.dataset.form
        read = (folder / "tokenizer.json").read_bytes(), json.dumps(inputs).encode()
        shas = [hashlib.sha256(each).hexdigest() for each in read]
        key = digest(
            "no row is empty",
            form.reads,
            prefix_of(folder),
            max_length,
            version("tokenizers"),
            *shas,
        )
        kept = self._cache_folder / "tokens" if spec.config["cache"]["tokens"] else None
        tokenizer = open_tokenizer(folder, max_length, form)
        return tokenised(kept, key, lambda: encode(tokenizer, inputs))

    def _do_plan(self, request: Mapping[str, Any]) -> Any:
        return to_json(self._plan(request["params"]))

    def _plan(self, params: Mapping[str, Any]) -> StageChain:
        settings = stages.settings_of(self._spec, params)
        model, training = settings["model"], settings["training"]
        said, device = str(training["precision"]), devices.choose(str(training["device"])).type
        if said == "auto":
            said = precision.choose(said, precision.speeds(device, self._decisions), device)
        fold = params.get(FOLD, "")
        data = self._data_of({**settings, "fold": fold})
        left_out = data.num_train < self._part(fold, 1.0).num_train
        return stages.plan(
            self._spec,
            params,
            start=self._start_name,
            schedule=parts.schedule(str(training["schedule"])),
            precision=said,
            device=device,
            num_train=data.num_train,
            metrics=more_metrics(self._spec),
            frozen=self._frozen_by_epoch(model, training),
            rehearsed=digest(data.keys[: data.num_train]) if left_out and data.keys else "",
        )

    def _frozen_by_epoch(self, model: Mapping[str, Any], training: Mapping[str, Any]) -> list[int]:
        if training["freezing"] != PROGRESSIVE:  # the model need not be there yet
            return []
        backbone, key = self._model_of(model).backbone, f"{self._cache_key(model)}/cut"
        found = Freezing(
            backbone=backbone,
            training=training,
            has_adapters=bool(model["structure"]["lora_rank"]),
            are_images=self._data.are_images,
            why_whole=lambda: str(self._cache.remembered(key, lambda: why_uncut(backbone))),
        )
        if (reason := found.why_not()) and reason not in self._told_reasons:
            self._told_reasons.add(reason)
            logs.get_logger().info("all layers learn to the end", reason=reason)
        return found.by_epoch()

    def _data_of(self, settings: Mapping[str, Any]) -> Encoded:
        """The rows as a fold divides them; without one, as the dataset version does. Of those that
        are learnt from and that the start knows, the share that is to be rehearsed.
        """
        share = self._rehearsal.share(settings["training"])
        return self._part(settings.get("fold", ""), share)

    def _part(self, fold: str, share: float) -> Encoded:
        if (fold, share) not in self._parts:
            if share < 1:
                made = self._rehearsal.rows(self._part(fold, 1.0), share)
            else:
                made = folded(self._data, fold, seed=self._spec.seed) if fold else self._data
            for oldest in list(self._parts)[: 1 - PARTS_KEPT]:
                del self._parts[oldest]
            self._parts[fold, share] = made
        return self._parts[fold, share]

    def _do_cost(self, request: Mapping[str, Any]) -> Any:
        chain = from_json(StageChain, request["chain"])
        settings = chain.stages[-1].settings
        known = self._deepest(chain, len(chain.stages))
        depth = known.depth if known is not None else 0
        if known is not None and known.is_stopped:
            depth = len(chain.stages)
        return to_json(
            cost_of(
                chain,
                known=depth,
                model=self._model_of(settings["model"]),
                data=self._data_of(settings),
                cache=self._cache,
                cache_key=self._cache_key(settings["model"]),
                seconds_per_flop=seconds_per_flop(self._decisions),
                frozen=self._frozen_by_epoch(settings["model"], settings["training"]),
            )
        )

    def _do_advance(self, request: Mapping[str, Any]) -> Any:
        chain = from_json(StageChain, request["chain"])
        depth = 1 + chain.boundaries.index(request["to_step"])
        known = self._deepest(chain, depth)
        reached = known
        if not stages.is_reached(known, depth):
            self._is_alone = bool(request.get("is_alone"))
            known, reached = self._reach(chain, depth)
        assert reached is not None
        paid = reached.manifest["paid"]
        others = sum(seconds for payer, seconds in paid.items() if payer != self._payer(chain))
        return {
            "key": reached.folder.name,
            "step": request["to_step"],
            "num_steps": chain.num_steps,
            "metrics": reached.manifest["metrics"],
            "cpu_seconds": sum(paid.values()),
            "reused_steps": chain.boundaries[known.depth - 1] if known is not None else 0,
            "folder": str(reached.folder),
            "saved": {**reached.manifest["saved"], **({"stage_tree": others} if others else {})},
            "is_stopped": reached.is_stopped,
            "peak": reached.manifest.get("peak", {}),
        }

    def _reach(
        self, chain: StageChain, depth: int
    ) -> tuple[stages.StoredStage | None, stages.StoredStage]:
        """What was stored before any step was made here, and what is; where others branch off, each
        epoch on the way there is a stage to go on from.
        """
        config = self._spec.config
        each = config["search"]["branch"] and config["cache"]["stages"]
        ends = range(1, depth + 1) if each else [depth]
        steps = [self._advanced(chain, end) for end in ends]
        made = (known for known, reached in steps if known is not reached)
        return next(made, steps[-1][0]), steps[-1][1]

    def _advanced(
        self, chain: StageChain, depth: int
    ) -> tuple[stages.StoredStage | None, stages.StoredStage]:
        """From what was stored, what is. A stage that another worker trains is waited for: ours, or
        one that ours goes on from; and what we go on from is not let go.
        """
        folder, stop = self._workspace / stages.STAGES, self._stop_if_asked
        lock_of = partial(stages.lock_of, folder)
        for stage in chain.stages[: depth - 1]:
            if lock_of(stage).exists():
                with beside(lock_of(stage), stop=stop):
                    pass
        with alone(lock_of(chain.stages[depth - 1]), stop=stop), ExitStack() as held:
            known = self._deepest(chain, depth)
            if known is not None and known.depth < depth:
                held.enter_context(beside(lock_of(chain.stages[known.depth - 1]), stop=stop))
                known = self._deepest(chain, depth)  # it may have gone before we held it
            if known is not None and stages.is_reached(known, depth):
                return known, known
            return known, self._train(chain, depth, known)

    def _deepest(self, chain: StageChain, depth: int) -> stages.StoredStage | None:
        """The deepest of the first `depth` stages from which one can go on: the last of them, one
        whose training ended itself, or one with the state that the next begins in.
        """
        for number in range(depth, 0, -1):
            folder = self._workspace / stages.STAGES / chain.stages[number - 1].key
            manifest = stages.stored(folder)
            if manifest is None:
                continue
            found = stages.StoredStage(depth=number, folder=folder, manifest=manifest)
            if number == depth or found.is_stopped or stages.states_of(folder).newest() is not None:
                return found
        return None

    def _train(
        self, chain: StageChain, depth: int, known: stages.StoredStage | None
    ) -> stages.StoredStage:
        """Train to the end of a stage from its newest checkpoint, the stage before or the start,
        and store it.
        """
        started = time.process_time()
        stage = chain.stages[depth - 1]
        folder = self._workspace / stages.STAGES / stage.key
        checkpoints = Checkpoints(
            folder.with_name(f"{folder.name}.checkpoints"),
            keep=CHECKPOINTS_KEPT,
            max_bytes=int(stage.settings["training"]["checkpoint_budget"]),
        )
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        keeps = bool(self._spec.config["cache"]["stages"])
        pause = Pause(
            epoch=depth,
            starts=[stages.states_of(known.folder)] if known is not None else [],
            keep=stages.states_of(staging) if keeps else None,
        )
        trainer = self._trainer(stage, checkpoints, folder.with_name(f"{folder.name}.jsonl"))
        trained = trainer.train(self._cancel, pause=pause)
        save_file(trained.weights, staging / stages.WEIGHTS)
        seconds = time.process_time() - started
        manifest = stages.manifest_of(trained, known, payer=self._payer(chain), seconds=seconds)
        stages.store(staging, folder, manifest)
        checkpoints.clear()
        stages.prune(folder.parent, int(self._spec.config["cache"]["bytes"]), but={stage.key})
        return stages.StoredStage(depth=depth, folder=folder, manifest=manifest)

    def _trainer(self, stage: Stage, checkpoints: Checkpoints, lines: Path) -> Trainer:
        """Of this stage and those before it; what it tells is written to `lines` too."""
        model, training = stage.settings["model"], stage.settings["training"]
        start, data = self._model_of(model), self._data_of(stage.settings)
        own = self._spec.config["model"]["backbone"] in OWN
        return Trainer(
            start,
            data,
            training,
            task=registry.get("task", model["task"])(data.label_names, training),
            metric=self._spec.config["evaluate"]["metric"],
            metrics=more_metrics(self._spec),
            seed=stage.seed,
            cache=self._cache,
            cache_key=self._cache_key(model),
            on_event=partial(self._told, lines),
            checkpoints=checkpoints,
            decisions=self._decisions,
            structure=from_json(StructureConfig, model["structure"]),
            algorithms=parts.algorithms(training),
            callbacks=parts.callbacks(training),
            boundaries=self._boundaries(len(layers_of(start.backbone))) if not own else (),
        )

    def _payer(self, chain: StageChain) -> str:
        """Who trained a stage: what an earlier run of this trial paid costs the next nothing."""
        return digest(self._spec.run_id, chain.key)

    def _boundaries(self, num_layers: int) -> list[int]:
        """The first layers that learn in the study's other trials, where its space lists them and
        there will be others.
        """
        if self._is_alone:
            return []
        space = self._spec.config["search"]["space"]
        named = space.items() if isinstance(space, Mapping) else ()
        said = [v for k, v in named if k.endswith("trainable_layers")]
        choices = said[0].get("choice", ()) if said and isinstance(said[0], Mapping) else ()
        return [num_layers - k for k in choices if isinstance(k, int) and 0 < k < num_layers]

    def _cache_key(self, model: Mapping[str, Any]) -> str:
        """Names the weights that training starts from."""
        return digest(self._start_name, model)

    @property
    def _decisions(self) -> Decisions:
        path = Path(self._spec.folder) / "decisions.json"
        return Decisions(path, machine=self._workspace / MACHINE)

    def _told(self, lines: Path, event: Mapping[str, Any]) -> None:
        """Pass an event on; what a record consists of is kept beside the stage."""
        self._send(event)
        if event["kind"] in {"training", "evaluation", "trial_resumed"}:
            lines.parent.mkdir(parents=True, exist_ok=True)
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event) + "\n")

    def _do_export(self, request: Mapping[str, Any]) -> Any:
        chain = from_json(StageChain, request["chain"])
        reached = self._deepest(chain, len(chain.stages))
        assert reached is not None, "what is exported was trained"
        weights = load_file(reached.folder / stages.WEIGHTS)
        settings = chain.stages[-1].settings["model"]
        # Not a copy, which is a second model in memory: who wants this start again loads it again.
        self._model_of(settings)
        model = self._models.pop(digest(settings))
        load_trained(
            model,
            from_json(StructureConfig, settings["structure"]),
            weights,
            adapter=Path(self._spec.folder) / "adapter",
        )
        facts: dict[str, Any] = {
            "max_length": int(self._spec.config["data"]["max_length"]),
            "pad_id": int(getattr(model.backbone.config, "pad_token_id", 0) or 0),
            "task": settings["task"],
            "made_of": {"backbone": self._origin, "structure": edits_of(settings["structure"])},
        }
        target = Path(request["folder"])
        if self._chat is not None:
            facts |= {"end_id": self._chat.end_id, "rows": self._inputs}
            return asdict(export_causal_lm(model, self._start, target, **facts))
        facts |= {"labels": self._spec.dataset.outputs, "inputs": self._inputs}
        facts |= {"graphs": self._workspace / stages.GRAPHS}
        return asdict(export_folder(model, self._start, target, **facts))

    def _do_score(self, request: Mapping[str, Any]) -> Any:
        """What the model in a folder gives to the test rows' answers; no run need be open."""
        spec = from_json(RunSpec, request["spec"])
        project_files.open_parts(spec)  # the folder may want an attention of the project's
        test = load_rows(spec.dataset, "test")
        scores = score_folder(
            Path(request["folder"]),
            test.inputs,
            test.answers,
            max_length=int(spec.config["data"]["max_length"]),
            stop=self._stop_if_asked,
        )
        return [asdict(score) for score in scores]

    def _stop_if_asked(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("it was stopped.", next_step="Start it again.")


def more_metrics(spec: RunSpec) -> list[str]:
    """Evaluators that are told of each trial, beside the one that picks and those of its task."""
    evaluate, search = spec.config["evaluate"], spec.config["search"]
    told = {*MEASURED, *spec.dataset.form.metrics, evaluate["metric"]}
    return sorted({*evaluate.get("metrics", {}), *search.get("objectives", ())} - told)

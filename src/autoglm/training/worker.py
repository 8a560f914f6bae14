"""The training worker: a process that keeps torch, weights, tokens and cached prefixes warm.

JSON lines: requests on standard input, answers and events on the descriptor that was standard
output. When the input ends, the parent is gone and so is this process, at once.
"""

from __future__ import annotations

import copy
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from autoglm.contracts.record import digest, from_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import Stage, StageChain
from autoglm.datasets.dataset_version import load_rows
from autoglm.errors import AutoGLMError, CancelledError, TrainingError
from autoglm.modeling.adapters import load_trained
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbones.own import OWN, make_backbone
from autoglm.modeling.causal_lm import export_causal_lm, load_causal_lm
from autoglm.modeling.chat import Chat
from autoglm.modeling.encoding import encode, open_tokenizer
from autoglm.modeling.export import export_folder
from autoglm.modeling.images import Pixels, Preprocessor, image_of
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.observability import logging as logs
from autoglm.plugins import project_files, registry
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.reuse.prefix_cache import PrefixCache
from autoglm.training import parts, stages
from autoglm.training.data import Encoded, targets_of
from autoglm.training.decisions import Decisions
from autoglm.training.texts import encode_turns, score_folder
from autoglm.training.trainer import Trainer

CACHE_BYTES = 2**30
PARITY_ROWS = 64
# Starts of trials in memory: a search over structure goes back and forth between a few.
MODELS_KEPT = 3
CHECKPOINTS_KEPT = 2
# Rows by which pruning judges what is important.
SAMPLE_ROWS = 128


class Worker:
    """One open run at a time."""

    def __init__(self, workspace: Path, send: Any) -> None:
        self._workspace, self._send = workspace, send
        self._cache = PrefixCache(CACHE_BYTES)
        self._cancel, self._cancelled = threading.Event(), 0
        self._opened = ""
        self._chat: Chat | None = None
        self._models: dict[str, AutoGLMForSequenceClassification] = {}

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
        self._spec, self._start, self._base = spec, start, Path(request["base"])
        project_files.open_parts(spec)
        if spec.config["model"]["backbone"] in OWN and not start.exists():
            self._make_start(spec, start)
        self._models = {}
        self._data, self._inputs = self._encode(spec, start)
        self._model_of(spec.config["model"])  # what cannot be opened is told before any trial
        self._opened = name
        logs.get_logger().info("opened", run_id=spec.run_id, rows=len(self._data.ids))
        return None

    def _loaded(self, settings: Mapping[str, Any]) -> AutoGLMForSequenceClassification:
        max_length = int(self._spec.config["data"]["max_length"])
        if self._chat is not None:
            return load_causal_lm(
                self._start, settings, sample=self._sample(), max_length=max_length
            )
        task = registry.get("task", settings["task"])
        return load_model(
            self._start,
            settings,
            labels=self._spec.dataset.outputs,
            problem_type=task.problem_type,
            is_per_token=task.is_per_token,
            unit=self._data.unit if task.problem_type == "regression" else (0.0, 1.0),
            sample=self._sample(),
            max_length=max_length,
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
        encodings: Sequence[Any]
        max_length = int(spec.config["data"]["max_length"])
        self._chat = Chat(folder, max_length) if spec.dataset.form.answers == "text" else None
        if self._chat is not None:
            data = encode_turns(self._chat, inputs, answers, num_train=len(train))
            return data, list(data.ids[len(train) :][:PARITY_ROWS])
        if spec.dataset.form.reads == "image":
            inputs = list(map(image_of, inputs))
            ids: Any = Pixels(inputs, Preprocessor.of(folder))
            encodings = ids
        else:
            tokenizer = open_tokenizer(folder, max_length, spec.dataset.form)
            encodings = encode(tokenizer, inputs)
            ids = [encoding.ids for encoding in encodings]
        data = Encoded(
            ids=ids,
            targets=targets_of(answers, encodings, spec.dataset.labels),
            num_train=len(train),
            label_names=spec.dataset.outputs,
        )
        return data, inputs[len(train) :][:PARITY_ROWS]

    def _do_advance(self, request: Mapping[str, Any]) -> Any:
        chain = from_json(StageChain, request["chain"])
        stage, folder = chain.stages[-1], self._workspace / "stages" / chain.key
        manifest = stages.stored(folder)
        reused = manifest is not None
        if manifest is None:
            manifest = self._train(stage, folder)
        return {
            "key": chain.key,
            "step": chain.num_steps,
            "num_steps": chain.num_steps,
            "metrics": manifest["metrics"],
            "cpu_seconds": manifest["cpu_seconds"],
            "reused_steps": chain.num_steps if reused else 0,
            "folder": str(folder),
        }

    def _train(self, stage: Stage, folder: Path) -> dict[str, Any]:
        """Train a stage from its newest checkpoint, or from the start, and store it."""
        started = time.process_time()
        model, training = stage.settings["model"], stage.settings["training"]
        checkpoints = Checkpoints(
            folder.with_name(f"{folder.name}.checkpoints"),
            keep=CHECKPOINTS_KEPT,
            max_bytes=int(training["checkpoint_budget"]),
        )
        lines = folder.with_name(f"{folder.name}.jsonl")
        trainer = Trainer(
            self._model_of(model),
            self._data,
            training,
            task=registry.get("task", model["task"])(self._data.label_names, training),
            metric=self._spec.config["evaluate"]["metric"],
            seed=stage.seed,
            cache=self._cache,
            cache_key=digest(stage.parent, model, self._spec.dataset.content_digest),
            on_event=partial(self._told, lines),
            checkpoints=checkpoints,
            decisions=Decisions(Path(self._spec.folder) / "decisions.json"),
            structure=from_json(StructureConfig, model["structure"]),
            algorithms=parts.algorithms(training),
            callbacks=parts.callbacks(training),
        )
        trained = trainer.train(self._cancel)
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(trained.weights, staging / stages.WEIGHTS)
        manifest = {
            "metrics": trained.metrics,
            "num_steps": trained.num_steps,
            "best_epoch": trained.best_epoch,
            "cpu_seconds": time.process_time() - started,
        }
        stages.store(staging, folder, manifest)
        checkpoints.clear()
        return manifest

    def _told(self, lines: Path, event: Mapping[str, Any]) -> None:
        """Pass an event on; what a record consists of is kept beside the stage."""
        self._send(event)
        if event["kind"] in {"training", "evaluation", "trial_resumed"}:
            lines.parent.mkdir(parents=True, exist_ok=True)
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event) + "\n")

    def _do_export(self, request: Mapping[str, Any]) -> Any:
        chain = from_json(StageChain, request["chain"])
        weights = load_file(self._workspace / "stages" / chain.key / stages.WEIGHTS)
        settings = chain.stages[-1].settings["model"]
        model = copy.deepcopy(self._model_of(settings))
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
            raise CancelledError("scoring was stopped.", next_step="Start it again.")


def main() -> None:
    # Libraries print to standard output; the protocol gets a descriptor of its own.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = json.loads(sys.stdin.readline())
    logs.configure("trainer", project=options["project"], folder=Path(options["logs"]))
    torch.set_num_threads(options["threads"] or os.cpu_count() or 1)
    os.nice(options["nice"])
    lock = threading.Lock()

    def send(message: Mapping[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")

    worker = Worker(Path(options["workspace"]), lambda event: send({"event": event}))
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, worker), daemon=True).start()
    send({"ready": True})
    while True:
        request = requests.get()
        try:
            send({"id": request["id"], "value": worker.answer(request)})
        except AutoGLMError as error:
            send({"id": request["id"], "error": error.to_json(), "kind": type(error).__name__})
        except Exception as error:
            logs.get_logger().exception("request broke", call=request["call"])
            broken = TrainingError(f"{type(error).__name__}: {error}", code="training.broken")
            send({"id": request["id"], "error": broken.to_json(), "kind": "TrainingError"})


def _read(requests: queue.SimpleQueue[dict[str, Any]], worker: Worker) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["call"] == "cancel":
            worker.cancel(request["cancels"])
        else:
            requests.put(request)
    os._exit(0)


if __name__ == "__main__":
    main()

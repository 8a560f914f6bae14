"""The client of the training worker: starts it, speaks to it, is the port TrialRunner. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.stage_chain import FOLD, Cost, Progress, StageChain
from autoglm.contracts.task import TextScore
from autoglm.errors import CancelledError, ModelError, TrainingError, from_document
from autoglm.modeling.backbone_ref import resolve_backbone
from autoglm.modeling.backbones.own import OWN
from autoglm.modeling.backbones.weights_file import sha256
from autoglm.modeling.surgery.config import EDITS, edits_of
from autoglm.observability.logging import get_logger

OnEvent = Callable[[Mapping[str, Any]], None]
# A worker that was told to stop gets this long to say so.
GRACE_SECONDS = 5.0
# How often a thread of torch's looks for work before it sleeps. By default it looks on through the
# pauses between two products: little time is won, at the price of a core that others could use.
SPINS = "2000"


class TrainingWorker:
    """A warm worker process. It ends with `close`, or with this process."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        workspace: Path,
        stderr: Path,
        on_event: OnEvent,
        cancel: threading.Event,
        *,
        threads: int = 0,
    ) -> None:
        self.threads, self.starts_from_stable = threads, False
        self._process, self._workspace, self._stderr = process, workspace, stderr
        self._on_event, self._cancel = on_event, cancel
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._calls = 0
        self._spec: RunSpec | None = None
        self._start = ""
        self._num_alone, self._trials = 0, set[str]()
        threading.Thread(target=self._listen, daemon=True, name="trainer-answers").start()

    @classmethod
    def start(
        cls,
        *,
        logs: Path,
        workspace: Path,
        cache: Path,
        threads: int,
        nice: int,
        project: str,
        on_event: OnEvent | None = None,
        cancel: threading.Event | None = None,
    ) -> TrainingWorker:
        """Start the process; torch loads while we go on. Stages of the work in hand lie in
        `workspace`, what outlives it in `cache`.
        """
        logs.mkdir(parents=True, exist_ok=True)
        workspace.mkdir(parents=True, exist_ok=True)
        path = logs / "trainer.stderr"
        with path.open("a") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "autoglm.training.worker_main"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_environment(os.environ),
                # Ctrl-C is the parent's to hear; it cancels in order.
                start_new_session=False,
                process_group=0,
            )
        worker = cls(
            process, workspace, path, on_event or (lambda _event: None),
            cancel or threading.Event(), threads=threads,
        )  # fmt: skip
        options = {
            "logs": str(logs),
            "workspace": str(workspace),
            "cache": str(cache),
            "threads": threads,
            "nice": nice,
            "project": project,
        }
        worker._write(options)
        return worker

    def open(
        self,
        spec: RunSpec,
        *,
        start_folder: Path | None,
        base: Path,
        learnt: DatasetVersion | None = None,
    ) -> None:
        """Load backbone and rows of a run. Where training starts is decided here, once. `learnt` is
        what the model in `start_folder` learnt from, where that is known.

        Raises: ModelError model.no_backbone, model.start_incompatible.
        """
        self.begin_study(num_alone=0)
        start, made_of = self._start_from(spec, start_folder, base)
        self._spec, self.starts_from_stable = spec, start == start_folder
        is_backbone = start != start_folder
        self._start = made_of["backbone"] if is_backbone else _name_of(start, spec)
        self._call(
            "open",
            spec=to_json(spec),
            start=str(start),
            start_name=self._start,
            origin=made_of["backbone"],
            made_by=made_of["structure"],
            base=str(base),
            learnt=None if is_backbone or learnt is None else to_json(learnt),
        )

    def _start_from(
        self, spec: RunSpec, start_folder: Path | None, base: Path
    ) -> tuple[Path, Mapping[str, Any]]:
        """The folder, and of which backbone by which edits it was made."""
        wanted = spec.config["model"]["start_from"]
        # Asked for by name, stable's head keeps the rows of labels that are still there.
        needs_labels = wanted != "stable"
        backbone = self._backbone(spec, base)
        name = _name_of(backbone, spec)
        as_it_is: Mapping[str, Any] = {"backbone": name, "structure": {}}
        if wanted == "backbone" or (start_folder is None and wanted == "auto"):
            return backbone, as_it_is
        reason = _incompatible(start_folder, backbone, name, spec, needs_labels=needs_labels)
        if wanted == "auto" and spec.config["search"]["folds"]:
            reason = reason or "stable has learnt from the rows of each fold"
        if not reason:
            assert start_folder is not None, "an absent folder is incompatible"
            return start_folder, _facts_of(start_folder).get("made_of", as_it_is)
        if wanted == "stable":
            raise ModelError(
                f"training cannot start from stable: {reason}.",
                code="model.start_incompatible",
                next_step="Set model.start_from: auto.",
            )
        get_logger().info("starts from the backbone", reason=reason)
        return backbone, as_it_is

    def _backbone(self, spec: RunSpec, base: Path) -> Path:
        """One of our own is made by the worker, from the run's rows, when it is opened."""
        ref = spec.config["model"]["backbone"]
        if ref not in OWN:
            return resolve_backbone(ref, base)
        return self._workspace / "starts" / _own_name(spec)

    def begin_study(self, *, num_alone: int) -> None:
        """So many trials, the first that are asked for from now on, may be all there will be: for
        others nothing is kept on the way.
        """
        self._num_alone, self._trials = num_alone, set()

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        """A stage per epoch. Raises: PluginError for a schedule that nobody knows."""
        return from_json(StageChain, self._call("plan", params=dict(params)))

    def cost(self, chain: StageChain) -> Cost:
        """Nothing for a stored chain; else from what this machine was measured to do."""
        return from_json(Cost, self._call("cost", chain=to_json(chain)))

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        """Train to the end of a stage (`to_step` is one of `chain.boundaries`), from the deepest
        that is stored.

        Raises: TrainingError (training.worker_died is retryable), CancelledError.
        """
        if to_step not in chain.boundaries:
            raise ValueError(f"a stage is trained whole: {to_step} is none of {chain.boundaries}")
        self._trials.add(digest({k: v for k, v in chain.params.items() if k != FOLD}))
        asked = {"chain": to_json(chain), "to_step": to_step}
        asked["is_alone"] = len(self._trials) <= self._num_alone
        return from_json(Progress, self._call("advance", cancel=cancel, **asked))

    def export(self, chain: StageChain, folder: Path) -> dict[str, Any]:
        """Write the model folder (see modeling.export). Raises: ModelError, TrainingError."""
        exported: dict[str, Any] = self._call("export", chain=to_json(chain), folder=str(folder))
        return exported

    def score(self, spec: RunSpec, folder: Path) -> list[TextScore]:
        """What the model in `folder` gives to the answers of the test rows, in their order.

        Raises: ModelError, CancelledError, TrainingError.
        """
        rows = self._call("score", spec=to_json(spec), folder=str(folder))
        return [TextScore(**row) for row in rows]

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the worker and wait for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died with a message unread
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _opened(self) -> RunSpec:
        if self._spec is None:
            raise ValueError("open a run first")
        return self._spec

    def _call(self, call: str, *, cancel: threading.Event | None = None, **arguments: Any) -> Any:
        self._calls += 1
        self._write({"id": self._calls, "call": call, **arguments})
        stop, told_at = cancel or self._cancel, 0.0
        while True:
            if stop.is_set() and not told_at:
                told_at = time.monotonic()
                self._write({"call": "cancel", "cancels": self._calls})
            if told_at and time.monotonic() - told_at > GRACE_SECONDS:
                # Loading weights and exporting cannot be interrupted; closing the worker ends them.
                raise CancelledError("training was stopped.", next_step="It can be resumed.")
            try:
                answer = self._answers.get(timeout=0.2)
            except queue.Empty:
                continue
            if answer is None:
                raise self._died()
            if answer["id"] == self._calls:
                return self._value(answer)

    def _value(self, answer: Mapping[str, Any]) -> Any:
        if "error" in answer:
            raise from_document(answer["kind"], answer["error"])
        return answer["value"]

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "event" in message:
                self._on_event(message["event"])
            elif "id" in message:
                self._answers.put(message)
        self._answers.put(None)

    def _died(self) -> TrainingError:
        code = self._process.wait()
        tail = self._stderr.read_text(errors="replace")[-400:].strip()
        return TrainingError(
            f"the training worker died (exit code {code}). {tail}",
            code="training.worker_died",
            retryable=True,
            next_step="The same command goes on from the last checkpoint; killed for want of memory"
            " (exit code -9), it wants a smaller training.memory_budget or training.batch_size.",
        )


def _own_name(spec: RunSpec) -> str:
    return digest(spec.config["model"]["backbone"], spec.dataset.content_digest, spec.seed)


def _name_of(start: Path, spec: RunSpec) -> str:
    """What stages of this start are named by."""
    if start.name == _own_name(spec):
        return start.name
    return digest(str(_config_of(start)), _weights_stamp(start))


def _config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "autoglm.json").read_text(encoding="utf-8"))
    return facts


def _made_otherwise(made_of: Mapping[str, Any], backbone: str, spec: RunSpec) -> str:
    """Whether a version is not what this configuration would make. One that nothing was edited of
    can be edited now; none can be edited twice.
    """
    if made_of["backbone"] != backbone:
        return "its backbone is another"
    done, asked = made_of["structure"], edits_of(spec.config["model"]["structure"])
    if done and (searched := _edits_searched(spec)):
        return f"it was made by {done}, and {', '.join(searched)} is searched for"
    if done and done != asked:
        return f"it was made by {done}, model.structure says {asked or 'nothing'}"
    return ""


def _edits_asked(spec: RunSpec) -> bool:
    return bool(edits_of(spec.config["model"]["structure"]) or _edits_searched(spec))


def _edits_searched(spec: RunSpec) -> list[str]:
    """Edits that the study's trials choose among: its space names them, or its prior."""
    search = spec.config["search"]
    said = [*search["space"], *search.get("prior", {})]
    names = (name.rpartition(".")[2].replace("n_layers", "num_layers") for name in said)
    return sorted({name for name in names if name in EDITS})


def _weights_stamp(folder: Path) -> str:
    """Content of the weights: as the exported folder's manifest says, or of a backbone's files."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text())["files"]["model.safetensors"])
    return str([(path.name, sha256(path)) for path in sorted(folder.glob("*.safetensors"))])


def _incompatible(
    start: Path | None, backbone: Path, name: str, spec: RunSpec, *, needs_labels: bool
) -> str:
    """Why training cannot start from the folder `start`; empty when it can. `name` is what the
    backbone is by content.
    """
    if start is None or not (start / "autoglm.json").is_file():
        return "there is no stable model version"
    facts = _facts_of(start)
    if facts.get("task", "text-classification") != spec.config["model"]["task"]:
        return "its task is another"
    if needs_labels and tuple(facts["labels"]) != spec.dataset.outputs:
        return "its labels are others"
    config = _config_of(start)
    # A folder of transformers' own class is the backbone's config and more.
    inner = config.get("backbone_config", config)
    if spec.config["model"]["backbone"] in OWN:
        kind = f"autoglm_{spec.config['model']['backbone']}"
        # Sizes are the trial's, the vocabulary is the start's.
        return "" if inner.get("model_type") == kind else "its backbone is another"
    if "made_of" in facts:
        return _made_otherwise(facts["made_of"], name, spec)
    if _edits_asked(spec):
        return "it was written before versions said which edits of the backbone made them"
    outer = _config_of(backbone)
    shape = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    if any(inner.get(name) != outer.get(name) for name in shape):
        return "its backbone is another"
    return ""


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """The worker's. Who says how threads wait has the last word."""
    spins = {} if "OMP_WAIT_POLICY" in own else {"GOMP_SPINCOUNT": SPINS}
    return {**spins, **own, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

"""What a trip round the loop stands on: opened once by the owner, closed by it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoglm.clock import Clock, SystemClock
from autoglm.contracts.record import to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.errors import ServingError
from autoglm.loop import errand
from autoglm.project import Project
from autoglm.registry.model_registry import LocalModelRegistry
from autoglm.release.gateway_client import GatewayClient
from autoglm.reuse.eviction import PREFIX, evict
from autoglm.serving.launcher import GatewayProcess
from autoglm.state.event_log import EventLog
from autoglm.training.decisions import MACHINE
from autoglm.training.launcher import TrainingWorker
from autoglm.training.stages import GRAPHS
from autoglm.triggers.admission import Admission

OnEvent = Callable[[Mapping[str, Any]], None]


def ignore(_event: Mapping[str, Any]) -> None:
    """Nobody is watching."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayAddress:
    """Where a living gateway answers: users at `address`, control at `admin_socket`."""

    address: str
    admin_socket: Path


@dataclass(kw_only=True)
class App:
    """`on_event` is called with progress (dicts with `kind`), from any thread; it must not block.

    `replay` decides whether held-out rows stand in for users who are not there. `gateway` is the
    living one under `up`; a lone `run` starts its own when the release needs it.
    """

    project: Project
    clock: Clock = field(default_factory=SystemClock)
    cancel: threading.Event = field(default_factory=threading.Event)
    on_event: OnEvent = ignore
    replay: bool = True
    gateway: GatewayAddress | None = None
    admin: GatewayClient | None = None

    def __post_init__(self) -> None:
        self.log = EventLog(self.project.engine)
        self.registry: LocalModelRegistry = self.project.registry()
        self.admission = Admission(self.project.engine, self.project.state)
        self.is_alone = self.gateway is None
        self._trainers: list[TrainingWorker] = []
        self._own_gateway: GatewayProcess | None = None

    @property
    def work(self) -> Path:
        """Stored stages of the run in hand; a new attempt at a failed run finds them here. The
        graphs are for the next run too, and so is what was measured of the machine.
        """
        return self.project.work

    @property
    def cache(self) -> Path:
        """What is not computed twice, by whichever run."""
        return self.project.state / "cache"

    def trainer(self) -> TrainingWorker:
        """The warm training worker, started when it is first asked for."""
        if not self._trainers:
            self._start_trainer(self.project.settings.training.threads)
        return self._trainers[0]

    def trainers(self, num: int, *, threads: int) -> Sequence[TrainingWorker]:
        """Exactly so many; several have the said threads each (0: the cores there are), one keeps
        what it was started with. They share workspace and cache.
        """
        if num > 1 and any(each.threads != threads for each in self._trainers):
            self.close_trainer()  # it was one, on all the cores
        while len(self._trainers) > num:
            self._trainers.pop().close()
        while len(self._trainers) < num:
            self._start_trainer(threads)
        return tuple(self._trainers)

    def _start_trainer(self, threads: int) -> None:
        self._trainers.append(
            TrainingWorker.start(
                logs=self.project.logs,
                workspace=self.work,
                cache=self.cache,
                threads=threads,
                nice=0 if self.is_alone else 10,
                project=self.project.name,
                on_event=self.on_event,
                cancel=self.cancel,
            )
        )

    def errand(self, name: str, **arguments: Any) -> Any:
        """See `loop.errand`. Under `up` control lives long and sends it out."""
        return (errand.perform if self.is_alone else errand.send)(name, **arguments)

    def evaluate(
        self,
        spec: RunSpec,
        candidate: str,
        stable: str,
        *,
        since: int | None = None,
        fits_floor: bool = True,
    ) -> Any:
        """The evaluation report of two model folders (`stable` may be empty), as a document;
        `since` is the dataset version that stable learnt from. `fits_floor`: see
        `evaluate_candidate`. Of models that write, a training worker finds what they give to the
        answers.
        """
        if spec.dataset.form.answers != "text":
            return self.errand(
                "evaluate", spec=to_json(spec), candidate=candidate, stable=stable, since=since,
                cache=str(self.cache), fits_floor=fits_floor,
            )  # fmt: skip
        folders = {"candidate": candidate, "stable": stable}
        try:
            scores = {
                name: to_json(self.trainer().score(spec, Path(folder))) if folder else []
                for name, folder in folders.items()
            }
        finally:
            self.close_trainer()
        return self.errand("evaluate_texts", spec=to_json(spec), **scores)

    def close_trainer(self) -> None:
        """End the training workers: their memory is wanted by the release. What they had in
        use, and passes `cache.bytes`, may go then.
        """
        if not self._trainers:
            return
        while self._trainers:
            self._trainers.pop().close()
        evict(self.cache / PREFIX, self.project.settings.cache.bytes)

    def close_dead_trainers(self) -> None:
        """After one has died: the others stay, and `trainers` starts one in its place."""
        for each in [trainer for trainer in self._trainers if not trainer.is_alive]:
            self._trainers.remove(each)
            each.close()

    def ensure_gateway(self) -> None:
        """A lone run starts its own gateway, on a free port, when a release needs one."""
        if self.gateway is None:
            project = self.project
            self._own_gateway = GatewayProcess.start(
                state=project.state,
                project=project.name,
                config=replace(project.settings.serving, port=0),
                control_socket=None,
                logs=project.logs,
            )
            threading.Thread(target=self._watch_gateway, daemon=True, name="gateway-watch").start()
            self.gateway = GatewayAddress(
                address=self._own_gateway.address, admin_socket=self._own_gateway.admin_socket
            )
        if self.admin is None:
            self.admin = GatewayClient(self.gateway.admin_socket, project=self.project.name)

    def _watch_gateway(self) -> None:
        """A lone run is its gateway's supervisor: one that died is started again where it was."""
        while (gateway := self._own_gateway) is not None:
            with contextlib.suppress(ServingError):
                gateway.restart_if_dead()
            time.sleep(0.5)

    def clear_work(self) -> None:
        for path in self.work.glob("*"):
            if path.name not in {GRAPHS, MACHINE}:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self.close_trainer()
        if self._own_gateway is not None:
            gateway, self._own_gateway, self.gateway = self._own_gateway, None, None
            gateway.close()

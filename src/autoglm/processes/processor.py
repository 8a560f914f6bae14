"""A worker of the consumer group: broker ─► processors ─► feature table, until its parent ends."""

from __future__ import annotations

import argparse
import threading
import time
from contextlib import closing, suppress

from autoglm.clock import SystemClock
from autoglm.loop.change_to_dataset import open_broker, open_consumer
from autoglm.observability import logging as logs
from autoglm.observability.metric_files import write_metrics
from autoglm.processes.again import again_and_again
from autoglm.processes.lifeline import watch
from autoglm.project import Project

SECONDS_PER_METRICS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    Project.add_arguments(parser)
    parser.add_argument("--number", type=int, required=True)
    arguments = parser.parse_args()
    project = Project.from_arguments(arguments)
    logs.configure(f"processor-{arguments.number}", project=project.name, folder=project.logs)
    cancel = threading.Event()
    watch(cancel.set)
    process(project, cancel, number=arguments.number)


def process(project: Project, cancel: threading.Event, *, number: int) -> None:
    """Be a member of the group until cancelled; what fails is tried again, ever more seldom."""
    again_and_again(
        lambda: _member(project, cancel, number),
        cancel,
        what="processing failed",
        pause=lambda: 0.0,
    )


def _member(project: Project, cancel: threading.Event, number: int) -> None:
    from autoglm.streaming.consumer_group import Committed
    from autoglm.streaming.figures import StreamFigures

    logger = logs.get_logger(worker=number)
    with closing(open_broker(project)) as broker:
        figures = StreamFigures(
            broker, project=project.name, worker=str(number), clock=SystemClock()
        )
        written = -SECONDS_PER_METRICS

        def show(_offsets: object = None) -> None:
            nonlocal written
            if time.monotonic() - written < SECONDS_PER_METRICS:
                return
            written = time.monotonic()
            with suppress(OSError):  # a full disk costs figures, not rows
                write_metrics(project.state, f"stream-{number}", figures.families())

        def committed(done: Committed) -> None:
            figures.committed(done)
            logger.info("collected", rows=done.rows, dead=done.dead, version=done.version)
            show()

        def beat(offsets: object) -> None:
            figures.placed(offsets)  # type: ignore[arg-type]
            show()

        consumer = open_consumer(project, broker, cancel, on_commit=committed, on_beat=beat)
        # The same name after a restart: it need not wait for the lease of its dead self.
        member = f"worker-{number}"
        consumer.follow(cancel, member=member, lease=project.settings.streaming.lease)


if __name__ == "__main__":
    main()

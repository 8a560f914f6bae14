"""The `stream` process: a collector and a processor, in threads that do not wait for each other;
with `streaming.workers` of more than one, the others as processes. Only they write broker.db.
"""

from __future__ import annotations

import argparse
import threading
from contextlib import closing

from autoglm.clock import SystemClock
from autoglm.loop.change_to_dataset import TableFloor, collect_once, hold_back, open_broker
from autoglm.loop.names import judge
from autoglm.observability import logging as logs
from autoglm.processes.again import again_and_again
from autoglm.processes.lifeline import watch
from autoglm.processes.processor import process
from autoglm.processes.supervisor import CHECK_SECONDS, Child
from autoglm.project import Project


def main() -> None:
    parser = argparse.ArgumentParser()
    Project.add_arguments(parser)
    arguments = parser.parse_args()
    project = Project.from_arguments(arguments)
    logs.configure("stream", project=project.name, folder=project.logs)
    cancel = threading.Event()
    watch(cancel.set)
    stream(project, cancel)


def stream(project: Project, cancel: threading.Event) -> None:
    """Collect and process until cancelled; either goes on when the other fails."""
    logger = logs.get_logger()
    live = project.follow(
        on_change=lambda keys: logger.info("configuration changed", keys=keys),
        alarm=lambda error: logger.error("configuration refused", cause=error.message),
        judge=judge(project.layers),
    )
    children = [
        Child("processor", [*project.arguments, "--number", str(number)], project)
        for number in range(1, project.settings.streaming.workers)
    ]
    threads = [
        threading.Thread(target=collect_forever, args=(project, cancel), daemon=True),
        threading.Thread(target=process, args=(project, cancel), kwargs={"number": 0}, daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        for child in children:
            child.start()
        while not cancel.wait(CHECK_SECONDS):
            for child in children:
                child.check()
    finally:
        for child in children:
            child.stop()
        for thread in threads:
            thread.join()
        live.stop()


def collect_forever(project: Project, cancel: threading.Event) -> None:
    """Source ─► broker: follow a source that can be listened to, poll any other."""
    clock, logger = SystemClock(), logs.get_logger()
    floor = TableFloor(project)

    def once() -> None:
        with closing(open_broker(project)) as broker:
            events = collect_once(
                project,
                broker,
                cancel,
                lambda event: logger.debug("collector", **event),
                on_batch=lambda _events: hold_back(project, broker, cancel, clock),
                follow=True,
                floor=floor,
            )
        if events:
            logger.info("collected", events=events)

    again_and_again(
        once,
        cancel,
        what="collecting failed",
        pause=lambda: project.settings.data.poll_interval.total_seconds(),
    )


if __name__ == "__main__":
    main()

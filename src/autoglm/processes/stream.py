"""The `stream` process: collectors and processors, nothing else. Sole writer of broker.db."""

from __future__ import annotations

import argparse
import threading

from autoglm.errors import AutoGLMError
from autoglm.loop.change_to_dataset import collect_changes
from autoglm.loop.names import judge
from autoglm.observability import logging as logs
from autoglm.processes.lifeline import watch
from autoglm.project import Project

MAX_BACK_OFF_SECONDS = 60.0


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
    """Poll until cancelled. A source that cannot be read is asked again, ever more seldom."""
    logger = logs.get_logger()
    live = project.follow(
        on_change=lambda keys: logger.info("configuration changed", keys=keys),
        alarm=lambda error: logger.error("configuration refused", cause=error.message),
        judge=judge(project.layers),
    )
    pause = 0.0
    while not cancel.is_set():
        try:
            collected = collect_changes(project, cancel, lambda _event: None)
            pause = project.settings.data.poll_interval.total_seconds()
            if collected.rows or collected.dead:
                logger.info("collected", rows=collected.rows, dead=collected.dead)
        except AutoGLMError as error:
            pause = min(2 * pause + 1, MAX_BACK_OFF_SECONDS)
            logger.error("collecting failed", error_code=error.code, cause=str(error))
        cancel.wait(pause)
    live.stop()


if __name__ == "__main__":
    main()

"""Work that must not end: it is called again, and what fails is tried ever more seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from autoglm.errors import AutoGLMError, CancelledError
from autoglm.observability import logging as logs

MAX_BACK_OFF_SECONDS = 60.0


def again_and_again(
    work: Callable[[], None], cancel: threading.Event, *, what: str, pause: Callable[[], float]
) -> None:
    """Until cancelled, with a pause between; what fails is tried again, ever more seldom."""
    wait = 0.0
    while not cancel.is_set():
        started = time.monotonic()
        try:
            work()
            wait = pause()
        except CancelledError:
            return
        except AutoGLMError as error:
            wait = _longer(wait, started)
            logs.get_logger().error(what, error_code=error.code, cause=str(error))
        except Exception:
            # Nobody foresaw it: the story goes to the log, the other half goes on.
            wait = _longer(wait, started)
            logs.get_logger().exception(what)
        cancel.wait(wait)


def _longer(wait: float, started: float) -> float:
    """What worked for a while is not the patient of before."""
    is_healthy = time.monotonic() - started > MAX_BACK_OFF_SECONDS
    return 1.0 if is_healthy else min(2 * wait + 1, MAX_BACK_OFF_SECONDS)

"""Commands under a living `up`: ask its API instead of opening the project."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from autoglm.cli.progress import Progress, stream_for
from autoglm.errors import AutoGLMError, ServingError

POLL_SECONDS = 0.5
AWAY = ("serving.control_unavailable", "serving.unreachable")
AWAY_SECONDS = 60.0
# The gateway refuses larger bodies; texts are sent in requests well below that.
REQUEST_BYTES = 200_000
REQUEST_CHARACTERS = 100_000


def run_under_up(project: Any, owner: Any, *, as_json: bool) -> None:
    """Trigger a run there if something changed, follow it, print its result."""
    from autoglm.cli.run import show

    progress = Progress(stream_for(as_json))
    answer = _call(
        owner.address,
        "POST",
        "/api/v1/trigger/train",
        {"reason": "autoglm run", "only_if_changed": True},
    )
    if answer["outcome"] == "unchanged":
        show({**answer["result"], "reason": answer["reason"]}, as_json)
        return
    run_id, seen, failures = answer["run_id"], 0, 0
    while True:
        try:
            document = _call(owner.address, "GET", f"/api/v1/runs/{run_id}?after={seen}")
        except AutoGLMError as error:
            # Control may be started again meanwhile; its run goes on, and so do we.
            failures += 1
            if error.code not in AWAY or failures * POLL_SECONDS > AWAY_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        failures = 0
        for event in document["progress"]:
            progress.on_event(event)
        seen = document["progress_end"]
        if document["result"] is not None:
            break
        time.sleep(POLL_SECONDS)
    progress.close()
    show(document["result"], as_json)
    if document["result"]["status"] == "failed":
        raise typer.Exit(1)


def predict_remotely(address: str, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """Answers of the living gateway, in order. Raises: ServingError."""
    answers: list[Mapping[str, Any]] = []
    # The model reads the beginning of a text; what is far behind it need not travel.
    for part in _parts([text[:REQUEST_CHARACTERS] for text in texts]):
        answers += _call(address, "POST", "/api/v1/predict", {"texts": part})["results"]
    return [{"label": a["label"], "score": a["score"]} for a in answers]


def _parts(texts: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    room = 0
    for text in texts:
        if not parts or room < len(text.encode()) or len(parts[-1]) >= 64:
            parts.append([])
            room = REQUEST_BYTES
        parts[-1].append(text)
        room -= len(text.encode())
    return parts


def _call(address: str, method: str, path: str, body: Any = None) -> Any:
    import httpx

    try:
        reply = httpx.request(method, address + path, json=body, timeout=60)
    except httpx.TransportError as error:
        raise ServingError(
            f"{address} does not answer: {error}.",
            code="serving.unreachable",
            next_step="Look at `autoglm up` and its logs.",
        ) from error
    if reply.is_error:
        problem = reply.json() if "json" in reply.headers.get("content-type", "") else {}
        raise AutoGLMError(
            f"{method} {path}: {problem.get('detail') or reply.text[:200]}",
            code=problem.get("code", "serving.refused"),
            next_step=problem.get("next_step", ""),
        )
    return reply.json()

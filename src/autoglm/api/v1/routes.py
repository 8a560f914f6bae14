"""`/api/v1`: trigger, runs, models, release, predict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from autoglm.errors import ServingError
from autoglm.loop import records
from autoglm.processes.control import Control

router = APIRouter()


class TriggerBody(BaseModel):
    """Why a run is wanted. `only_if_changed`: no run when these rows were learnt already."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="manual", max_length=500)
    only_if_changed: bool = False
    dry_run: bool = False


class TriggerAnswer(BaseModel):
    outcome: Literal["admitted", "known", "unchanged", "waiting"]
    run_id: str | None
    reason: str
    result: dict[str, Any] | None = None


class PredictBody(BaseModel):
    """One text or several. `tokens` (or a list among `texts`) for token-classification, `image`
    (base64, also among `texts`) for image-classification.
    """

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    tokens: list[str] | None = None
    image: str | None = None
    texts: list[str | list[str]] | None = None


class PredictAnswer(BaseModel):
    """`label` and `score` for one text, `results` for several. `label` is a text, or what the task
    answers: a list of labels, a tag per token, a number (then without a score).
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    request_id: str
    model_version: str
    label: str | list[str] | float | None = None
    score: float | None = None
    results: list[dict[str, Any]] | None = None


def _control(request: Request) -> Control:
    control: Control = request.app.state.control
    return control


@router.post("/trigger/train", status_code=202, operation_id="trigger_train")
def trigger_train(
    request: Request,
    body: TriggerBody | None = None,
    idempotency_key: Annotated[str, Header(max_length=200)] = "",
    traceparent: Annotated[str, Header(max_length=200)] = "",
) -> TriggerAnswer:
    """Ask for a run. The same `Idempotency-Key` is the same request: one run."""
    control, wanted = _control(request), body or TriggerBody()
    decision, dataset = control.trigger(
        reason=wanted.reason,
        only_if_changed=wanted.only_if_changed,
        idempotency_key=idempotency_key,
        dry_run=wanted.dry_run,
        traceparent=traceparent,
    )
    result = (
        control.unchanged_result(dataset, decision) if decision.outcome == "unchanged" else None
    )
    return TriggerAnswer(
        outcome=decision.outcome,
        run_id=decision.run_id or None,
        reason=decision.reason,
        result=result,
    )


@router.get("/runs", operation_id="list_runs")
def list_runs(request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
    """Runs, newest first."""
    app = _control(request).app
    return {"runs": [records.run(app.log, row) for row in app.admission.rows()[:limit]]}


@router.get("/runs/{run_id}", operation_id="get_run")
def get_run(
    request: Request, run_id: str, after: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    """One run, with the live events since number `after`."""
    control = _control(request)
    events, end = control.progress(run_id, after)
    document = records.run(control.app.log, control.app.admission.row(run_id))
    return {**document, "progress": events, "progress_end": end}


@router.get("/models", operation_id="list_models")
def list_models(request: Request) -> dict[str, Any]:
    """Model versions, newest first, with their aliases and lineage."""
    registry = _control(request).app.registry
    aliases = registry.aliases()
    return {"models": [records.model(v, aliases) for v in registry.versions()]}


@router.get("/release", operation_id="get_release")
def get_release(request: Request) -> dict[str, Any]:
    """Aliases, the route table in force, the newest rollout's decisions."""
    control = _control(request)
    return records.release(control.project, control.app.registry, control.app.log)


@router.post("/predict", operation_id="predict")
def predict(request: Request, body: PredictBody) -> PredictAnswer:
    """Label one text or several. The gateway answers this itself; here it is only passed on."""
    import httpx

    address = _control(request).gateway.address
    try:
        answer = httpx.post(
            f"{address}/api/v1/predict", json=body.model_dump(exclude_none=True), timeout=60
        )
    except httpx.TransportError as error:
        raise ServingError(
            f"the gateway does not answer: {error}.", code="serving.unreachable"
        ) from error
    if answer.is_error:
        problem = answer.json()
        raise ServingError(problem.get("detail", ""), code=problem.get("code", "serving.failed"))
    return PredictAnswer(**answer.json())

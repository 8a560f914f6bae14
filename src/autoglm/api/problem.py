"""Errors as RFC 9457 problem+json, with our code and the request's trace id."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from autoglm.errors import AutoGLMError
from autoglm.observability.logging import get_logger
from autoglm.observability.tracing import trace_id_of

STATUS_OF = {
    "run.unknown": 404,
    "model.unknown": 404,
    "data.no_rows": 409,
    "data.one_class": 409,
    "data.one_number": 409,
    "data.split_empty": 409,
    "data.wrong_split": 409,
    "source.not_push": 409,
    "push.batch_conflict": 409,
    "serving.no_model": 503,
    "serving.unreachable": 503,
}


class Problem(BaseModel):
    """What every error answer is (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    trace_id: str
    next_step: str = ""
    errors: list[dict[str, Any]] = []


def reply(request: Request, status: int, code: str, detail: str, **extra: Any) -> JSONResponse:
    problem = Problem(
        type=f"urn:autoglm:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        trace_id=trace_id_of(request.headers.get("traceparent", "")),
        **extra,
    )
    return JSONResponse(
        problem.model_dump(), status_code=status, media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Every way in which a request can go wrong ends in a problem."""

    @app.exception_handler(AutoGLMError)
    async def _ours(request: Request, error: AutoGLMError) -> JSONResponse:
        status = STATUS_OF.get(error.code, 503 if error.retryable else 400)
        return reply(request, status, error.code, error.message, next_step=error.next_step)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"pointer": "/" + "/".join(str(p) for p in e["loc"]), "detail": e["msg"]}
            for e in error.errors()
        ]
        is_syntax = any(e["type"] == "json_invalid" for e in error.errors())
        status, code = (400, "api.bad_json") if is_syntax else (422, "api.invalid")
        return reply(request, status, code, errors[0]["detail"], errors=errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(request, error.status_code, f"http.{error.status_code}", str(error.detail))

    @app.exception_handler(Exception)
    async def _broken(request: Request, error: Exception) -> JSONResponse:
        get_logger().exception("request broke", path=request.url.path)
        return reply(request, 500, "api.broken", "The request could not be served.")

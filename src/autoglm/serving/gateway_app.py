"""HTTP around the gateway: one app for users, one for control."""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.rollout import RouteTable
from autoglm.errors import AutoGLMError, ConflictError, DataError, ServingError
from autoglm.observability.tracing import trace_id_of
from autoglm.serving.gateway import Gateway, request_trace

MAX_BODY = 2**20
# What is only passed on may be larger where it is data.
MAX_BODY_OF = {"/api/v1/events": 64 * 2**20}
MAX_TEXTS = 256
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
STATUS_OF = {
    "data.bad_answer": 422,
    "data.empty_text": 422,
    "data.not_an_image": 422,
    "data.not_utf8": 422,
    "api.invalid": 422,
    "api.bad_json": 400,
    "api.too_large": 413,
    "serving.unknown_version": 404,
    "serving.timeout": 504,
}
HOP_HEADERS = {"connection", "content-length", "transfer-encoding", "content-encoding"}


def public_app(gateway: Gateway, control_socket: Path | None) -> Starlette:
    """What users reach: predictions here, everything else at control."""

    async def predict(request: Request) -> Response:
        traceparent = request_trace(request.headers.get("traceparent", ""))
        try:
            inputs, is_single = _inputs(await _body(request))
            request_id, version, trace, answers = await gateway.predict(
                inputs,
                override=request.headers.get("x-autoglm-version", ""),
                key=request.headers.get("x-autoglm-key", ""),
                is_replayed=request.headers.get("x-autoglm-replayed") == "1",
                traceparent=traceparent,
            )
        except AutoGLMError as error:
            return _problem(error, traceparent)
        body: dict[str, Any] = {"request_id": request_id, "model_version": version}
        body |= answers[0] if is_single else {"results": answers}
        headers = {
            "x-request-id": request_id,
            "x-autoglm-model-version": version,
            "x-autoglm-model-trace": trace,
            "traceparent": traceparent,
        }
        return JSONResponse(body, headers=headers)

    async def feedback(request: Request) -> Response:
        try:
            body = await _body(request)
            _check_feedback(body)
            gateway.feedback(body["request_id"], body["label"])
        except AutoGLMError as error:
            return _problem(error, request.headers.get("traceparent", ""))
        return JSONResponse({"status": "accepted"}, status_code=202)

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> Response:
        word = "ready" if gateway.is_ready else "no warm stable model version"
        return PlainTextResponse(word + "\n", status_code=200 if gateway.is_ready else 503)

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(gateway.signals.exposition().decode())

    return Starlette(
        routes=[
            Route("/api/v1/predict", predict, methods=["POST"]),
            Route("/api/v1/feedback", feedback, methods=["POST"]),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Route("/{path:path}", _Passed(control_socket), methods=METHODS),
        ]
    )


class _Passed:
    """Hands a request to the control process over its Unix socket."""

    def __init__(self, control_socket: Path | None) -> None:
        self._client = (
            httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(control_socket)),
                base_url="http://control",
                timeout=60,
            )
            if control_socket
            else None
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        await (await self._pass_on(request))(scope, receive, send)

    async def _pass_on(self, request: Request) -> Response:
        gone = ServingError(
            "the control process does not answer.", code="serving.control_unavailable"
        )
        if self._client is None:
            return _problem(gone, "")
        traceparent = request_trace(request.headers.get("traceparent", ""))
        body = await request.body()
        limit = MAX_BODY_OF.get(request.url.path, MAX_BODY)
        if len(body) > limit:
            large = DataError(f"at most {limit:,} bytes in one request.", code="api.too_large")
            return _problem(large, traceparent)
        # As bytes: a header may hold what is no ASCII.
        kept = [
            (name, value)
            for name, value in request.headers.raw
            if name.decode("latin-1") not in {"host", "traceparent", *HOP_HEADERS}
        ]
        try:
            reply = await self._client.request(
                request.method,
                request.url.path,
                params=request.url.query,
                content=body,
                headers=[*kept, (b"traceparent", traceparent.encode())],
            )
        except httpx.TransportError:
            return _problem(gone, traceparent)
        headers = {k: v for k, v in reply.headers.items() if k not in HOP_HEADERS}
        return Response(reply.content, status_code=reply.status_code, headers=headers)


def admin_app(gateway: Gateway) -> Starlette:
    """What control reaches, on a socket of its own."""

    async def put_routes(request: Request) -> Response:
        try:
            await gateway.set_routes(from_json(RouteTable, json.loads(await request.body())))
        except ConflictError as error:
            return JSONResponse(error.to_json(), status_code=409)
        except AutoGLMError as error:
            return JSONResponse(error.to_json(), status_code=503)
        return JSONResponse({"status": "applied"})

    async def get_routes(_request: Request) -> Response:
        return JSONResponse(to_json(gateway.routes))

    async def get_block(_request: Request) -> Response:
        return JSONResponse(to_json(gateway.signals.block(gateway.routes)))

    return Starlette(
        routes=[
            Route("/admin/routes", put_routes, methods=["PUT"]),
            Route("/admin/routes", get_routes),
            Route("/admin/block", get_block),
        ]
    )


async def _body(request: Request) -> dict[str, Any]:
    length = request.headers.get("content-length", "0")
    raw = await request.body() if length.isdigit() and int(length) <= MAX_BODY else b""
    if not raw and length != "0" or len(raw) > MAX_BODY:
        raise DataError(f"a body has at most {MAX_BODY:,} bytes.", code="api.too_large")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}.", code="api.bad_json") from error
    if not isinstance(body, dict):
        raise DataError("the body must be a JSON object.", code="api.invalid")
    return body


def _inputs(body: dict[str, Any]) -> tuple[list[Any], bool]:
    """Texts, or lists of tokens, and whether it is one alone."""
    single = next((body[name] for name in ("text", "tokens", "image") if name in body), None)
    is_single = single is not None
    found = [single] if is_single else body.get("texts")
    if not isinstance(found, list) or not found or not all(map(_is_input, found)):
        raise DataError(
            'give {"text": TEXT}, {"tokens": [TOKEN, …]}, {"image": BASE64} or'
            ' {"texts": [any of these, …]}.',
            code="api.invalid",
        )
    if len(found) > MAX_TEXTS:
        raise DataError(f"at most {MAX_TEXTS} texts in one request.", code="api.invalid")
    for one in found:
        text = one if isinstance(one, str) else " ".join(one)
        if not text.strip():
            raise DataError("a text is empty.", code="data.empty_text")
        if not _is_utf8(text):
            raise DataError("a text holds half a surrogate pair.", code="data.not_utf8")
    return found, is_single


def _is_input(one: Any) -> bool:
    return isinstance(one, str) or isinstance(one, list) and all(isinstance(t, str) for t in one)


def _check_feedback(body: dict[str, Any]) -> None:
    label = body.get("label")
    is_number = isinstance(label, (int, float)) and not isinstance(label, bool)
    # Python reads NaN as JSON, and whole numbers that no float holds.
    if is_number and not abs(label or 0) <= sys.float_info.max:
        is_number = False
    if not isinstance(body.get("request_id"), str) or not (_is_input(label) or is_number):
        raise DataError(
            "request_id must be text, label a text, a list of texts or a finite number.",
            code="api.invalid",
        )
    words = label if isinstance(label, list) else [str(label)]
    if not all(map(_is_utf8, [body["request_id"], *words])):
        raise DataError("half a surrogate pair is no text.", code="data.not_utf8")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _problem(error: AutoGLMError, traceparent: str) -> Response:
    status = STATUS_OF.get(error.code, 503)
    body = {
        "type": f"urn:autoglm:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "trace_id": trace_id_of(traceparent),
        "next_step": error.next_step,
    }
    return JSONResponse(body, status_code=status, media_type="application/problem+json")

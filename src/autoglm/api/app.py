"""The control process's web application. The gateway passes on to it what is not a prediction."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse

from autoglm.api import page, problem
from autoglm.api.v1 import events, routes
from autoglm.processes.control import Control, current

PROBLEM_RESPONSES = {
    "default": {
        "description": "Any error, as RFC 9457 says it.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
}


def create_app(control: Control | None = None) -> FastAPI:
    """The application on `control` (the process's own if None)."""
    app = FastAPI(
        title="Open-AutoGLM",
        version="1",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.control = control if control is not None else current()
    problem.install(app)
    app.include_router(routes.router, prefix="/api/v1", responses=PROBLEM_RESPONSES)  # type: ignore[arg-type]
    app.include_router(events.router, prefix="/api/v1", responses=PROBLEM_RESPONSES)  # type: ignore[arg-type]

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> str:
        return page.render(app.state.control)

    @app.get("/health", response_class=PlainTextResponse, include_in_schema=False)
    def health() -> str:
        return "ok\n"

    _declare_problem(app)
    return app


def _declare_problem(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, object]:
        schema: dict[str, object] = plain()
        components = schema["components"]["schemas"]  # type: ignore[index]
        components.setdefault("Problem", problem.Problem.model_json_schema())
        return schema

    app.openapi = openapi  # type: ignore[method-assign]

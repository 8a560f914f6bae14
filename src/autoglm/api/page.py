"""The plain page at `/`: the loop's state at a glance, as text that needs no script."""

from __future__ import annotations

from html import escape
from typing import Any

from autoglm.loop import records
from autoglm.processes.control import Control

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5">
<title>{project} · Open-AutoGLM</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }}
table {{ border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4 }}
code {{ font-size: .9em }} .bad {{ color: #a40e26 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e6edf3; background: #0d1117 }}
  th, td {{ border-color: #30363d }} .bad {{ color: #ff7b72 }} }}
</style>
<h1>{project}</h1>
"""


def render(control: Control) -> str:
    app, project = control.app, control.project
    aliases = app.registry.aliases()
    models = [records.model(v, aliases) for v in app.registry.versions()[:10]]
    runs = [records.run(app.log, row) for row in app.admission.rows()[:10]]
    release = records.release(project, app.registry, app.log)
    routes = release["routes"] or {}
    source = project.settings.data.source
    where = source.table or source.topic or source.path
    state = [
        ("source", f"{source.kind} {where}".strip()),
        ("run in hand", control.running or "none"),
        ("stable", _short(routes.get("stable", "")) or "none yet"),
        ("candidate", f"{_short(routes['candidate'])} at {routes['candidate_weight']} %"
         if routes.get("candidate") else "none"),
    ]  # fmt: skip
    errors = [e for e in (control.run_error, control.trigger_error, control.config_error) if e]
    error = "".join(f'<p class="bad">{escape(e)}</p>' for e in errors)
    return "".join(
        (
            HEAD.format(project=escape(project.name)),
            error,
            _table(("station", "state"), state),
            "<h2>Runs</h2>",
            _table(("run", "status", "trigger", "dataset", "verdict", "trace"), map(_run, runs)),
            "<h2>Model versions</h2>",
            _table(("version", "aliases", "dataset", "metrics"), map(_model, models)),
            "<h2>Newest rollout</h2>",
            _table(("at", "event", "weight", "reason"), map(_event, release["events"][-12:])),
            '<p><a href="/api/v1/openapi.json">API</a> · <a href="/metrics">metrics</a></p>',
        )
    )


def _short(digest: str) -> str:
    return digest[:12]


def _run(run: dict[str, Any]) -> tuple[object, ...]:
    rollout = (run["result"] or {}).get("rollout") or {}
    verdict = f"{rollout['verdict']} ({rollout['reason']})" if rollout else "—"
    dataset = run["dataset_version"]
    return (
        run["run_id"],
        run["status"],
        run["trigger"],
        f"v{dataset['version']}, {dataset['rows']} rows",
        verdict,
        run["trace_id"],
    )


def _model(model: dict[str, Any]) -> tuple[object, ...]:
    lineage = model["lineage"]
    metrics = ", ".join(f"{k} {v:.3f}" for k, v in sorted(lineage["metrics"].items()))
    name = f"v{model['number']} {_short(model['digest'])}"
    return name, ", ".join(model["aliases"]), f"v{lineage['dataset_version']}", metrics


def _event(event: dict[str, Any]) -> tuple[object, ...]:
    return event["at"][:19], event["kind"], event.get("weight", ""), event.get("reason", "")


def _table(headers: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"

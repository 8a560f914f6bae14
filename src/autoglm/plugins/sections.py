"""Whether a config section of somebody else's can stand in the tree, and why not.

A section is judged when it is gathered: a broken one is left out, and costs only who sets its keys.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import re
from typing import Any

from autoglm.config.paths import canonical
from autoglm.config.schema import bare, fields_of, is_section, leaf_keys
from autoglm.contracts.record import from_json, to_json

NAME = re.compile(r"[a-z][a-z0-9_]*")
PREFIX = re.compile(r"[A-Z][A-Z0-9_]{1,}_")
# Other programs' variables begin like this; to read them as keys would refuse every command.
OTHERS = ("AUTOGLM_", "CUDA_", "GIT_", "HF_", "LC_", "OMP_", "PYTHON_", "SSH_", "XDG_")
_ours: set[str] = set()


def reserve(names: list[str]) -> None:
    """Names of the product's own sections: nobody else may declare them."""
    _ours.update(map(canonical, names))


def name_problem(name: str) -> str:
    """What a section may not be called, `""` when it may."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        return "a section's name is lower-case letters, digits and _, and no word of Python"
    return f"`{name}` is a section of the product" if canonical(name) in _ours else ""


def section_problem(name: str, section: Any) -> str:
    """Why `section` cannot be a config section, `""` when it can. Costs a few milliseconds."""
    if problem := name_problem(name) or _prefix_problem(section):
        return problem
    if not dataclasses.is_dataclass(section) or not isinstance(section, type):
        return "it is no dataclass"
    try:
        return _shape_problem(section) or _value_problem(section)
    except Exception as error:  # annotations, factories and validators are its author's code
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _prefix_problem(section: Any) -> str:
    prefix = getattr(section, "env_prefix", "")
    if not isinstance(prefix, str):
        return "env_prefix is no text"
    if prefix and (not PREFIX.fullmatch(prefix) or prefix.startswith(OTHERS)):
        return (
            f"env_prefix {prefix!r}: capitals that end in _, at least three characters,"
            f" and none of {', '.join(OTHERS)}"
        )
    return ""


def _shape_problem(section: Any) -> str:
    if not section.__dataclass_params__.frozen:
        return "the dataclass must be frozen"
    for field in dataclasses.fields(section):
        if not field.kw_only:
            return "its fields must be keyword-only (kw_only=True)"
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"{field.name} has no default"
    for _name, annotation in fields_of(section).values():  # two fields of one key show here
        if is_section(annotation):
            leaf_keys(bare(annotation))
    return ""


def _value_problem(section: Any) -> str:
    """Its defaults must survive what a run's snapshot does to them."""
    made = section()
    text = json.dumps(to_json(made))
    return "" if from_json(section, json.loads(text)) == made else "its defaults change in JSON"


def same_key(names: list[str]) -> dict[str, str]:
    """Name → the other name that is one key with it."""
    found: dict[str, str] = {}
    for name in names:
        others = [n for n in names if n != name and canonical(n) == canonical(name)]
        if others:
            found[name] = others[0]
    return found

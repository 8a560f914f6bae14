"""Records are checked exactly as pydantic would check them, without pydantic's own generator."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Len, MultipleOf
from pydantic import SecretStr, TypeAdapter, ValidationError, field_validator

from autoglm import contracts
from autoglm.contracts.record import from_json
from autoglm.contracts.record_schema import UnknownTypeError, schema_of
from autoglm.settings import Settings


def records() -> list[Any]:
    modules = [m.name for m in pkgutil.iter_modules(contracts.__path__) if "schema" not in m.name]
    found = [importlib.import_module(f"autoglm.contracts.{name}") for name in modules]
    return [v for m in found for v in vars(m).values() if dataclasses.is_dataclass(v)]


@dataclass(frozen=True)
class EveryType:
    positional: str
    pair: tuple[int, str] = (1, "")
    names: Annotated[tuple[str, ...], Len(1, 3)] = ("a",)
    by_name: dict[str, float] | None = None
    free: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    either: Literal["a", 1, True] | tuple[bool, ...] = "a"


def shape(schema: Any, known: Mapping[str, Any] | None = None) -> Any:
    """A core schema without what names it and what is for JSON schemas; references written out."""
    if isinstance(schema, list | tuple):
        return [shape(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "definitions":
        return shape(schema["schema"], {d["ref"]: d for d in schema["definitions"]})
    if schema.get("type") == "definition-ref":
        return shape((known or {})[schema["schema_ref"]], known)
    return {k: shape(v, known) for k, v in schema.items() if k not in {"ref", "metadata"}}


@pytest.mark.parametrize(
    "kind", dict.fromkeys([Settings, EveryType, *records()]), ids=lambda kind: kind.__name__
)
def test_the_schema_is_the_one_that_pydantic_builds(kind: Any) -> None:
    assert shape(schema_of(kind)) == shape(TypeAdapter(kind).core_schema)


@dataclass(frozen=True, kw_only=True)
class Secretive:
    word: SecretStr = SecretStr("")


@dataclass(frozen=True, kw_only=True)
class Even:
    number: Annotated[int, Ge(0), MultipleOf(2)] = 0


@dataclass(frozen=True, kw_only=True)
class Checked:
    number: int = 0

    @field_validator("number")
    @classmethod
    def is_small(cls, number: int) -> int:
        if number > 9:
            raise ValueError("too large")
        return number


@dataclass(frozen=True, kw_only=True)
class Nested:
    inner: Checked = field(default_factory=Checked)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Secretive, {"word": "x"}, {"word": 1}),
        (Even, {"number": 4}, {"number": 3}),
        (Checked, {"number": 9}, {"number": 10}),
        (Nested, {"inner": {"number": 9}}, {"inner": {"number": 10}}),
    ],
)
def test_what_only_pydantic_can_read_is_left_to_pydantic(kind: Any, good: Any, bad: Any) -> None:
    with pytest.raises(UnknownTypeError):
        schema_of(kind)
    assert from_json(kind, good) == TypeAdapter(kind).validate_python(good)
    with pytest.raises(ValidationError):
        from_json(kind, bad)


def test_reading_a_configuration_imports_no_pydantic(tmp_path: Any) -> None:
    (tmp_path / "autoglm.yaml").write_text(
        "project: p\nmodel: {backbone: x}\n"
        "data: {source: {url: 'sqlite:///x.db', table: t, key: k}, text: a, label: b}\n"
    )
    code = (
        "import sys; from pathlib import Path; from autoglm.settings import load_settings\n"
        "load_settings(Path(sys.argv[1])); sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0

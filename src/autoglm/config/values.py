"""Texts and scalars → what a field holds: units, lists, numbers, true and false.

pydantic is more forgiving than a configuration may be: it reads `true` as 1, `1_000` as a number
and `no` as false. What it is not asked is decided here.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import cache
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from autoglm.config import units
from autoglm.config.schema import Unit, bare, extra_of, is_free, is_list
from autoglm.config.yaml_reader import Text, parse_scalar
from autoglm.contracts.record import to_json
from autoglm.contracts.record_schema import validator_of_field

_TRUE_OR_FALSE = {"true": True, "false": False}
_OF_TEXT = {**_TRUE_OR_FALSE, "1": True, "0": False}


class WrongValueError(ValueError):
    """The right kind of value, and not one that can be meant."""


def typed(annotation: Any, value: Any) -> Any:
    """`value` as pydantic shall see it. Raises: ValueError saying what to write instead."""
    if annotation is None:  # an entry of a free map
        return parse_scalar(value) if isinstance(value, Text) else value
    if extra_of(annotation, Unit) is not None:
        unit = extra_of(annotation, Unit)
        return units.num_bytes(value) if unit.name == "bytes" else units.share(value)
    if is_list(annotation):
        return _items(annotation, value)
    if isinstance(value, Text) and is_free(annotation):
        return parse_scalar(value)
    plain = _without_none(bare(annotation))
    if isinstance(plain, UnionType):  # a text, or a list of texts
        return _one_or_several(plain, value)
    if plain is timedelta and value is not None:
        return units.duration(value)
    if plain is bool:
        return _bool(value)
    if plain in (int, float):
        return _number(value, allows_infinity=_allows_infinity(annotation))
    return str(value) if isinstance(value, Text) else value


def accepted(annotation: Any, value: Any) -> Any:
    """`value` as a frozen tree holds it (a duration in seconds). Raises: ValueError saying why the
    key cannot hold it.
    """
    from pydantic_core import ValidationError

    try:
        return to_json(_validator(annotation).validate_python(typed(annotation, value)))
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    raise WrongValueError(problem[0].lower() + problem[1:])


@cache
def _validator(annotation: Any) -> Any:
    return validator_of_field(annotation)


def _items(annotation: Any, value: Any) -> Any:
    if isinstance(value, str):
        is_list_text = value.lstrip().startswith("[")
        value = parse_scalar(value) if is_list_text else value.split(",")
        if not is_list_text:
            value = [part.strip() for part in value if part.strip()]
    inner = get_args(bare(annotation))
    if not isinstance(value, list) or not inner or len(inner) > 1 and inner[1] is not ...:
        return value
    return [typed(inner[0], item) for item in value]


def _one_or_several(union: UnionType, value: Any) -> Any:
    several = next((kind for kind in get_args(union) if is_list(kind)), None)
    is_said = isinstance(value, list) or isinstance(value, Text) and value.lstrip()[:1] == "["
    if several is not None and is_said:
        return _items(several, value)
    return str(value) if isinstance(value, Text) else value


def _without_none(plain: Any) -> Any:
    """`int | None` → int."""
    kinds = [kind for kind in get_args(plain) if kind is not type(None)]
    is_optional = len(kinds) == 1 and len(get_args(plain)) == 2 and get_origin(plain) is not dict
    return bare(kinds[0]) if is_optional else plain


def _bool(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    known = _OF_TEXT if isinstance(value, Text) else _TRUE_OR_FALSE
    if isinstance(value, str) and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise WrongValueError("write true or false")


def _number(value: Any, *, allows_infinity: bool) -> Any:
    if isinstance(value, bool):
        raise WrongValueError("write a number; true and false are none")
    if isinstance(value, str):
        value = parse_scalar(value.strip())
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WrongValueError("write a number like 3, 0.5 or 1e-4")
    if isinstance(value, int) and abs(value) >= 10**300:
        raise WrongValueError("write a smaller number")
    if isinstance(value, float) and not math.isfinite(value) and not allows_infinity:
        raise WrongValueError("write a finite number")
    return value


def _allows_infinity(annotation: Any) -> bool:
    """Said by pydantic's `AllowInfNan()` in the annotation."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return any(getattr(extra, "allow_inf_nan", False) for extra in extras)

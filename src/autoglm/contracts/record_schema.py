"""A record's dataclass → what pydantic's core checks it by, for the plain types records have.

Pydantic's own generator knows every type there is: 100 ms to import and 20 ms to run over the whole
configuration, at the start of each command. Here are the few types of contracts and sections; the
schema is the one pydantic would build (tests/contracts compare them), so are values and errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt

_TIME = {"microseconds_precision": "truncate"}
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "str"},
    int: {"type": "int"},
    float: {"type": "float"},
    bool: {"type": "bool"},
    Any: {"type": "any"},
    datetime: {"type": "datetime", **_TIME},
    timedelta: {"type": "timedelta", **_TIME},
}
_BOUNDS: dict[type, str] = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
_BOUNDED, _SIZED = {"int", "float", "timedelta"}, {"str", "tuple"}


class UnknownTypeError(Exception):
    """An annotation, or a dataclass, that only pydantic itself can read."""


class Guard:
    """In an annotation: the field's text becomes one of `made`, a kind of str."""

    made: type[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        function = {"type": "no-info", "function": self.made}
        return {"type": "function-after", "function": function, "schema": handler(source)}


def validator_of(kind: Any) -> Any:
    """A `pydantic_core.SchemaValidator` of a dataclass. Raises: UnknownTypeError."""
    from pydantic_core import SchemaValidator  # 30 ms of import that `autoglm --help` need not pay

    return SchemaValidator(schema_of(kind))


def validator_of_field(annotation: Any) -> Any:
    """The same of one field's annotation. Raises: UnknownTypeError."""
    from pydantic_core import SchemaValidator

    return SchemaValidator(_annotated(annotation, ()))


def schema_of(kind: Any, outer: tuple[Any, ...] = ()) -> Any:
    """The core schema of a dataclass; `outer` are those it stands in. Raises: UnknownTypeError."""
    if kind in outer or not _is_plain(kind):
        raise UnknownTypeError(kind)
    fields = dataclasses.fields(kind)
    hints = {f.name: f.type for f in fields}
    if any(isinstance(hint, str) for hint in hints.values()):
        hints = get_type_hints(kind, include_extras=True)
    # Positional ones first, as a dataclass takes them.
    made = [_field(f, hints[f.name], (*outer, kind)) for f in sorted(fields, key=_is_keyword)]
    has_post_init = hasattr(kind, "__post_init__")
    return {
        "type": "dataclass",
        "cls": kind,
        "config": {"title": kind.__name__},
        "fields": [f.name for f in fields],
        "frozen": False,
        "post_init": has_post_init,
        "slots": hasattr(kind, "__slots__"),
        "schema": {
            "type": "dataclass-args",
            "dataclass_name": kind.__name__,
            "fields": made,
            "computed_fields": [],
            "collect_init_only": has_post_init,
        },
    }


def _is_plain(kind: Any) -> bool:
    """A dataclass of the standard library, without validators or settings of pydantic's."""
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return False
    every = kind.__dataclass_fields__.values()
    own = [item for base in kind.__mro__[:-1] for item in base.__dict__.items()]
    return len(every) == len(dataclasses.fields(kind)) and not any(
        name.startswith(("__pydantic", "__get_pydantic")) or _is_pydantics(value)
        for name, value in own
    )


def _is_pydantics(value: Any) -> bool:
    return type(value).__module__.startswith("pydantic")


def _is_keyword(field: dataclasses.Field[Any]) -> bool:
    return bool(field.kw_only)


def _field(field: dataclasses.Field[Any], annotation: Any, outer: tuple[Any, ...]) -> Any:
    schema = _annotated(annotation, outer)
    if not field.init or _is_pydantics(field.default):
        raise UnknownTypeError(field.name)
    if field.default is not dataclasses.MISSING:
        schema = {"type": "default", "schema": schema, "default": field.default}
    elif field.default_factory is not dataclasses.MISSING:
        made = {"default_factory": field.default_factory, "default_factory_takes_data": False}
        schema = {"type": "default", "schema": schema, **made}
    found = {"type": "dataclass-field", "name": field.name, "schema": schema, "init": True}
    return found if field.kw_only else {**found, "kw_only": False}


def _annotated(annotation: Any, outer: tuple[Any, ...]) -> Any:
    """Metadata that is neither a bound nor a guard means nothing to the check: Key, Unit."""
    if get_origin(annotation) is not Annotated:
        return _type(annotation, outer)
    plain, *metadata = get_args(annotation)
    schema = _type(plain, outer)
    for item in metadata:
        if isinstance(item, Guard):
            schema = item.__get_pydantic_core_schema__(plain, partial(_given, schema))
        elif type(item) in _BOUNDS or type(item) is Len:
            schema = _bounded(schema, item)
        elif _means_something(item):
            raise UnknownTypeError(annotation)
    return schema


def _given(schema: Any, _source: Any) -> Any:
    """What a guard's handler answers: the schema so far."""
    return schema


def _means_something(item: Any) -> bool:
    names = ("__get_pydantic_core_schema__", "__is_annotated_types_grouped_metadata__")
    is_theirs = type(item).__module__.startswith(("pydantic", "annotated_types"))
    return is_theirs or isinstance(item, type) or any(hasattr(item, name) for name in names)


def _bounded(schema: Mapping[str, Any], item: Any) -> dict[str, Any]:
    if type(item) is Len:
        lengths = {"min_length": item.min_length or None, "max_length": item.max_length}
        said = {name: value for name, value in lengths.items() if value is not None}
        fits = schema["type"] in _SIZED
    else:
        name = _BOUNDS[type(item)]
        said, fits = {name: getattr(item, name)}, schema["type"] in _BOUNDED
    if not fits or said.keys() & schema.keys():
        raise UnknownTypeError(item)
    return {**schema, **said}


def _type(plain: Any, outer: tuple[Any, ...]) -> Any:
    if dataclasses.is_dataclass(plain):
        return schema_of(plain, outer)
    try:
        found = _PLAIN.get(plain)
    except TypeError:  # not hashable, so none of them
        found = None
    return found or _composed(plain, get_origin(plain), get_args(plain), outer)


def _composed(plain: Any, origin: Any, args: tuple[Any, ...], outer: tuple[Any, ...]) -> Any:
    if origin is Literal and all(type(value) in {str, int, bool} for value in args):
        return {"type": "literal", "expected": list(args)}
    if origin is tuple and len(args) > 1:
        is_endless = args[1:] == (...,)
        items = [_annotated(arg, outer) for arg in (args[:1] if is_endless else args)]
        endless = {"variadic_item_index": 0} if is_endless else {}
        return {"type": "tuple", "items_schema": items, **endless}
    if origin in {get_origin(Mapping[str, Any]), dict} and len(args) == 2:
        keys, values = (_annotated(arg, outer) for arg in args)
        found = {"type": "dict", "keys_schema": keys, "values_schema": values}
        return found if origin is dict else {**found, "strict": False}
    if origin in {Union, UnionType}:
        choices = [_annotated(arg, outer) for arg in args if arg is not type(None)]
        union = {"type": "union", "choices": choices} if len(choices) > 1 else choices[0]
        return {"type": "nullable", "schema": union} if type(None) in args else union
    raise UnknownTypeError(plain)

"""What a section says of a key beside its type: what it does, and whether it may change live.

A section is a frozen keyword-only dataclass; a field reads
`lr: Annotated[float, Gt(0), Key("Learning rate of AdamW at its peak.")] = 5e-4`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from autoglm.config.masking import AddressText, SecretText
from autoglm.config.paths import canonical
from autoglm.contracts.record_schema import Guard


@dataclass(frozen=True, slots=True)
class Key:
    """`what` is the line of the reference page; `is_reloadable` keys may change while `up` runs.

    `whole_below`: in a free map, entries this deep are replaced whole by a stronger layer.
    `is_named`: a map of options and the `name` that they are of; another name has its own options.
    `unless`: the key is missing when it is not said, and none of these of the same section is.
    `kinds`: it is missing when it is not said and the section's `kind` is one of these.
    """

    what: str
    is_reloadable: bool = False
    whole_below: int | None = None
    is_named: bool = False
    unless: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def live(what: str, *, whole_below: int | None = None, is_named: bool = False) -> Key:
    """A key that may change while `up` runs: what reads it asks anew each time, or per run."""
    return Key(what, is_reloadable=True, whole_below=whole_below, is_named=is_named)


@dataclass(frozen=True, slots=True)
class Unit:
    """The field's number may be written with a unit: `bytes` (4GiB) or `share` (5%)."""

    name: str


@dataclass(frozen=True, slots=True)
class Masked(Guard):
    """The field's value is shown as `***` wherever people look."""

    made = SecretText


@dataclass(frozen=True, slots=True)
class Addressed(Guard):
    """The field is an address; its password is shown as `***`."""

    made = AddressText


Bytes = Annotated[int, Unit("bytes")]
Share = Annotated[float, Unit("share")]
Secret = Annotated[str, Masked()]
Address = Annotated[str, Addressed()]


@cache
def fields_of(section: Any) -> Mapping[str, tuple[str, Any]]:
    """Canonical name → (field name, annotation). Raises: TypeError when two fields share one."""
    hints = get_type_hints(section, include_extras=True)
    fields: dict[str, tuple[str, Any]] = {}
    for field in dataclasses.fields(section):
        name = canonical(field.name)
        if name in fields:
            raise TypeError(
                f"{section.__name__}.{field.name} and .{fields[name][0]} are one key, {name!r}"
            )
        fields[name] = (field.name, hints[field.name])
        # Else each would be evaluated once more for the validator, a tenth of the first load.
        field.type = hints[field.name]
    return fields


@cache
def leaf_keys(section: Any, prefix: str = "") -> Mapping[str, Any]:
    """Dotted key → annotation, for every leaf of the schema."""
    keys: dict[str, Any] = {}
    for name, annotation in fields_of(section).values():
        if is_section(annotation):
            keys |= leaf_keys(bare(annotation), f"{prefix}{name}.")
        else:
            keys[prefix + name] = annotation
    return keys


def bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def is_section(annotation: Any) -> bool:
    return dataclasses.is_dataclass(bare(annotation))


def is_free(annotation: Any) -> bool:
    """A map whose keys are the user's, or a name in whose place such a map may stand."""
    plain = bare(annotation)
    kinds = get_args(plain) if isinstance(plain, UnionType) else [plain]
    return any((get_origin(k) or k) in {get_origin(Mapping[str, Any]), dict} for k in kinds)


def is_list(annotation: Any) -> bool:
    return get_origin(bare(annotation)) in {tuple, list}


def extra_of(annotation: Any, kind: type[Any]) -> Any:
    """The first piece of metadata of this class, None when there is none."""
    if get_origin(annotation) is not Annotated:
        return None
    return next((x for x in get_args(annotation)[1:] if isinstance(x, kind)), None)


def is_secret(annotation: Any) -> bool:
    """`Secret` fields of ours, and pydantic's SecretStr, also inside of a list, a map, a union."""
    name = getattr(bare(annotation), "__name__", "")
    return (
        extra_of(annotation, Masked) is not None
        or name in {"SecretStr", "SecretBytes"}
        or any(is_secret(inner) for inner in get_args(bare(annotation)))
    )


def check_sections(section: Any) -> None:
    """Walk the whole tree, so that a name clash shows at import. Raises: TypeError."""
    leaf_keys(section)

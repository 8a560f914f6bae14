"""What names a row for life: the value of one column, or of several as a JSON array of texts.

    key: id             7       →  7
    key: [shop, id]     de, 7   →  ["de","7"]

Each value is spelled as it would be alone, so that a number and the text of it are one name
whatever a source's driver makes of them. There is one spelling: no blanks, letters as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm.errors import SourceError
from autoglm.streaming.collectors.database import plain


@dataclass(frozen=True, slots=True)
class RowKey:
    columns: tuple[str, ...]

    @classmethod
    def of(cls, said: str | Sequence[str]) -> RowKey:
        """As `data.source.key` says it."""
        return cls((said,) if isinstance(said, str) else tuple(said))

    def __str__(self) -> str:
        return ", ".join(self.columns)

    @property
    def is_composite(self) -> bool:
        return len(self.columns) > 1

    def name_of(self, row: Mapping[str, Any]) -> str:
        """The row's name, `""` where one of its parts is missing, null or empty."""
        if len(self.columns) == 1:  # for each row of a log: nothing is called that need not be
            value = row.get(self.columns[0])
            if type(value) is str or type(value) is int:
                return str(value)
            return "" if value is None else str(plain(value))
        values = [row.get(column) for column in self.columns]
        return "" if any(v is None or v in ("", b"") for v in values) else self.name(values)

    def name(self, values: Sequence[Any]) -> str:
        """Of one value per column."""
        texts = [str(plain(value)) for value in values]
        if not self.is_composite:
            return texts[0]
        return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))

    def parts(self, name: str) -> tuple[str, ...]:
        """The values' texts. Raises: SourceError source.key_changed for what `name` never made."""
        if not self.is_composite:
            return (name,)
        try:
            found = json.loads(name)
        except ValueError:
            found = None
        if not isinstance(found, list) or len(found) != len(self.columns):
            raise SourceError(
                f"the stored position names a row {name!r}; by data.source.key, rows have the"
                f" values of {self}.",
                code="source.key_changed",
                next_step="Say the key as it was; another one names other rows, and begins with an"
                " empty state folder.",
            )
        return tuple(map(str, found))

    def place(self, name: str) -> tuple[bytes, ...]:
        """To compare names in the order in which snapshots read them; `""` is before all."""
        if not name:
            return ()
        return tuple(part.encode("utf-8", "surrogateescape") for part in self.parts(name))

    def spelled(self, text: str) -> str:
        """A name that a person wrote, with blanks or numbers perhaps, as it is stored."""
        try:
            found = json.loads(text) if self.is_composite else None
        except (ValueError, RecursionError):
            return text
        if not isinstance(found, list) or len(found) != len(self.columns):
            return text
        if any(part is None for part in found):  # no row has such a key, and one has "None"
            return text
        return self.name(found)

    def said_in(self, message: str) -> dict[str, Any]:
        """Column → value of a message's key: the text itself; of a composite one a JSON array of
        the values in their order, or an object. Raises: ValueError saying what it is not.
        """
        if not self.is_composite:
            return {self.columns[0]: message}
        try:
            found = json.loads(message)
        except RecursionError as error:
            raise ValueError(str(error)) from error
        if isinstance(found, list) and len(found) == len(self.columns):
            return dict(zip(self.columns, found, strict=True))
        if isinstance(found, dict) and found.keys() >= set(self.columns):
            return {column: found[column] for column in self.columns}
        raise ValueError(f"the key is neither a JSON array of {self} nor an object with them")

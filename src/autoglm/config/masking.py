"""What nobody may read: secrets, and the passwords and tokens that stand in addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MASK = "***"
# `scheme://user:password@host`. Up to the last `@`: a password may hold a slash or an `@` itself.
_USER_INFO = re.compile(r"([a-zA-Z][\w+.-]*://[^\s:/@?#]*):\S*@")
_TOKEN = re.compile(r"(https?://)[^\s:/@?#]+@")
_SECRET_WORD = r"(?:passw(?:or)?d|pwd|secret|token|api[-_]?key|access[-_]?key|credential|signature)"
_PARAMETER = re.compile(rf"((?:^|[?&;,\s])[\w.-]*{_SECRET_WORD}[\w.-]*=)[^&;,\s#]+", re.IGNORECASE)
_SECRET_NAME = re.compile(_SECRET_WORD, re.IGNORECASE)
# A shorter secret is no secret, and to blank it out would make every message unreadable.
_SHORTEST = 3


def masked(text: str) -> str:
    """`text` without what an address in it keeps secret: the user may be shown, no password."""
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{MASK}", text)
    if "://" not in text or "@" not in text:
        return text
    return _TOKEN.sub(rf"\1{MASK}@", _USER_INFO.sub(rf"\1:{MASK}@", text))


def hidden(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`, and without what addresses in it keep secret."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK).replace(repr(secret)[1:-1], MASK)
    return masked(text)


def sounds_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, as far as names tell."""
    return _SECRET_NAME.search(name) is not None


def texts_of(value: Any) -> Iterable[str]:
    """Every text in a value, as a message might repeat it."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts_of(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


class SecretText(str):
    """A text whose `repr` tells nothing, so that it does not slip into a log or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"


class AddressText(str):
    """An address whose `repr` leaves out its password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(str(self)))

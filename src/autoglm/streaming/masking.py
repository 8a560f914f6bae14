"""Personal data in a text, replaced by what it was: `ann@example.org` becomes `[EMAIL]`.

By form, not by meaning: names and addresses of people are not found. What is masked here never
reaches the feature table, a model or a prediction log; the source is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from autoglm.contracts.change_event import ChangeEvent
from autoglm.plugins.kinds import Processed
from autoglm.streaming.batches import with_text
from autoglm.streaming.config import DataConfig

_MIN_PHONE_DIGITS, _MAX_PHONE_DIGITS = 8, 15
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])")
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_PHONE = re.compile(r"(?<![\w.])(?:\+|00|\(?0)\d(?:[ ()/.-]{0,2}\d){6,14}(?!\w)")


class MaskPersonalData:
    """`columns` (default: the text) have their `kinds` masked: email, iban, card, ip, phone."""

    def __init__(
        self,
        data: DataConfig,
        *,
        columns: Sequence[str] = (),
        kinds: Sequence[str] = ("email", "iban", "card", "ip", "phone"),
    ) -> None:
        unknown = [kind for kind in kinds if kind not in _RULES]
        if unknown:
            raise ValueError(f"kinds: {unknown[0]!r} is none of {', '.join(_RULES)}")
        self._columns = tuple(columns) or (data.input_column,)
        # In the order of the rules: digits of an IBAN are no card, those of a card no phone.
        self._rules = [rule for kind, rule in _RULES.items() if kind in kinds]

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        rows = batch
        for column in self._columns:
            rows = with_text(rows, column, self._masked)
        return Processed(rows=rows, dead=[])

    def _masked(self, text: str) -> str:
        for pattern, mask, is_one in self._rules:
            text = pattern.sub(
                lambda m, mask=mask, is_one=is_one: mask if is_one(m[0]) else m[0],  # type: ignore[misc]
                text,
            )
        return text


def _is_iban(text: str) -> bool:
    """ISO 13616: the number, letters as 10 … 35 and its head moved behind, leaves 1 modulo 97."""
    bare = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Luhn's check digit."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_ip(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


def _is_phone(text: str) -> bool:
    count = sum(c.isdigit() for c in text)
    return _MIN_PHONE_DIGITS <= count <= _MAX_PHONE_DIGITS


_RULES: dict[str, tuple[re.Pattern[str], str, Callable[[str], bool]]] = {
    "email": (_EMAIL, "[EMAIL]", lambda _text: True),
    "iban": (_IBAN, "[IBAN]", _is_iban),
    "card": (_CARD, "[CARD]", _is_card),
    "ip": (_IP, "[IP]", _is_ip),
    "phone": (_PHONE, "[PHONE]", _is_phone),
}

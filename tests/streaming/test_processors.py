"""What processors refuse has a name, what they change is only what they say, and all are pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from autoglm.clock import SteeredClock
from autoglm.contracts.change_event import ChangeEvent
from autoglm.contracts.event_columns import EventColumns, columns_of, placed
from autoglm.errors import DataError, PluginError
from autoglm.plugins.kinds import Processed
from autoglm.streaming.config import DataConfig, SourceConfig
from autoglm.streaming.masking import MaskPersonalData
from autoglm.streaming.near_duplicates import NearDuplicates
from autoglm.streaming.processor import ProcessorChain, RowProcessor
from autoglm.streaming.processors import Clean, LabelMap, Language, Length, Schema
from autoglm.testing.broker_suite import change

DATA = DataConfig(source=SourceConfig(url="u", table="t", key="id"), text="text", label="label")


def rows(*texts: Any, label: Any = "a") -> list[ChangeEvent]:
    return [
        change(f"k{i}", i, {"id": f"k{i}", "text": text, "label": label})
        for i, text in enumerate(texts)
    ]


def as_columns(events: Sequence[ChangeEvent]) -> EventColumns:
    table = columns_of(events)
    assert table is not None
    offsets = range(len(events))
    whole = placed(table, partition=0, offsets=offsets, source="suite/rows", traceparent="")
    return EventColumns(whole, project="suite")


def both(processor: Any, events: list[ChangeEvent]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and codes of the dead: the same from single events and from columns, and twice."""
    found = []
    for batch in (events, as_columns(events), as_columns(events)):
        done = processor.process(batch)
        dead = [(letter.key, letter.code, letter.cause, letter.raw) for letter in done.dead]
        found.append(([dict(e.row) for e in done.rows], dead))
    assert found[0] == found[1] == found[2]
    return found[0][0], [code for _, code, _, _ in found[0][1]]


def texts(found: list[dict[str, Any]]) -> list[Any]:
    return [row["text"] for row in found]


def test_cleaning_leaves_what_people_read() -> None:
    found, dead = both(
        Clean(DATA, unescape=True, lower=True),
        rows("  Fish &amp;  Chips\u200b\x07 ", "Cafe\u0301", "a\n \n\n b", "\u200b", None),
    )
    assert texts(found) == ["fish & chips", "café", "a\n\n b", None]
    assert dead == ["data.empty_text"]


def test_a_row_that_is_not_as_promised_is_refused() -> None:
    schema = Schema(
        required=["label"],
        types={"text": "text"},
        allowed={"label": ["a", "b"]},
        pattern={"id": r"k\d"},
        closed=True,
    )
    found, dead = both(schema, rows("fine"))
    assert (texts(found), dead) == (["fine"], [])
    for wrong in (rows(7), rows("x", label="c"), rows("x", label=None), [change("z", 1)]):
        assert both(schema, wrong)[1] == ["data.schema"]
    more = [change("k1", 1, {"id": "k1", "text": "x", "label": "a", "extra": 1})]
    assert both(schema, more)[1] == ["data.schema"]
    assert both(Schema(types={"n": "integer"}), [change("k", 1, {"n": True})])[1] == ["data.schema"]


def test_texts_too_short_or_too_long_are_refused() -> None:
    found, dead = both(Length(DATA, min=2, max=3, unit="words"), rows("one", "a b", "a b c d"))
    assert (texts(found), dead) == (["a b"], ["data.length"] * 2)
    assert both(Length(DATA, max=3), rows("abcd", None))[1] == ["data.length"]


@pytest.mark.parametrize(
    ("other", "labels", "dead"),
    [
        ("keep", ["junk", "junk", "odd", None], []),
        ("wait", ["junk", "junk", None, None], []),
        ("dead", ["junk", "junk", None], ["data.unknown_label"]),
    ],
)
def test_labels_get_their_new_names(other: str, labels: list[Any], dead: list[str]) -> None:
    events = [
        change(f"k{i}", i, {"id": f"k{i}", "text": "t", "label": label})
        for i, label in enumerate(["spam", "junk", "odd", None])
    ]
    found, codes = both(LabelMap(DATA, map={"spam": "junk"}, other=other), events)
    assert ([row["label"] for row in found], codes) == (labels, dead)


def test_texts_in_another_script_are_refused() -> None:
    found, dead = both(
        Language(DATA, scripts=["latin"]),
        rows("Guten Tag", "Добрый день", "混合 mixed text", "123 …", "这是中文"),
    )
    assert texts(found) == ["Guten Tag", "混合 mixed text", "123 …"]
    assert dead == ["data.language"] * 2
    assert texts(both(Language(DATA, scripts=["han"]), rows("这是中文", "no"))[0]) == ["这是中文"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.b+c@mail.example.org.", "write to [EMAIL]."),
        ("pay DE89 3704 0044 0532 0130 00 now", "pay [IBAN] now"),
        ("card 4111 1111 1111 1111, ok", "card [CARD], ok"),
        ("card 4111 1111 1111 1112, ok", "card 4111 1111 1111 1112, ok"),
        ("call +49 (30) 123-456 78 today", "call [PHONE] today"),
        ("host 192.168.1.20 and 300.1.1.1", "host [IP] and 300.1.1.1"),
        ("version 1.2.3, 2024-01-02, 10 000 EUR", "version 1.2.3, 2024-01-02, 10 000 EUR"),
    ],
)
def test_personal_data_is_masked_by_its_form(text: str, masked: str) -> None:
    assert texts(both(MaskPersonalData(DATA), rows(text))[0]) == [masked]


def test_of_rows_that_say_nearly_the_same_the_first_stays() -> None:
    long = "the quick brown fox jumps over the lazy dog near the old river bank every single day"
    found, dead = both(
        NearDuplicates(DATA),
        rows(long, f"{long}!", long.upper(), f"{long} again", "something else entirely", "x", "x"),
    )
    assert texts(found) == [long, "something else entirely", "x"]
    assert dead == ["data.near_duplicate"] * 4
    again = [change("k", 1, {"text": long}), change("k", 2, {"text": long})]
    assert both(NearDuplicates(DATA), again)[1] == [], "versions of one row are no twins"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Length(DATA, min=3, max=2),
        lambda: Length(DATA, unit="bytes"),
        lambda: LabelMap(DATA, map={}, other="drop"),
        lambda: Language(DATA, scripts=[]),
        lambda: MaskPersonalData(DATA, kinds=["name"]),
        lambda: Schema(types={"a": "date"}),
        lambda: Schema(pattern={"a": "("}),
        lambda: NearDuplicates(DATA, threshold=0.1),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


class Fragile:
    """Raises at texts that say so, the first `times` calls of all."""

    def __init__(self, *, always: str = "", times: int = 0) -> None:
        self.always, self.times, self.calls = always, times, 0

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        self.calls += 1
        if self.calls <= self.times:
            raise RuntimeError("a hiccup")
        if self.always and any(e.row["text"] == self.always for e in batch):
            raise KeyError(self.always)
        return Processed(rows=batch, dead=[])


def test_a_processor_that_fails_for_a_moment_is_called_again_and_nothing_is_lost() -> None:
    clock, fragile = SteeredClock(), Fragile(times=2)
    chain = ProcessorChain([fragile], attempts=3, clock=clock)
    assert len(chain.process(rows("a", "b")).rows) == 2
    assert clock.monotonic() == pytest.approx(0.1 + 0.2)


@pytest.mark.parametrize("form", [list, as_columns])
def test_only_the_event_that_a_processor_cannot_take_becomes_a_dead_letter(form: Any) -> None:
    chain = ProcessorChain([Fragile(always="poison")], attempts=2, clock=SteeredClock())
    done = chain.process(form(rows("a", "b", "poison", "c", "d")))
    assert [e.row["text"] for e in done.rows] == ["a", "b", "c", "d"]
    [letter] = done.dead
    assert (letter.key, letter.code) == ("k2", "plugin.failed")
    assert "Fragile: KeyError: 'poison'" in letter.cause
    assert '"text": "poison"' in letter.raw


def test_an_error_of_ours_that_no_other_try_can_mend_stops_the_chain() -> None:
    class Refuses:
        def process(self, batch: Sequence[ChangeEvent]) -> Processed:
            raise DataError("no column", code="data.no_column")

    with pytest.raises(DataError):
        ProcessorChain([Refuses()], clock=SteeredClock()).process(rows("a"))


@pytest.mark.parametrize("text", ["", " ", "\x1c\x1f", "\u3000\u2003", "\x85\xa0", "\v\f"])
def test_blank_is_what_python_strips_for_columns_too(text: str) -> None:
    first = RowProcessor(text="text", label="label", max_text_bytes=100)
    found, dead = both(first, rows("fine", text, "\u200b", "x" * 101))
    assert (texts(found), dead) == (["fine", "\u200b"], ["data.empty_text", "data.text_too_long"])


class First:
    """Of a batch the first `count` rows, each `times`."""

    def __init__(self, count: int, times: int = 1) -> None:
        self.count, self.times = count, times

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        return Processed(rows=list(batch)[: self.count] * self.times, dead=[])


class SaysSo(First):
    changes_number = True


@pytest.mark.parametrize(("count", "times", "num_rows"), [(1, 1, 1), (3, 2, 6), (0, 1, 0)])
def test_rows_that_a_processor_loses_or_doubles_stop_it_by_name_unless_it_says_so(
    count: int, times: int, num_rows: int
) -> None:
    with pytest.raises(PluginError, match=f"First was given 3 events and returned {num_rows}"):
        ProcessorChain([First(count, times)]).process(rows("a", "b", "c"))
    done = ProcessorChain([SaysSo(count, times)]).process(rows("a", "b", "c"))
    assert (len(done.rows), len(done.dead)) == (num_rows, 0)

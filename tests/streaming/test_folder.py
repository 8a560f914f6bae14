"""A watched folder: new, changed and removed files; what is no row is a dead letter, not a stop."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.contracts.change_event import ChangeEvent
from autoglm.errors import SourceError
from autoglm.streaming.broker import SqliteBroker
from autoglm.streaming.collector import collect
from autoglm.streaming.collectors.folder import FolderSource
from autoglm.streaming.config import SourceConfig
from autoglm.streaming.processor import ProcessorChain
from servers import until


class Watched:
    """The folder, and what a table behind its source would hold."""

    def __init__(self, base: Path, *, batch_rows: int = 100) -> None:
        self.folder, self.position = base / "in", ""
        self.folder.mkdir(exist_ok=True)
        config = SourceConfig(kind="folder", path="in", key="id")
        self.open = lambda: FolderSource(config, project="p", base=base, batch_rows=batch_rows)
        self.table: dict[str, Any] = {}
        self.events: list[ChangeEvent] = []

    def put(self, name: str, content: bytes | str) -> None:
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(file, ns=(0, len(self.events) * 1000 + file.stat().st_mtime_ns % 997 + 1))

    def look(self, *, stop_after: int | None = None) -> list[ChangeEvent]:
        new: list[ChangeEvent] = []
        for number, batch in enumerate(self.open().read(self.position), start=1):
            new += batch.events
            self.position = batch.position
            if number == stop_after:
                break
        for event in new:
            if event.op == "upsert":
                self.table[event.key] = event.row
            elif event.op == "delete":
                del self.table[event.key]
        self.events += new
        return new


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def ops(events: list[ChangeEvent]) -> list[tuple[str, str]]:
    return [(event.op, event.key) for event in events]


def test_new_changed_moved_and_removed_files_become_changes_of_rows(watched: Watched) -> None:
    watched.put("a.jsonl", lines({"id": 1, "text": "x"}, {"id": 2, "text": "y"}))
    watched.put("b.csv", "id,text\n3,z\n")
    assert ops(watched.look()) == [("upsert", "1"), ("upsert", "2"), ("upsert", "3")]
    assert watched.look() == []
    watched.put("a.jsonl", lines({"id": 2, "text": "new"}, {"id": 4, "text": "w"}))
    assert ops(watched.look()) == [("upsert", "2"), ("upsert", "4"), ("delete", "1")]
    (watched.folder / "b.csv").rename(watched.folder / "c.csv")
    assert watched.look() == [], "the same content under another name is no change"
    (watched.folder / "c.csv").unlink()
    assert ops(watched.look()) == [("delete", "3")]
    versions = [event.version for event in watched.events]
    assert versions == sorted(set(versions))


def test_a_touched_file_is_no_change_and_an_unchanged_time_hides_none_of_another_size(
    watched: Watched,
) -> None:
    watched.put("a.jsonl", lines({"id": 1, "text": "x"}))
    watched.look()
    os.utime(watched.folder / "a.jsonl")
    assert watched.look() == []
    moment = (watched.folder / "a.jsonl").stat().st_mtime_ns
    (watched.folder / "a.jsonl").write_text(lines({"id": 1, "text": "longer"}))
    os.utime(watched.folder / "a.jsonl", ns=(moment, moment))
    assert ops(watched.look()) == [("upsert", "1")]


def test_of_two_files_with_one_key_the_last_by_name_counts_until_it_is_removed(
    watched: Watched,
) -> None:
    watched.put("1.jsonl", lines({"id": 1, "text": "old"}, {"id": 1, "text": "later line"}))
    watched.put("2.jsonl", lines({"id": 1, "text": "later file"}))
    assert [event.row["text"] for event in watched.look()] == ["later file"]
    watched.put("1.jsonl", lines({"id": 1, "text": "changed below"}))
    assert watched.look() == []
    (watched.folder / "2.jsonl").unlink()
    assert [event.row["text"] for event in watched.look()] == ["changed below"]


BAD = [
    ("a.jsonl", b'{"id": 1}\n{"id": 2, "te\n{"id": 3}\n', ["source.bad_json"]),
    ("a.jsonl", b'{"id": 1}\n[2]\n{"id": 3}\n', ["source.bad_json"]),
    ("a.jsonl", b'{"id": 1}\n{"id": null}\n{"text": "x"}\n{"id": 3}\n', ["source.null_key"] * 2),
    ("a.jsonl", b'{"id": 1}\n{"id": "\xff"}\n{"id": 3}\n', ["source.not_utf8"]),
    ("a.csv", b"id,text\n1,a\n2,b,c\n3,d\n", ["source.bad_csv"]),
    ("a.csv", b'id,text\n1,a\n2,"b"c\n3,d\n', ["source.bad_csv"]),
    ("a.csv", b'id,text\n1,a\n3,b\n4,"never ends\n5,c\n', ["source.bad_csv"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "codes"), BAD)
def test_a_bad_row_is_a_dead_letter_and_its_neighbours_arrive(
    name: str, content: bytes, codes: list[str], watched: Watched
) -> None:
    watched.put(name, content)
    dead = [event for event in watched.look() if event.op == "dead"]
    assert [event.row["code"] for event in dead] == codes
    assert sorted(watched.table) == ["1", "3"]
    assert all(event.key.startswith(f"{name}:") for event in dead)
    letters = ProcessorChain([]).process(dead).dead
    assert [letter.code for letter in letters] == codes
    assert all(letter.raw and letter.cause for letter in letters)
    watched.put(name, content + (b'{"id": 9}\n' if name.endswith("l") else b"9,z\n"))
    assert [e for e in watched.look() if e.op == "dead" and e.row["code"] != "source.bad_csv"] == []


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.parquet", b"PAR1 no", "source.unreadable"),
        ("a.jsonl.gz", b"no gzip", "source.unreadable"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 9000, mtime=0)[:60], "source.unreadable"),
        ("a.json", b'[{"id": 1},', "source.bad_json"),
        ("a.csv", b"id,id\n1,2\n", "source.bad_csv"),
        ("a.xlsx", b"PK", "source.unknown_format"),
        ("README", b"hello", "source.unknown_format"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_dead_letter_and_takes_no_row_away(
    name: str, content: bytes, code: str, watched: Watched
) -> None:
    good = {
        "a.json": json.dumps([{"id": 7}]).encode(),
        "a.jsonl.gz": gzip.compress(b'{"id": 7}\n'),
        "a.csv": b"id\n7\n",
    }.get(name)
    if good is not None:
        watched.put(name, good)
        watched.look()
    watched.put("z.jsonl", lines({"id": 8}))
    watched.put(name, content)
    dead = [event for event in watched.look() if event.op == "dead"]
    assert [(event.row["code"], event.key) for event in dead] == [(code, name)]
    assert {"8"} | ({"7"} if good else set()) <= set(watched.table)
    assert watched.look() == []


GOOD = "id,text\n" + "".join(f"{n},text {n}\n" for n in range(1, 10))
UNREADABLE = [
    (GOOD.replace("text 4", '"text 4'), "a.csv:10", "source.bad_csv"),
    (GOOD.replace("text 4", '"text 4').replace("text 7", 'text "7"'), "a.csv:8", "source.bad_csv"),
    (GOOD.replace("id,", "ident,"), "a.csv", "source.no_column"),
    (GOOD.replace(",", ";"), "a.csv", "source.no_column"),
    (GOOD.replace(",", ";").replace("text", "a, b"), "a.csv", "source.no_column"),
    ("id,text\n1,2,3\n", "a.csv:2", "source.bad_csv"),
]


@pytest.mark.parametrize(("content", "where", "code"), UNREADABLE)
def test_rows_that_a_stray_quote_or_another_header_hides_are_not_taken_for_removed(
    content: str, where: str, code: str, watched: Watched
) -> None:
    watched.put("a.csv", GOOD)
    watched.look()
    watched.put("a.csv", content)
    assert [(e.op, e.key, e.row["code"]) for e in watched.look()] == [("dead", where, code)]
    watched.put("a.csv", GOOD.replace("9,text 9\n", ""))
    assert ops(watched.look()) == [("delete", "9")], "mended, it says again what is gone"


def test_rows_behind_a_quote_that_is_closed_again_arrive(watched: Watched) -> None:
    watched.put("a.csv", GOOD)
    watched.look()
    watched.put(
        "a.csv", GOOD.replace("text 4", '"text 4').replace("text 7", '"7').replace("9", "x")
    )
    assert ops(watched.look()) == [("upsert", "x"), ("dead", "a.csv:8")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_whose_rows_all_lost_the_key_column_is_one_dead_letter(
    name: str, watched: Watched
) -> None:
    def put(**columns: list[Any]) -> None:
        if name == "a.parquet":
            pq.write_table(pa.table(columns), watched.folder / name)
        else:
            rows = zip(*columns.values(), strict=True)
            watched.put(name, lines(*(dict(zip(columns, row, strict=True)) for row in rows)))

    put(id=["a", "b"], text=["x", "y"])
    assert ops(watched.look()) == [("upsert", "a"), ("upsert", "b")]
    put(identity=["a", "b"], text=["x", "y"])
    (dead,) = watched.look()
    assert (dead.op, dead.key, dead.row["code"]) == ("dead", name, "source.no_column")
    assert "identity" in dead.row["cause"]


def test_a_pipe_and_a_link_to_nowhere_are_dead_letters_and_hold_nobody_up(
    watched: Watched, tmp_path: Path
) -> None:
    target = tmp_path / "target.csv"
    target.write_text("id\n2\n")
    (watched.folder / "link.csv").symlink_to(target)
    (watched.folder / "loop.csv").symlink_to("loop.csv")
    watched.put("a.csv", "id\n1\n")
    os.mkfifo(watched.folder / "pipe.csv")
    assert ops(watched.look()) == [
        ("upsert", "1"), ("upsert", "2"), ("dead", "loop.csv"), ("dead", "pipe.csv"),
    ]  # fmt: skip
    assert watched.look() == []
    target.unlink()
    assert ops(watched.look()) == [("dead", "link.csv")]
    assert watched.look() == []
    target.write_text("id\n2\n3\n")
    assert ops(watched.look()) == [("upsert", "3")]
    for name in ("pipe.csv", "loop.csv"):
        (watched.folder / name).unlink()
    assert watched.look() == []


def test_an_empty_key_is_no_key(watched: Watched) -> None:
    watched.put("a.jsonl", lines({"id": "", "text": "x"}, {"id": "1", "text": "y"}))
    assert ops(watched.look()) == [("upsert", "1"), ("dead", "a.jsonl:1")]


def test_utf_16_lists_parquet_and_gzip_are_read(watched: Watched) -> None:
    watched.put("a.jsonl", '{"id": 1, "text": "ü"}\n'.encode("utf-16"))
    watched.put("b.json", json.dumps([{"id": 2, "text": "x"}]))
    pq.write_table(pa.table({"id": [3], "text": ["y"]}), watched.folder / "c.parquet")
    watched.put("d.tsv.gz", gzip.compress(b"\xef\xbb\xbfid\ttext\n4\tz\n"))
    watched.put(".hidden.jsonl", "no")
    watched.put("e.jsonl.part", "no")
    assert ops(watched.look()) == [("upsert", str(number)) for number in (1, 2, 3, 4)]
    assert watched.table["1"]["text"] == "ü"


def test_a_huge_value_passes_as_it_is(watched: Watched) -> None:
    watched.put("a.jsonl", lines({"id": 1, "text": "x" * 20_000_000}))
    assert len(watched.look()[0].row["text"]) == 20_000_000


def test_a_line_that_is_still_being_written_is_not_taken_for_a_bad_one(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.put("a.jsonl", '{"id": 1}\n{"id": 2, "te')
    file = watched.folder / "a.jsonl"

    def grow(_seconds: float) -> None:
        if file.stat().st_size < 30:
            with file.open("a") as stream:
                stream.write('xt": "whole"}\n')

    monkeypatch.setattr("autoglm.streaming.collectors.folder.time.sleep", grow)
    os.utime(file)
    assert "dead" not in {event.op for event in watched.look()}
    assert "dead" not in {event.op for event in watched.look()}
    assert watched.table["2"]["text"] == "whole"


def test_a_missing_or_emptied_folder_stops_and_deletes_nothing(
    watched: Watched, tmp_path: Path
) -> None:
    watched.put("a.jsonl", lines({"id": 1}))
    watched.look()
    (watched.folder / "a.jsonl").unlink()
    with pytest.raises(SourceError) as caught:
        watched.look()
    assert caught.value.code == "source.folder_emptied"
    watched.put("empty.csv", "")
    assert ops(watched.look()) == [("delete", "1")]
    watched.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError) as caught:
        watched.look()
    assert caught.value.code == "source.missing"


def test_a_folder_that_may_not_be_entered_deletes_nothing() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o755)
        watched = Watched(Path(place))
        inner = watched.folder / "inner"
        inner.mkdir()
        watched.put("inner/a.jsonl", lines({"id": 1}))
        watched.look()
        inner.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(SourceError) as caught:
                watched.look()
        finally:
            os.seteuid(user)
            inner.chmod(0o755)
    assert caught.value.code == "source.unreadable"


ROWS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3), max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["1.jsonl", "2.jsonl", "3.jsonl"]), ROWS), max_size=4),
    st.integers(1, 4),
    st.data(),
)
def test_whoever_dies_in_between_the_table_ends_as_the_files_are(
    tmp_path_factory: pytest.TempPathFactory,
    looks: list[dict[str, dict[str, int]]],
    batch_rows: int,
    data: st.DataObject,
) -> None:
    watched = Watched(tmp_path_factory.mktemp("folder"), batch_rows=batch_rows)
    watched.put("0.csv", "id\n")
    for number, files in enumerate(looks):
        for file in watched.folder.glob("*.jsonl"):
            file.unlink()
        for name, rows in files.items():
            watched.put(
                name, lines(*({"id": key, "value": v, "n": number % 2} for key, v in rows.items()))
            )
        watched.look(stop_after=data.draw(st.sampled_from([1, 2, None])))
    watched.look()
    expected: dict[str, Any] = {}
    for _name, rows in sorted((looks[-1] if looks else {}).items()):
        expected |= rows
    assert {key: row["value"] for key, row in watched.table.items()} == expected


def test_following_sees_a_new_file_and_ends_when_cancelled(tmp_path: Path) -> None:
    watched, cancel = Watched(tmp_path), threading.Event()
    watched.put("a.jsonl", lines({"id": 1}))
    broker = SqliteBroker(tmp_path / "b.db", partitions=1)
    thread = threading.Thread(
        target=collect, args=(watched.open(), broker),
        kwargs={"topic": "t", "cancel": cancel, "follow": True},
    )  # fmt: skip
    thread.start()
    try:
        until(lambda: broker.end_offset("t", 0) == 1)
        watched.put("b.jsonl", lines({"id": 2}))
        until(lambda: broker.end_offset("t", 0) == 2)
    finally:
        cancel.set()
        thread.join(60)
    assert not thread.is_alive()
    broker.close()


def test_bad_rows_reach_the_dead_letters_of_the_table_and_good_ones_its_rows(
    tmp_path: Path,
) -> None:
    from autoglm.loop.change_to_dataset import collect_changes
    from autoglm.project import Project

    (tmp_path / "autoglm.yaml").write_text(
        "project: p\nmodel: {backbone: conv}\n"
        "data: {source: {kind: folder, path: in, key: id}, text: text, label: label}\n"
    )
    watched = Watched(tmp_path)
    row = {"id": 1, "text": "x", "label": "a"}
    watched.put("a.jsonl", lines(row) + "{broken\n" + lines({**row, "id": 2}, {"text": "no id"}))
    project, told = Project(tmp_path), []
    for _attempt in range(2):
        collect_changes(project, threading.Event(), told.append)
    assert project.table().read()["_key"].to_pylist() == ["1", "2"]
    dead = project.table().dead().to_pylist()
    assert {(letter["_key"], letter["_code"]) for letter in dead} == {
        ("a.jsonl:2", "source.bad_json"), ("a.jsonl:4", "source.null_key"),
    }  # fmt: skip
    assert [event["promise"] for event in told if event["kind"] == "source"][0].startswith(
        "watches"
    )

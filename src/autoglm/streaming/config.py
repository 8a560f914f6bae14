from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Len

from autoglm.config.schema import Address, Key, Secret, Share, live
from autoglm.datasets.splits import moment_of

TABLES = ("sql", "postgres", "mysql")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    kind: Annotated[
        str,
        Key(
            "Kind of source, by name: sql (polls), postgres and mysql (listen), folder, kafka,"
            " push; docs/sources.md."
        ),
    ] = "sql"
    key: Annotated[
        str | tuple[str, ...],
        Key("Column that names a row for life; or several, as a list: then all together do."),
    ]
    url: Annotated[
        Address,
        Key(
            "sql: SQLAlchemy address, a relative SQLite path starts at the project. postgres,"
            " mysql: postgresql://user@host/db, mysql://user@host/db. kafka: host:port, …",
            kinds=(*TABLES, "kafka"),
        ),
    ] = ""
    table: Annotated[str, Key("The table whose rows are learnt from.", kinds=TABLES)] = ""
    path: Annotated[
        str, Key("folder: where the files are. push: the inbox.", kinds=("folder",))
    ] = ""
    topic: Annotated[str, Key("kafka: the topic that is read.", kinds=("kafka",))] = ""
    mode: Annotated[
        Literal["auto", "snapshot_cursor", "lag_window", "full_diff"],
        Key(
            "sql: how it polls. auto is lag_window with a cursor, full_diff without;"
            " snapshot_cursor needs PostgreSQL and what `autoglm source setup` prints."
        ),
    ] = "auto"
    cursor: Annotated[
        str, Key("Column that grows whenever a row changes. Empty: every poll compares all rows.")
    ] = ""
    lag_window: Annotated[
        timedelta, Key("With a time cursor: re-read this far back for late commits.")
    ] = timedelta(seconds=0)
    slot: Annotated[
        str, Key("postgres: name of the replication slot and the publication; empty: made of both"
                 " names, project and table.")
    ] = ""  # fmt: skip
    truncate: Annotated[
        Literal["stop", "keep"],
        Key("postgres, mysql: when the table is emptied, stop and say so, or keep its rows."),
    ] = "stop"
    options: Annotated[
        Mapping[str, str],
        Key("kafka: settings of the client (security.protocol, …). mysql: server_id."),
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [self.key] if isinstance(self.key, str) else list(self.key)
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError("key is a column, or a list of different ones")
        if self.mode in ("snapshot_cursor", "lag_window") and not self.cursor:
            raise ValueError(f"mode {self.mode} needs a cursor: the column that grows")
        if self.mode == "full_diff" and self.lag_window:
            raise ValueError("full_diff compares all rows, a lag_window has no meaning there")

    @property
    def polls_by(self) -> str:
        """The mode of a polling source, `auto` resolved."""
        if self.mode != "auto":
            return self.mode
        return "lag_window" if self.cursor else "full_diff"


MAX_HELD_OUT = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    validation: Annotated[Share, Gt(0), live("Share of rows that picks among trials.")] = 0.1
    test: Annotated[
        Share, Gt(0), live("Share of rows that only gates; also the replayed ones.")
    ] = 0.1
    column: Annotated[
        str,
        live(
            "Column that says of a row `train`, `validation` or `test`; where it says nothing, and"
            " without a column, the hash of the text does."
        ),
    ] = ""
    time: Annotated[
        str,
        live(
            "Column with a time: what is older than `validation_from` is learnt from, what is"
            " older than `test_from` validates, the rest tests. Equal texts go with the oldest."
        ),
    ] = ""
    validation_from: Annotated[str, live("ISO date or time; without a zone it is UTC.")] = ""
    test_from: Annotated[str, live("ISO date or time; without a zone it is UTC.")] = ""

    def __post_init__(self) -> None:
        if self.validation + self.test > MAX_HELD_OUT:
            raise ValueError("validation and test together leave less than a fifth to learn from")
        if self.time and self.column:
            raise ValueError("column and time say the same thing twice: take one")
        if not self.time:
            if self.validation_from or self.test_from:
                raise ValueError("validation_from and test_from need `time`, the column they split")
            return
        bounds = [moment_of(text) for text in (self.validation_from, self.test_from)]
        if bounds[0] is None or bounds[1] is None or bounds[0] >= bounds[1]:
            raise ValueError(
                "with time, validation_from and test_from are ISO dates and the first is earlier"
            )

    @property
    def by_time(self) -> dict[str, str]:
        """Column and bounds; empty without them."""
        if not self.time:
            return {}
        return {
            "column": self.time,
            "validation_from": self.validation_from,
            "test_from": self.test_from,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    source: Annotated[SourceConfig, Key("Where rows change.")]
    text: Annotated[str, Key("Column with the text.", unless=("tokens", "image"))] = ""
    label: Annotated[
        str,
        Key(
            "Column with the label, the labels, the number or the answer; a row without one waits.",
            unless=("tags",),
        ),
    ] = ""
    tokens: Annotated[
        str, Key("token-classification: column with the tokens, in place of text.")
    ] = ""
    tags: Annotated[str, Key("token-classification: column with a tag per token, for label.")] = ""
    image: Annotated[
        str, Key("image-classification: column with the image (a path, or base64), for text.")
    ] = ""
    label_separator: Annotated[
        str, Len(1), live("What stands between labels; a JSON list needs none.")
    ] = ","
    max_length: Annotated[
        int, Ge(8), live("Tokens kept of a text; of a prompt and its answer together.")
    ] = 128
    min_rows: Annotated[int, Ge(1), live("Rows a label needs to join the label set.")] = 2
    max_text_bytes: Annotated[int, Gt(0), Key("A longer text becomes a dead letter.")] = 1_048_576
    partitions: Annotated[int, Ge(1), Key("Partitions of the topic, fixed for its life.")] = 4
    poll_interval: Annotated[timedelta, live("Pause between two polls under `up`.")] = timedelta(
        seconds=5
    )
    batch_rows: Annotated[int, Ge(1), Key("Rows of one batch and of one table commit.")] = 10_000
    processors: Annotated[
        tuple[str | Mapping[str, Any], ...],
        Key(
            "Processors after the product's own checks, in order, by name; or"
            " {name: length, min: 3}."
        ),
    ] = ()
    split: Annotated[SplitConfig, live("Held-out rows: by hash of the text, or a column.")] = field(
        default_factory=SplitConfig
    )

    def __post_init__(self) -> None:
        for names in (("text", "tokens", "image"), ("label", "tags")):
            said = [name for name in names if getattr(self, name)]
            shown = ", ".join(f"data.{name}" for name in names)
            if not said:
                raise ValueError(f"one of {shown} is needed: which column is it")
            if len(said) > 1:
                raise ValueError(f"one of {shown} is enough, {' and '.join(said)} are said")

    @property
    def input_column(self) -> str:
        """What the model reads."""
        return self.text or self.tokens or self.image

    @property
    def answer_column(self) -> str:
        """What it is to answer."""
        return self.label or self.tags


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerConfig:
    kind: Annotated[str, Key("Kind of broker, by name: sqlite, kafka, …")] = "sqlite"
    bootstrap: Annotated[str, Key("kafka: addresses to begin with, `HOST:PORT,…`.")] = ""
    topic: Annotated[
        str, Key("Name of the topic. Empty: `changes`; of a shared broker autoglm.PROJECT.changes.")
    ] = ""
    username: Annotated[str, Key("kafka: user of SASL.")] = ""
    password: Annotated[Secret, Key("kafka: password of SASL.")] = ""
    options: Annotated[
        Mapping[str, Any], Key("kafka: more settings of librdkafka, by their own names.")
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamingConfig:
    broker: Annotated[BrokerConfig, Key("What lies between collectors and processors.")] = field(
        default_factory=BrokerConfig
    )
    workers: Annotated[int, Ge(1), Key("Processes that share the topic's partitions.")] = 1
    lease: Annotated[
        timedelta, Key("A worker that is silent for longer loses its partitions to the others.")
    ] = timedelta(seconds=10)
    max_backlog: Annotated[
        int, Ge(1), Key("Events in the broker, not in the table, at which collectors stop reading.")
    ] = 1_000_000
    attempts: Annotated[
        int, Ge(1), Key("Calls of a processor that raises, before its event is a dead letter.")
    ] = 3

    def __post_init__(self) -> None:
        if self.lease < timedelta(seconds=1):
            raise ValueError("lease is at least 1s: a worker beats three times within it")

"""`autoglm source` and `init --listen`, on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoglm.cli.commands import app
from servers import Postgres


def call(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def project(postgres: Postgres, tmp_path: Path, tiny_backbone: Path) -> Path:
    with postgres.connect() as connection:
        connection.execute("drop publication if exists autoglm_news_articles")
        connection.execute("drop table if exists articles")
        connection.execute("create table articles (id int primary key, body text, topic text)")
        connection.execute(
            "insert into articles select n, 'some words of row ' || n, (array['a', 'b'])[n % 2 + 1]"
            " from generate_series(1, 20) n"
        )
    said = call(
        "init", str(tmp_path / "news"), "--source", postgres.url, "--table", "articles", "--listen",
        "--text", "body", "--label", "topic", "--backbone", str(tiny_backbone),
    )  # fmt: skip
    assert "autoglm source setup" in said
    assert "kind: postgres" in (tmp_path / "news" / "autoglm.yaml").read_text()
    return tmp_path / "news"


def test_from_setup_over_status_to_drop(project: Path, postgres: Postgres) -> None:
    folder = str(project)
    assert "source.no_publication" in call("source", "status", folder, code=1)
    with postgres.connect() as connection:
        connection.execute(json.loads(call("source", "setup", folder, "--json"))["sql"])
        found = json.loads(call("source", "status", folder, "--json"))
        assert found["state"] == "not made yet"
        connection.execute(
            "select pg_create_logical_replication_slot('autoglm_news_articles', 'pgoutput')"
        )
        assert "max_slot_wal_keep_size" in call("source", "status", folder)
        assert "--yes" in call("source", "drop", folder)
        assert "dropped" in call("source", "drop", folder, "--yes")
        assert "was not there" in call("source", "drop", folder, "--yes")


def test_what_keeps_nothing_at_a_server_says_so(project: Path) -> None:
    said = call("source", "drop", str(project), "--set", "data.source.kind=sql", code=1)
    assert "source.not_applicable" in said
    assert call("source", "setup", str(project), "--set", "data.source.kind=sql").startswith("--")


def test_nobody_can_listen_to_sqlite(tmp_path: Path) -> None:
    words = ("init", str(tmp_path / "n"), "--source", "sqlite:///a.db", "--table", "t", "--listen")
    assert "config.wrong_value" in call(*words, code=2)


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("kind: folder", "path"),
        ("kind: kafka, url: h", "topic"),
        ("kind: postgres, url: u", "table"),
    ],
)
def test_a_key_that_the_kind_needs_is_missing_by_name(
    said: str, missing: str, tmp_path: Path
) -> None:
    (tmp_path / "autoglm.yaml").write_text(
        f"project: p\nmodel: {{backbone: conv}}\ndata: {{source: {{{said}, key: id}}, text: t, label: l}}\n"
    )
    assert f"data.source.{missing} is missing" in call("source", "status", str(tmp_path), code=2)

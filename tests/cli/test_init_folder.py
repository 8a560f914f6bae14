"""`init --from` a folder: a project that watches it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoglm.cli.commands import app


def call(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "a.jsonl").write_text("no JSON\n")  # passed by where columns are guessed
    rows = [{"no": n, "body": f"some words {n}", "topic": "ab"[n % 2]} for n in range(20)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_of_files_becomes_a_project_that_watches_it(
    tmp_path: Path, incoming: Path, tiny_backbone: Path
) -> None:
    folder = tmp_path / "news"
    call(
        "init", str(folder), "--from", str(incoming), "--key", "no",
        "--backbone", str(tiny_backbone),
    )  # fmt: skip
    said = (folder / "autoglm.yaml").read_text()
    assert "kind: folder" in said
    assert 'path: "../incoming"' in said
    assert json.loads(call("collect", str(folder), "--json"))["events"] == 21
    done = json.loads(call("process", str(folder), "--json"))
    assert (done["rows"], done["dead"]) == (20, 1)


def test_a_folder_whose_rows_have_no_name_or_that_is_empty_leaves_nothing(
    tmp_path: Path, incoming: Path, tiny_backbone: Path
) -> None:
    folder = tmp_path / "news"
    options = ["--from", str(incoming), "--backbone", str(tiny_backbone)]
    assert "data.no_key" in call("init", str(folder), *options, code=1)
    (incoming / "b.jsonl").unlink()
    assert "source.bad_json" in call("init", str(folder), *options, code=1)
    (incoming / "a.jsonl").unlink()
    assert "source.no_rows" in call("init", str(folder), *options, code=1)
    assert not folder.exists()

"""A project whose feature table lies at an S3-compatible store; only addresses differ."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoglm.datasets.table_store import connect_table
from autoglm.loop.app import GatewayAddress
from autoglm.processes.control import Control
from autoglm.project import Project
from conftest import FAST
from feature_tables import add, rows, table_at
from s3_server import KEYS, running


def test_a_trip_with_the_table_at_a_store_keeps_its_keys_out_of_all_that_is_written(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> None:
    pytest.importorskip("moto")
    folder, written = tmp_path / "project", []

    def autoglm(*arguments: str | Path, code: int = 0) -> Any:
        command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        written.append(done.stdout + done.stderr)
        return json.loads(done.stdout) if "--json" in arguments else written[-1]

    with running() as store:
        store.client().create_bucket(Bucket="bucket")
        autoglm("init", folder, "--from", rows_file, "--backbone", tiny_backbone)
        share_graphs(folder)
        address = "s3://bucket/news/table"
        section = {"storage": {"table": address, "options": store.options}}
        settings = folder / "autoglm.yaml"
        settings.write_text(settings.read_text() + json.dumps(section)[1:-1] + "\n")

        done = autoglm("run", folder, "--json", *FAST)
        assert done["status"] == "succeeded"
        assert (done["dataset_version"]["uri"], done["dataset_version"]["rows"]) == (address, 200)
        assert not (folder / ".autoglm/default/table").exists()
        assert any(name.endswith(".parquet") for name in store.names("news/table"))

        assert autoglm("data", "show", "-C", folder, "--json")["uri"] == address
        row = autoglm("explain", "--row", "1", "-C", folder, "--json")
        assert done["run_id"] in json.dumps(row)
        autoglm("explain", "stable", "-C", folder, "--json")
        erased = autoglm("data", "erase", "--key", "1", "-C", folder, "--json")
        assert erased["models"], "the one that learnt from it"
        swept = autoglm("gc", folder, "--json")
        assert swept["table_files"]
        assert autoglm("config", "show", "-C", folder, "--json")
        assert autoglm("config", "explain", "storage.options.secret_access_key", "-C", folder)
    gone = autoglm("data", "show", "-C", folder, code=1)
    assert "storage.unreachable" in gone

    secrets = (KEYS["access_key_id"], KEYS["secret_access_key"])
    files = [path for path in (folder / ".autoglm").rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files] + [text.encode() for text in written]
    assert not [text[:80] for text in texts if any(key.encode() in text for key in secrets)]


def test_a_new_version_of_a_table_at_a_store_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    with running() as store:
        store.client().create_bucket(Bucket="bucket")
        address = "s3://bucket/noticed/table"
        section = {
            "project": "noticed",
            "model": {"backbone": "conv", "task": "image-classification"},
            "data": {
                "source": {"kind": "sql", "url": "sqlite:///n.db", "table": "t", "key": "id"},
                "text": "text",
                "label": "label",
            },
            "storage": {"table": address, "options": store.options},
            "trigger": {"data_changed": True, "debounce": "0s"},
        }
        (tmp_path / "autoglm.yaml").write_text(json.dumps(section))
        control = Control(
            Project(tmp_path), GatewayAddress(address="", admin_socket=tmp_path / "admin")
        )
        seen: queue.Queue[int] = queue.Queue()
        monkeypatch.setattr(control, "_on_data_changed", seen.put)
        monkeypatch.setattr(control, "_reconcile", lambda _now: None)  # there is no gateway
        watching = threading.Thread(target=control._watch_triggers)
        watching.start()
        try:
            connect_table(address, store.options)
            add(table_at(address), *rows(1))
            assert seen.get(timeout=60) == 1
        finally:
            control.stop()
            watching.join()

"""A secret is a secret wherever it went: in errors, addresses, layer names, a run's record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autoglm.config import provenance
from autoglm.config.centre import private_folder
from autoglm.config.masking import masked
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.run_spec import RunSpec
from autoglm.errors import ConfigError
from autoglm.loop.app import App
from autoglm.loop.dataset_to_run import dataset_to_run, trigger_event
from autoglm.plugins import registry
from autoglm.project import Project
from autoglm.settings import (
    from_snapshot,
    learning_digest,
    load_settings,
    run_settings,
    unfreeze,
)

HEAD = """\
project: news
model: {backbone: "package:x"}
"""
MINIMAL = (
    HEAD
    + """\
data: {source: {url: "sqlite:///a.db", table: t, key: id}, text: body, label: topic}
"""
)
SECRET = "HUNTER2"


def project(folder: Path, more: str = "", text: str = MINIMAL) -> Path:
    (folder / "autoglm.yaml").write_text(text + more)
    (folder / "pw").write_text(SECRET + "\n")
    return folder


def everything_shown(folder: Path) -> str:
    config = load_settings(folder)
    rows = provenance.show(config)
    return json.dumps([rows, [provenance.explain(config, row["key"]) for row in rows]])


def refused(folder: Path, more: str, text: str = MINIMAL) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(project(folder, more, text))
    return caught.value


@pytest.mark.parametrize(
    "more",
    [
        'training: {warmup: "${file:pw}"}\n',
        'search: {budget: "${file:pw}"}\n',
        'storage: {budget: "${file:pw}"}\n',
        'training: {lr: "${file:pw}"}\n',
        'training: {device: "${file:pw}"}\n',
        'release: {steps: ["${file:pw}"]}\n',
        'config: {centre: {password: "${file:pw}"}}\ntraining: {lr: "${config.centre.password}"}\n',
        f'config: {{centre: {{password: "{SECRET}${{"}}}}\n',
        f"config: {{centre: {{password: {{{SECRET}: 1}}}}}}\n",
    ],
)
def test_no_error_repeats_a_secret(tmp_path: Path, more: str) -> None:
    error = refused(tmp_path, more)
    assert SECRET not in str(error) + repr(error.__cause__) + repr(error.__context__)
    assert "autoglm.yaml:" in error.message, "the place is told, not the value"
    assert error.next_step


@pytest.mark.parametrize(
    "more",
    [
        'config: {centre: {password: "HUNTER2"}}\nsearch: {sampler: "${config.centre.password}"}\n',
        'search: {sampler: "x-${file:pw}"}\ntraining: {optimizer: "${search.sampler}"}\n',
        'search: {sampler: HUNTER2}\nconfig: {centre: {password: "${search.sampler}"}}\n',
        'search: {sampler: "${env:MY_TOKEN}"}\n',
        'search: {space: {lr: {choice: [{a: "${file:pw}"}]}}}\n',
    ],
)
def test_a_value_that_took_part_in_a_secret_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    project(tmp_path, more)
    assert SECRET in json.dumps(provenance.flat(load_settings(tmp_path).settings))
    assert SECRET not in everything_shown(tmp_path)


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("postgresql://u:HUN/TER2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:HUN@TER2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=HUNTER2", "postgresql://h/d?user=u&password=***"),
        ("https://HUNTER2@h/d", "https://***@h/d"),
        ("s3://b/k?X-Amz-Signature=HUNTER2&x=1", "s3://b/k?X-Amz-Signature=***&x=1"),
        ("host=h password=HUNTER2 user=u", "host=h password=*** user=u"),
        ("postgresql://me@host/d", "postgresql://me@host/d"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_addresses_are_shown_without_what_opens_them(
    tmp_path: Path, address: str, seen: str
) -> None:
    assert masked(address) == seen
    text = MINIMAL.replace("sqlite:///a.db", address)
    shown = everything_shown(project(tmp_path, text=text))
    assert seen in shown
    assert "TER2" not in shown
    assert "TER2" not in repr(load_settings(tmp_path).settings)


def test_the_repr_of_settings_tells_no_secret(tmp_path: Path) -> None:
    config = load_settings(project(tmp_path, "config: {centre: {password: HUNTER2}}\n"))
    assert config.settings.config.centre.password == SECRET
    assert SECRET not in repr(config.settings) + repr(config)


def test_a_centre_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    centre = "config: {centre: {kind: KIND, url: 'http://u:HUNTER2@127.0.0.1:1', required: REQ}}\n"
    for kind in ("etcd", "consul"):
        more = centre.replace("KIND", kind)
        assert SECRET not in str(refused(tmp_path, more.replace("REQ", "true")))
        project(tmp_path, more.replace("REQ", "false"))
        assert SECRET not in "".join(load_settings(tmp_path).layers)


def test_a_text_may_begin_with_a_brace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_CONFIG_CENTRE_PASSWORD", "{HUNTER2}")
    found = load_settings(project(tmp_path), assignments=["data.label={a"]).settings
    assert found.config.centre.password == "{HUNTER2}"
    assert found.data.label == "{a"


@dataclass(frozen=True, kw_only=True)
class Store:
    token: SecretStr = SecretStr("")
    spare: SecretStr | None = None
    tokens: tuple[SecretStr, ...] = ()
    url: str = ""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(registry._registered)
    registry.register("section", "store", Store)
    yield
    registry._registered.clear()
    registry._registered.update(before)


SECRETS = f"""\
store: {{token: {SECRET}, spare: {SECRET}, tokens: [{SECRET}], url: "http://u:{SECRET}@h"}}
config: {{centre: {{password: {SECRET}}}}}
training: {{epochs: "${{file:epochs}}"}}
"""


def admitted(folder: Path) -> tuple[App, RunSpec]:
    app = App(project=Project(folder))
    dataset = DatasetVersion(
        project="news", uri="x", version=1, rows=1, split_rows={}, labels=("a",), label_counts={},
        rare_labels={}, unlabelled_rows=0, dead_rows=0, text="body", label="topic", split={},
        schema_digest="s", content_digest="d", positions={}, traceparent="", linked_traces=(),
        created_at=app.clock.now(),
    )  # fmt: skip
    event = trigger_event(app, "manual", cause="c", reason="r")
    with app.project.own("test"):
        decision = dataset_to_run(event, dataset, app)
    return app, app.admission.spec(decision.run_id)


@pytest.mark.usefixtures("store")
def test_a_run_keeps_no_secret_and_has_it_when_it_works(tmp_path: Path) -> None:
    (tmp_path / "epochs").write_text("7")
    app, spec = admitted(project(tmp_path, SECRETS))
    state = app.project.state
    written = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert state.stat().st_mode & 0o077 == 0
    working = unfreeze(spec, app.project.config)
    made: Any = from_snapshot(working.config)
    own = app.project.settings
    assert made == replace(own, evaluate=replace(own.evaluate, metric="macro_f1")), (
        "auto is resolved"
    )
    assert made.store.token.get_secret_value() == SECRET
    assert made.training.epochs == 7
    assert from_json(RunSpec, to_json(spec)) == spec


def test_a_trial_is_explained_on_what_its_run_began_with(tmp_path: Path) -> None:
    more = 'training: {epochs: 1}\nsearch: {space: {a.b: {choice: ["$${x}", "5"]}}}\n'
    app, spec = admitted(project(tmp_path, more))
    project(tmp_path, "training: {epochs: 9}\n")
    now = Project(tmp_path).config
    config = run_settings(spec, now, trial={"training.lr": 0.5}, name="trial 0 of it")
    said = provenance.explain(config, "training.epochs")
    assert (said["value"], said["layer"]) == (1, f"run {spec.run_id}")
    assert provenance.explain(config, "training.lr")["layer"] == "trial 0 of it"
    assert config.layers == ("defaults", f"run {spec.run_id}", "trial 0 of it")
    assert config.settings.search.space == app.project.settings.search.space


@pytest.mark.usefixtures("store")
def test_a_new_password_teaches_no_new_model(tmp_path: Path) -> None:
    digests = []
    for secret in (SECRET, "another"):
        project(tmp_path, f"store: {{token: {secret}}}\nconfig: {{centre: {{password: {secret}}}}}")
        digests.append(learning_digest(load_settings(tmp_path).settings))
    assert digests[0] == digests[1]


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700

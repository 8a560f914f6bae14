"""`autoglm search run | show | apply` on real rows with a real, tiny backbone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoglm.config.provenance import flat
from autoglm.loop.run_to_candidate import most_trials
from autoglm.project import Project
from conftest import learnable_rows

FAST = [
    "--set", "search.trials=4", "--set", "training.threads=1", "--set", "search.sampler=random",
    "--set", "search.space={lr: {loguniform: [1.0e-4, 1.0e-2]}, epochs: {choice: [1, 3]}}",
    "--set", "search.scheduler=asha", "--set", "search.reduction_factor=2",
]  # fmt: skip


def autoglm(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "autoglm.cli", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path
) -> tuple[Path, dict[str, Any]]:
    """A project with one study, and what `search run --json` said of it."""
    folder = tmp_path_factory.mktemp("searched")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    project = folder / "news"
    autoglm("init", str(project), "--from", str(rows), "--backbone", str(tiny_backbone))
    return project, json.loads(autoglm("search", "run", str(project), "--json", *FAST))


def test_a_study_alone_prints_its_result_and_a_second_call_trains_nothing(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    project, found = searched
    assert (found["stopped_by"], len(found["trials"])) == ("trials", 4)
    assert found["best"]["value"] == max(trial["value"] for trial in found["trials"])
    assert json.loads(autoglm("search", "run", str(project), "--json", *FAST)) == found
    steps = {
        trial["params"]["training.epochs"]: trial["num_steps"]
        for trial in found["trials"]
        if trial["state"] == "complete"
    }
    assert steps[3] == 3 * steps.get(1, steps[3] / 3)
    assert any(len(trial["curve"]) > 1 for trial in found["trials"])
    # Resumed at its rung, a trial pays for no step a second time.
    assert all("stage_tree" not in trial["saved"] for trial in found["trials"])
    assert not (project / "autoglm.tuned.yaml").exists()
    assert json.loads(autoglm("runs", "list", "-C", str(project), "--json"))["runs"] == []


def test_of_a_small_space_no_more_trials_are_announced_than_it_has_points(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    settings = Project(searched[0], assignments=["search.trials=40"]).settings
    space = {"epochs": {"choice": [1, 3]}, "dropout": {"choice": [0.0, 0.1]}}
    small = replace(settings, search=replace(settings.search, space=space))
    assert most_trials(small, flat(small)) == 4
    assert most_trials(settings, flat(settings)) == 40


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_study_is_shown_as_text_as_json_and_as_a_page_that_loads_nothing(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    project, found = searched
    page = tmp_path / "study.html"
    text = autoglm("search", "show", str(project), "--html", str(page))
    assert f"trial {found['best']['number']}" in text
    assert "CPU-seconds" in text
    report = json.loads(autoglm("search", "show", str(project), "--json"))
    assert report["study"] == found["study"]
    assert report["best_so_far"][-1]["value"] == found["best"]["value"]
    assert {"training.epochs", "training.lr"} <= report["axes"].keys()
    parser = Page()
    parser.feed(page.read_text())
    assert parser.tags.count("svg") >= 3
    assert parser.loaded == []
    assert "url(" not in page.read_text()


def test_the_best_values_become_a_layer_that_says_so(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    project, found = searched
    best = found["best"]["params"]
    done = json.loads(autoglm("search", "apply", str(project), "--json"))
    tuned = project / "autoglm.tuned.yaml"
    try:
        assert {key: change["is"] for key, change in done["changes"].items()} == best
        assert yaml.safe_load(tuned.read_text())["training"]["epochs"] == best["training.epochs"]
        explained = json.loads(
            autoglm("config", "explain", "training.lr", "-C", str(project), "--json")
        )
        assert (explained["layer"], explained["value"]) == (
            "autoglm.tuned.yaml",
            best["training.lr"],
        )
        names = [line["layer"] for line in explained["layers"]]
        assert names.index("autoglm.yaml") < names.index("autoglm.tuned.yaml")
        assert names.index("autoglm.tuned.yaml") < names.index("environment")
        shown = json.loads(autoglm("config", "show", "-C", str(project), "--json"))
        assert "autoglm.tuned.yaml" in shown["layers"]
        first = tuned.read_text()
        again = ["search", "apply", str(project), "--json", "--set", "training.lr=0.5"]
        assert json.loads(autoglm(*again))["overruled"] == {"training.lr": "command line"}
        assert tuned.read_text() == first
        error = autoglm("config", "show", "-C", str(project), "--profile", "tuned", code=2)
        assert "autoglm.tuned.yaml" in error
    finally:
        tuned.unlink()
    explained = json.loads(
        autoglm("config", "explain", "training.lr", "-C", str(project), "--json")
    )
    assert explained["layer"] != "autoglm.tuned.yaml"


def test_what_a_trial_was_made_with_is_explained_of_a_study_too(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    project, found = searched
    last = found["trials"][-1]
    explain = ["config", "explain", "training.lr", "--trial", "-C", str(project), "--json"]
    for more in ([], ["--run", found["study"]]):
        said = json.loads(autoglm(*explain[:4], str(last["number"]), *explain[4:], *more))
        assert said["value"] == last["params"]["training.lr"]
        assert said["layer"] == f"trial {last['number']} of {found['study']}"
    error = autoglm(*explain[:4], "77", *explain[4:], code=1)
    assert f"study {found['study']} has no trial 77" in error


def test_a_page_that_has_no_place_is_told_as_what_it_is(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    project, _found = searched
    page = str(tmp_path / "nowhere" / "study.html")
    error = autoglm("search", "show", str(project), "--html", page, code=2)
    assert "storage.no_place" in error
    assert "Traceback" not in error


def test_what_trials_trained_stays_within_the_cache_and_goes_with_the_garbage(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    project = tmp_path / "news"
    shutil.copytree(searched[0], project)
    stages = project / ".autoglm" / "default" / "work" / "stages"

    def weights() -> set[str]:
        return {path.parent.name for path in stages.glob("*/weights.safetensors")}

    def states() -> list[Path]:
        return list(project.glob(".autoglm/**/prefix/*/*.safetensors"))

    assert len(weights()) > 1
    assert states()
    gone = json.loads(autoglm("gc", str(project), "--plan", "--json"))
    assert gone["stages"] == len(weights())
    other = ["--set", "training.weight_decay=0.1", "--set", "cache.bytes=1KiB"]
    found = json.loads(autoglm("search", "run", str(project), "--json", *FAST, *other))
    assert weights() == {found["best"]["chain_key"]}
    assert not states(), "nobody has in use what an earlier study kept"
    gone = json.loads(autoglm("gc", str(project), "--json"))
    assert (gone["stages"], weights()) == (1, set())
    assert gone["bytes"] > 0
    # What was found is told from the journal.
    assert json.loads(autoglm("search", "run", str(project), "--json", *FAST, *other)) == found


def test_a_study_that_is_not_there_is_said_with_those_that_are(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    project, found = searched
    error = autoglm("search", "show", str(project), "--study", "nosuch", code=2)
    assert found["study"] in error

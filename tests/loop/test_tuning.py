"""What a run was tuned by is told from the files, not from what somebody says."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from autoglm.loop import tuning


def wheel_like(folder: Path) -> Distribution:
    """An installed package of two files, with the record that an installer leaves."""
    package, info = folder / "autoglm", folder / "open_autoglm-1.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "a.py").write_text("a = 1\n")
    (package / "b.py").write_text("b = 1\n")
    lines = [
        f"autoglm/{p.name},sha256={tuning._as_recorded(p.read_bytes())},6"
        for p in package.iterdir()
    ]
    (info / "RECORD").write_text("\n".join([*lines, "open_autoglm-1.dist-info/RECORD,,"]) + "\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: open-autoglm\nVersion: 1\n")
    return PathDistribution(info)


def test_a_changed_an_added_and_a_missing_file_of_an_installed_package_are_told(
    tmp_path: Path,
) -> None:
    installed = wheel_like(tmp_path)
    package = tmp_path / "autoglm"
    assert tuning.changed_in(package, installed) == {}
    (package / "a.py").write_text("a = 2\n")
    (package / "c.py").write_text("c = 1\n")
    (package / "b.py").unlink()
    found = tuning.changed_in(package, installed)
    assert found == {
        "a.py": hashlib.sha256(b"a = 2\n").hexdigest(),
        "b.py": "",
        "c.py": hashlib.sha256(b"c = 1\n").hexdigest(),
    }


def test_of_an_editable_install_git_tells(tmp_path: Path) -> None:
    package = tmp_path / "src" / "autoglm"
    package.mkdir(parents=True)
    (package / "a.py").write_text("a = 1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    nothing = PathDistribution(tmp_path)
    assert tuning.changed_in(package, nothing) == {}
    (package / "a.py").write_text("a = 2\n")
    (package / "notes.txt").write_text("no code")
    assert tuning.changed_in(package, nothing) == {"a.py": hashlib.sha256(b"a = 2\n").hexdigest()}


def test_the_strongest_word_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "changed_files", dict)
    assert (tuning.tuning_of(0), tuning.tuning_of(1)) == ("default", "project")
    monkeypatch.setattr(tuning, "changed_files", lambda: {"a.py": "1"})
    assert tuning.tuning_of(1) == "source"

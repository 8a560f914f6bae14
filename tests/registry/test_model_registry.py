from __future__ import annotations

from pathlib import Path

import pytest

from autoglm.contracts.model_version import Lineage
from autoglm.errors import ConflictError, StorageError
from autoglm.registry.artifacts import verify
from autoglm.registry.model_registry import LocalModelRegistry
from autoglm.state.engine import open_state

LINEAGE = Lineage(
    run_id="r", trace_id="t", dataset_uri="u", dataset_version=1, dataset_digest="d", dataset_rows=9,
    parent="", parent_dataset_version=None, config_digest="c", tuning="default", params={}, metrics={},
)  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path) -> LocalModelRegistry:
    return LocalModelRegistry(open_state(tmp_path / "state.db"), tmp_path / "models", project="p")


def made(registry: LocalModelRegistry, folder: Path, content: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(content)
    return registry.add(
        folder, LINEAGE, labels=["a", "b"], opens_with="transformers", runtime="onnxruntime"
    ).digest


def test_the_same_bytes_are_the_same_version(registry: LocalModelRegistry, tmp_path: Path) -> None:
    first, again = made(registry, tmp_path / "x", "w"), made(registry, tmp_path / "y", "w")
    assert first == again
    assert [v.number for v in registry.versions()] == [1]


def test_an_alias_moves_only_from_where_it_is_expected(
    registry: LocalModelRegistry, tmp_path: Path
) -> None:
    first, second = made(registry, tmp_path / "x", "1"), made(registry, tmp_path / "x", "2")
    registry.move("stable", first, expect="")
    with pytest.raises(ConflictError):
        registry.move("stable", second, expect="")
    registry.move("stable", first, expect="anything")  # it is there already: no error
    with pytest.raises(ConflictError):
        registry.move_many({"previous": ("", first), "stable": (second, second + "x")})
    assert registry.aliases() == {"stable": first}, "all of them move or none does"


def test_a_changed_file_is_noticed(registry: LocalModelRegistry, tmp_path: Path) -> None:
    version = registry.find(made(registry, tmp_path / "x", "1"))
    verify(Path(version.folder))
    (Path(version.folder) / "model.safetensors").write_text("2")
    with pytest.raises(StorageError, match="sha256"):
        verify(Path(version.folder))


def test_pruning_keeps_what_an_alias_names(registry: LocalModelRegistry, tmp_path: Path) -> None:
    digests = [made(registry, tmp_path / "x", str(i)) for i in range(4)]
    registry.move("stable", digests[0], expect="")
    assert set(registry.prune(1)) == {digests[1], digests[2]}
    assert Path(registry.find("stable").folder).exists()


def test_a_version_is_found_by_number_digest_or_alias(
    registry: LocalModelRegistry, tmp_path: Path
) -> None:
    digest = made(registry, tmp_path / "x", "1")
    assert {registry.find(r).digest for r in ("1", "v1", digest, digest[:8])} == {digest}
    with pytest.raises(StorageError, match="no model versions answer"):
        registry.find("stable")


def test_a_moved_project_finds_its_models(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    engine = open_state(tmp_path / "old" / "state.db")
    digest = made(
        LocalModelRegistry(engine, tmp_path / "old" / "models", project="p"), tmp_path / "x", "1"
    )
    engine.dispose()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = LocalModelRegistry(
        open_state(tmp_path / "new" / "state.db"), tmp_path / "new" / "models", project="p"
    )
    verify(Path(moved.find(digest).folder))

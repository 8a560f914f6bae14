"""Versions are folders `models/<digest>`; aliases live in state.db and move by compare-and-set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, text

from autoglm.contracts.model_version import Lineage, ModelVersion
from autoglm.contracts.record import from_json, to_json
from autoglm.errors import ConflictError, StorageError
from autoglm.registry import artifacts

ALIASES = ("candidate", "stable", "previous")


class LocalModelRegistry:
    """Port ModelRegistry on a folder and the project's state."""

    def __init__(self, engine: Engine, folder: Path, *, project: str) -> None:
        self._engine, self._folder, self._project = engine, folder, project

    def add(
        self,
        folder: Path,
        lineage: Lineage,
        *,
        labels: Sequence[str],
        opens_with: str,
        runtime: str,
    ) -> ModelVersion:
        """Idempotent: the same bytes are the same version, with the lineage it was first given."""
        files = artifacts.file_digests(folder)
        digest = artifacts.model_digest(files)
        target = self._folder / digest
        if not target.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            artifacts.place(folder, target, files)
        known = self.get(digest)
        if known is not None:
            return known
        size_bytes = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        with self._engine.begin() as connection:
            number = connection.execute(
                text("select coalesce(max(number), 0) + 1 from model_version")
            ).scalar_one()
            version = ModelVersion(
                project=self._project,
                digest=digest,
                number=number,
                folder=digest,
                labels=tuple(labels),
                opens_with=opens_with,
                runtime=runtime,
                size_bytes=size_bytes,
                created_at=datetime.now(UTC),
                lineage=lineage,
            )
            connection.execute(
                text("insert into model_version values (:digest, :number, :record)"),
                {"digest": digest, "number": number, "record": json.dumps(to_json(version))},
            )
        return replace(version, folder=str(target))

    def move(self, alias: str, to: str, *, expect: str) -> None:
        """Point `alias` at version `to` (`""` = at nothing) if it is at `expect` now.

        Moving to where it is already is no error. Raises: ConflictError, ValueError.
        """
        self.move_many({alias: (expect, to)})

    def move_many(self, moves: dict[str, tuple[str, str]]) -> None:
        """Several aliases (name → (expect, to)) in one transaction: all move or none does."""
        unknown = set(moves) - set(ALIASES)
        if unknown:
            raise ValueError(f"no alias {sorted(unknown)}; known: {', '.join(ALIASES)}")
        with self._engine.begin() as connection:
            rows = connection.execute(text("select name, digest, fence from alias")).all()
            current = {name: (digest, fence) for name, digest, fence in rows}
            for alias, (expect, to) in moves.items():
                digest, fence = current.get(alias, ("", 0))
                if digest == to:
                    continue
                if digest != expect:
                    raise ConflictError(
                        f"alias {alias} is at {digest or 'nothing'}, not at {expect or 'nothing'}.",
                        next_step="Look again with `autoglm models list`.",
                    )
                connection.execute(
                    text("insert or replace into alias values (:name, :digest, :fence)"),
                    {"name": alias, "digest": to, "fence": fence + 1},
                )
                connection.execute(
                    text(
                        "insert into alias_history (name, digest, expected, at)"
                        " values (:name, :digest, :expected, :at)"
                    ),
                    {
                        "name": alias,
                        "digest": to,
                        "expected": expect,
                        "at": datetime.now(UTC).isoformat(),
                    },
                )

    def resolve(self, alias: str) -> ModelVersion | None:
        with self._engine.begin() as connection:
            digest = connection.execute(
                text("select digest from alias where name = :name"), {"name": alias}
            ).scalar()
        return self.get(digest) if digest else None

    def aliases(self) -> dict[str, str]:
        with self._engine.begin() as connection:
            rows = connection.execute(
                text("select name, digest from alias where digest != ''")
            ).all()
        return {name: digest for name, digest in rows}

    def get(self, digest: str) -> ModelVersion | None:
        with self._engine.begin() as connection:
            record = connection.execute(
                text("select record from model_version where digest = :digest"), {"digest": digest}
            ).scalar()
        return self._read(record) if record else None

    def versions(self) -> list[ModelVersion]:
        """Newest first."""
        with self._engine.begin() as connection:
            records = connection.execute(
                text("select record from model_version order by number desc")
            ).scalars()
            return [self._read(record) for record in records]

    def _read(self, record: str) -> ModelVersion:
        """The folder is stored by its name alone, so that a project can be moved."""
        version = from_json(ModelVersion, json.loads(record))
        return replace(version, folder=str(self._folder / Path(version.folder).name))

    def find(self, reference: str) -> ModelVersion:
        """By alias, number (`3`, `v3`) or digest (or its start). Raises: StorageError."""
        if reference in ALIASES:
            found = self.resolve(reference)
            matches = [found] if found else []
        else:
            number = reference.removeprefix("v")
            matches = [
                v
                for v in self.versions()
                if str(v.number) == number
                or (len(reference) >= 4 and v.digest.startswith(reference))
            ]
        if len(matches) != 1:
            raise StorageError(
                f"{len(matches) or 'no'} model versions answer to {reference!r}.",
                code="model.unknown",
                next_step="See `autoglm models list`.",
            )
        return matches[0]

    def prune(self, keep: int) -> list[str]:
        """Delete the folders of all but the newest `keep` versions; an aliased one always stays.

        The records stay: lineage outlives bytes. Returns the digests whose folder went.
        """
        gone = self.surplus(keep)
        for version in gone:
            shutil.rmtree(version.folder)
        return [version.digest for version in gone]

    def surplus(self, keep: int) -> list[ModelVersion]:
        """What `prune` would delete."""
        held = set(self.aliases().values())
        return [
            version
            for version in self.versions()[keep:]
            if version.digest not in held and Path(version.folder).exists()
        ]

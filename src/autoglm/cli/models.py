"""`autoglm models`: versions, lineage, export."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import number, print_json, print_pairs, print_table, size
from autoglm.errors import StorageError

app = typer.Typer(
    help="Model versions: list, show, export.", no_args_is_help=True, rich_markup_mode=None
)
Reference = Annotated[
    str, typer.Argument(help="stable, previous, candidate, a number, or a digest.")
]


def _registry(folder: Path) -> Any:

    return open_project(folder).registry(read_only=True)


def _document(version: Any, aliases: dict[str, str]) -> dict[str, Any]:
    from autoglm.loop import records

    return records.model(version, aliases)


@app.command("list")
@project_command
def list_models(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Model versions, newest first.

    Example: autoglm models list -C news
    """
    registry = _registry(folder)
    aliases = registry.aliases()
    documents = [_document(version, aliases) for version in registry.versions()]
    if as_json:
        print_json({"models": documents})
        return
    print_table(
        ("version", "digest", "aliases", "dataset", "metrics", "size", "made"),
        [
            (
                f"v{d['number']}",
                d["digest"][:12],
                ",".join(d["aliases"]) or "—",
                f"v{d['lineage']['dataset_version']}",
                " ".join(f"{k} {number(v)}" for k, v in sorted(d["lineage"]["metrics"].items())),
                size(d["size_bytes"]),
                d["created_at"][:19],
            )
            for d in documents
        ],
    )


@app.command("show")
@project_command
def show_model(
    reference: Reference = "stable", folder: FolderOption = Path(), as_json: AsJson = False
) -> None:
    """One model version: labels, lineage, how it opens.

    Example: autoglm models show stable -C news
    """
    registry = _registry(folder)
    shown = _document(registry.find(reference), registry.aliases())
    if as_json:
        print_json(shown)
        return
    lineage = shown.pop("lineage")
    print_pairs({**shown, **{f"lineage.{key}": value for key, value in lineage.items()}})
    typer.echo(f"open it: {opening_line(shown['opens_with'], shown['folder'])}")


def opening_line(opens_with: str, folder: str) -> str:
    """The transformers call that gives the model; the class stands in the folder's config."""
    trust = ", trust_remote_code=True" if opens_with == "transformers+code" else ""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # its files were pruned
        config = {}
    named = [name for name in config.get("auto_map", {}) if name.startswith("AutoModel")]
    plain = re.sub(r"^.*?(?=For[A-Z])", "AutoModel", (config.get("architectures") or [""])[0])
    auto = named[0] if named else plain or "AutoModelForSequenceClassification"
    return f'{auto}.from_pretrained("{folder}"{trust})'


@app.command("export")
@project_command
def export(
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    reference: Annotated[str, typer.Option("--model", help="Which version.")] = "stable",
    folder: FolderOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Copy a model version out: a Hugging Face folder with its ONNX graph.

    Example: autoglm models export ./my-model -C news
    """
    from autoglm.registry.artifacts import verify

    version = _registry(folder).find(reference)
    if target.exists():
        raise StorageError(f"{target} exists.", code="storage.exists", next_step="Choose another.")
    source = Path(version.folder)
    if not source.exists():
        raise StorageError(
            f"the files of v{version.number} were pruned.",
            code="storage.pruned",
            next_step="Raise storage.keep_versions for the next ones.",
        )
    verify(source)
    staging = target.with_name(f".{target.name}.part")
    try:
        shutil.copytree(source, staging)
        staging.rename(target)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise StorageError(f"{target}: {error.strerror}.", code="storage.failed") from error
    line = opening_line(version.opens_with, str(target))
    if as_json:
        print_json({"folder": str(target), "digest": version.digest, "open": line})
    else:
        typer.echo(f"exported v{version.number} to {target}\nopen it: {line}")

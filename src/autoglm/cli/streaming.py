"""`autoglm streaming check`: what may be promised on a cluster of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from autoglm.cli.options import AsJson
from autoglm.cli.output import command, print_json, print_table

app = typer.Typer(help="The data path: check.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _streaming() -> None:
    """A group although it has one command: others will come."""


@app.command("check")
@command
def check(
    bootstrap: Annotated[str, typer.Argument(help="HOST:PORT of the cluster, or several.")],
    username: Annotated[str, typer.Option(help="User of SASL.")] = "",
    password: Annotated[
        str, typer.Option(envvar="AUTOGLM_STREAMING_BROKER_PASSWORD", help="Password of SASL.")
    ] = "",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="A setting of librdkafka."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a Kafka cluster for all that the data path needs, and say what may be promised there.

    Makes topics named autoglm-check-… and deletes them. Takes about half a minute.

    Examples:
      autoglm streaming check localhost:9092

      autoglm streaming check kafka:9093 --username me --option sasl.mechanism=SCRAM-SHA-512

    """
    from autoglm.contracts.record import to_json
    from autoglm.errors import ConfigError
    from autoglm.plugins import registry
    from autoglm.streaming.config import BrokerConfig

    pairs = [option.partition("=") for option in options or ()]
    wrong = [key for key, sign, _ in pairs if not sign or not key]
    if wrong:
        raise ConfigError(
            f"--option {wrong[0]}: write KEY=VALUE.",
            code="config.wrong_value",
            next_step="As in --option security.protocol=ssl.",
        )
    config = BrokerConfig(
        kind="kafka",
        bootstrap=bootstrap,
        username=username,
        password=password,
        options={key: value for key, _, value in pairs},
    )
    findings = registry.get("broker", "kafka").probe(config)
    is_so = {finding.name: finding.is_so for finding in findings}
    promises = promised(is_so)
    if as_json:
        print_json({"findings": [to_json(f) for f in findings], "promises": promises})
    else:
        rows = [
            (f.name, "yes" if f.is_so else "NO", f"{f.seconds:.1f} s", f.detail) for f in findings
        ]
        print_table(("asked", "", "", "what it did"), rows)
        for promise in promises:
            typer.echo(f"  {promise}")
    if not all(is_so.values()):
        raise typer.Exit(1)


def promised(is_so: Mapping[str, Any]) -> list[str]:
    """What users may rely on, by what the cluster did."""
    found = []
    if not (is_so["keys"] and is_so["order"] and is_so["headers"]):
        return ["Not usable: changes of a row would not come in their order."]
    if is_so["transactions"] and is_so["fencing"] and is_so["positions"]:
        found.append("Exactly once from the source to the feature table, in order per key.")
    else:
        found.append(
            "At least once from the source to the broker: when a collector dies or is replaced,"
            " changes may be in the table twice. From the broker to the table: exactly once."
        )
    if is_so["groups"] and is_so["takeover"]:
        found.append("Several workers; one that dies is replaced.")
    elif is_so["groups"]:
        found.append(
            "Several workers, but one that dies is not replaced until it is started again."
        )
    else:
        found.append("One worker only (streaming.workers: 1).")
    if not is_so["offsets"]:
        found.append("Lag and max_backlog do not work: offsets that are told do not come back.")
    return found

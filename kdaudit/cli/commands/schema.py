"""`kdaudit schema`: the JSON Schemas, for whoever reads report.json or writes kdaudit.toml."""

import json

import click


@click.command(short_help="Print the JSON Schema of report.json.")
@click.argument("what", type=click.Choice(["report", "settings"]), default="report")
def schema(what: str) -> None:
    """Print the JSON Schema of report.json, or with `settings` that of kdaudit.toml."""
    from kdaudit.report.schema import settings_schema, shipped_schema

    click.echo(shipped_schema().rstrip() if what == "report" else json.dumps(settings_schema(), indent=1))

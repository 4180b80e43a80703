"""The end of a command that audits: what stdout gets, and the exit code."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from kdaudit.report.document import Document


def show(document: "Document", run: Path, form: str) -> None:
    """Print a report as text or JSON."""
    if form == "json":
        click.echo(document.model_dump_json(indent=2))
        return
    from kdaudit.report.text import render

    click.echo(render(document, run))


def show_and_exit(document: "Document", run: Path, form: str) -> NoReturn:
    """Print a report and leave with the gate's exit code, which the format does not change."""
    show(document, run, form)
    raise click.exceptions.Exit(int(document.exit_code))

"""`kdaudit report`: another rendering of a finished run; nothing is run again."""

from pathlib import Path

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import show


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.format_option
def report(run: Path, form: str) -> None:
    """Print the report of the finished RUN."""
    from kdaudit.report.document import read_document

    show(read_document(run), run, form)

"""`kdaudit report`: another rendering of a finished run; nothing is run again."""

from pathlib import Path

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import put


@click.command(short_help="Print the report of a finished RUN in any format.")
@click.argument("run", type=click.Path(path_type=Path))
@options.format_option
@options.file_option
def report(run: Path, form: str, output: Path | None) -> None:
    """Print the report of the finished RUN in any format, from its report.json; nothing is run again.

    Ends with exit code 0 whatever the verdict; `kdaudit gate RUN` ends with the gate's.
    """
    from kdaudit.report.document import read_document

    put(read_document(run), run, form, output)

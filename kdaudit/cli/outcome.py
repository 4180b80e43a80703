"""The end of a command that audits: what stdout gets, and the exit code."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from kdaudit.errors import UsageError

if TYPE_CHECKING:
    from kdaudit.report.document import Document

COLOURS = {"PASSED": "green", "FAILED": "red", "INCONCLUSIVE": "yellow"}


def coloured() -> bool:
    """Whether stdout takes colours: a terminal, and nobody asked for none."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def put(document: "Document", run: Path, form: str, output: Path | None = None) -> None:
    """Print a report in a format, or write it to a file.

    Raises:
        UsageError: the file cannot be written.
        RunDirectoryError: the format needs a file of the run that is gone.
    """
    from kdaudit.report.outputs import render_as

    text = render_as(form, document, run)
    if output is not None:
        from kdaudit.digest import write_bytes

        try:
            write_bytes(output, text.encode())
        except OSError as error:
            raise UsageError(f"{output} cannot be written ({error.strerror}): choose another file with -o") from error
        return
    if form == "text" and coloured():
        first, newline, rest = text.partition("\n")
        text = click.style(first, fg=COLOURS[document.verdict], bold=True) + newline + rest
    click.echo(text, nl=False, color=True)


def show_and_exit(document: "Document", run: Path, form: str, output: Path | None = None) -> NoReturn:
    """Print a report and leave with the gate's exit code, which the format does not change."""
    put(document, run, form, output)
    raise click.exceptions.Exit(int(document.exit_code))

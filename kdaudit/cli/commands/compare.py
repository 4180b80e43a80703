"""`kdaudit compare`: an audit with a control that exists already."""

from pathlib import Path
from typing import Any

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import show_and_exit


@click.command(short_help="Scan DATA with an existing control.")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.argument("student", type=click.Path(path_type=Path))
@options.data_argument
@options.clean_option
@options.run_option
@options.judging_options
@options.machine_options
@click.option("--max-clean", type=int, help="Clean images used at most.  [default: 20000]")
@options.format_option
@options.quiet_option
def compare(
    teacher: Path,
    student: Path,
    data: Path,
    clean: Path | None,
    run: Path,
    form: str,
    quiet: bool,
    **given: Any,
) -> None:
    """Scan DATA with an existing control: STUDENT, as `kdaudit distill` wrote it for TEACHER.

    The clean pool is needed again, to calibrate on; give the one that STUDENT was distilled on: the images
    it was trained on are recognised and never used for calibration.
    """
    from kdaudit.audit import Request, audit
    from kdaudit.cli.console import watch
    from kdaudit.settings import load_settings

    settings = load_settings(**given, repair=False)
    document = audit(Request(teacher, data, clean, run, control=student), settings, watch(quiet=quiet))
    show_and_exit(document, run, form)

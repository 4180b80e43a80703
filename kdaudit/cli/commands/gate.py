"""`kdaudit gate`: a finished run held against the gate again, with other settings or another baseline."""

from datetime import date
from pathlib import Path
from typing import Any

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import show_and_exit


@click.command(short_help="Ask the gate about a finished RUN again.")
@click.argument("run", type=click.Path(path_type=Path))
@options.gate_options
@click.option("--min-coverage", type=float, help="Share of images that must be read.  [default: 0.99]")
@options.format_option
@options.file_option
def gate(run: Path, form: str, output: Path | None, **given: Any) -> None:
    """Ask the gate about the finished RUN again, with the settings of now; nothing is run, and RUN stays as it is.

    Ends with the gate's exit code.

    Example: kdaudit gate audit-of-vendor --baseline accepted/report.json
    """
    from kdaudit.gate import check_ignores, read_baseline
    from kdaudit.report.checks import conclude
    from kdaudit.report.document import read_document
    from kdaudit.settings import Settings, load_settings

    settings = load_settings(**given)
    check_ignores(settings.ignores)
    document = read_document(run)
    # What the run was asked to show stays what it was asked to show; only the gate is asked anew.
    asked = {name: document.recipe.settings[name] for name in ("min_fidelity", "sensitivity")}
    if given["min_coverage"] is None:
        asked["min_coverage"] = document.recipe.settings["min_coverage"]
    assert asked.keys() <= Settings.model_fields.keys()
    settings = settings.model_copy(update=asked)
    today = date.today()  # noqa: DTZ011  the reader's own day
    show_and_exit(conclude(document, settings, read_baseline(settings.baseline), today, run), run, form, output)

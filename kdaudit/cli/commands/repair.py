"""`kdaudit repair`: a clean model from a finished run."""

from pathlib import Path
from typing import Any

import click

from kdaudit.cli import options


@click.command(short_help="Tune and export the control of a finished RUN.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("clean.onnx"),
    show_default=True,
    help="Where the repaired model goes.",
)
@click.option("--repair-epochs", type=float, help="Passes over the kept images.  [default: 25, fewer of many]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.  [default: auto]")
@options.quiet_option
def repair(run: Path, output: Path, quiet: bool, **given: Any) -> None:
    """Tune the control of the finished RUN on its kept images and export it with the teacher's own signature."""
    from kdaudit.audit import repair_run
    from kdaudit.cli.console import watch
    from kdaudit.report.text import repair_lines
    from kdaudit.settings import load_settings

    repaired = repair_run(run, output, load_settings(**given), watch(quiet=quiet))
    for line in repair_lines(repaired):
        click.echo(line)
    click.echo(f"written: {output}")

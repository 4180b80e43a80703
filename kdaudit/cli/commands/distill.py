"""`kdaudit distill`: the control alone."""

from pathlib import Path
from typing import Any

import click

from kdaudit.cli import options


@click.command(short_help="Distil a control, to keep and reuse.")
@options.model_argument
@click.argument("clean", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("student.onnx"),
    show_default=True,
    help="Where the control goes.",
)
@options.control_options
@options.machine_options
@options.quiet_option
def distill(model: Path, clean: Path, output: Path, quiet: bool, **given: Any) -> None:
    """Distil a control from MODEL on the images in CLEAN, to keep and to use with `kdaudit compare`."""
    from kdaudit.audit import distil_alone
    from kdaudit.cli.console import watch
    from kdaudit.settings import load_settings

    made = distil_alone(model, clean, output, load_settings(**given), watch(quiet=quiet))
    click.echo(
        f"{output}: fidelity {made.fidelity:.1%} on {made.validated} held-out clean images, "
        f"{made.steps} steps in {made.curve.seconds:.0f} s"
    )

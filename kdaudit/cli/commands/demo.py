"""`kdaudit demo`: builds a small poisoned delivery from real images, then audits it."""

import shutil
from pathlib import Path

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import put


@click.command(short_help="Build a small poisoned delivery and audit it.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("kdaudit-demo"),
    show_default=True,
    help="Folder for the delivery and the run.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the poisoning, the model and the audit.")
@options.quiet_option
def demo(folder: Path, seed: int, quiet: bool) -> None:
    """Build a small vendor delivery from real images, poison part of it, and audit it.

    The images are scikit-learn's handwritten digits. Ends with verdict FAILED and exit code 1, as a scan
    of such a delivery should.
    """
    from kdaudit.cli.console import watch
    from kdaudit.demo import READING, build_delivery, check_against_truth
    from kdaudit.report.text import fitted

    listener = watch(quiet=quiet)
    delivery = build_delivery(folder / "delivery", seed, listener)
    click.echo(fitted(delivery.story, 2) + "\n")
    run = folder / "run"
    if run.exists():
        shutil.rmtree(run)  # an earlier demo's: its model is another one
    from kdaudit.audit import Request, audit
    from kdaudit.settings import load_settings

    click.echo(f"$ kdaudit scan {delivery.model} {delivery.data} -o {run} --seed {seed}\n")
    document = audit(Request(delivery.model, delivery.data, None, run), load_settings(seed=seed), listener)
    click.echo(check_against_truth(delivery, run))
    put(document, run, "text")
    click.echo("\n" + fitted(READING, 12))
    raise click.exceptions.Exit(int(document.exit_code))

"""`kdaudit scan`: the whole audit."""

from pathlib import Path
from typing import Any

import click

from kdaudit.cli import options
from kdaudit.cli.outcome import show_and_exit


@click.command(short_help="The whole audit of MODEL against DATA.")
@options.model_argument
@options.data_argument
@options.clean_option
@options.run_option
@options.judging_options
@options.control_options
@options.repair_options
@options.machine_options
@options.format_option
@options.quiet_option
def scan(model: Path, data: Path, clean: Path | None, run: Path, form: str, quiet: bool, **given: Any) -> None:
    """The whole audit: MODEL (ONNX) against the images in DATA.

    DATA is a folder of class folders, a flat folder, tar shards, Parquet files, or a CSV or JSONL manifest.
    Distils a clean control from MODEL on the clean pool, compares both over DATA, flags poison candidates, gives
    a verdict, writes manifests, and exports a repaired model.

    Example: kdaudit scan vendor.onnx delivery/ --clean trusted/ -o audit-of-vendor
    """
    from kdaudit.audit import Request, audit
    from kdaudit.cli.console import watch
    from kdaudit.settings import load_settings

    settings = load_settings(**given)
    document = audit(Request(model, data, clean, run), settings, watch(quiet=quiet))
    show_and_exit(document, run, form)

"""`kdaudit diff`: what changed between two runs."""

import json
from pathlib import Path

import click


@click.command(short_help="Say what changed from run OLD to run NEW.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What stdout gets."
)
def diff(old: Path, new: Path, form: str) -> None:
    """Say what changed from the finished run OLD to the finished run NEW: verdict, findings, candidates, settings.

    Ends with exit code 0 whether anything changed or not.
    """
    from kdaudit.report.diff import compare_reports, render_difference
    from kdaudit.report.document import read_document
    from kdaudit.report.reading import read_candidates

    found = compare_reports(read_document(old), read_document(new), (old, new))
    if form == "json":
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    paths: dict[str, str] = {}
    for run in (old, new):
        table = run / "samples.parquet"
        if (found.candidates_new or found.candidates_gone) and table.is_file():
            candidates = read_candidates(table)
            paths |= dict(zip(candidates.digests, candidates.paths, strict=True))
    click.echo(render_difference(found, paths))

"""`kdaudit inspect`: static checks; runs nothing of the model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdaudit.errors import Exit

if TYPE_CHECKING:
    from kdaudit.admission import Teacher


@click.command(short_help="Check MODELS' graphs without running them.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fail-on",
    type=click.Choice(["low", "medium", "high", "critical", "never"]),
    help="Findings of this severity or above exit 1.  [default: high]",
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What stdout gets."
)
def inspect(models: tuple[Path, ...], fail_on: str | None, form: str) -> None:
    """Check MODELS without running them: what they take and give, and what their graphs show.

    Ends with exit code 2 if one is refused, with 1 if one has a finding at or over --fail-on.
    """
    from kdaudit.admission.confined import admit_confined
    from kdaudit.settings import load_settings

    bar = load_settings(fail_on=fail_on).fail_on  # first: a bad setting is no reason to check every model
    admitted = [(path, admit_confined(path)) for path in models]
    if form == "json":
        facts = [_facts(path, teacher) for path, teacher in admitted]
        click.echo(json.dumps(facts[0] if len(facts) == 1 else facts, indent=2))
    else:
        for path, teacher in admitted:
            _tell(path, teacher)
    severities = ("low", "medium", "high", "critical")
    if bar != "never":
        worst = max((severities.index(f.severity) for _, teacher in admitted for f in teacher.findings), default=-1)
        if worst >= severities.index(bar):
            raise click.exceptions.Exit(int(Exit.FAILED))


def _facts(path: Path, teacher: "Teacher") -> dict[str, Any]:
    from kdaudit.admission import RULES

    return {
        "model": str(path),
        "digest": teacher.digest,
        "canonical_digest": teacher.canonical_digest,
        "producer": teacher.producer,
        "opsets": dict(teacher.opsets),
        "nodes": teacher.nodes,
        "parameters": teacher.parameters,
        "signature": asdict(teacher.signature),
        "findings": [asdict(f) | {"technique": RULES[f.rule].technique} for f in teacher.findings],
        "confinement": teacher.confinement,
    }


def _tell(path: Path, teacher: "Teacher") -> None:
    from kdaudit.report.escape import printable

    s = teacher.signature
    size = f"{s.height or '?'}x{s.width or '?'}x{s.channels}"
    click.echo(f"{printable(str(path))}: admitted (its graph only; nothing was run)")
    click.echo(f"  sha256    {teacher.digest}")
    extent = f"{teacher.nodes} nodes, {teacher.parameters:,} parameters"
    click.echo(f"  made by   {printable(teacher.producer) or 'unknown'}; {extent}")
    click.echo(f"  input     {printable(s.input_name)}: {s.input_type} {s.layout} {size}, batch {s.batch or 'free'}")
    click.echo(f"  output    {printable(s.output_name)}: {s.classes} classes")
    click.echo(f"  checked   in a process confined by {teacher.confinement}")
    for finding in teacher.findings:
        click.echo(f"  {finding.severity:<8}  {finding.rule}  {printable(finding.message)}")
    if not teacher.findings:
        click.echo("  no findings in the graph; whether it is backdoored is what `kdaudit scan` tells")

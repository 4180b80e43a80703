"""`kdaudit inspect`: static checks; runs nothing of the model."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from kdaudit.cli import options


@click.command(short_help="Check MODEL's graph without running it.")
@options.model_argument
@options.format_option
def inspect(model: Path, form: str) -> None:
    """Check MODEL without running it: what it takes and gives, and what its graph shows."""
    from kdaudit.admission import RULES
    from kdaudit.admission.confined import admit_confined

    teacher = admit_confined(model)
    if form == "json":
        facts = {
            "model": str(model),
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
        click.echo(json.dumps(facts, indent=2))
        return
    from kdaudit.report.text import printable

    s = teacher.signature
    size = f"{s.height or '?'}x{s.width or '?'}x{s.channels}"
    click.echo(f"{printable(str(model))}: admitted (its graph only; nothing was run)")
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

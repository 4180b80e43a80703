"""`kdaudit explain`: a rule id in words."""

import textwrap

import click

from kdaudit.errors import UsageError


@click.command(short_help="Say what a rule id means and what to do.")
@click.argument("rule", required=False)
def explain(rule: str | None) -> None:
    """Say what RULE (such as KDA201) means and what to do about it; without RULE, list them all."""
    from kdaudit.report.rules import rules

    known = rules()
    if rule is None:
        for each in known.values():
            severity = "refused" if each.kind == "refusal" else each.severity
            click.echo(f"{each.id}  {severity:<9}{each.title}")
        return
    found = known.get(rule.upper())
    if found is None:
        raise UsageError(f"there is no rule {rule!r}: `kdaudit explain` lists them all")
    click.echo(f"{found.id}: {found.title}")
    kinds = {"refusal": "refusal: the model is not audited, exit code 2", "graph": "finding of the graph"}
    click.echo(
        f"  {kinds.get(found.kind, 'finding of behaviour')}"
        + ("" if found.kind == "refusal" else f", severity {found.severity}")
    )
    for title, text in (("meaning", found.meaning), ("what to do", found.action)):
        click.echo(f"\n{title}")
        click.echo(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "))

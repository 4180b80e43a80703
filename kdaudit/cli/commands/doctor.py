"""`kdaudit doctor`: what this machine offers, and what is broken."""

import click


@click.command(short_help="Show what this machine offers and what is broken.")
def doctor() -> None:
    """Show providers, decoders, devices and versions, and say what is broken."""
    from kdaudit.doctor import examine

    broken = 0
    for check in examine():
        mark = {"ok": "ok", "absent": "--", "broken": "!!"}[check.state]
        click.echo(f"{mark}  {check.name:<22} {check.detail}")
        broken += check.state == "broken"
    if broken:
        raise click.ClickException(f"{broken} broken: see the lines marked !!")

"""`kdaudit doctor`: what this machine offers, and what is broken."""

import click


@click.command(short_help="Show what this machine offers and what is broken.")
def doctor() -> None:
    """Show providers, decoders, devices and versions, what is broken, and the command that mends it."""
    from kdaudit.doctor import examine

    broken = 0
    for check in examine():
        mark = {"ok": "ok", "absent": "--", "broken": "!!"}[check.state]
        click.echo(f"{mark}  {check.name:<22} {check.detail}")
        if check.mend:
            click.echo(f"    {'':<22} mend it with: {check.mend}")
        broken += check.state == "broken"
    if broken:
        raise click.ClickException(f"{broken} broken: see the lines marked !!")

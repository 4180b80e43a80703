"""`kdaudit completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from kdaudit.errors import UsageError


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    Example: kdaudit completion bash > ~/.local/share/bash-completion/completions/kdaudit
    """
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    root = context.find_root()
    made = found(root.command, {}, "kdaudit", "_KDAUDIT_COMPLETE")
    click.echo(made.source())

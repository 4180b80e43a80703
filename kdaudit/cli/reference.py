"""The help of every command as one page: docs/commands.md is made from it, and a test holds them together.

python -m kdaudit.cli.reference > docs/commands.md
"""

import re

import click

from kdaudit.cli.main import cli

WIDTH = 100


def reference() -> str:
    """The page."""
    parts = [
        "# Commands",
        "Made with `python -m kdaudit.cli.reference > docs/commands.md` from what the program says; a test fails when\n"
        "it is out of date. Every setting: [settings.md](settings.md). Exit codes: [exit-codes.md](exit-codes.md).",
        _block("kdaudit --help", cli, None),
    ]
    for name, command in cli.commands.items():
        parts += [f"## kdaudit {name}", _block(f"kdaudit {name} --help", command, name)]
    return "\n\n".join(parts) + "\n"


def _block(line: str, command: click.Command, name: str | None) -> str:
    root = _context(cli, "kdaudit", None)
    context = root if name is None else _context(command, name, root)
    text = re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE)
    return f"```console\n$ {line}\n```\n\n```text\n{text}\n```"


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command,
        info_name=name,
        parent=parent,
        help_option_names=["-h", "--help"],
        max_content_width=WIDTH,
        terminal_width=WIDTH,
    )


if __name__ == "__main__":
    click.echo(reference(), nl=False)

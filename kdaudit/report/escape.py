"""Text from outside made harmless for each kind of output: a file name must not drive whoever reads a report."""

import re
from pathlib import PurePosixPath
from urllib.parse import quote


def printable(text: str) -> str:
    """Text without control characters, direction marks and lone surrogates; each becomes its number."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def markdown_code(text: str) -> str:
    """Text as a Markdown code span that nothing inside can end, also in a table cell."""
    shown = printable(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def markdown_text(text: str) -> str:
    """Text as Markdown prose: no markup, no links, no mentions, no HTML."""
    shown = re.sub(r"([\\`*_{}\[\]<>()#+!|~^$])", r"\\\1", printable(text))
    # An invisible joiner keeps a mention or an address from becoming a link.
    return shown.replace("@", "@\u2060").replace("://", ":\u2060//")


def workflow_text(text: str) -> str:
    """Text for the message of a GitHub workflow command."""
    return printable(text).replace("%", "%25")


def workflow_property(text: str) -> str:
    """Text for a property of a GitHub workflow command."""
    return workflow_text(text).replace(":", "%3A").replace(",", "%2C")


def relative_uri(location: str, inside: str = "") -> str:
    """A path as a relative URI that is the same on every machine.

    Args:
        location: as it was given on the command line; of an absolute path only the last part is used.
        inside: a path below it, with forward slashes.
    """
    given = PurePosixPath(location)
    parts = [given.name] if given.is_absolute() else list(given.parts)
    parts += inside.split("/") if inside else []
    safe = [printable(part) for part in parts if part not in ("", ".", "..")]
    # A colon in the first part would make it a scheme.
    return "/".join(quote(part, safe="") for part in safe) or "."

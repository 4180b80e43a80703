"""Labels that are numbers, and the classes they imply."""

import re

MAX_CLASSES = 1_000_000
"""Labels from here on are taken for no label: classes are named "0".."max", and max comes from the data."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(?:\.0+)?")  # pandas writes 3 as 3.0 once a label is missing


def class_number(text: str) -> int | None:
    """The label written as a decimal integer; None when it is negative, too large, or no integer."""
    text = text.strip()
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text.partition(".")[0])
    return number if 0 <= number < MAX_CLASSES else None


def is_integer(text: str) -> bool:
    """Whether the text is a decimal integer, of either sign."""
    return _INTEGER.fullmatch(text) is not None


def numbered_classes(top: int) -> tuple[str, ...] | None:
    """Names "0".."top"; None when `top` is negative: there is no label."""
    return tuple(map(str, range(top + 1))) or None

"""Class names that a model carries in its metadata, as exporters and people write them."""

import ast
import json
from collections.abc import Iterable

KEYS = ("names", "class_names", "classes", "labels", "class_labels", "id2label", "categories", "label_names")
MAX_TEXT = 4_000_000


def class_names(metadata: Iterable[tuple[str, str]], classes: int) -> tuple[str, ...] | None:
    """Find one name per class among a model's metadata.

    Understood are a JSON or Python list, a JSON or Python dictionary from index to name, and text with one
    name a line or separated by commas.

    Args:
        metadata: key and value pairs of the model.
        classes: the number of classes; a list of any other length is not taken.

    Returns:
        The names in output order, or None.
    """
    by_key = {key.lower(): value for key, value in metadata if len(value) <= MAX_TEXT}
    for key in KEYS:
        if key in by_key:
            names = _names(by_key[key].strip())
            if names is not None and len(names) == classes and len(set(names)) == classes:
                return names
    return None


def _names(text: str) -> tuple[str, ...] | None:
    """Read a list of names out of a metadata value; None if it is none."""
    value: object = None
    if text[:1] in ("[", "{", "("):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    else:
        value = [part.strip() for part in (text.splitlines() if "\n" in text else text.split(","))]
    if isinstance(value, dict):
        try:
            indexed = {int(key): str(name) for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        if sorted(indexed) != list(range(len(indexed))):
            return None
        value = [indexed[index] for index in range(len(indexed))]
    if isinstance(value, list | tuple) and all(isinstance(name, str | int) for name in value):
        return tuple(str(name) for name in value)
    return None

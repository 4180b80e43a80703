"""The JSON Schema of report.json: shipped as a file, made from the document's model, held together by a test.

python -m kdaudit.report.schema        writes report.schema.json anew, after the document changed
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

FILE = "report.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def shipped_schema() -> str:
    """The schema as it is installed."""
    return (resources.files("kdaudit.report") / FILE).read_text(encoding="utf-8")


def document_schema() -> dict[str, Any]:
    """The schema as it follows from the model."""
    from kdaudit.report.document import Document

    return {"$schema": DIALECT, "title": "kdaudit report", **Document.model_json_schema(mode="serialization")}


def settings_schema() -> dict[str, Any]:
    """The schema of kdaudit.toml, for editors."""
    from kdaudit.settings import Settings

    return {"$schema": DIALECT, **Settings.model_json_schema(), "title": "kdaudit.toml"}


def write_schema() -> None:
    """Write the shipped file anew."""
    text = json.dumps(document_schema(), indent=1, sort_keys=True) + "\n"
    Path(__file__).with_name(FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schema()

"""The JSON Schema of banger.toml, draft-07, made of the model that reads it: for editors.

The `schema` verb prints it. What a schema cannot say (names are unique, references parse, a file is
there) `validate` says.
"""

from __future__ import annotations

from typing import Any

from reconciler.config.schema import Document

DRAFT = "http://json-schema.org/draft-07/schema#"


def json_schema() -> dict[str, Any]:
    """The schema as plain data."""
    made = Document.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = made.pop("$defs", {})
    schema = {"$schema": DRAFT, "title": "banger.toml", **made, "definitions": definitions}
    schema["title"] = "banger.toml"
    for table in (schema, *definitions.values()):
        for field in table.get("properties", {}).values():
            _as_written(field)
    return schema


def _as_written(field: dict[str, Any]) -> None:
    """Leave out a default that is not in the form in which the file has it: seconds, bytes."""
    default = field.get("default")
    texts = field.get("type") == "string" or "anyOf" in field
    if default is None or (texts and not isinstance(default, str)) or isinstance(default, dict):
        field.pop("default", None)
    field.pop("title", None)

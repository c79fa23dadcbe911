"""What a field of a pydantic model accepts, in words for error messages and tables: its JSON schema -> text."""

from typing import Any

# JSON schema's names of types, in words.
KINDS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a text"}


def accepted(schema: dict[str, Any]) -> str:
    """What a JSON schema of one value accepts, as in `an integer from 1 to 65535`."""
    if choices := schema.get("enum"):
        return " or ".join(str(choice) for choice in choices if choice != "")
    if alternatives := schema.get("anyOf"):
        words = next(accepted(one) for one in alternatives if one.get("type") != "null")
        return " or ".join([words, *(one["const"] for one in alternatives if one.get("const"))])
    if schema.get("type") == "array":
        return f"a list of {schema.get('minItems', 0)} to {schema['maxItems']} texts{limits(schema['items'])}"
    kind = "a path" if schema.get("format") == "path" else KINDS.get(schema.get("type", ""), "any value")
    return kind + limits(schema)


def limits(schema: dict[str, Any]) -> str:
    """The bounds of a schema, as in ` from 1 to 65535`; empty where it has none."""
    words = [
        ("minimum", "from {:.15g}"),
        ("exclusiveMinimum", "above {:.15g}"),
        ("maximum", "to {:.15g}"),
        ("maxLength", "of at most {} characters"),
    ]
    return "".join(f" {text.format(schema[name])}" for name, text in words if name in schema)

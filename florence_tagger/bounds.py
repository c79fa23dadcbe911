"""The accepted values of a field in words, for error messages and tables: its JSON schema -> text."""

from typing import Any

# JSON Schema types in words.
TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a text"}


def accepted(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema accepts, in words, as in `an integer from 1 to 65535`."""
    if choices := schema.get("enum"):
        return " or ".join(str(choice) for choice in choices if choice != "")
    if alternatives := schema.get("anyOf"):
        words = next(accepted(alternative) for alternative in alternatives if alternative.get("type") != "null")
        constants = (alternative["const"] for alternative in alternatives if alternative.get("const"))
        return " or ".join([words, *constants])
    if schema.get("type") == "array":
        return f"a list of {schema.get('minItems', 0)} to {schema['maxItems']} texts{limits(schema['items'])}"
    type_words = "a path" if schema.get("format") == "path" else TYPES.get(schema.get("type", ""), "any value")
    return type_words + limits(schema)


def limits(schema: dict[str, Any]) -> str:
    """Return the bounds of a schema in words, as in ` from 1 to 65535`; empty if there are none."""
    templates = [
        ("minimum", "from {:.15g}"),
        ("exclusiveMinimum", "above {:.15g}"),
        ("maximum", "to {:.15g}"),
        ("maxLength", "of at most {} characters"),
    ]
    return "".join(f" {template.format(schema[name])}" for name, template in templates if name in schema)

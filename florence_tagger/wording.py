"""Python exceptions in words for users: messages never quote an exception, which belongs in the log."""

import json


def system_words(error: OSError) -> str:
    """Return the system's message for an error, as in `No such file or directory`."""
    return error.strerror or "the system does not say why"


def json_words(error: ValueError | RecursionError) -> str:
    """Return why `json.loads` refused a text, as in `it stops being JSON at line 1, column 5`."""
    if isinstance(error, json.JSONDecodeError):
        return f"it stops being JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} of it is not {error.encoding.upper()}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number in it has too many digits"


def error_words(error: Exception) -> str:
    """Return the message of an error that ends a command: its text, or the system's message with the file's name."""
    if isinstance(error, OSError):
        return f"{error.filename}: {system_words(error)}." if error.filename else f"{system_words(error)}."
    return str(error)

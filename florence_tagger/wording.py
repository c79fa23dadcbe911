"""What exceptions of Python come to in words for people: no reason quotes one, which is for the log."""

import json


def system_words(error: OSError) -> str:
    """Return the system's own words for what it refused, as in `No such file or directory`."""
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
    """Return what a command says of an error that ends it: our own as they are, the system's with the file's name."""
    if isinstance(error, OSError):
        return f"{error.filename}: {system_words(error)}." if error.filename else f"{system_words(error)}."
    return str(error)

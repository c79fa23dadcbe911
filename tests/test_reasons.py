"""No reason quotes an exception of Python's or of a library: those are for the log."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence_tagger import errors, wording
from tests.conftest import ROOT

MODULES = sorted(
    path for folder in ("florence_tagger", "convert", "training") for path in (ROOT / folder).rglob("*.py")
)

# Errors whose text is ours, and fit to be shown.
OWN = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.TaggerError)}
OWN |= {"ConversionError", "HTTPException", "MethodNotAllowed", "NotFound", "UnsupportedMediaType"}

# Where what quotes an exception is no reason, or can only be one of ours.
ALLOWED = {
    ("florence_tagger/web/app.py", "on_request_error"): "is registered for our own",
    ("florence_tagger/web/worker.py", "handle_error"): "writes to the log",
    ("florence_tagger/media/images.py", "translate_errors"): "finds our words for what Pillow says",
    ("florence_tagger/florence/devices.py", "reason_of"): "is for the log, and seen below wherever it is for more",
    ("florence_tagger/wording.py", "error_words"): "is given the system's and our own",
}
QUOTING = {"str", "repr", "format", "type", "format_exception", "print", "reason_of"}
WORDS = {"strerror", "args", "msg", "reason", "message"}  # what an exception has of texts


def quotations(function: ast.AST, name: str) -> Iterator[int]:
    """The lines in which the text of the exception `name` is used, but for the log."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("logger.", "self.log.")):
            continue
        of_it = [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.Name) and one.id == name]
        quotes = (
            (isinstance(node, ast.FormattedValue))
            or (isinstance(node, ast.Attribute) and node.attr in WORDS)
            or (isinstance(node, ast.Call) and ast.unparse(node.func) in QUOTING)
            or (isinstance(node, ast.BoolOp | ast.BinOp))
        )
        if of_it and quotes:
            yield node.lineno
        yield from quotations(node, name)


def foreign_exceptions(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Each block of code that has an exception which may not be ours, the exception's name, and the function."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for argument in function.args.args:
            kinds = set(ast.unparse(argument.annotation).split(" | ")) if argument.annotation else set()
            if any(kind.endswith(("Error", "Exception")) and kind not in OWN for kind in kinds):
                yield function, argument.arg, function.name
        for handler in ast.walk(function):
            if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                if not {ast.unparse(one) for one in caught} <= OWN:
                    yield handler, handler.name, function.name


def faulty(source: str) -> list[tuple[str, int]]:
    """The functions of a module that quote what they should not, with the lines."""
    found = foreign_exceptions(ast.parse(source))
    return sorted({(function, line) for block, name, function in found for line in quotations(block, name)})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_quotes_an_exception(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    quoting = [(function, line) for function, line in faulty(path.read_text()) if (place, function) not in ALLOWED]
    if place == "florence_tagger/wording.py":
        quoting = [(function, line) for function, line in quoting if not hasattr(wording, function)]
    assert quoting == []


@pytest.mark.parametrize(
    "quoting",
    [
        'raise DocumentError(f"no: {exc}") from exc',
        'raise DocumentError(f"no: {exc.strerror}") from exc',
        'raise DocumentError(f"no: {type(exc).__name__}") from exc',
        'raise DocumentError("no: " + str(exc)) from exc',
        'raise DocumentError("no: %s" % exc) from exc',
        'raise DocumentError(f"no: {exc or 1}") from exc',
        'raise DocumentError(" ".join(str(exc).split())) from exc',
        'return {"error": repr(exc)}',
        'raise DocumentError(f"no: {reason_of(exc)}") from exc',
    ],
)
def test_the_rule_sees_every_way_to_quote(quoting: str) -> None:
    source = "def read():\n    try:\n        pass\n    except {}:\n        {}\n"
    assert faulty(source.format("(OSError, DocumentError) as exc", quoting)) == [("read", 5)]
    assert faulty(source.format("DocumentError as exc", quoting)) == []
    assert faulty(source.format("OSError as exc", 'raise DocumentError(f"no: {system_words(exc)}") from exc')) == []
    assert faulty(source.format("OSError as exc", 'logger.error("no: %s", exc)')) == []
    assert faulty(f"def told(exc: Exception):\n    {quoting}\n") == [("told", 2)]


def test_what_json_refuses_has_its_place_in_our_words() -> None:
    words = {
        b"": "it stops being JSON at line 1, column 1",
        b'{"a":\n  x}': "it stops being JSON at line 2, column 3",
        b'{"a": "\xff"}': "byte 8 of it is not UTF-8",
        b"1" * 5000: "a number in it has too many digits",
        b"[" * 100_000: "it is nested too deeply",
    }
    for text, expected in words.items():
        with pytest.raises((ValueError, RecursionError)) as caught:
            json.loads(text)
        assert wording.json_words(caught.value) == expected


def test_what_the_system_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        (tmp_path / "none").read_bytes()
    assert wording.system_words(caught.value) == "No such file or directory"
    assert wording.error_words(caught.value) == f"{tmp_path / 'none'}: No such file or directory."
    assert wording.system_words(OSError("a text of Python's")) == "the system does not say why"
    assert wording.error_words(errors.DocumentError("Ours.")) == "Ours."

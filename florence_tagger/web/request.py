"""Parsing of a request to `/process`: bytes -> `ProcessRequest`, or an error with the accepted values.

JSON is parsed by the standard library, which is as fast as other parsers here, keeps integers of any size, and allows
to refuse numbers that JSON does not have. The parameters are those of `RequestBody`.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from florence_tagger.bounds import accepted
from florence_tagger.counting import DEFAULT_LABELS
from florence_tagger.errors import DocumentError, RequestError, TooManyDocumentsError
from florence_tagger.media.content import is_encoded_file
from florence_tagger.media.formats import HEAD_BYTES, find_format
from florence_tagger.media.sampling import Sampling
from florence_tagger.prompts import prompt_for
from florence_tagger.schemas import Prompt, Rules, Tiles
from florence_tagger.web.parameters import RequestBody, body_schema, body_type
from florence_tagger.wording import json_words

MAX_VALUES = 500  # per document, on average over the accepted number of documents; those of Detect have a dozen
# Nested objects and lists: a deeper document might be parsed and processed, but could not be serialized again.
MAX_DEPTH = 200
TOO_DEEP = f"The body is nested too deeply: {MAX_DEPTH} objects and lists in one another are accepted."

NO_REQUEST = 'The body must be a JSON object with a list "documents", each with its file in base64 in source.content.'


@dataclass(frozen=True)
class ProcessRequest:
    """A validated request to `/process`.

    Attributes:
        documents: as in the request; the answer repeats them.
        prompt: for the model.
        output: content of a document in the answer, `counts` or `probabilities`.
        num_labels: maximum number of labels for a document, 0 for all.
        min_score: detections of a lower score are left out.
        return_boxes: the answer lists the boxes, too.
        sampling: of videos.
        rules: for counting.
        tiles: per side of a picture.
    """

    documents: list[Any]
    prompt: Prompt
    output: str
    num_labels: int
    min_score: float
    return_boxes: bool
    sampling: Sampling
    rules: Rules = Rules()  # noqa: RUF009 - frozen
    tiles: Tiles = 1


def parse_request(body: bytes | bytearray, max_documents: int, sampling: Sampling, tiles: Tiles = 1) -> ProcessRequest:
    """Parse and validate the body of a request.

    Args:
        body: JSON.
        max_documents: in the request.
        sampling: of videos; the request may ask for fewer frames.
        tiles: per side of a picture, if the request has no others.

    Raises:
        RequestError: the body is not JSON, has no list `documents`, or a parameter has a value that is not accepted.
        TooManyDocumentsError: there are more documents than `max_documents`.
    """
    try:
        check_values(body, MAX_VALUES * max_documents)
        values = parse_json(body)
    except RequestError as exc:
        if actual_format := guess_format(bytes(body[:HEAD_BYTES])):
            raise RequestError(f"The body is {actual_format}, not JSON. {NO_REQUEST}") from exc
        raise
    check_depth(values)
    model = body_type(max_documents, sampling, tiles)
    try:
        parameters = model.model_validate(values)
    except ValidationError as exc:
        raise validation_error(model, values, [error["loc"] for error in exc.errors(include_url=False)]) from None
    return ProcessRequest(
        parameters.documents,
        prompt_for(parameters.prompt, parameters.text, parameters.classes),
        parameters.output,
        num_labels_for(parameters),
        parameters.min_score,
        parameters.return_boxes,
        Sampling(parameters.video_fps, parameters.video_max_frames, parameters.video_max_seconds),
        Rules(tuple(parameters.classes), parameters.merge_iou, parameters.video_count),
        parameters.tiles,
    )


def check_values(body: bytes | bytearray, max_values: int) -> None:
    """Raise RequestError if a JSON text has more than about `max_values` values, by its number of delimiters.

    A value takes about thirty times the memory of its two bytes, and parsing holds the GIL. Base64 has no delimiters.
    """
    if sum(body.count(delimiter) for delimiter in (b"{", b"[", b",")) > max_values:
        raise RequestError(f"The body has more than the {max_values:,} values accepted.")


def parse_json(body: bytes | bytearray) -> Any:
    """Return the value of a JSON text; raise RequestError if it is not JSON, which has no NaN and Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise RequestError(f"The body is not JSON: {constant} is not JSON.")

    def parse_finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):  # it could not be serialized again
            raise RequestError(f"The body is not JSON: {number[:20]} is beyond the range of numbers.")
        return value

    try:
        return json.loads(body, parse_constant=refuse, parse_float=parse_finite)
    except RecursionError:
        raise RequestError(TOO_DEEP) from None
    except ValueError as exc:  # invalid JSON or UTF-8, or an integer with too many digits
        raise RequestError(f"The body is not JSON: {json_words(exc)}. {NO_REQUEST}") from exc


def guess_format(head: bytes) -> str:
    """Return the format of a body that is not JSON, by its first bytes; empty if it is unknown."""
    if head.startswith(b"--"):
        return "a form in parts (multipart)"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip, without the header Content-Encoding: gzip"
    if is_encoded_file(head):
        return "a file in base64 alone"
    if head.lstrip()[:1] in (b"{", b"[", b'"', b""):
        return ""
    try:
        return f"a file itself ({find_format(head).name})"
    except DocumentError:
        return ""


def check_depth(values: Any) -> None:
    """Raise RequestError if more than MAX_DEPTH objects and lists are nested."""
    level = containers_in([values])
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in containers_in(outer)]
    if level:
        raise RequestError(TOO_DEEP)


def containers_in(container: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    """Return the objects and lists among the values of an object or list."""
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, dict | list)]


def validation_error(model: type[RequestBody], values: Any, locations: list[tuple[int | str, ...]]) -> RequestError:
    """Return the error of a body whose fields at `locations` are invalid, with their values and the accepted ones."""
    names = dict.fromkeys(str(location[0]) for location in locations if location)
    if not names or "documents" in names:
        documents = values.get("documents") if isinstance(values, dict) else None
        if not isinstance(documents, list):
            return RequestError(NO_REQUEST)
        (max_documents,) = (bound.max_length for bound in model.model_fields["documents"].metadata)
        return TooManyDocumentsError(f"The request has {len(documents)} documents; {max_documents} are accepted.")
    properties = body_schema(model)["properties"]
    reasons = (f"{name} is {excerpt(values[name])}; {accepted_values(name, properties[name])}" for name in names)
    return RequestError(" ".join(reasons))


def accepted_values(name: str, schema: dict[str, Any]) -> str:
    """Return a sentence with the accepted values of a field."""
    source = ", the service's setting" if name in ("video_fps", "video_max_frames", "video_max_seconds") else ""
    return f"accepted is {accepted(schema)}{source}."


def excerpt(value: Any) -> str:
    """Return a value as JSON for an error message, at most 50 characters."""
    text = json.dumps(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


def num_labels_for(parameters: RequestBody) -> int:
    """Return `num_labels`, which the user's document also calls `num_classes`.

    Raises:
        RequestError: both are given and differ.
    """
    names = [name for name in ("num_labels", "num_classes") if name in parameters.model_fields_set]
    values = {getattr(parameters, name) for name in names}
    if len(values) > 1:
        raise RequestError("num_labels and num_classes are the same setting but have different values.")
    return values.pop() if values else DEFAULT_LABELS


def content_of(document: Any) -> str | DocumentError:
    """Return the base64 text of a document's file, or the error of a document without one."""
    if not isinstance(document, dict):
        return DocumentError("The document is not an object.")
    source = document.get("source")
    if not isinstance(source, dict):
        return DocumentError("The document has no object source.")
    content = source.get("content")
    if not isinstance(content, str):
        return DocumentError("The document has no text source.content, which holds the file in base64.")
    return content

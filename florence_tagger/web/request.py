"""A request to `/process`: its bytes -> what is meant, or what is wrong with them and what is accepted.

JSON is read by the standard library, which is as fast as any here, keeps integers of any size, and lets the numbers be
refused that JSON has not. The parameters are `RequestBody`'s.
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
from florence_tagger.web.parameters import RequestBody, body_type, schema_of
from florence_tagger.wording import json_words

MAX_VALUES = 500  # a document may have, on average over as many as are accepted; Detect's have a dozen
# Objects and lists in one another: what is deeper might be read, and treated, and then not be written again.
MAX_DEPTH = 200
TOO_DEEP = f"The body is nested too deeply: {MAX_DEPTH} objects and lists in one another are accepted."

NO_REQUEST = 'The body must be a JSON object with a list "documents", each with its file in base64 in source.content.'


@dataclass(frozen=True)
class ProcessRequest:
    """A request to `/process`, as it is meant.

    Attributes:
        documents: as they came, echoed in the answer.
        prompt: what the model is asked.
        output: what stands for a document's content, `counts` or `probabilities`.
        num_labels: at most so many labels for a document, 0 for all.
        min_score: boxes of a lower score are left out.
        return_boxes: whether the answer lists the boxes, too.
        sampling: of videos.
        rules: how detections become counts.
        tiles: a side that pictures are looked at in.
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
    """Reads the body of a request, which may ask for less than `sampling` and for other `tiles`.

    Raises:
        RequestError: it is not JSON, has no list `documents`, or a parameter has a value that is not accepted.
        TooManyDocumentsError: more documents than `max_documents`.
    """
    try:
        check_values(body, MAX_VALUES * max_documents)
        values = parse_json(body)
    except RequestError as exc:
        if mistaken := mistaken_for(bytes(body[:HEAD_BYTES])):
            raise RequestError(f"The body is {mistaken}, not JSON. {NO_REQUEST}") from exc
        raise
    check_depth(values)
    kind = body_type(max_documents, sampling, tiles)
    try:
        wanted = kind.model_validate(values)
    except ValidationError as exc:
        raise refusal(kind, values, [error["loc"] for error in exc.errors(include_url=False)]) from None
    return ProcessRequest(
        wanted.documents,
        prompt_for(wanted.prompt, wanted.text, wanted.classes),
        wanted.output,
        num_labels_of(wanted),
        wanted.min_score,
        wanted.return_boxes,
        Sampling(wanted.video_fps, wanted.video_max_frames, wanted.video_max_seconds),
        Rules(tuple(wanted.classes), wanted.merge_iou, wanted.video_count),
        wanted.tiles,
    )


def check_values(body: bytes | bytearray, most: int) -> None:
    """RequestError where a JSON text has more values than `most`, more or less, by the marks that they are set off by.

    A value takes some thirty times the memory of its two bytes, and none of the other threads runs while it is read.
    Base64 has none of the marks.
    """
    if sum(body.count(mark) for mark in (b"{", b"[", b",")) > most:
        raise RequestError(f"The body has more than the {most:,} values accepted.")


def parse_json(body: bytes | bytearray) -> Any:
    """The value of a JSON text; RequestError where it is not one (NaN and Infinity are none)."""

    def refuse(constant: str) -> NoReturn:
        raise RequestError(f"The body is not JSON: {constant} is not JSON.")

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):  # it could not be written again
            raise RequestError(f"The body is not JSON: {number[:20]} is beyond the range of numbers.")
        return value

    try:
        return json.loads(body, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise RequestError(TOO_DEEP) from None
    except ValueError as exc:  # JSON, UTF-8, or an integer of too many digits
        raise RequestError(f"The body is not JSON: {json_words(exc)}. {NO_REQUEST}") from exc


def mistaken_for(head: bytes) -> str:
    """What a body that is not JSON is instead, by its first bytes; empty where that is not known."""
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
    """RequestError where more objects and lists than MAX_DEPTH are in one another."""
    level = containers_in([values])
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in containers_in(one)]
    if level:
        raise RequestError(TOO_DEEP)


def containers_in(container: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    """The objects and lists that are values of one."""
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, dict | list)]


def refusal(kind: type[RequestBody], values: Any, places: list[tuple[int | str, ...]]) -> RequestError:
    """What is wrong with a body's fields at `places`, and what is accepted there."""
    names = dict.fromkeys(str(place[0]) for place in places if place)
    if not names or "documents" in names:
        documents = values.get("documents") if isinstance(values, dict) else None
        if not isinstance(documents, list):
            return RequestError(NO_REQUEST)
        (most,) = (bound.max_length for bound in kind.model_fields["documents"].metadata)
        return TooManyDocumentsError(f"The request has {len(documents)} documents; {most} are accepted.")
    properties = schema_of(kind)["properties"]
    return RequestError(" ".join(f"{name} is {shown(values[name])}; {rule(name, properties[name])}" for name in names))


def rule(name: str, schema: dict[str, Any]) -> str:
    """What is accepted for a field."""
    source = ", the service's setting" if name in ("video_fps", "video_max_frames", "video_max_seconds") else ""
    return f"accepted is {accepted(schema)}{source}."


def shown(value: Any) -> str:
    """A value for an error message, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


def num_labels_of(wanted: RequestBody) -> int:
    """`num_labels`, or the name that the user's document also has for it, `num_classes`."""
    given = {getattr(wanted, name) for name in ("num_labels", "num_classes") if name in wanted.model_fields_set}
    if len(given) > 1:
        raise RequestError("num_labels and num_classes are the same setting but have different values.")
    return given.pop() if given else DEFAULT_LABELS


def content_of(document: Any) -> str | DocumentError:
    """The base64 text of a document's file, or why it has none."""
    if not isinstance(document, dict):
        return DocumentError("The document is not an object.")
    source = document.get("source")
    if not isinstance(source, dict):
        return DocumentError("The document has no object source.")
    content = source.get("content")
    if not isinstance(content, str):
        return DocumentError("The document has no text source.content, which holds the file in base64.")
    return content

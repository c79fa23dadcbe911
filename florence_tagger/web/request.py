"""What a request to `/process` may say: its JSON body -> `ProcessRequest`.

`RequestBody` is both the parser of the parameters and, by pydantic, their schema in /openapi.json and the words of the
error messages. JSON itself is read by the standard library, which is as fast, keeps integers of any size, and lets the
numbers be refused that JSON has not.
"""

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn

from annotated_types import BaseMetadata, Le, MaxLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from florence_tagger.bounds import accepted
from florence_tagger.errors import DocumentError, RequestError, TooManyDocumentsError
from florence_tagger.media.limits import Sampling
from florence_tagger.schemas import Prompt, Task

DEFAULT_LABELS = 5
MOST_LABELS = 10_000
MOST_TEXT = 2000  # characters; the model reads some 450 tokens, a text of more is only work for the tokenizer
BLANKS = " \t\r\n"
BLANK = r"[ \t\r\n]"  # the same as an expression
NO_REQUEST = 'The body must be a JSON object with a list "documents", each with its file in base64 in source.content.'

# What a string has to look like to stand for a number, in the part of the language that JSON Schema shares with Python.
NUMERALS = {
    int: rf"^{BLANK}*[0-9]+{BLANK}*$",
    float: rf"^{BLANK}*([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?{BLANK}*$",
}
MOST_NUMERAL = 20  # characters

# A picture of one pixel: the examples in the documentation can be sent as they are.
EXAMPLE_FILE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
EXAMPLE = {
    "id": "7587bcb2-4ea6-4a64-a426-040b40bf414b",
    "index": "large_control_dataset-doc",
    "source": {
        "content": EXAMPLE_FILE,
        "fs": {"uri": "file:///test_data/test1.png"},
        "file_name": "test1.png",
        "file_type": "png",
        "embedded_depth": 0,
    },
}


def task_named(name: Any) -> Any:
    """A task by its name in any case, with or without its brackets; what is none as it came."""
    if isinstance(name, str):
        name = name.strip(BLANKS).upper().removeprefix("<").removesuffix(">")
    return next((task for task in Task if task == name), name)


def written(text: str) -> str:
    """A text that can be written as UTF-8; JSON also has half characters, which can't."""
    text.encode()
    return text


def unlike_parameters(schema: dict[str, Any]) -> None:
    """Adds to the schema of `RequestBody` what else is understood, and which tasks need a text."""
    for name, field in schema["properties"].items():
        if name != "documents":
            exact = {key: field.pop(key) for key in tuple(field) if key not in ("description", "default", "title")}
            field["anyOf"] = [exact, {"enum": ["", None]}]
            if numeral := {"integer": NUMERALS[int], "number": NUMERALS[float]}.get(exact.get("type", "")):
                field["anyOf"].insert(1, {"type": "string", "pattern": numeral, "maxLength": MOST_NUMERAL})
    schema["if"] = {"properties": {"prompt": {"enum": [t for t in Task if t.takes_text]}}, "required": ["prompt"]}
    schema["then"] = {
        "properties": {"text": {"type": "string", "pattern": BLANK.replace("[", "[^")}},
        "required": ["text"],
    }


class RequestBody(BaseModel):
    """A request: documents, and how they are to be counted. Other fields are not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", json_schema_extra=unlike_parameters)

    documents: list[
        Annotated[
            Any,
            Field(
                description="An object whose source.content is a picture or video in base64. Everything else in it "
                "comes back as it is. What is no such object is named in list_id_not_treated, with the reason."
            ),
        ]
    ] = Field(description="The documents, in the order of the answer.", examples=[[EXAMPLE]])
    num_labels: int = Field(
        DEFAULT_LABELS,
        ge=0,
        le=MOST_LABELS,
        description="At most so many labels for a document, those with the highest counts; 0 is all.",
    )
    num_classes: int = Field(
        DEFAULT_LABELS,
        ge=0,
        le=MOST_LABELS,
        description="Another name of num_labels; where both are given they must be equal.",
    )
    prompt: Annotated[
        Task, BeforeValidator(task_named), WithJsonSchema({"type": "string", "enum": [str(task) for task in Task]})
    ] = Field(
        Task.OBJECT_DETECTION,
        description="The task of Florence-2; its name may be in lower case and in <brackets>, too.",
    )
    text: Annotated[str, AfterValidator(written)] = Field(
        "",
        max_length=MOST_TEXT,
        description="What to look for, of the tasks that need it: "
        + " and ".join(task for task in Task if task.takes_text)
        + ".",
    )
    output: Literal["counts", "probabilities"] = Field(
        "counts", description="What stands for a document's content: counts of labels, or labels with probabilities."
    )
    min_score: float = Field(0, ge=0, le=1, description="Boxes of a lower score are left out before counting.")
    return_boxes: bool = Field(False, description="Whether source.detections lists the boxes, too.")
    video_fps: float = Field(gt=0, description="Frames of a second of video that are looked at.")
    video_max_frames: int = Field(ge=1, description="Most frames of a video that are looked at.")
    video_max_seconds: float = Field(gt=0, description="Seconds of a video, from its start, that are looked at.")

    @model_validator(mode="before")
    @classmethod
    def understand(cls, values: Any) -> Any:
        """Leaves out what stands for a default (null and the empty string) and reads the numbers in strings."""
        if not isinstance(values, dict):
            return values
        given = {name: values[name] for name in cls.model_fields if values.get(name) not in (None, "")}
        return {name: number_in(value, cls.model_fields[name].annotation) for name, value in given.items()}


def number_in(value: Any, kind: Any) -> Any:
    """A value of a field of a kind: the number that a string says or a fraction comes to; anything else as it is."""
    if kind not in NUMERALS:
        return value
    if isinstance(value, str) and len(value) <= MOST_NUMERAL and re.search(NUMERALS[kind], value):
        return kind(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema calls 5.0 an integer
    return value


@lru_cache
def body_type(max_documents: int, sampling: Sampling) -> type[RequestBody]:
    """`RequestBody` with the bounds of a service: at most `max_documents`, and no more frames than `sampling`."""
    fields = {"documents": bounded("documents", MaxLen(max_documents), ...)} | {
        name: bounded(name, Le(most), most)
        for name, most in (
            ("video_fps", sampling.fps),
            ("video_max_frames", sampling.max_frames),
            ("video_max_seconds", sampling.max_seconds),
        )
    }
    return create_model("RequestBody", __base__=RequestBody, __doc__=RequestBody.__doc__, **fields)


def bounded(name: str, bound: BaseMetadata, default: Any) -> Any:
    """A field of `RequestBody` with one bound more, as `create_model` wants it."""
    field = RequestBody.model_fields[name]
    return (
        Annotated[(field.annotation, *field.metadata, bound)],
        Field(default, description=field.description, examples=field.examples),
    )


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
    """

    documents: list[Any]
    prompt: Prompt
    output: str
    num_labels: int
    min_score: float
    return_boxes: bool
    sampling: Sampling


def parse_request(body: bytes, max_documents: int, sampling: Sampling) -> ProcessRequest:
    """Reads the body of a request, which may ask for less than `sampling`.

    Raises:
        RequestError: it is not JSON, has no list `documents`, or a parameter has a value that is not accepted.
        TooManyDocumentsError: more documents than `max_documents`.
    """
    values = parse_json(body)
    kind = body_type(max_documents, sampling)
    try:
        wanted = kind.model_validate(values)
    except ValidationError as exc:
        raise refusal(kind, values, [error["loc"] for error in exc.errors(include_url=False)]) from None
    return ProcessRequest(
        wanted.documents,
        prompt_of(wanted),
        wanted.output,
        num_labels_of(wanted),
        wanted.min_score,
        wanted.return_boxes,
        Sampling(wanted.video_fps, wanted.video_max_frames, wanted.video_max_seconds),
    )


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; RequestError where it is not one (NaN and Infinity are none)."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):  # it could not be written again
            raise ValueError(f"{number[:20]} is beyond the range of numbers")
        return value

    try:
        return json.loads(body, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise RequestError("The body is nested too deeply.") from None
    except ValueError as exc:  # JSON, UTF-8, or an integer of too many digits
        raise RequestError(f"The body is not JSON: {exc}.") from exc


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


@lru_cache
def schema_of(kind: type[RequestBody]) -> dict[str, Any]:
    """The JSON schema of a body."""
    return kind.model_json_schema()


def rule(name: str, schema: dict[str, Any]) -> str:
    """What is accepted for a field."""
    source = ", the service's setting" if name.startswith("video_") else ""
    return f"accepted is {accepted(schema)}{source}."


def shown(value: Any) -> str:
    """A value for an error message, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


def prompt_of(wanted: RequestBody) -> Prompt:
    """The task of a request and the text of one that takes a text."""
    if not wanted.prompt.takes_text:
        return Prompt(wanted.prompt)
    text = wanted.text.strip(BLANKS)
    if not text:
        raise RequestError(f"{wanted.prompt} needs text, which says what to look for.")
    return Prompt(wanted.prompt, text)


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

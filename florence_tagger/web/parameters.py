"""The JSON object that `/process` takes: parser of its parameters and, by pydantic, their schema in /openapi.json."""

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

from annotated_types import BaseMetadata, Le, MaxLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from florence_tagger.config import TilesField
from florence_tagger.counting import DEFAULT_LABELS, MAX_LABELS
from florence_tagger.media.sampling import Sampling
from florence_tagger.prompts import MAX_TEXT, task_named
from florence_tagger.rules import MAX_CLASSES, MAX_NAME
from florence_tagger.schemas import Task, Tiles, VideoCount

BLANK = r"[ \t\r\n]"  # BLANKS as an expression
NOT_BLANK = BLANK.replace("[", "[^")

# What a string has to look like to stand for a number, in the part of the language that JSON Schema shares with Python.
NUMERALS = {
    int: rf"^{BLANK}*[0-9]+{BLANK}*$",
    float: rf"^{BLANK}*([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?{BLANK}*$",
}
MAX_NUMERAL = 20  # characters

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


def written(text: str) -> str:
    """A text that can be written as UTF-8; JSON also has half characters, which can't."""
    text.encode()
    return text


def video_count_named(name: Any) -> Any:
    """Return what stands for a count in a video by its name; what is none as it came."""
    return next((one for one in VideoCount if one == name), name)


def add_leniencies(schema: dict[str, Any]) -> None:
    """Adds to the schema of `RequestBody` what else is understood, and which tasks need a text or classes.

    What a field really is comes first, and what else it may be are plain types: of an `enum` for null and the empty
    string generators of clients make a class for each field.
    """
    del schema["properties"]["num_classes"]["default"]  # generated clients send defaults: num_labels would not do alone
    for name, field in schema["properties"].items():
        if name != "documents":
            exact = {key: field.pop(key) for key in tuple(field) if key not in ("description", "default", "title")}
            alternatives = exact.get("anyOf", [exact])
            field["anyOf"] = [*alternatives, *strings_for(alternatives[0]), {"type": "null"}]
    schema["if"] = {"properties": {"prompt": {"enum": [t for t in Task if t.takes_text]}}, "required": ["prompt"]}
    text = {"properties": {"text": {"type": "string", "pattern": NOT_BLANK}}, "required": ["text"]}
    classes = {"properties": {"classes": {"type": "array"}}, "required": ["classes"]}
    schema["then"] = {"oneOf": [text, classes]}


def strings_for(exact: dict[str, Any]) -> list[dict[str, Any]]:
    """The strings that are understood in the place of what a schema describes: numerals, and the empty one."""
    if numeral := {"integer": NUMERALS[int], "number": NUMERALS[float]}.get(exact["type"]):
        return [{"type": "string", "pattern": f"^$|{numeral}", "maxLength": MAX_NUMERAL}]
    return [] if exact["type"] == "string" and "enum" not in exact else [{"const": ""}]


class RequestBody(BaseModel):
    """A request: documents, and how they are to be counted. Other fields are not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", json_schema_extra=add_leniencies)

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
        le=MAX_LABELS,
        description="At most so many labels for a document, those with the highest counts; 0 is all.",
    )
    num_classes: int = Field(
        DEFAULT_LABELS,
        ge=0,
        le=MAX_LABELS,
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
        max_length=MAX_TEXT,
        description="What to look for, of the tasks that need it: "
        + " and ".join(task for task in Task if task.takes_text)
        + ". Several things have <and> between them.",
    )
    classes: list[Annotated[str, Field(max_length=MAX_NAME, pattern=NOT_BLANK), AfterValidator(written)]] = Field(
        default_factory=list,
        min_length=1,
        max_length=MAX_CLASSES,
        description="Only these are counted, each is in the answer, with 0 where there is none, and num_labels leaves "
        "none out. Case, white space and plurals are nothing to them. Of tasks that need a text they are the text.",
        examples=[["car", "person"]],
        json_schema_extra={"uniqueItems": True},
    )
    output: Literal["counts", "probabilities"] = Field(
        "counts", description="What stands for a document's content: counts of labels, or labels with probabilities."
    )
    min_score: float = Field(0, ge=0, le=1, description="Boxes of a lower score are left out before counting.")
    return_boxes: bool = Field(False, description="Whether source.detections lists the boxes, too.")
    tiles: TilesField = Field(
        1,
        description="Tiles a side that each picture, page or frame is looked at in, for small things. With auto the "
        "whole is looked at first, and cut where its boxes are small or its answer was cut off.",
    )
    merge_iou: float = Field(
        0,
        ge=0,
        le=1,
        description="Of boxes, of any labels, whose intersection over union is this or more, the one of the highest "
        "score is kept; 0 is off.",
    )
    video_count: Annotated[
        VideoCount,
        BeforeValidator(video_count_named),
        WithJsonSchema({"type": "string", "enum": [str(one) for one in VideoCount]}),
    ] = Field(
        VideoCount.PEAK,
        description="Of a video, the most in any one frame, or how many different ones pass; detections then have the "
        "number of their track.",
    )
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
    kind = int if kind == TilesField else kind
    if kind not in NUMERALS:
        return value
    if isinstance(value, str) and len(value) <= MAX_NUMERAL and re.search(NUMERALS[kind], value):
        return kind(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema calls 5.0 an integer
    return value


@lru_cache
def body_type(max_documents: int, sampling: Sampling, tiles: Tiles = 1) -> type[RequestBody]:
    """`RequestBody` with the bounds and defaults of a service: at most `max_documents`, frames as of `sampling`."""
    fields = {"documents": bounded("documents", MaxLen(max_documents), ...), "tiles": with_default("tiles", tiles)} | {
        name: bounded(name, Le(most), most)
        for name, most in (
            ("video_fps", sampling.fps),
            ("video_max_frames", sampling.max_frames),
            ("video_max_seconds", sampling.max_seconds),
        )
    }
    return create_model("RequestBody", __base__=RequestBody, __doc__=RequestBody.__doc__, **fields)


def with_default(name: str, default: Any) -> Any:
    """A field of `RequestBody` with another default, as `create_model` wants it."""
    field = RequestBody.model_fields[name]
    return field.annotation, Field(default, description=field.description)


def bounded(name: str, bound: BaseMetadata, default: Any) -> Any:
    """A field of `RequestBody` with one bound more, as `create_model` wants it."""
    field = RequestBody.model_fields[name]
    return (
        Annotated[(field.annotation, *field.metadata, bound)],
        Field(default, description=field.description, examples=field.examples),
    )


@lru_cache
def schema_of(kind: type[RequestBody]) -> dict[str, Any]:
    """The JSON schema of a body."""
    return kind.model_json_schema()

"""The JSON object in a request to `/process`: validation of its parameters, and their schema in /openapi.json."""

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
from florence_tagger.prompts import MAX_TEXT, task_for
from florence_tagger.rules import MAX_CLASSES, MAX_NAME
from florence_tagger.schemas import Task, Tiles, VideoCount

BLANK = r"[ \t\r\n]"  # the characters of `prompts.BLANKS`
NOT_BLANK = BLANK.replace("[", "[^")

# Patterns of strings that are accepted as numbers, in the regular expressions that JSON Schema shares with Python.
NUMERALS = {
    int: rf"^{BLANK}*[0-9]+{BLANK}*$",
    float: rf"^{BLANK}*([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?{BLANK}*$",
}
MAX_NUMERAL = 20  # characters

# A picture of one pixel, so that the examples in the documentation can be sent.
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


def check_encodable(text: str) -> str:
    """Return the text; raise UnicodeEncodeError if it has lone surrogates, which JSON allows and UTF-8 does not."""
    text.encode()
    return text


def video_count_for(name: Any) -> Any:
    """Return the `VideoCount` of a name, or any other value unchanged."""
    return next((video_count for video_count in VideoCount if video_count == name), name)


def add_leniencies(schema: dict[str, Any]) -> None:
    """Add the other accepted values of each field to a schema of `RequestBody`, and which tasks need text or classes.

    The exact type of a field comes first. The alternatives are plain types: for an `enum` of null and the empty string,
    generators of clients make a class for each field.
    """
    del schema["properties"]["num_classes"]["default"]  # generated clients send it, even beside num_labels
    for name, field in schema["properties"].items():
        if name != "documents":
            exact = {key: field.pop(key) for key in tuple(field) if key not in ("description", "default", "title")}
            alternatives = exact.get("anyOf", [exact])
            field["anyOf"] = [*alternatives, *strings_for(alternatives[0]), {"type": "null"}]
    tasks = [task for task in Task if task.takes_text]
    schema["if"] = {"properties": {"prompt": {"enum": tasks}}, "required": ["prompt"]}
    text = {"properties": {"text": {"type": "string", "pattern": NOT_BLANK}}, "required": ["text"]}
    classes = {"properties": {"classes": {"type": "array"}}, "required": ["classes"]}
    schema["then"] = {"oneOf": [text, classes]}


def strings_for(exact: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of strings that are accepted instead of a value: numerals, and the empty string."""
    if numeral := {"integer": NUMERALS[int], "number": NUMERALS[float]}.get(exact["type"]):
        return [{"type": "string", "pattern": f"^$|{numeral}", "maxLength": MAX_NUMERAL}]
    return [] if exact["type"] == "string" and "enum" not in exact else [{"const": ""}]


ClassName = Annotated[str, Field(max_length=MAX_NAME, pattern=NOT_BLANK), AfterValidator(check_encodable)]


class RequestBody(BaseModel):
    """A request: documents, and options of counting. Other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", json_schema_extra=add_leniencies)

    documents: list[
        Annotated[
            Any,
            Field(
                description="An object whose source.content is a picture or video in base64. All its other fields "
                "are returned unchanged. Anything else is listed in list_id_not_treated, with the reason."
            ),
        ]
    ] = Field(description="The documents, in the order of the answer.", examples=[[EXAMPLE]])
    num_labels: int = Field(
        DEFAULT_LABELS,
        ge=0,
        le=MAX_LABELS,
        description="Maximum number of labels of a document, those with the highest counts; 0 is all.",
    )
    num_classes: int = Field(
        DEFAULT_LABELS,
        ge=0,
        le=MAX_LABELS,
        description="Another name of num_labels; if both are given they must be equal.",
    )
    prompt: Annotated[
        Task, BeforeValidator(task_for), WithJsonSchema({"type": "string", "enum": [str(task) for task in Task]})
    ] = Field(
        Task.OBJECT_DETECTION,
        description="The task of Florence-2; its name may also be in lower case and in <brackets>.",
    )
    text: Annotated[str, AfterValidator(check_encodable)] = Field(
        "",
        max_length=MAX_TEXT,
        description="The objects to detect, for the tasks that need it: "
        + " and ".join(task for task in Task if task.takes_text)
        + ". Several are separated by <and>.",
    )
    classes: list[ClassName] = Field(
        default_factory=list,
        min_length=1,
        max_length=MAX_CLASSES,
        description="The only labels to count; each is in the answer, with 0 if there is none, whatever num_labels is. "
        "Case, white space and plurals are ignored. For tasks that need a text they are the text.",
        examples=[["car", "person"]],
        json_schema_extra={"uniqueItems": True},
    )
    output: Literal["counts", "probabilities"] = Field(
        "counts", description="Content of the answer's documents: counts of labels, or labels with probabilities."
    )
    min_score: float = Field(0, ge=0, le=1, description="Boxes of a lower score are not counted.")
    return_boxes: bool = Field(False, description="Whether source.detections lists the boxes.")
    tiles: TilesField = Field(
        1,
        description="Tiles per side of each picture, page or frame, for small objects. With auto the whole is "
        "processed first, and cut if its boxes are small or its answer was cut off.",
    )
    merge_iou: float = Field(
        0,
        ge=0,
        le=1,
        description="Of boxes of any labels whose intersection over union is this or more, only the one of the highest "
        "score is kept; 0 is off.",
    )
    video_count: Annotated[
        VideoCount,
        BeforeValidator(video_count_for),
        WithJsonSchema({"type": "string", "enum": [str(video_count) for video_count in VideoCount]}),
    ] = Field(
        VideoCount.PEAK,
        description="Count of a label in a video: the maximum in any one frame, or the number of distinct objects; "
        "detections then have the number of their track.",
    )
    video_fps: float = Field(gt=0, description="Frames sampled per second of video.")
    video_max_frames: int = Field(ge=1, description="Maximum frames sampled from a video.")
    video_max_seconds: float = Field(gt=0, description="Seconds from the start of a video that are sampled.")

    @model_validator(mode="before")
    @classmethod
    def normalize(cls, values: Any) -> Any:
        """Leave out null and empty strings, which stand for the defaults, and convert strings to numbers."""
        if not isinstance(values, dict):
            return values
        explicit = {name: values[name] for name in cls.model_fields if values.get(name) not in (None, "")}
        return {name: parse_number(value, cls.model_fields[name].annotation) for name, value in explicit.items()}


def parse_number(value: Any, field_type: Any) -> Any:
    """Return the number of a numeral or of an integral float, according to the type of the field; else the value."""
    number_type = int if field_type == TilesField else field_type
    if number_type not in NUMERALS:
        return value
    if isinstance(value, str) and len(value) <= MAX_NUMERAL and re.search(NUMERALS[number_type], value):
        return number_type(value)
    if number_type is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema calls 5.0 an integer
    return value


@lru_cache
def body_type(max_documents: int, sampling: Sampling, tiles: Tiles = 1) -> type[RequestBody]:
    """Return `RequestBody` with the bounds and defaults of a service.

    Args:
        max_documents: in a request.
        sampling: of videos; requests may ask for fewer frames.
        tiles: default number per side.
    """
    fields = {"documents": with_bound("documents", MaxLen(max_documents), ...), "tiles": with_default("tiles", tiles)}
    fields |= {
        name: with_bound(name, Le(maximum), maximum)
        for name, maximum in (
            ("video_fps", sampling.fps),
            ("video_max_frames", sampling.max_frames),
            ("video_max_seconds", sampling.max_seconds),
        )
    }
    return create_model("RequestBody", __base__=RequestBody, __doc__=RequestBody.__doc__, **fields)


def with_default(name: str, default: Any) -> Any:
    """Return a field of `RequestBody` with another default, in the form for `create_model`."""
    field = RequestBody.model_fields[name]
    return field.annotation, Field(default, description=field.description)


def with_bound(name: str, bound: BaseMetadata, default: Any) -> Any:
    """Return a field of `RequestBody` with an additional bound and another default, in the form for `create_model`."""
    field = RequestBody.model_fields[name]
    return (
        Annotated[(field.annotation, *field.metadata, bound)],
        Field(default, description=field.description, examples=field.examples),
    )


@lru_cache
def body_schema(model: type[RequestBody]) -> dict[str, Any]:
    """Return the JSON schema of a request's body."""
    return model.model_json_schema()

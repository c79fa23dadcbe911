"""Detect's envelope: what a request may say, and the answer in its form.

The user's own document (tests/contract) has the last word on names and forms.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import psutil

from florence_tagger.counting import above, count_document, highest, label_probabilities
from florence_tagger.errors import DocumentError, RequestError, TooManyDocumentsError
from florence_tagger.media.limits import Sampling
from florence_tagger.pipeline import Outcome
from florence_tagger.schemas import DocumentResult, Prompt, Sighting, Task

DEFAULT_LABELS = 5
MOST_LABELS = 10_000
TASKS = {str(task): task for task in Task}
OUTPUTS = ("counts", "probabilities")  # the latter is the older tagger's answer, in the user's document


@dataclass(frozen=True)
class ProcessRequest:
    """A request to `/process`.

    Attributes:
        documents: as they came, echoed in the answer.
        prompt: what the model is asked.
        output: what stands for a document's content, one of `OUTPUTS`.
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
    if not isinstance(values, dict) or not isinstance(values.get("documents"), list):
        raise RequestError(
            'The body must be a JSON object with a list "documents", each with its file in base64 in source.content.'
        )
    documents = values["documents"]
    if len(documents) > max_documents:
        raise TooManyDocumentsError(f"The request has {len(documents)} documents; {max_documents} are accepted.")
    return ProcessRequest(
        documents,
        parse_prompt(values),
        parse_output(values),
        parse_num_labels(values),
        parse_min_score(values),
        parse_return_boxes(values),
        parse_sampling(values, sampling),
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


def parse_prompt(values: dict[str, Any]) -> Prompt:
    """`prompt`, a task's name in any case, with or without its brackets, and the `text` of a task that takes one."""
    name = given(values, "prompt", Task.OBJECT_DETECTION)
    task = TASKS.get(name.strip().upper().removeprefix("<").removesuffix(">")) if isinstance(name, str) else None
    if task is None:
        raise RequestError(f"prompt is {shown(name)}; accepted is {' or '.join(TASKS)}.")
    text = given(values, "text", "")
    if not isinstance(text, str):
        raise RequestError(f"text is {shown(text)}; accepted is a text.")
    if not task.takes_text:
        return Prompt(task)
    if not text.strip():
        raise RequestError(f"{task} needs text, which says what to look for.")
    return Prompt(task, text.strip())


def parse_output(values: dict[str, Any]) -> str:
    """`output`, one of `OUTPUTS`."""
    output = given(values, "output", OUTPUTS[0])
    if output not in OUTPUTS:
        raise RequestError(f"output is {shown(output)}; accepted is {' or '.join(OUTPUTS)}.")
    return str(output)


def parse_min_score(values: dict[str, Any]) -> float:
    """`min_score`, a number from 0 to 1 or a string of it."""
    value = number_of(given(values, "min_score", 0))
    if value is None or not 0 <= value <= 1:
        raise RequestError(f"min_score is {shown(values['min_score'])}; accepted is a number from 0 to 1.")
    return float(value)


def number_of(value: Any) -> int | float | None:
    """A number, or what a string says is one."""
    if isinstance(value, str) and value.strip().isascii() and len(value) <= 20:
        with suppress(ValueError):
            value = float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def given(values: dict[str, Any], name: str, default: Any) -> Any:
    """A parameter's value; null and the empty string are its default."""
    value = values.get(name)
    return default if value is None or value == "" else value


def parse_num_labels(values: dict[str, Any]) -> int:
    """`num_labels`, or the name that the user's document also has for it, `num_classes`."""
    names = [name for name in ("num_labels", "num_classes") if given(values, name, None) is not None]
    numbers = {label_number(name, values[name]) for name in names}
    if len(numbers) > 1:
        raise RequestError("num_labels and num_classes are the same setting but have different values.")
    return numbers.pop() if numbers else DEFAULT_LABELS


def label_number(name: str, value: Any) -> int:
    """An integer from 0 to 10,000, or a string of it."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_LABELS:
        raise RequestError(f"{name} is {shown(value)}; accepted is an integer from 0 (all labels) to {MOST_LABELS}.")
    return value


def parse_return_boxes(values: dict[str, Any]) -> bool:
    """`return_boxes`, true or false."""
    value = given(values, "return_boxes", False)
    if not isinstance(value, bool):
        raise RequestError(f"return_boxes is {shown(value)}; accepted is true or false.")
    return value


def parse_sampling(values: dict[str, Any], most: Sampling) -> Sampling:
    """How a request wants videos sampled, by at most what the settings say."""
    return Sampling(
        fps=lowered(values, "video_fps", most.fps),
        max_frames=int(lowered(values, "video_max_frames", most.max_frames, whole=True)),
        max_seconds=lowered(values, "video_max_seconds", most.max_seconds),
    )


def lowered(values: dict[str, Any], name: str, most: float, whole: bool = False) -> float:
    """A number above 0 and at most `most`, the default, or a string of it."""
    value = number_of(given(values, name, most))
    if value is None or not 0 < value <= most or (whole and value % 1):
        kind = "an integer from 1" if whole else "a number above 0"
        raise RequestError(f"{name} is {shown(values[name])}; accepted is {kind} to {most:g}, the service's setting.")
    return float(value)


def shown(value: Any) -> str:
    """A value for an error message, not too long."""
    text = json.dumps(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


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


def name_of(document: Any, place: int) -> str:
    """What a document is called among the untreated ones: its id, or its place where it has none."""
    identity = document.get("id") if isinstance(document, dict) else None
    if isinstance(identity, str | int | float) and not isinstance(identity, bool) and identity != "":
        return str(identity)
    return f"documents[{place}]"


def answer(request: ProcessRequest, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The envelope of a request that was treated, its documents one by one."""
    data: list[Any] = []
    untreated: list[dict[str, str]] = []
    for place, (document, outcome) in enumerate(zip(request.documents, outcomes, strict=True)):
        if isinstance(outcome, DocumentError):
            untreated.append({name_of(document, place): str(outcome)})
        else:
            data.append(treated(document, outcome, request))
    return envelope(HTTPStatus.OK, "Success", data=data, untreated=untreated)


def treated(document: dict[str, Any], result: DocumentResult, request: ProcessRequest) -> dict[str, Any]:
    """A document with its content replaced by what was found in it, everything else as it came."""
    sightings = above(result.sightings, request.min_score)
    source = document["source"] | {"content": found_in(sightings, request)}
    if request.return_boxes:
        source["detections"] = [
            {"label": region.label, "score": region.score, "box": list(region.box)} | place_of(frame, sighting)
            for frame, sighting in enumerate(sightings)
            for region in sighting.detection.regions
        ]
        if result.truncated:
            source["truncated"] = True
        if result.incomplete:
            source["incomplete"] = True
    return document | {"source": source}


def found_in(sightings: Sequence[Sighting], request: ProcessRequest) -> list[dict[str, Any]]:
    """Counts in the order of the alphabet, or labels and their probabilities, the most probable first."""
    if request.output == "probabilities":
        probabilities = label_probabilities(sightings)
        labels = highest(probabilities, request.num_labels)
        return [{"label": label, "probability": probabilities[label]} for label in labels]
    counts = count_document(sightings)
    return [{label: counts[label]} for label in sorted(highest(counts, request.num_labels))]


def place_of(frame: int, sighting: Sighting) -> dict[str, Any]:
    """Where in a document something was found: its frame from 0, the page from 1 or the time in seconds."""
    place: dict[str, Any] = {"frame": frame}
    if sighting.page is not None:
        place["page"] = sighting.page
    if sighting.time_s is not None:
        place["time_s"] = round(sighting.time_s, 3)
    return place


def failure(status: HTTPStatus, error: str) -> dict[str, Any]:
    """The envelope of a request that could not be treated at all."""
    return envelope(status, status.phrase, error=error)


def envelope(
    status: HTTPStatus,
    message: str,
    data: Sequence[Any] = (),
    untreated: Sequence[dict[str, str]] = (),
    error: str = "",
) -> dict[str, Any]:
    """The form of every answer of `/process`."""
    memory = psutil.virtual_memory()
    return {
        "status": {"code": int(status), "message": message},
        "data": list(data),
        "error": error,
        "number_documents_treated": len(data),
        "number_documents_non_treated": len(untreated),
        "list_id_not_treated": list(untreated),
        "memory_used": f"{memory.percent:.1f}",
        "ram_used": f"{memory.used / 1e9:.2f}",
    }

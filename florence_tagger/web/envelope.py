"""Detect's envelope: what became of the documents of a request -> the answer in its form.

The user's own document (tests/contract) has the last word on names and forms.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field

from florence_tagger.counting import above, as_content, count_document, highest, label_probabilities, labels_kept
from florence_tagger.errors import DocumentError
from florence_tagger.pipeline import Outcome
from florence_tagger.schemas import Detection, DocumentResult, FrameResult
from florence_tagger.web.request import ProcessRequest


class IndexResponse(BaseModel):
    """The form of every answer of `/process`; names, types and defaults are those of the user's document."""

    model_config = ConfigDict(
        title="Index_Response",
        json_schema_extra={"description": "this class contains the response from the OCR process"},
    )

    status: dict[str, Any] = Field(
        {},
        description="The HTTP status of the answer.",
        examples=[{"code": 200, "message": "Success"}],
        # Both are in every answer; they are not `required` because the default of the user's document has neither.
        json_schema_extra={"properties": {"code": {"type": "integer"}, "message": {"type": "string"}}},
    )
    data: dict[str, Any] | list[Any] | None = Field(
        [],
        description="The documents that were treated, as they came but for source.content, in the request's order.",
        examples=[[{"id": "a", "source": {"content": [{"backpack": 1}, {"car": 7}, {"person": 6}]}}]],
    )
    error: str = Field("", description="Why the whole request could not be treated, and what is accepted.")
    number_documents_treated: int = Field(0, description="How many documents data has.")
    number_documents_non_treated: int = Field(0, description="How many documents could not be treated.")
    list_id_not_treated: list[Any] = Field(
        [], description="Of each untreated document an object, {id: reason}; one without an id is named by its place."
    )
    memory_used: str = Field("", description="The machine's used memory, percent.", examples=["20.5"])
    ram_used: str = Field("", description="The machine's used memory, GB (10^9 bytes).", examples=["6.43"])


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
    frame_results = above(result.frames, request.min_score)
    source = document["source"] | {"content": found_in(frame_results, request)}
    if request.return_boxes:
        places = [place_of(frame, frame_result) for frame, frame_result in enumerate(frame_results)]
        tiles = [{"tiles": [list(tile) for tile in one.tiles]} if one.tiles else {} for one in frame_results]
        source["detections"] = [
            detection_of(detection) | place
            for place, frame_result in zip(places, frame_results, strict=True)
            for detection in frame_result.detections
        ]
        source["frames"] = [
            place | cut for place, cut in zip(places, tiles, strict=True)
        ]  # those with nothing in them, too
        if result.truncated:
            source["truncated"] = True
        if result.incomplete:
            source["incomplete"] = True
    return document | {"source": source}


def detection_of(detection: Detection) -> dict[str, Any]:
    """A detection as an answer lists it, with the number of its track where it has one."""
    track = {} if detection.track is None else {"track": detection.track}
    return {"label": detection.label, "score": detection.score, "box": list(detection.box)} | track


def found_in(frame_results: Sequence[FrameResult], request: ProcessRequest) -> list[dict[str, Any]]:
    """Counts in the order of the alphabet, or labels and their probabilities, the most probable first."""
    most = labels_kept(request.num_labels, request.rules)
    if request.output == "probabilities":
        probabilities = label_probabilities(frame_results, request.rules.classes)
        return [{"label": label, "probability": probabilities[label]} for label in highest(probabilities, most)]
    return as_content(count_document(frame_results, request.rules), most)


def place_of(frame: int, frame_result: FrameResult) -> dict[str, Any]:
    """Where in a document a frame is: its frame from 0, the page from 1 or the time in seconds."""
    place: dict[str, Any] = {"frame": frame}
    if frame_result.page is not None:
        place["page"] = frame_result.page
    if frame_result.time_s is not None:
        place["time_s"] = round(frame_result.time_s, 3)
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
    form = IndexResponse.model_construct(  # what we say ourselves needs no checks
        status={"code": int(status), "message": message},
        data=list(data),
        error=error,
        number_documents_treated=len(data),
        number_documents_non_treated=len(untreated),
        list_id_not_treated=list(untreated),
        memory_used=f"{memory.percent:.1f}",
        ram_used=f"{memory.used / 1e9:.2f}",
    )
    return dict(form)

"""Detect's envelope: the outcomes of a request's documents -> the answer to the request.

The user's own document (tests/contract) is authoritative for names and types.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field

from florence_tagger.context import Outcome
from florence_tagger.counting import (
    as_content,
    count_document,
    filter_by_score,
    label_probabilities,
    max_labels_for,
    top_labels,
)
from florence_tagger.errors import DocumentError
from florence_tagger.schemas import Detection, DocumentResult, FrameResult
from florence_tagger.web.request import ProcessRequest


class IndexResponse(BaseModel):
    """Schema of every answer of `/process`; names, types and defaults are those of the user's document."""

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


def document_name(document: Any, index: int) -> str:
    """Return the name of a document among the untreated ones: its id, or its index if it has none."""
    identity = document.get("id") if isinstance(document, dict) else None
    if isinstance(identity, str | int | float) and not isinstance(identity, bool) and identity != "":
        return str(identity)
    return f"documents[{index}]"


def answer(request: ProcessRequest, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the envelope of a request whose documents were processed, each with its own outcome."""
    data: list[Any] = []
    untreated: list[dict[str, str]] = []
    for index, (document, outcome) in enumerate(zip(request.documents, outcomes, strict=True)):
        if isinstance(outcome, DocumentError):
            untreated.append({document_name(document, index): str(outcome)})
        else:
            data.append(answer_document(document, outcome, request))
    return envelope(HTTPStatus.OK, "Success", data=data, untreated=untreated)


def answer_document(document: dict[str, Any], result: DocumentResult, request: ProcessRequest) -> dict[str, Any]:
    """Return a document with its content replaced by its counts or probabilities; all other fields are unchanged."""
    frame_results = filter_by_score(result.frames, request.min_score)
    source = document["source"] | {"content": document_content(frame_results, request)}
    if request.return_boxes:
        positions = [frame_position(index, frame_result) for index, frame_result in enumerate(frame_results)]
        source["detections"] = [
            detection_fields(detection) | position
            for position, frame_result in zip(positions, frame_results, strict=True)
            for detection in frame_result.detections
        ]
        source["frames"] = [  # all of them, also those without detections
            position | tile_fields(frame_result)
            for position, frame_result in zip(positions, frame_results, strict=True)
        ]
        if result.truncated:
            source["truncated"] = True
        if result.incomplete:
            source["incomplete"] = True
    return document | {"source": source}


def detection_fields(detection: Detection) -> dict[str, Any]:
    """Return a detection as in an answer, with the number of its track if it has one."""
    track = {} if detection.track is None else {"track": detection.track}
    return {"label": detection.label, "score": detection.score, "box": list(detection.box)} | track


def tile_fields(frame_result: FrameResult) -> dict[str, Any]:
    """Return the tiles of a frame as in an answer, nothing if it was not cut."""
    return {"tiles": [list(tile) for tile in frame_result.tiles]} if frame_result.tiles else {}


def document_content(frame_results: Sequence[FrameResult], request: ProcessRequest) -> list[dict[str, Any]]:
    """Return the counts in alphabetical order of the label, or the probabilities, the most probable label first."""
    max_labels = max_labels_for(request.num_labels, request.rules)
    if request.output == "probabilities":
        probabilities = label_probabilities(frame_results, request.rules.classes)
        return [
            {"label": label, "probability": probabilities[label]} for label in top_labels(probabilities, max_labels)
        ]
    return as_content(count_document(frame_results, request.rules), max_labels)


def frame_position(index: int, frame_result: FrameResult) -> dict[str, Any]:
    """Return the position of a frame in its document: index from 0, page from 1, time in seconds."""
    position: dict[str, Any] = {"frame": index}
    if frame_result.page is not None:
        position["page"] = frame_result.page
    if frame_result.time_s is not None:
        position["time_s"] = round(frame_result.time_s, 3)
    return position


def failure(status: HTTPStatus, error: str) -> dict[str, Any]:
    """Return the envelope of a request that failed as a whole."""
    return envelope(status, status.phrase, error=error)


def envelope(
    status: HTTPStatus,
    message: str,
    data: Sequence[Any] = (),
    untreated: Sequence[dict[str, str]] = (),
    error: str = "",
) -> dict[str, Any]:
    """Return an answer of `/process`, with the current use of memory."""
    memory = psutil.virtual_memory()
    response = IndexResponse.model_construct(  # not validated: all values are the service's own
        status={"code": int(status), "message": message},
        data=list(data),
        error=error,
        number_documents_treated=len(data),
        number_documents_non_treated=len(untreated),
        list_id_not_treated=list(untreated),
        memory_used=f"{memory.percent:.1f}",
        ram_used=f"{memory.used / 1e9:.2f}",
    )
    return dict(response)

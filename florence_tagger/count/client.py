"""A client of a running service: bytes of a file -> its detections.

It uses http.client of the standard library, not urllib.request, which sends the key along when it follows a redirect.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from florence_tagger.errors import (
    RESTARTED,
    STOPPING,
    DocumentError,
    NotReadyError,
    RequestError,
    SettingsError,
    TaggerError,
)
from florence_tagger.schemas import Detection, DocumentResult, FrameResult, Tiles, VideoCount
from florence_tagger.wording import system_words

SPARE_SECONDS = 30  # beyond the service's own deadline
RETRY_SECONDS = 300  # for a service that loads its model, or is at its limits
PAUSE_SECONDS = 0.5  # between two attempts
SERVICE_REASONS = (STOPPING, RESTARTED)  # why the service, not the file, is at fault
CONNECTIONS: dict[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


@dataclass(frozen=True)
class Client:
    """A thread-safe client of the service at `url`.

    Attributes:
        timeout_seconds: for a request.
    """

    url: SplitResult
    api_key: str
    timeout_seconds: float
    _open: set[http.client.HTTPConnection] = field(default_factory=set)
    _closed: Event = field(default_factory=Event)

    def check(self) -> None:
        """Raise TaggerError if the URL is not that of a florence_tagger service."""
        status, answer = self._send("GET", "/test")
        if status != http.HTTPStatus.OK or "test endpoint is" not in answer:
            raise TaggerError(f"{self.url.geturl()} is not florence_tagger's")

    def detect(
        self,
        file: bytes,
        prompt: str,
        text: str,
        min_score: float,
        classes: Sequence[str] | None = None,
        merge_iou: float = 0.0,
        video_count: str = VideoCount.PEAK,
        tiles: Tiles | None = None,
    ) -> DocumentResult:
        """Return the detections that the service finds in a file.

        Raises:
            DocumentError: the service can't process the file; its text is the reason.
            TaggerError: the service can't be reached, or processes no file at all.
        """
        document = {"id": "file", "source": {"content": base64.b64encode(file).decode()}}
        options = {"prompt": prompt, "text": text, "min_score": min_score, "return_boxes": True}
        options |= {"classes": classes, "merge_iou": merge_iou, "video_count": video_count, "tiles": tiles}
        body = json.dumps({"documents": [document], **options}).encode()
        deadline = time.monotonic() + RETRY_SECONDS
        status, answer = self._send("POST", "/process", body)
        while status == http.HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            self._closed.wait(PAUSE_SECONDS)
            status, answer = self._send("POST", "/process", body)
        try:
            return read_answer(status, answer)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raise TaggerError(f"{self.url.geturl()} gave no answer of florence_tagger's (status {status})") from exc

    def close(self) -> None:
        """Abort all running requests, which then raise TaggerError."""
        self._closed.set()
        for connection in self._open.copy():
            if connection.sock is not None:
                with suppress(OSError):  # the connection is already closed
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Send a request; return the status and the JSON object of its answer, an empty one if it has none."""
        headers = {"Content-Type": b"application/json"} | (
            {"X-API-Key": os.fsencode(self.api_key)} if self.api_key else {}
        )
        connection = connection_to(self.url, self.timeout_seconds)
        self._open.add(connection)
        try:
            if self._closed.is_set():
                raise NotReadyError("The client is closed.")
            connection.request(method, quote(self.url.path.rstrip("/"), safe="/%") + path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as exc:
            raise TaggerError(f"{self.url.geturl()} can't be reached: {connection_error_words(exc)}") from exc
        finally:
            self._open.discard(connection)
            connection.close()
        return response.status, json_object(answer)


def connection_error_words(error: Exception) -> str:
    """Return in words why a request to a service failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate can't be verified"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as is wanted; is http:// meant?"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, http.client.HTTPException):  # also if the service closes the connection without an answer
        return "it gives no answer in HTTP, or only a part of one"
    return system_words(error) if isinstance(error, OSError) else "no host can have this name"


def connection_to(url: SplitResult, timeout_seconds: float) -> http.client.HTTPConnection:
    """Return a connection, not yet opened.

    Raises:
        LookupError, ValueError, InvalidURL: the URL can't be that of a service.
    """
    return CONNECTIONS[url.scheme](url.hostname or "", url.port, timeout=timeout_seconds)


def client_for(url: str, api_key: str, request_seconds: float) -> Client:
    """Return the client of the service at `url`.

    Args:
        url: of the service; its path is put before those of the requests.
        api_key: the key of the service, empty for none.
        request_seconds: the service's own deadline for a request.

    Raises:
        SettingsError: the URL can't be that of a service, or the key can't be sent.
    """
    try:
        parts = urlsplit(url)
        connection_to(parts, 0)
        ignored = parts.query or parts.fragment or parts.username
        usable = bool(parts.hostname) and parts.port != 0 and not ignored
    except (LookupError, ValueError, http.client.InvalidURL):
        usable = False
    if not usable:
        raise SettingsError(f"{url} is no URL of a service, as http://localhost:5011 is one.")
    if not api_key.isprintable():
        raise SettingsError("FLORENCE_API_KEY=…: a key that is sent has printable characters alone")
    return Client(parts, api_key, request_seconds + SPARE_SECONDS)


def json_object(text: bytes) -> dict[str, Any]:
    """Return the object in a JSON text, an empty one if there is none."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def read_answer(status: int, answer: dict[str, Any]) -> DocumentResult:
    """Return the result of the only document in an answer.

    Raises:
        DocumentError: the document could not be processed; its text is the reason.
        TaggerError: the service refused the request, or is stopping.
        LookupError, TypeError, ValueError, AttributeError: the answer has another form.
    """
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise DocumentError(answer["error"])
    if status != http.HTTPStatus.OK:
        raise RequestError(answer["error"])
    for reasons in answer["list_id_not_treated"]:
        (reason,) = reasons.values()
        raise NotReadyError(reason) if reason in SERVICE_REASONS else DocumentError(reason)
    (document,) = answer["data"]
    source = document["source"]
    frame_results = (
        frame_result_of(frame, source["detections"], source.get("truncated", False)) for frame in source["frames"]
    )
    return DocumentResult(tuple(frame_results), source.get("incomplete", False))


def frame_result_of(frame: dict[str, Any], detections: Iterable[dict[str, Any]], truncated: bool) -> FrameResult:
    """Return one frame of an answer with its share of the document's detections."""
    own_detections = tuple(
        Detection(detection["label"], tuple(detection["box"]), detection["score"], detection.get("track"))
        for detection in detections
        if detection["frame"] == frame["frame"]
    )
    tiles = tuple(tuple(tile) for tile in frame.get("tiles", ()))
    return FrameResult(own_detections, truncated, page=frame.get("page"), time_s=frame.get("time_s"), tiles=tiles)

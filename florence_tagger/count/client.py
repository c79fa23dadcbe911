"""A running service as what finds the objects in files, by the standard library.

http.client and not urllib.request, which would take the key along when it is sent elsewhere.
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
    STARTED_ANEW,
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
PATIENCE_SECONDS = 300  # with a service that loads its model, or has no room
PAUSE_SECONDS = 0.5
UNDONE = (STOPPING, STARTED_ANEW)  # no reasons of the file's
CONNECTIONS: dict[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


@dataclass(frozen=True)
class Client:
    """A service at `url`, for any thread.

    Attributes:
        seconds: that a request may take.
    """

    url: SplitResult
    api_key: str
    seconds: float
    _open: set[http.client.HTTPConnection] = field(default_factory=set)
    _closed: Event = field(default_factory=Event)

    def check(self) -> None:
        """TaggerError where there is no such service."""
        status, answer = self._ask("GET", "/test")
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
        """What the service finds in a file.

        Raises:
            DocumentError: it can't treat the file; says why.
            TaggerError: it can't be reached, or does not treat anything.
        """
        document = {"id": "file", "source": {"content": base64.b64encode(file).decode()}}
        options = {"prompt": prompt, "text": text, "min_score": min_score, "return_boxes": True}
        options |= {"classes": classes, "merge_iou": merge_iou, "video_count": video_count, "tiles": tiles}
        body = json.dumps({"documents": [document], **options}).encode()
        deadline = time.monotonic() + PATIENCE_SECONDS
        status, answer = self._ask("POST", "/process", body)
        while status == http.HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            self._closed.wait(PAUSE_SECONDS)
            status, answer = self._ask("POST", "/process", body)
        try:
            return read_answer(status, answer)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raise TaggerError(f"{self.url.geturl()} gave no answer of florence_tagger's (status {status})") from exc

    def close(self) -> None:
        """Ends what waits for an answer, with a TaggerError."""
        self._closed.set()
        for connection in self._open.copy():
            if connection.sock is not None:
                with suppress(OSError):  # it has ended by itself
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer; an empty one where it is none."""
        headers = {"Content-Type": b"application/json"} | (
            {"X-API-Key": os.fsencode(self.api_key)} if self.api_key else {}
        )
        connection = connection_to(self.url, self.seconds)
        self._open.add(connection)
        try:
            if self._closed.is_set():
                raise NotReadyError("The client is closed.")
            connection.request(method, quote(self.url.path.rstrip("/"), safe="/%") + path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as exc:
            raise TaggerError(f"{self.url.geturl()} can't be reached: {why_unreachable(exc)}") from exc
        finally:
            self._open.discard(connection)
            connection.close()
        return response.status, json_object(answer)


def why_unreachable(error: Exception) -> str:
    """What keeps a service from being asked, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate can't be verified"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as is wanted; is http:// meant?"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, http.client.HTTPException):  # also where it ends the connection instead of answering
        return "it gives no answer in HTTP, or only a part of one"
    return system_words(error) if isinstance(error, OSError) else "no host can have this name"


def connection_to(url: SplitResult, seconds: float) -> http.client.HTTPConnection:
    """A connection that is yet to be opened; LookupError, ValueError or InvalidURL where the URL is of no service."""
    return CONNECTIONS[url.scheme](url.hostname or "", url.port, timeout=seconds)


def client_of(url: str, api_key: str, request_seconds: float) -> Client:
    """The client of the service at `url`; SettingsError where that is none."""
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
    """The object that is written in a text, an empty one where none is."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def read_answer(status: int, answer: dict[str, Any]) -> DocumentResult:
    """What an answer says of the one document that was sent."""
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise DocumentError(answer["error"])
    if status != http.HTTPStatus.OK:
        raise RequestError(answer["error"])
    for reasons in answer["list_id_not_treated"]:
        (reason,) = reasons.values()
        raise NotReadyError(reason) if reason in UNDONE else DocumentError(reason)
    (document,) = answer["data"]
    source = document["source"]
    frame_results = (
        frame_result_of(frame, source["detections"], source.get("truncated", False)) for frame in source["frames"]
    )
    return DocumentResult(tuple(frame_results), source.get("incomplete", False))


def frame_result_of(frame: dict[str, Any], detections: Iterable[dict[str, Any]], truncated: bool) -> FrameResult:
    """What was found in one of the frames of an answer."""
    found = tuple(
        Detection(one["label"], tuple(one["box"]), one["score"], one.get("track"))
        for one in detections
        if one["frame"] == frame["frame"]
    )
    tiles = tuple(tuple(tile) for tile in frame.get("tiles", ()))
    return FrameResult(found, truncated, page=frame.get("page"), time_s=frame.get("time_s"), tiles=tiles)

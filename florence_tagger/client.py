"""The client of a running service: a file -> its detections or counts, over HTTP.

It uses httpx, and no proxy, key or certificate of the environment but the system's certificate authorities.
"""

import base64
import json
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from socket import SHUT_RDWR, socket
from threading import Event, Lock
from types import MappingProxyType
from typing import Any

import httpx

from florence_tagger.errors import (
    RESTARTED,
    STOPPING,
    DocumentError,
    NotReadyError,
    RequestError,
    SettingsError,
    TaggerError,
    UnreachableError,
)
from florence_tagger.media.content import read_file
from florence_tagger.object_counter import ObjectCounter
from florence_tagger.schemas import Detection, DocumentResult, File, FrameResult, Rules, Tiles
from florence_tagger.wording import system_words

DEFAULT_URL = "http://localhost:5011"
SPARE_SECONDS = 30.0  # beyond the service's own deadline for a request
TIMEOUT_SECONDS = 600.0 + SPARE_SECONDS  # for that of the default settings
RETRY_SECONDS = 300  # for a service that loads its model, or is at its limits
PAUSE_SECONDS = 0.5  # between two attempts
SERVICE_REASONS = (STOPPING, RESTARTED)  # why the service, not the file, is at fault
MAX_FILE_BYTES = 10**9  # of a file that is read; the service has a limit of its own
# Of httpcore's trace: a new socket.
CONNECT_EVENTS = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Client(ObjectCounter):
    """A client of the service at `url`, for any thread; `count` and `detect` are those of `Tagger`.

    with Client("http://localhost:5011") as client:
        client.count("photo.jpg")  # {"car": 7, "person": 6}
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str = "", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Open no connection yet.

        Args:
            url: of the service; its path is put before those of the requests.
            api_key: the key of the service, empty for none.
            timeout_seconds: for connecting, and for each read and write.

        Raises:
            SettingsError: the URL can't be that of a service, or the key can't be sent.
        """
        self.url = url
        headers = [(b"X-API-Key", os.fsencode(checked_key(api_key)))] if api_key else []
        self._http = httpx.Client(
            base_url=checked_url(url),
            headers=headers,
            timeout=timeout_seconds,
            verify=ssl.create_default_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),  # no request meets a closed one
        )
        self._sockets: set[socket] = set()
        self._lock = Lock()  # of the sockets
        self._closed = Event()

    def check(self) -> None:
        """Raise TaggerError if the URL is not that of a florence_tagger service."""
        response = self.send("GET", "/test")
        if response.status_code != HTTPStatus.OK or "test endpoint is" not in json_object(response):
            raise TaggerError(f"{self.url} is not florence_tagger's")

    def detect_with(
        self, file: File, prompt: str, text: str, min_score: float, rules: Rules, tiles: Tiles | None
    ) -> DocumentResult:
        """Return the detections of a file by the rules; wait up to `RETRY_SECONDS` for a service that is busy or loads.

        Raises:
            DocumentError: the service can't process the file; its text is the reason.
            TaggerError: the service can't be reached, or processes no file at all.
        """
        content = file if isinstance(file, bytes) else read_file(file, MAX_FILE_BYTES)
        document = {"id": "file", "source": {"content": base64.b64encode(content).decode()}}
        options = {"prompt": prompt, "text": text, "min_score": min_score, "return_boxes": True}
        options |= {"classes": rules.classes or None, "merge_iou": rules.merge_iou, "video_count": rules.video_count}
        options |= {"tiles": tiles}
        deadline = time.monotonic() + RETRY_SECONDS
        body = {"documents": [document], **options}
        response = self.post(body)
        while response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            self._closed.wait(PAUSE_SECONDS)
            response = self.post(body)
        try:
            return read_answer(response.status_code, json_object(response))
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            status = response.status_code
            raise TaggerError(f"{self.url} gave no answer of florence_tagger's (status {status})") from exc

    def post(self, body: Any, headers: Mapping[str, str] = MappingProxyType({})) -> httpx.Response:
        """Send a request to /process, whose `body` is anything that JSON can write; errors as of `send`."""
        content = json.dumps(body).encode()  # httpx would refuse half characters and NaN, which the service answers
        return self.send("POST", "/process", content=content, headers={"Content-Type": "application/json", **headers})

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return its response, whatever its status; `options` as of `httpx.Client.request`.

        Raises:
            NotReadyError: the client is closed.
            UnreachableError: the service can't be reached.
        """
        if self._closed.is_set():
            raise NotReadyError("The client is closed.")
        try:
            return self._http.request(method, path, extensions={"trace": self._trace}, **options)
        except (httpx.RequestError, httpx.InvalidURL, OSError, UnicodeError, RuntimeError) as exc:
            if self._closed.is_set():  # httpx raises RuntimeError for a closed client
                raise NotReadyError("The client is closed.") from exc
            if isinstance(exc, RuntimeError):
                raise
            raise UnreachableError(f"{self.url} can't be reached: {connection_error_words(exc)}") from exc

    def close(self) -> None:
        """Abort all running requests, which then raise TaggerError, and close the connections."""
        self._closed.set()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            shut(connection)
        self._http.close()

    def _trace(self, event: str, details: dict[str, Any]) -> None:
        """Remember the socket of each new connection: closing an httpx client does not end what others wait for."""
        if event in CONNECT_EVENTS:
            with self._lock:
                self._sockets = {known for known in self._sockets if known.fileno() >= 0}
                connection = details["return_value"].get_extra_info("socket")
                self._sockets.add(connection)
                if self._closed.is_set():  # `close` came while it was opened
                    shut(connection)


def shut(connection: socket) -> None:
    """End a connection for the thread that waits for it."""
    with suppress(OSError):  # it is already closed
        connection.shutdown(SHUT_RDWR)


def checked_url(url: str) -> httpx.URL:
    """Return the URL of a service; SettingsError if it can't be one."""
    try:
        parts = httpx.URL(url)
        ignored = parts.query or parts.fragment or parts.userinfo
        usable = parts.scheme in ("http", "https") and bool(parts.host) and parts.port != 0 and not ignored
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise SettingsError(f"{url} is no URL of a service, as {DEFAULT_URL} is one.")
    return parts


def checked_key(api_key: str) -> str:
    """Return a key that can be sent in a header; SettingsError if it can't."""
    if not api_key.isprintable() or api_key != api_key.strip():
        raise SettingsError("FLORENCE_API_KEY=…: a key that is sent has printable characters alone")
    return api_key


def connection_error_words(error: BaseException) -> str:
    """Return in words why a request to a service failed."""
    causes = list(causes_of(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return "its certificate can't be verified"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "it does not speak TLS as is wanted; is http:// meant?"
    if isinstance(error, httpx.TimeoutException):
        return "it does not answer in time"
    if isinstance(error, httpx.ProtocolError | httpx.DecodingError):  # also a connection closed without an answer
        return "it gives no answer in HTTP, or only a part of one"
    words = [system_words(cause) for cause in causes if isinstance(cause, OSError)]
    return words[-1] if words else "no host can have this name"


def causes_of(error: BaseException | None) -> Iterable[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a response, an empty one if it has none."""
    try:
        answer = response.json()
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
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise DocumentError(answer["error"])
    if status != HTTPStatus.OK:
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

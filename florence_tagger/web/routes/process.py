"""The route of the contract: POST /process, and the job that each request to it is."""

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, g, jsonify, request
from flask.typing import ResponseReturnValue

from florence_tagger.assembly import sampling_from
from florence_tagger.errors import BusyError, ClientDisconnectedError
from florence_tagger.pipeline import Outcome, RequestObserver
from florence_tagger.web.body import Reservation, read_body
from florence_tagger.web.clients import is_gone
from florence_tagger.web.envelope import answer
from florence_tagger.web.jobs import Status
from florence_tagger.web.logs import job_id
from florence_tagger.web.metrics import CLIENT_GONE
from florence_tagger.web.request import ProcessRequest, content_of, parse_request
from florence_tagger.web.state import Service, current_service

logger = logging.getLogger(__name__)

PATH = "/process"
SHOWN = "".join(map(chr, range(32, 127))).replace("%", "")  # ASCII as it is, but for what begins an encoded byte

blueprint = Blueprint("process", __name__)


class JobObserver(RequestObserver):
    """Writes a request's progress into its job."""

    def __init__(self, service: Service, uid: str, environ: Mapping[str, Any]) -> None:
        self._service = service
        self._uid = uid
        self._environ = environ

    def begun(self) -> None:
        self._service.jobs.run(self._uid)

    def frame_done(self) -> None:
        self._service.jobs.count_frame(self._uid)

    def document_done(self, outcome: Outcome) -> None:
        self._service.jobs.count_document(self._uid)
        self._service.metrics.count_document(outcome)

    def check(self) -> None:
        if is_gone(self._environ):
            raise ClientDisconnectedError("The client is gone.")


@blueprint.before_app_request
def open_job() -> None:
    """Whatever becomes of a request to /process, it is a job."""
    if request.path == PATH:
        g.job = current_service().jobs.open()
        job_id.set(g.job)


@blueprint.after_app_request
def end_job(response: Response) -> Response:
    """Tells how the job ended: in the answer, among the jobs, in the metrics and in the log."""
    if (uid := g.pop("job", None)) is None:
        return response
    service = current_service()
    job = service.jobs.end(uid, status_of(response.status_code))
    service.metrics.count_request(response.status_code, job.seconds or 0.0)
    response.headers["X-Job-Id"] = uid
    if job.model:
        response.headers["X-Model"], response.headers["X-Device"] = quoted(job.model), quoted(job.device)
    logger.info(
        "%d, %s of %s documents done, %.3f s",
        response.status_code,
        job.documents_done,
        "?" if job.documents is None else job.documents,
        job.seconds,
    )
    return response


def quoted(text: str) -> str:
    """A text as a header carries it: what is not ASCII, as a folder's name may have it, percent-encoded."""
    return quote(text, safe=SHOWN)


@blueprint.teardown_app_request
def forget_job(error: BaseException | None) -> None:
    """The thread's next lines are about something else."""
    job_id.set("")


def status_of(code: int) -> Status:
    """How a job ended that was answered with an HTTP code."""
    if code == CLIENT_GONE:
        return "cancelled"
    return "done" if code == HTTPStatus.OK else "failed"


@blueprint.post(PATH)
def process() -> ResponseReturnValue:
    """Counts the objects in the documents of an envelope."""
    service = current_service()
    deadline = time.monotonic() + service.settings.request_seconds
    service.scheduler.check()
    if not service.places.acquire(blocking=False):
        raise BusyError("As many requests are treated as are accepted.")
    try:
        with service.room.share() as share:
            wanted = read_request(service, share)
            return jsonify(answer(wanted, treat(service, wanted, deadline)))
    finally:
        service.places.release()


@blueprint.errorhandler(ClientDisconnectedError)
def on_gone(error: ClientDisconnectedError) -> ResponseReturnValue:
    """Nobody reads this answer."""
    return "", CLIENT_GONE


def read_request(service: Service, share: Reservation) -> ProcessRequest:
    """What a request wants; its bytes are held in `share`."""
    settings = service.settings
    body = read_body(request, int(settings.max_body_mb * 1e6), service.room, share)
    return parse_request(body, settings.max_documents, sampling_from(settings), settings.tiles)


def treat(service: Service, wanted: ProcessRequest, deadline: float) -> list[Outcome]:
    """Runs the documents through the pipeline."""
    about = service.about()
    service.jobs.change(g.job, documents=len(wanted.documents), model=about.model, device=about.device)
    contents = [content_of(document) for document in wanted.documents]
    progress = JobObserver(service, g.job, request.environ)
    return service.pipeline.run(
        contents, wanted.sampling, wanted.prompt, progress, deadline, wanted.rules, wanted.tiles
    )

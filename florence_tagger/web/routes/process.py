"""The route of the contract, POST /process, and the job of each request to it."""

import logging
import time
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

from flask import Blueprint, Response, g, jsonify, request
from flask.typing import ResponseReturnValue

from florence_tagger.assembly import sampling_from
from florence_tagger.context import Outcome, RequestContext, RequestObserver
from florence_tagger.errors import BusyError, ClientDisconnectedError
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
UNQUOTED = "".join(map(chr, range(32, 127))).replace("%", "")  # printable ASCII, except "%"

blueprint = Blueprint("process", __name__)


class JobObserver(RequestObserver):
    """Observer that records the progress of a request in its job."""

    def __init__(self, service: Service, uid: str) -> None:
        self._service = service
        self._uid = uid

    def on_start(self) -> None:
        """Set the status of the job to running."""
        self._service.jobs.run(self._uid)

    def on_frame_done(self) -> None:
        """Add one to the finished frames of the job."""
        self._service.jobs.count_frame(self._uid)

    def on_document_done(self, outcome: Outcome) -> None:
        """Add one to the finished documents of the job, and count the outcome in the metrics."""
        self._service.jobs.count_document(self._uid)
        self._service.metrics.count_document(outcome)


@blueprint.before_app_request
def open_job() -> None:
    """Open a job for every request to /process, also for one that is refused."""
    if request.path == PATH:
        g.job = current_service().jobs.open()
        job_id.set(g.job)


@blueprint.after_app_request
def end_job(response: Response) -> Response:
    """Record the end of the job in the answer's headers, the registry, the metrics and the log."""
    if (uid := g.pop("job", None)) is None:
        return response
    service = current_service()
    job = service.jobs.end(uid, status_of(response.status_code))
    service.metrics.count_request(response.status_code, job.seconds or 0.0)
    response.headers["X-Job-Id"] = uid
    if job.model:
        response.headers["X-Model"], response.headers["X-Device"] = quote_header(job.model), quote_header(job.device)
    logger.info(
        "%d, %s of %s documents done, %.3f s",
        response.status_code,
        job.documents_done,
        "?" if job.documents is None else job.documents,
        job.seconds,
    )
    return response


def quote_header(text: str) -> str:
    """Return a text for a header: percent-encoded if it is not ASCII, as the name of a model folder may be."""
    return quote(text, safe=UNQUOTED)


@blueprint.teardown_app_request
def forget_job(error: BaseException | None) -> None:
    """Clear the job of the thread, whose next log lines belong to another request."""
    job_id.set("")


def status_of(code: int) -> Status:
    """Return the final status of a job by the HTTP code of its answer."""
    if code == CLIENT_GONE:
        return "cancelled"
    return "done" if code == HTTPStatus.OK else "failed"


@blueprint.post(PATH)
def process() -> ResponseReturnValue:
    """Count the objects in the documents of a request, and return its envelope."""
    service = current_service()
    context = RequestContext(
        time.monotonic() + service.settings.request_seconds,
        partial(is_gone, request.environ),
        JobObserver(service, g.job),
    )
    service.scheduler.check()
    if not service.request_slots.acquire(blocking=False):
        raise BusyError("As many requests are treated as are accepted.")
    try:
        with service.byte_budget.reserve() as reservation:
            parsed = read_request(service, reservation)
            return jsonify(answer(parsed, run_pipeline(service, parsed, context)))
    finally:
        service.request_slots.release()


@blueprint.errorhandler(ClientDisconnectedError)
def on_disconnect(error: ClientDisconnectedError) -> ResponseReturnValue:
    """Return an empty answer, which is never sent; its code is for the log and the metrics."""
    return "", CLIENT_GONE


def read_request(service: Service, reservation: Reservation) -> ProcessRequest:
    """Return the parsed request; its bytes are held in `reservation`."""
    settings = service.settings
    body = read_body(request, int(settings.max_body_mb * 1e6), service.byte_budget, reservation)
    return parse_request(body, settings.max_documents, sampling_from(settings), settings.tiles)


def run_pipeline(service: Service, parsed: ProcessRequest, context: RequestContext) -> list[Outcome]:
    """Return the outcomes of the documents of a parsed request, in order."""
    model_info = service.model_info()
    service.jobs.change(g.job, documents=len(parsed.documents), model=model_info.model, device=model_info.device)
    contents = [content_of(document) for document in parsed.documents]
    return service.pipeline.run(contents, parsed.sampling, parsed.prompt, context, parsed.rules, parsed.tiles)

"""The route of the contract: POST /process."""

import logging
import time

from flask import Blueprint, Request, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import RequestEntityTooLarge

from florence_tagger.config import Settings
from florence_tagger.errors import BusyError, NotReadyError
from florence_tagger.media.limits import Sampling
from florence_tagger.pipeline import Outcome
from florence_tagger.web.envelope import answer
from florence_tagger.web.request import ProcessRequest, content_of, parse_request
from florence_tagger.web.service import Service, current_service

logger = logging.getLogger(__name__)

blueprint = Blueprint("process", __name__)


@blueprint.post("/process")
def process() -> ResponseReturnValue:
    """Counts the objects in the documents of an envelope."""
    service = current_service()
    if not service.batcher.ready:
        raise NotReadyError("The model is not ready yet; /health-check tells when it is.")
    if not service.places.acquire(blocking=False):
        raise BusyError("As many requests are treated as are accepted.")
    try:
        body = read_body(request, int(service.settings.max_body_mb * 1e6))
        wanted = parse_request(body, service.settings.max_documents, sampling_of(service.settings))
        return jsonify(answer(wanted, treat(service, wanted)))
    finally:
        service.places.release()


def sampling_of(settings: Settings) -> Sampling:
    """How videos are sampled where a request asks for no less."""
    return Sampling(settings.video_fps, settings.video_max_frames, settings.video_max_seconds)


def read_body(sent: Request, most: int) -> bytes:
    """The body of a request; 413 where it is longer than `most` bytes, which a chunked one only shows at its end."""
    if sent.content_length is not None and sent.content_length > most:
        body_too_large(most)
    body = sent.stream.read(most + 1)
    if len(body) > most:
        body_too_large(most)
    return body


def body_too_large(most: int) -> None:
    raise RequestEntityTooLarge(f"The body is larger than {most / 1e6:g} MB, the most for one request.")


def treat(service: Service, wanted: ProcessRequest) -> list[Outcome]:
    """Runs the documents through the pipeline as a job."""
    started = time.monotonic()
    uid = service.jobs.start(len(wanted.documents))
    try:
        contents = [content_of(document) for document in wanted.documents]
        outcomes = service.pipeline.run(
            contents, wanted.sampling, wanted.prompt, on_done=lambda: service.jobs.count_done(uid)
        )
    except Exception:
        service.jobs.end(uid, "failed", time.monotonic() - started)
        raise
    seconds = time.monotonic() - started
    service.jobs.end(uid, "done", seconds)
    untreated = sum(isinstance(outcome, Exception) for outcome in outcomes)
    logger.info("job %s: %d documents, %d untreated, %.3f s", uid, len(outcomes), untreated, seconds)
    return outcomes

"""The route of the contract: POST /process."""

import logging
import time

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from florence_tagger.errors import NotReadyError
from florence_tagger.pipeline import Outcome
from florence_tagger.web.envelope import ProcessRequest, answer, content_of, parse_request
from florence_tagger.web.service import Service, current_service

logger = logging.getLogger(__name__)

blueprint = Blueprint("process", __name__)


@blueprint.post("/process")
def process() -> ResponseReturnValue:
    """Counts the objects in the documents of an envelope."""
    service = current_service()
    if not service.batcher.ready:
        raise NotReadyError("The model is not ready yet; /health-check tells when it is.")
    wanted = parse_request(request.get_data(cache=False), service.settings.max_documents)
    return jsonify(answer(wanted, treat(service, wanted)))


def treat(service: Service, wanted: ProcessRequest) -> list[Outcome]:
    """Runs the documents through the pipeline as a job."""
    started = time.monotonic()
    uid = service.jobs.start(len(wanted.documents))
    try:
        contents = [content_of(document) for document in wanted.documents]
        outcomes = service.pipeline.run(contents, on_done=lambda: service.jobs.count_done(uid))
    except Exception:
        service.jobs.end(uid, "failed")
        raise
    service.jobs.end(uid, "done")
    untreated = sum(isinstance(outcome, Exception) for outcome in outcomes)
    logger.info("job %s: %d documents, %d untreated, %.3f s", uid, len(outcomes), untreated, time.monotonic() - started)
    return outcomes

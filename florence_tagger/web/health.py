"""The routes that tell how the service is: /test, /health-check and /work/status."""

from http import HTTPStatus

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from florence_tagger.errors import NOT_READY
from florence_tagger.web.service import current_service

blueprint = Blueprint("health", __name__)


@blueprint.get("/test")
def test() -> ResponseReturnValue:
    """Whether HTTP works."""
    return jsonify({"test endpoint is": "OK"})


@blueprint.get("/health-check")
def health_check() -> ResponseReturnValue:
    """Whether documents can be treated: 503 while the model loads and when it hangs."""
    service = current_service()
    batcher = service.batcher
    if batcher.busy_seconds > service.settings.hang_seconds:
        message = f"The model has not answered for {batcher.busy_seconds:.0f} s."
        return jsonify(message=message), HTTPStatus.SERVICE_UNAVAILABLE
    if not batcher.ready:
        return jsonify(message=NOT_READY), HTTPStatus.SERVICE_UNAVAILABLE
    return jsonify(message="OK")


@blueprint.get("/work/status")
def work_status() -> ResponseReturnValue:
    """The jobs by their ids, the newest first; `?id=` gives one."""
    jobs = current_service().jobs
    uid = request.args.get("id")
    if uid is None:
        return jsonify(jobs.all())
    job = jobs.one(uid)
    if job is None:
        raise NotFound(f"There is no job {uid}.")
    return jsonify(job)

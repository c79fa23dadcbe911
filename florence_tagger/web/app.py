"""The Flask application: its routes, and the envelope of every error."""

import hmac
import logging
import os
from collections.abc import Callable
from http import HTTPStatus

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, Unauthorized, UnsupportedMediaType

from florence_tagger.assembly import build_pipeline
from florence_tagger.config import Settings
from florence_tagger.errors import BodyTimeoutError, BusyError, NotReadyError, RequestError, TooManyDocumentsError
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.scheduler import Scheduler
from florence_tagger.web.body import ByteBudget
from florence_tagger.web.content_encoding import ACCEPTED
from florence_tagger.web.envelope import failure
from florence_tagger.web.metrics import Metrics
from florence_tagger.web.routes import openapi, page, process, status
from florence_tagger.web.state import ModelInfo, Service, install, request_slots_for

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1
PROTECTED = ("/process", "/work/status", "/metrics")  # by the API key, if one is set

# Of every answer. Other sites' pages have no access: there are no Access-Control headers (CORS), framing is forbidden,
# and JSON is never interpreted as another type. A route that needs more of a browser overrides these headers.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# The HTTP status of each error of a whole request; Flask calls the handler of the closest base class.
STATUS_OF_ERROR: dict[type[Exception], HTTPStatus] = {
    RequestError: HTTPStatus.BAD_REQUEST,
    TooManyDocumentsError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    BodyTimeoutError: HTTPStatus.REQUEST_TIMEOUT,
    NotReadyError: HTTPStatus.SERVICE_UNAVAILABLE,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
}


def create_app(
    settings: Settings,
    decoders: DecoderPool,
    scheduler: Scheduler,
    metrics: Metrics | None = None,
    model_info: Callable[[], ModelInfo] = ModelInfo,
) -> Flask:
    """Return the application for the model that `scheduler` loads and the frames that `decoders` decode.

    Args:
        settings: of the service.
        decoders: decode the files.
        scheduler: runs the model.
        metrics: of the service; new ones by default.
        model_info: returns the model and its devices, which are known once the model is loaded.

    Raises:
        SettingsError: the file of aliases can't be used.
    """
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = app.url_map.redirect_defaults = False  # a redirect would echo the header Host
    app.json.sort_keys = False  # type: ignore[attr-defined]  # jobs are ordered by age
    metrics = metrics or Metrics()
    pipeline = build_pipeline(settings, decoders, scheduler, metrics)
    request_slots = request_slots_for(settings.http_threads)
    byte_budget = ByteBudget(int(settings.queue_mb * 1e6))
    service = Service(settings, scheduler, pipeline, request_slots, byte_budget, metrics, model_info)
    install(app, service)
    metrics.register(status.gauges_for(service))
    app.register_blueprint(process.blueprint)
    app.register_blueprint(status.blueprint)
    app.register_blueprint(openapi.blueprint_for(settings))
    app.register_blueprint(page.blueprint)
    if not settings.api_key:
        logger.warning("No API key is set (FLORENCE_API_KEY): whoever reaches the port may send documents.")
    app.after_request(add_security_headers)
    app.before_request(lambda: check_key(settings.api_key))
    register_error_handlers(app)
    return app


def register_error_handlers(app: Flask) -> None:
    """Answer every error in the envelope."""
    for error in STATUS_OF_ERROR:
        app.register_error_handler(error, on_request_error)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(MethodNotAllowed, on_wrong_method)
    app.register_error_handler(NotFound, on_unknown_path)
    app.register_error_handler(UnsupportedMediaType, on_unknown_encoding)
    app.register_error_handler(Exception, on_unexpected_error)


def check_key(api_key: str) -> None:
    """Raise Unauthorized (401) if a key is set and a request to a protected route lacks it."""
    sent_key = request.headers.get("X-API-Key", "").encode("latin-1")  # the bytes on the wire: WSGI decodes as latin-1
    if api_key and request.path in PROTECTED and not hmac.compare_digest(sent_key, os.fsencode(api_key)):
        raise Unauthorized("The header X-API-Key with the service's key is needed.")


def add_security_headers(response: Response) -> Response:
    """Add the headers that restrict what browsers do with an answer, unless the route has set them."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def error_response(status: HTTPStatus, error: str) -> Response:
    """Return the envelope of an error as a response."""
    response = jsonify(failure(status, error))
    response.status_code = status
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def on_request_error(error: Exception) -> Response:
    """Return the envelope of an error in `STATUS_OF_ERROR`."""
    status = next(STATUS_OF_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_OF_ERROR)
    return error_response(status, str(error))


def on_http_error(error: HTTPException) -> Response:
    """Return the envelope of an error that Flask or a route raises."""
    return error_response(HTTPStatus(error.code or 500), error.description or "")


def on_wrong_method(error: MethodNotAllowed) -> Response:
    """Return the envelope of 405, with the allowed methods."""
    allowed = ", ".join(sorted(error.valid_methods or ()))
    response = error_response(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {allowed}, not {request.method}.")
    response.headers["Allow"] = allowed
    return response


def on_unknown_path(error: NotFound) -> Response:
    """Return the envelope of 404."""
    if request.routing_exception is None:  # raised by a route
        return on_http_error(error)
    return error_response(HTTPStatus.NOT_FOUND, f"There is no {request.path}; documents go to /process.")


def on_unknown_encoding(error: UnsupportedMediaType) -> Response:
    """Return the envelope of 415, with the accepted codings."""
    response = on_http_error(error)
    response.headers["Accept-Encoding"] = ACCEPTED  # RFC 7694, 3
    return response


def on_unexpected_error(error: Exception) -> Response:
    """Return the envelope of 500; log the traceback, which the answer does not contain."""
    logger.exception("A request failed", exc_info=error)
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed on this request; its log says how.")

"""The Flask application: its routes, and the envelope that every error comes in."""

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
PROTECTED = ("/process", "/work/status", "/metrics")  # by the API key, where one is set

# Of every answer. Another site's page is shown nothing: there are no Access-Control headers (CORS), nothing may be
# framed, and what is JSON is never read as something else. A route that needs more of a browser says so itself.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# What an error of the whole request means in HTTP; Flask takes the nearest class.
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
    about: Callable[[], ModelInfo] = ModelInfo,
) -> Flask:
    """The application on a model that `scheduler` loads, for frames that `decoders` make."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = app.url_map.redirect_defaults = False  # a redirect would repeat the header Host
    app.json.sort_keys = False  # type: ignore[attr-defined]  # jobs are the newest first
    metrics = metrics or Metrics()
    pipeline = build_pipeline(settings, decoders, scheduler, metrics)
    room = ByteBudget(int(settings.queue_mb * 1e6))
    service = Service(settings, scheduler, pipeline, request_slots_for(settings.http_threads), room, metrics, about)
    install(app, service)
    metrics.add(status.gauges_of(service))
    app.register_blueprint(process.blueprint)
    app.register_blueprint(status.blueprint)
    app.register_blueprint(openapi.blueprint_for(settings))
    app.register_blueprint(page.blueprint)
    if not settings.api_key:
        logger.warning("No API key is set (FLORENCE_API_KEY): whoever reaches the port may send documents.")
    app.after_request(secured)
    app.before_request(lambda: check_key(settings.api_key))
    for error in STATUS_OF_ERROR:
        app.register_error_handler(error, on_request_error)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(MethodNotAllowed, on_wrong_method)
    app.register_error_handler(NotFound, on_unknown_path)
    app.register_error_handler(UnsupportedMediaType, on_unknown_encoding)
    app.register_error_handler(Exception, on_unexpected_error)
    return app


def check_key(api_key: str) -> None:
    """401 where a key is set and a protected route is asked for without it."""
    given = request.headers.get("X-API-Key", "").encode("latin-1")  # what came over the wire, in WSGI's reading
    if api_key and request.path in PROTECTED and not hmac.compare_digest(given, os.fsencode(api_key)):
        raise Unauthorized("The header X-API-Key with the service's key is needed.")


def secured(response: Response) -> Response:
    """An answer with the headers that keep browsers from doing more with it than showing it."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def failed(status: HTTPStatus, error: str) -> Response:
    """The envelope of an error as a response."""
    response = jsonify(failure(status, error))
    response.status_code = status
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def on_request_error(error: Exception) -> Response:
    code = next(STATUS_OF_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_OF_ERROR)
    return failed(code, str(error))


def on_http_error(error: HTTPException) -> Response:
    return failed(HTTPStatus(error.code or 500), error.description or "")


def on_wrong_method(error: MethodNotAllowed) -> Response:
    allowed = ", ".join(sorted(error.valid_methods or ()))
    response = failed(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {allowed}, not {request.method}.")
    response.headers["Allow"] = allowed
    return response


def on_unknown_path(error: NotFound) -> Response:
    if request.routing_exception is None:  # a route's own word
        return on_http_error(error)
    return failed(HTTPStatus.NOT_FOUND, f"There is no {request.path}; documents go to /process.")


def on_unknown_encoding(error: UnsupportedMediaType) -> Response:
    response = on_http_error(error)
    response.headers["Accept-Encoding"] = ACCEPTED  # RFC 7694, 3
    return response


def on_unexpected_error(error: Exception) -> Response:
    """A fault of ours: the log has its trace, the answer has not."""
    logger.exception("A request failed", exc_info=error)
    return failed(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed on this request; its log says how.")

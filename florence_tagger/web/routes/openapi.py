"""The description of the service: the models of requests and answers -> /openapi.json, and a page that shows it, /docs.

pydantic makes the schemas; the few routes are told here. The page is Swagger UI, whose files are in `swagger`, so that
a browser asks no other host for anything.
"""

from typing import Any

from flask import Blueprint, Response, jsonify
from pydantic import TypeAdapter

from florence_tagger import __version__
from florence_tagger.assembly import sampling_from
from florence_tagger.config import Settings
from florence_tagger.web.envelope import IndexResponse
from florence_tagger.web.jobs import Job
from florence_tagger.web.parameters import body_type, schema_of

REF = "#/components/schemas/Index_Response"
KEY = "ApiKey"

# Swagger UI sets styles from its script and has its pictures in its style sheet.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Tagging API</title>
<link rel="stylesheet" href="/docs/swagger/swagger-ui.css">
<link rel="icon" href="data:,">
<div id="swagger-ui"></div>
<script src="/docs/swagger/swagger-ui-bundle.js"></script>
<script src="/docs/swagger/start.js"></script>
</html>
"""

FAILURES = {
    400: "The body is not JSON, has no list of documents, or a parameter has a value that is not accepted",
    401: "The header X-API-Key is missing or wrong",
    404: "There is no such job",
    405: "The path has no such method",
    408: "The body did not arrive in time",
    413: "The body is too large, or there are too many documents",
    414: "The address is too long",
    415: "The body's Content-Encoding is none of gzip, deflate and identity",
    500: "The service failed; its log says how",
    503: "The model is not ready, or too much waits already",
}
HEADERS = {
    405: {"Allow": {"description": "The methods of the path.", "schema": {"type": "string"}, "required": True}},
    415: {"Accept-Encoding": {"description": "What is accepted.", "schema": {"type": "string"}, "required": True}},
    503: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "required": True}},
}
JOB_HEADERS = {
    "X-Job-Id": {"description": "The request's job.", "schema": {"type": "string"}, "required": True},
    "X-Model": {"description": "The model that treats it, percent-encoded.", "schema": {"type": "string"}},
    "X-Device": {"description": "What that runs on, percent-encoded.", "schema": {"type": "string"}},
}
MESSAGE = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
JOB = TypeAdapter(Job).json_schema()
JOBS = {
    "type": "object",
    "description": "Jobs by their ids, the newest first.",
    "additionalProperties": JOB | {"required": list(JOB["properties"])},
}


def describe(settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a service with these settings."""
    request = schema_of(body_type(settings.max_documents, sampling_from(settings), settings.tiles))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tagging API",
            "version": __version__,
            "description": "Counts the objects in pictures and videos with a Florence-2 model.",
        },
        "paths": paths(protected=bool(settings.api_key)),
        "components": {
            "schemas": {
                "Index_Response": IndexResponse.model_json_schema(mode="serialization"),
                "Process_Request": request | {"title": "Process_Request"},
            }
        },
    }
    if settings.api_key:
        scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        document["components"] |= {"securitySchemes": {KEY: scheme}}
    return document


def paths(protected: bool) -> dict[str, Any]:
    """The routes; `protected` says whether an API key is set."""
    guard: dict[str, Any] = {"security": [{KEY: []}]} if protected else {}
    refused = (401,) if protected else ()
    return {
        "/test": {"get": operation("Health Check", "health_check_test_get", answer({"type": "object"}))},
        "/health-check": {
            "get": operation(
                "Health Check",
                "health_check_health_check_get",
                answer(MESSAGE) | {"503": response("The model is not ready, or hangs", MESSAGE)},
                description="200 where documents can be treated.",
            )
        },
        "/work/status": {
            "get": operation(
                "Status Handler",
                "status_handler_work_status_get",
                answer(JOBS) | failures(*refused, 404),
                parameters=[
                    {"name": "id", "in": "query", "description": "Only this job.", "schema": {"type": "string"}}
                ],
                **guard,
            )
        },
        "/process": {
            "post": operation(
                "Predict Image",
                "predict_image_process_post",
                answer({"$ref": REF}) | failures(400, *refused, 408, 413, 415, 503),
                headers=JOB_HEADERS,
                description="Counts the objects in documents. One that can't be treated does not hurt the others. The "
                "body may be compressed, with the header Content-Encoding: gzip or deflate.",
                requestBody={
                    "required": True,
                    "content": json_of({"$ref": "#/components/schemas/Process_Request"}),
                },
                **guard,
            )
        },
        "/metrics": {
            "get": operation(
                "Metrics",
                "metrics_get",
                {"200": {"description": "Successful Response", "content": {"text/plain": {}}}} | failures(*refused),
                description="Numbers of the service in the format of Prometheus.",
                **guard,
            )
        },
        "/openapi.json": {"get": operation("This description", "openapi_get", answer({"type": "object"}))},
    }


def operation(
    summary: str, identity: str, responses: dict[str, Any], headers: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A method of a path; any may fail, and refuse a method or a long address. `headers` come with each answer."""
    answers = responses | failures(405, 414, 500)
    if headers:
        answers = {code: one | {"headers": one.get("headers", {}) | headers} for code, one in answers.items()}
    return {"summary": summary, "operationId": identity, "responses": answers} | more


def answer(schema: dict[str, Any]) -> dict[str, Any]:
    """The success of an operation."""
    return {"200": response("Successful Response", schema)}


def failures(*codes: int) -> dict[str, Any]:
    """Errors of whole requests, each in the envelope."""
    headers = {code: {"headers": HEADERS[code]} if code in HEADERS else {} for code in codes}
    return {str(code): response(FAILURES[code], {"$ref": REF}) | headers[code] for code in codes}


def response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": json_of(schema)}


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def blueprint_for(settings: Settings) -> Blueprint:
    """The routes /openapi.json and /docs of a service with these settings."""
    blueprint = Blueprint("openapi", __name__, static_folder="swagger", static_url_path="/docs/swagger")
    document = describe(settings)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        """The description for programs."""
        return jsonify(document)

    @blueprint.get("/docs")
    def docs() -> Response:
        """The description for people."""
        return Response(DOCS_PAGE, mimetype="text/html", headers={"Content-Security-Policy": DOCS_POLICY})

    return blueprint

"""The web page `/`: static files, whose script sends requests to /process."""

from flask import Blueprint, Response, send_from_directory

from florence_tagger.config import SAMPLES

# Own files, and those that the browser makes of a chosen file (blob:). Scripts may not write markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

blueprint = Blueprint("page", __name__, static_folder="../page", static_url_path="/page")


@blueprint.get("/")
def page() -> Response:
    """Return the page."""
    response = send_from_directory(str(blueprint.static_folder), "index.html")
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.get("/page/samples/<name>")
def sample(name: str) -> Response:
    """Return a sample picture or video."""
    return send_from_directory(SAMPLES, name)

"""The page for people, `/`: files that are served as they are. What it shows it asks of /process, in the browser."""

from flask import Blueprint, Response, send_from_directory

from florence_tagger.config import SAMPLES

# Its own files, and what the browser itself makes of a file that was chosen (blob:). Scripts may not write markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

blueprint = Blueprint("page", __name__, static_folder="page", static_url_path="/page")


@blueprint.get("/")
def page() -> Response:
    """The page itself."""
    response = send_from_directory(str(blueprint.static_folder), "index.html")
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.get("/page/samples/<name>")
def sample(name: str) -> Response:
    """A picture or video to try it with."""
    return send_from_directory(SAMPLES, name)

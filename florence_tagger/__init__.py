"""Counts the objects in pictures and videos with a Florence-2 model on OpenVINO, here or over HTTP.

from florence_tagger import Tagger

with Tagger.load("ov_models/florence-2-tiny") as tagger:
    print(tagger.count("photo.jpg"))
"""

TYPE_CHECKING = False  # as type checkers take it; to import `typing` for it would be to load something
if TYPE_CHECKING:
    from florence_tagger.errors import DocumentError
    from florence_tagger.tagger import Tagger

__all__ = ["DocumentError", "Tagger", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`Tagger`, which loads OpenVINO, and what it raises, when they are first asked for."""
    if name == "Tagger":
        from florence_tagger.tagger import Tagger

        return Tagger
    if name == "DocumentError":
        from florence_tagger.errors import DocumentError

        return DocumentError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

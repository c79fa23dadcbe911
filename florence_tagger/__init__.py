"""Counts the objects in pictures and videos with a Florence-2 model on OpenVINO, here or over HTTP.

from florence_tagger import Tagger

with Tagger.load("ov_models/florence-2-tiny") as tagger:
    print(tagger.count("photo.jpg"))
"""

TYPE_CHECKING = False  # True for type checkers; importing `typing` for it would cost time
if TYPE_CHECKING:
    from florence_tagger.client import Client
    from florence_tagger.errors import (
        DocumentError,
        ModelError,
        NotReadyError,
        RequestError,
        SettingsError,
        TaggerError,
    )
    from florence_tagger.schemas import Detection, DocumentResult, FrameResult
    from florence_tagger.tagger import Tagger

__all__ = [
    "Client",
    "Detection",
    "DocumentError",
    "DocumentResult",
    "FrameResult",
    "ModelError",
    "NotReadyError",
    "RequestError",
    "SettingsError",
    "Tagger",
    "TaggerError",
    "__version__",
]
__version__ = "0.1.0"

# Of exported names; all others are in `errors`.
_MODULES = {"Tagger": "tagger", "Client": "client"} | dict.fromkeys(
    ("Detection", "DocumentResult", "FrameResult"), "schemas"
)


def __getattr__(name: str) -> object:
    """Import an exported name on first use, because `Tagger` loads OpenVINO."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

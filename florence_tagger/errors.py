"""Exceptions whose texts are shown to users. They are independent of HTTP: `web` assigns their status codes."""

from enum import StrEnum

# Reasons of the service, not of the document, why a document is not processed.
STOPPING = "The service is stopping."
RESTARTED = "The model hung, and is started anew."

NOT_READY = "The model is not ready yet."


class TaggerError(Exception):
    """Base of all errors of this package; its text can be shown to users."""


class SettingsError(TaggerError):
    """A setting has a value that is not accepted."""


class ModelError(TaggerError):
    """A model folder can't be used: it is missing, incomplete, or not supported on the chosen device."""


class DeviceError(ModelError):
    """A graph can't run on a device; it may run on another one."""


class RequestError(TaggerError):
    """A whole request can't be processed; the text has the error and the accepted values."""


class TooManyDocumentsError(RequestError):
    """A request has more documents than the settings allow."""


class Reason(StrEnum):
    """Category of the reason why a document is not processed; few, because they are labels of a metric."""

    CONTENT = "content"  # not a document, not base64, or too large
    FILE = "file"  # not accepted, damaged, or too expensive to decode
    LATE = "late"  # the request's deadline has passed
    MODEL = "model"  # it failed, hung, or does not support the task
    STOPPING = "stopping"


class DocumentError(TaggerError):
    """One document can't be processed; the others of the request can."""

    def __init__(self, text: str, reason: Reason = Reason.FILE) -> None:
        super().__init__(text)
        self.reason = reason


class NotReadyError(TaggerError):
    """The model is still loading, or could not be loaded."""


class BusyError(TaggerError):
    """The queue, the request slots or the bytes of bodies are at their limit."""


class BodyTimeoutError(TaggerError):
    """The body of a request did not arrive in time."""


class UnreachableError(TaggerError):
    """A service can't be reached."""


class ClientDisconnectedError(TaggerError):
    """The client has closed the connection before the answer."""

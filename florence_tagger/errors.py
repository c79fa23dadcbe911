"""What can go wrong, in words for the people concerned. These errors know no HTTP: `web` gives them their codes."""

from enum import StrEnum

# Why a document is untreated that another time would not be.
STOPPING = "The service is stopping."
STARTED_ANEW = "The model hung, and is started anew."

NOT_READY = "The model is not ready yet."


class TaggerError(Exception):
    """Base of all errors of this package; its text is fit to be shown."""


class SettingsError(TaggerError):
    """A setting has a value that is not accepted."""


class ModelError(TaggerError):
    """A model folder can't be used: missing, incomplete, or not for the chosen device."""


class DeviceError(ModelError):
    """A graph can't run on a device; another one may take it."""


class RequestError(TaggerError):
    """A whole request can't be treated; says what was wrong and what is accepted."""


class TooManyDocumentsError(RequestError):
    """A request has more documents than the settings allow."""


class Reason(StrEnum):
    """The kinds of reasons why a document is not treated; few, so that they can be counted."""

    CONTENT = "content"  # no document, no base64, or too large
    FILE = "file"  # not accepted, damaged, or too much to decode
    LATE = "late"  # the request's deadline came
    MODEL = "model"  # it failed, hung, or can't be asked this
    STOPPING = "stopping"


class DocumentError(TaggerError):
    """One document can't be treated; its neighbours can."""

    def __init__(self, text: str, reason: Reason = Reason.FILE) -> None:
        super().__init__(text)
        self.reason = reason


class NotReadyError(TaggerError):
    """The model is still loading, or could not be loaded."""


class BusyError(TaggerError):
    """As much waits as the settings allow."""


class BodyTimeoutError(TaggerError):
    """The body of a request did not arrive in time."""


class ClientDisconnectedError(TaggerError):
    """Nobody waits for the answer any more."""
